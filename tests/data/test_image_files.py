"""Image files: ignored metadata, bounded decoding, and no waiting."""

import errno
import fcntl
import io
import os
import resource
import signal
import socket
import struct
import threading
import time
import tracemalloc
import zlib

import images
import numpy as np
import pytest
from helpers import finished, run_python
from PIL import Image, PngImagePlugin

from tinyalex.data import ImageError, read_image
from tinyalex.data.image_file import MAX_BYTES

LONG = b"x" * 2**21
"""What Pillow refuses of a text or a profile once it is unpacked, for it is more than 1 MB."""


def encoded(kind, **options):
    """Return the bytes of a file of 32 x 16 pixels, the left half red, the right half blue."""
    exact = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    buffer = io.BytesIO()
    images.red_and_blue().save(buffer, kind, **exact, **options)
    return buffer.getvalue()


def png(*chunks, behind=b""):
    """Return a PNG with more chunks in front of its picture, and behind it."""
    content = encoded("PNG")
    return content[:33] + b"".join(chunks) + content[33:-12] + behind + content[-12:]


def jpeg(*segments):
    """Return a JPEG with more segments, each a (marker, content), in front of its own."""
    added = (struct.pack(">BBH", 0xFF, code, 2 + len(body)) + body for code, body in segments)
    content = encoded("JPEG")
    return content[:2] + b"".join(added) + content[2:]


