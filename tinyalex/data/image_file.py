"""Image files as bytes, without metadata, and bounded in cost.

Pillow refuses some images for their texts, colour profiles or EXIF, and decodes others for minutes.
So what it sees here is the picture alone, and only one that takes seconds at most.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from tinyalex.folders import open_regular

# A small file can claim to be a very large picture and fill the memory when it is decoded.
# The figure is Pillow's own: a quarter of a GiB at three bytes a pixel.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

MAX_BYTES = 8 * MAX_PIXELS
"""The largest file: as many pixels of 16 bits in four channels, uncompressed."""

MAX_WORK = 10 * MAX_PIXELS
"""Pixels times passes over them: ten scans, as libjpeg writes by default, of the largest picture.

One takes 1 to 6 ns a pixel. An empty scan costs as much as a full one and takes 26 bytes of a file.
"""

RLE_PASSES = 100
"""Cost of a run-length BMP in scans of a JPEG: Pillow decodes it in Python."""

MAX_PARTS = 1_000_000
"""Segments or chunks of a file: one of 700 MB in the usual 8 kB each has 90,000."""

MAX_HEADER = 2**20
"""Bytes of a JPEG's tables in front of its picture; four of 64 kB would be many."""

MAX_TEXT = 2**20
"""Bytes of a PNG's text that are looked at for the orientation."""

ORIENTATION = 0x0112

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")

_SOS, _EOI, _COM, _APP0, _APP1, _APP14 = 0xDA, 0xD9, 0xFE, 0xE0, 0xE1, 0xEE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
# All that begins a segment or ends the picture: not stuffed or filling bytes, not RST, SOI or TEM.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


class FormatError(ValueError):
    """Image file that contradicts its format or costs too much."""


class Picture(NamedTuple):
    """Image file without metadata, and two parts with an orientation."""

    content: bytes
    exif: bytes = b""
    xmp: bytes = b""