def spoilt(chunk):
    """Return a chunk of a PNG with a checksum that does not match."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


def exif_of(orientation, *entries, order="<"):
    """Return EXIF with an orientation, and with more entries (tag, type, count, value)."""
    rows = [*entries, (0x0112, 3, 1, orientation if order == "<" else orientation << 16)]
    body = b"".join(struct.pack(order + "HHII", *row) for row in rows)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IH", 8, len(rows)) + body + bytes(4)


# Exposure, a fraction of which only the place is there; XP title, text as integers: tags that
# Pillow reads and cannot write again.
UNWRITABLE = ((0x829A, 5, 1, 10**6), (0x9C9B, 9, 2**20, 10**6), (0x0100, 2, 4, 0xFFFFFFFF))
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
GARBAGE = b"Exif\0\0 no EXIF at all"
PROFILE = b"\nexif\n  99\n" + exif_of(6).hex().encode()

UPRIGHT = {
    "PNG, long text": png(
        images.chunk(b"tEXt", b"Comment\0" + LONG),
        images.chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG)),
    ),
    "PNG, long text behind": png(
        behind=images.chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG))
    ),
    "PNG, much text": png(*[images.chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG[: 2**20]))] * 80),
    "PNG, large profile": png(images.chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(LONG))),
    "PNG, broken profile": png(images.chunk(b"iCCP", b"sRGB\0\7 what is this")),
    "PNG, empty profile": png(images.chunk(b"iCCP", b"")),
    "PNG, unknown packing": png(images.chunk(b"zTXt", b"Comment\0\7text")),
    "PNG, short chunks": png(
        *(images.chunk(kind, b"\0") for kind in (b"gAMA", b"cHRM", b"pHYs", b"tIME", b"eXIf"))
    ),
    "PNG, wrong checksum of a text": png(spoilt(images.chunk(b"tEXt", b"Comment\0text"))),
    "PNG, broken animation": png(images.chunk(b"acTL", b"\0"), images.chunk(b"fcTL", bytes(26))),
    "PNG, garbage in EXIF": png(images.chunk(b"eXIf", GARBAGE)),
    "PNG, garbage in a raw profile": png(images.chunk(b"tEXt", b"Raw profile type exif\0xyz")),
    "PNG, garbage in XMP": png(images.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe")),
    "WebP, garbage in EXIF": encoded("WEBP", exif=GARBAGE),
    "WebP, garbage in profile and XMP": encoded("WEBP", icc_profile=b"?", xmp=b"\xff\xfe"),
    "WebP, cut off in EXIF": encoded("WEBP", exif=bytes(100), xmp=XMP)[:-100],
    "JPEG, garbage in EXIF": jpeg((0xE1, GARBAGE)),
    "JPEG, EXIF cut short": jpeg((0xE1, b"Exif\0\0" + exif_of(6)[:12])),
    "JPEG, EXIF of 65,535 entries": jpeg((0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),
    "JPEG, orientation 9": jpeg((0xE1, b"Exif\0\0" + exif_of(9))),
    "JPEG, short segments": jpeg(
        (0xE0, b"JFIF"), (0xEE, b"Adobe"), (0xED, b"Photoshop 3.0\0008BIM")
    ),
    "JPEG, broken list of pictures": jpeg((0xE2, b"MPF\0II*\0\xff\xff\xff\xff")),
    "JPEG, broken profile": jpeg((0xE2, b"ICC_PROFILE\0")),
    "JPEG, filling bytes": jpeg().replace(b"\xff\xdb", b"\xff\xff\xff\xff\xdb", 1),
    "GIF, long comment": encoded("GIF", comment=LONG),
    "GIF, bytes between blocks": encoded("GIF").replace(b",", bytes(9) + b"!\xfe\1x\0,", 1),
}

TURNED = {
    "JPEG": jpeg((0xE1, b"Exif\0\0" + exif_of(6))),
    "JPEG, twice the header": jpeg((0xE1, b"Exif\0\0Exif\0\0" + exif_of(6))),
    "JPEG, Motorola": jpeg((0xE1, b"Exif\0\0" + exif_of(6, order=">"))),
    "JPEG, unwritable": jpeg((0xE1, b"Exif\0\0" + exif_of(6, *UNWRITABLE))),
    "JPEG, XMP": jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "PNG": png(images.chunk(b"eXIf", exif_of(6))),
    "PNG, unwritable": png(images.chunk(b"eXIf", exif_of(6, *UNWRITABLE))),
    "PNG, behind": png(behind=images.chunk(b"eXIf", exif_of(6))),
    "PNG, raw profile": png(
        images.chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE))
    ),
    "PNG, XMP": png(images.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "WebP, unwritable": encoded("WEBP", exif=exif_of(6, *UNWRITABLE)),
    "WebP, XMP": encoded("WEBP", xmp=XMP),
}


def read(content, tmp_path, **options):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    return read_image(path, **options).astype(int)


@pytest.mark.parametrize("name", UPRIGHT)
def test_metadata_costs_no_image(name, tmp_path):
    expected = np.asarray(images.red_and_blue())
    assert np.abs(read(UPRIGHT[name], tmp_path) - expected).max() <= 3


@pytest.mark.parametrize("name", TURNED)
def test_only_the_orientation_is_taken_from_metadata(name, tmp_path):
    expected = np.rot90(np.asarray(images.red_and_blue()), k=-1)
    assert np.abs(read(TURNED[name], tmp_path) - expected).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation, tmp_path):
    image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "image.png", exif=exif)
    turned = {
        2: lambda pixels: pixels[:, ::-1],
        3: lambda pixels: pixels[::-1, ::-1],
        4: lambda pixels: pixels[::-1],
        5: lambda pixels: pixels.swapaxes(0, 1),
        6: lambda pixels: np.rot90(pixels, k=-1),
        7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90,
    }.get(orientation, lambda pixels: pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), turned(np.asarray(image)))


def test_a_text_bomb_stays_packed_and_pillow_s_limits_stay(tmp_path):
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    for name in (b"Comment", b"Raw profile type exif"):
        text = images.chunk(b"zTXt", name + b"\0\0" + zlib.compress(bytes(2**27)))
        (tmp_path / "bomb.png").write_bytes(png(text))
        tracemalloc.start()
        read_image(tmp_path / "bomb.png")
        assert tracemalloc.get_traced_memory()[1] < 8e6
        tracemalloc.stop()
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def scans(count, size, progressive=True):
    """Return a JPEG of so many scans, most of which say nothing new."""
    buffer = io.BytesIO()
    image = Image.new("RGB", size, (100, 50, 20))
    image.save(buffer, "JPEG", progressive=progressive, quality=50)
    content = buffer.getvalue()
    last = content[content.rfind(b"\xff\xda") : -2]
    more = count - content.count(b"\xff\xda")
    return content[:-2] + more * last + content[-2:]


def run_lengths(size, codes):
    """Return a BMP of run lengths."""
    colours = bytes(range(256))
    palette = b"".join(bytes((i, i ^ 1, i, 0)) for i in colours)
    head = struct.pack("<2sIII", b"BM", 1078 + len(codes), 0, 1078)
    info = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, len(codes), 0, 0, 256, 0)
    return head + info + palette + codes


COSTLY = {
    "3,000 scans": (scans(3000, (2000, 1500)), "3,000 scans of 2000 x 1500 pixels"),
    "run lengths": (run_lengths((3000, 3000), b"\1\5\0\0" * 3000), "run lengths of 3000 x 3000"),
    "a run over many rows": (run_lengths((10**6, 4), b"\0\2\xff\xff"), "run lengths of"),
    "tables": (jpeg(*[(0xDB, b"\0" + bytes(64))] * 16_000), "in front of the picture"),
    "segments": (b"\xff\xd8\xff" + b"\xff\xfe\0\2" * 1_000_001, "more than 1,000,000 segments"),
    "blocks": (encoded("GIF")[:13] + b"!\xfe" + b"\1x" * 1_000_001, "more than 1,000,000 blocks"),
    "bytes between blocks": (encoded("GIF")[:13] + b"\1" * 1_001_000, "more than 1,000,000 blocks"),
    "chunks": (png(images.chunk(b"IDAT", b"") * 1_000_001), "more than 1,000,000 chunks"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_take_long_is_refused_at_once(name, tmp_path):
    content, reason = COSTLY[name]
    (tmp_path / "image.jpg").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ImageError, match=reason):
        read_image(tmp_path / "image.jpg", 256)
    assert time.monotonic() - start < 3  # most of them take a hundredth


@pytest.mark.parametrize(
    "content", [scans(300, (64, 48)), scans(10, (64, 48)) + scans(3000, (9, 9))]
)
def test_many_scans_of_few_pixels_are_read(content, tmp_path):
    """Those of another picture behind the first, as a telephone adds it, do not count at all."""
    assert read(content, tmp_path).shape == (48, 64, 3)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "image.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match=r"715,827,881 bytes, more than 715,827,880"):
        read_image(tmp_path / "image.jpg")


def sockets(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    "make", [sockets, lambda path: path.symlink_to("/dev/zero")], ids=["socket", "device"]
)
def test_sockets_and_devices_are_no_images(make, tmp_path):
    make(tmp_path / "image.jpg")
    error = finished(read_image, tmp_path / "image.jpg")
    assert (type(error), error.reason) == (ImageError, "not a regular file")


def test_a_lease_is_waited_for(tmp_path):
    """As a file server holds them: to open the file at once is refused while it is asked back."""
    path = images.write(tmp_path / "image.png")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # which says that the lease is wanted
    with open(path, "rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        timer = threading.Timer(0.2, fcntl.fcntl, (file, fcntl.F_SETLEASE, fcntl.F_UNLCK))
        timer.start()
        assert read_image(path).shape == (30, 40, 3)
        timer.join()
    signal.signal(signal.SIGIO, before)


def test_a_disk_that_fails_is_a_reason(tmp_path, monkeypatch):
    """No test can make the disk fail, so the call that would fail is replaced."""

    def fail(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    monkeypatch.setattr("tinyalex.data.image_file.open_regular", fail)
    with pytest.raises(ImageError, match=r"image\.png: Stale file handle"):
        read_image(tmp_path / "image.png")


def test_too_many_open_files_are_no_fault_of_an_image(tmp_path):
    path = images.write(tmp_path / "good.png")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            read_image(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EMFILE, str(path))


def test_a_lack_of_memory_is_no_fault_of_an_image(tmp_path):
    Image.new("L", (9000, 9000)).save(tmp_path / "large.png", compress_level=1)
    code = f"""
import resource
from pathlib import Path
from tinyalex.data import read_image
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + 100_000_000
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    read_image({str(tmp_path / "large.png")!r})
except MemoryError as error:
    print(error)
"""
    assert run_python(code) == f"{tmp_path}/large.png: the memory does not suffice to decode it\n"


def keyed(depth, kind, raw, *key):
    """Return a PNG of 2 x 1 pixels of a depth and a colour type, and one colour transparent."""
    header = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    chunks = {
        b"IHDR": header,
        b"tRNS": struct.pack(f">{len(key)}H", *key),
        b"IDAT": zlib.compress(b"\0" + raw),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(images.chunk(*one) for one in chunks.items())


KEYED = {
    "grey, 1 bit, black": (keyed(1, 0, b"\x40", 0), 255),
    "grey, 1 bit, white": (keyed(1, 0, b"\x80", 1), 0),
    "grey, 2 bits": (keyed(2, 0, b"\x60", 1), 170),
    "grey, 4 bits": (keyed(4, 0, b"\x5a", 5), 170),
    "grey, 8 bits": (keyed(8, 0, b"\x10\xaa", 16), 170),
    "grey, 16 bits": (keyed(16, 0, b"\x03\xe8\xaa\xaa", 1000), 170),
    "grey, 16 bits, one apart": (keyed(16, 0, b"\x03\xe8\x03\xe9", 1000), 4),
    "colour, 8 bits": (keyed(8, 2, b"\x10\x20\x30\xaa\xaa\xaa", 16, 32, 48), 170),
    "colour, 16 bits": (keyed(16, 2, b"\x10\1\x20\2\x30\3" + b"\xaa" * 6, 4097, 8194, 12291), 170),
}


@pytest.mark.parametrize("name", KEYED)
def test_the_transparent_colour_is_laid_on_white_at_every_depth(name, tmp_path):
    content, other = KEYED[name]
    assert read(content, tmp_path).tolist() == [[[255] * 3, [other] * 3]]


@pytest.mark.parametrize(("kind", "most"), [("WEBP", 18), ("PNG", 15)])
def test_what_decoding_takes_for_each_pixel(kind, most, tmp_path):
    """Four bytes are a picture, and libwebp keeps two besides; of small ones little is seen."""
    path = tmp_path / "image"
    Image.new("RGBA", (4000, 4000), (9, 9, 9, 99)).save(path, kind, lossless=True, method=0)
    program = rf"""if True:
        import re
        from pathlib import Path
        from tinyalex.data import read_image
        def peak():
            return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
        before = peak()
        read_image({str(path)!r}, 256)
        print((peak() - before) / 16_000 * 1.024)
    """
    assert float(run_python(program)) < most