def read_file(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """Return bytes and status of a regular file, from one handle.

    Raises OSError with the name of the file, FormatError for anything but a regular file, and for
    one of more than `MAX_BYTES`. Never waits for a pipe or a device.
    """
    try:
        with _open(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size > MAX_BYTES:
                raise FormatError(f"{status.st_size:,} bytes, more than {MAX_BYTES:,}")
            return file.read(status.st_size), status
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO):  # a folder, a socket
            raise FormatError("not a regular file") from None
        error.filename = os.fspath(path)
        raise


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    for _ in range(20):
        try:
            return open_regular(path)
        except BlockingIOError:  # another program's lease, which this asks back
            time.sleep(0.1)
    return open_regular(path)


def picture_of(content: bytes) -> Picture:
    """Return the picture in a file; FormatError if it costs too much."""
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content.startswith(_PNG):
        return _png(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp(content)
    if content.startswith(b"BM"):
        _check_bmp(content)
    if content.startswith(b"GIF8"):
        _check_gif(content)
    return Picture(content)


def orientation_in(exif: bytes, xmp: bytes) -> int:
    """Return the orientation, 1 to 8, from EXIF or else XMP.

    1 is upright, and the default.
    """
    try:
        found = _exif_orientation(exif)
    except struct.error:  # cut short, or never EXIF
        found = None
    if found is None and (match := re.search(rb"tiff:Orientation(?:=[\"']|>)([1-8])", xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):  # some programs write it twice
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
        if tag == ORIENTATION:
            form = {1: "B", 3: "H", 4: "I"}.get(kind)  # BYTE, SHORT (as it should be), LONG
            if form is None or values != 1:
                return None
            return int(struct.unpack_from(order + form, exif, entry + 8)[0])
    return None


def _jpeg(content: bytes) -> Picture:
    """Keep the tables, and the metadata about colours alone."""
    kept, exif, xmp = [b"\xff\xd8"], b"", b""
    progressive, components, height, width = False, 0, 0, 0
    room = MAX_HEADER
    for code, start, end in _segments(content, 2):
        body = content[start + 4 : end]
        if code == _SOS:
            # A sequential picture in a single scan cannot have a second one.
            if progressive or body[:1] != bytes([components]):
                _check_scans(content, start, width, height)
            return Picture(b"".join([*kept, memoryview(content)[start:]]), exif, xmp)
        if code == _APP1:
            if body.startswith(b"Exif\0\0"):
                exif = exif or body
            elif body.startswith(_XMP):
                xmp = xmp or body
        if code in _FRAMES and len(body) >= 6:
            progressive = code in _PROGRESSIVE
            height, width, components = struct.unpack_from(">HHB", body, 1)
        metadata = _APP0 <= code <= _APP0 + 15 or code == _COM
        if (
            not metadata
            or (code == _APP0 and len(body) >= 14 and body.startswith(b"JFIF\0"))
            or (code == _APP14 and len(body) >= 12 and body.startswith(b"Adobe"))
        ):
            kept.append(content[start:end])
            room -= end - start
            if room < 0:
                raise FormatError(f"more than {MAX_HEADER:,} bytes in front of the picture")
    raise FormatError("truncated in front of the picture")


def _segments(content: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each JPEG segment from `position` on."""
    for _ in range(MAX_PARTS):
        found = _MARKER.search(content, position)
        if found is None or content[found.start() + 1] == _EOI:
            return
        start = found.start()
        position = start + 2 + max(2, int.from_bytes(content[start + 2 : start + 4], "big"))
        yield content[start + 1], start, position
    raise FormatError(f"more than {MAX_PARTS:,} segments")


def _check_scans(content: bytes, start: int, width: int, height: int) -> None:
    scans = sum(code == _SOS for code, _, _ in _segments(content, start))
    allowed = MAX_WORK // max(1, width * height)
    if scans > allowed:
        raise FormatError(
            f"{scans:,} scans of {width} x {height} pixels, which would take too long "
            f"({allowed:,} are decoded)"
        )


def _png(content: bytes) -> Picture:
    """Keep the chunks of the picture, the first of each kind."""
    kept, exif, xmp = [content[:8]], b"", b""
    position = 8
    for _ in range(MAX_PARTS):
        kind = content[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if kind == b"tRNS":
            kept.append(_as_decoded(content[position:end], *content[24:26]))
        elif kind in _PNG_PICTURE:
            kept.append(content[position:end])
        elif kind == b"eXIf":
            exif = content[position + 8 : end - 4]
        elif kind in _PNG_TEXT:
            name, _, text = content[position + 8 : end - 4].partition(b"\0")
            if name == b"XML:com.adobe.xmp":
                xmp = _text(kind, text)
            elif name == b"Raw profile type exif":
                exif = exif or _from_hex(_text(kind, text))
        if kind == b"IEND" or not kind.isalpha():
            return Picture(b"".join(kept), exif, xmp)
        position = end
    raise FormatError(f"more than {MAX_PARTS:,} chunks")


def _as_decoded(chunk: bytes, depth: int, kind: int) -> bytes:
    """Return a tRNS chunk with its colour in 8 bits, as Pillow decodes.

    Of 16 bits of a colour that keeps the upper 8, also of the colours beside it. Grey of 16 bits
    stays.
    """
    values = chunk[8:-4]
    if zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != chunk[-4:] or len(values) % 2:
        return chunk
    numbers = struct.unpack(f">{len(values) // 2}H", values)
    if kind == 0 and depth in (2, 4):
        numbers = tuple(value % 2**depth * 255 // (2**depth - 1) for value in numbers)
    elif kind == 2 and depth == 16:
        numbers = tuple(value >> 8 for value in numbers)
    else:
        return chunk
    body = b"tRNS" + struct.pack(f">{len(numbers)}H", *numbers)
    return chunk[:4] + body + zlib.crc32(body).to_bytes(4, "big")


def _text(kind: bytes, text: bytes) -> bytes:
    """Return the beginning of the text in a PNG's text chunk."""
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = text[:1] == b"\1"
        text = b"\0" + text[2:].split(b"\0", 2)[-1]
    if not packed:
        return text[:MAX_TEXT].lstrip(b"\0")
    try:
        return zlib.decompressobj().decompress(text[1:], MAX_TEXT)
    except zlib.error:
        return b""


def _from_hex(profile: bytes) -> bytes:
    """Decode ImageMagick's form: a name, a length, and hexadecimal digits."""
    digits = b"".join(profile.split(b"\n")[3:])
    try:
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    except ValueError:
        return b""


def _webp(content: bytes) -> Picture:
    """Keep the chunks that make the picture, or pictures."""
    kept, exif, xmp, size = [b"WEBP"], b"", b"", 4
    position = 12
    for _ in range(MAX_PARTS):
        if position >= len(content):
            # The size is that of what should be there: a picture cut short must not pass for whole.
            head = struct.pack("<4sI", b"RIFF", min(size, 2**32 - 2))
            return Picture(b"".join([head, *kept]), exif, xmp)
        kind = content[position : position + 4]
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        end = position + 8 + length + length % 2
        if kind == b"EXIF":
            exif = content[position + 8 : end]
        elif kind == b"XMP ":
            xmp = content[position + 8 : end]
        elif kind != b"ICCP":
            kept.append(content[position:end])
            size += end - position
        position = end
    raise FormatError(f"more than {MAX_PARTS:,} chunks")


def _check_bmp(content: bytes) -> None:
    size, compression = (int.from_bytes(content[at : at + 4], "little") for at in (14, 30))
    if size == 12 or compression not in (1, 2):  # of OS/2 1.x, or other than RLE8 and RLE4
        return
    width, height = struct.unpack_from("<ii", content, 18)
    # One code can jump over 255 rows.
    pixels = abs(width) * (abs(height) + 255)
    if RLE_PASSES * max(pixels, len(content)) > MAX_WORK:
        raise FormatError(
            f"run lengths of {abs(width)} x {abs(height)} pixels in {len(content):,} bytes, which "
            "would take too long"
        )


def _check_gif(content: bytes) -> None:
    """Walk to the first picture, byte by byte and block by block.

    Pillow does the same.
    """
    colours = 3 << (content[10] & 7) + 1 if len(content) > 10 and content[10] & 0x80 else 0
    position, in_extension = 13 + colours, False
    for _ in range(MAX_PARTS):
        code = content[position : position + 1]
        if in_extension and code:
            position += 1 + code[0]
            in_extension = code[0] > 0
        elif code == b"!":
            position += 2
            in_extension = True
        elif code in (b",", b";", b""):
            return
        else:
            position += 1
    raise FormatError(f"more than {MAX_PARTS:,} blocks in front of the picture")
