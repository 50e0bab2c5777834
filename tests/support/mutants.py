"""Small image files of every format, spoilt at random from a seed."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tinyalex.data import ImageError

KINDS = (
    ("RGB", {"format": "JPEG"}),
    ("RGB", {"format": "JPEG", "progressive": True}),
    ("CMYK", {"format": "JPEG"}),
    ("L", {"format": "JPEG"}),
    ("RGB", {"format": "PNG"}),
    ("RGBA", {"format": "PNG"}),
    ("P", {"format": "PNG", "transparency": 0}),
    ("I;16", {"format": "PNG"}),
    ("RGB", {"format": "WEBP"}),
    ("RGBA", {"format": "WEBP", "lossless": True}),
    ("RGB", {"format": "BMP"}),
    ("P", {"format": "BMP"}),
    ("1", {"format": "BMP"}),
    ("P", {"format": "GIF"}),
)
PNG = b"\x89PNG\r\n\x1a\n"


def mutant(number: int) -> bytes:
    """Return the content of mutant `number`."""
    rng = np.random.default_rng((0, number))
    files = _originals()
    damage = DAMAGE[rng.integers(len(DAMAGE))]
    content = damage(files[rng.integers(len(files))], rng)
    # With a wrong checksum, a PNG would not even be decoded.
    return _with_right_checksums(content) if rng.integers(2) else content


def outcome(read: Callable[..., np.ndarray], path: Path, shorter_side: int | None) -> str:
    """Read an image file: "decoded" to RGB, "refused" by ImageError, or what went wrong instead."""
    try:
        pixels = read(path, shorter_side)
    except ImageError:
        return "refused"
    except Exception as error:
        return type(error).__name__
    match pixels:
        case np.ndarray(dtype=np.uint8, shape=(height, width, 3)) if height and width:
            return "decoded"
    return "not RGB"


@functools.cache
def _originals() -> list[bytes]:
    """Return two files of each kind, one with an EXIF tag and more frames, if it can have them."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((24, 18))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    files = []
    for mode, options in KINDS:
        image = noise.convert("L" if mode == "I;16" else mode).convert(mode)
        many = options["format"] in ("PNG", "WEBP", "GIF")
        frames = {"save_all": many, "append_images": [image.rotate(180)]}
        for more in ({}, {"exif": exif, **frames}):
            file = io.BytesIO()
            image.save(file, **options, **more)
            files.append(file.getvalue())
    return list(dict.fromkeys(files))


# --- ways to spoil a file ---


def _change(content: bytes, rng: np.random.Generator) -> bytes:
    """Change up to eight bytes."""
    changed = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 9)) if content else ():
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def _truncate(content: bytes, rng: np.random.Generator) -> bytes:
    """Lose the end."""
    return content[: rng.integers(len(content) + 1)]


def _insert(content: bytes, rng: np.random.Generator) -> bytes:
    """Put up to 64 bytes in between."""
    place = rng.integers(len(content) + 1)
    return content[:place] + rng.bytes(rng.integers(1, 65)) + content[place:]


def _swap(content: bytes, rng: np.random.Generator) -> bytes:
    """Let two neighbouring pieces change places."""
    a, b, c = np.sort(rng.integers(len(content) + 1, size=3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


DAMAGE = (_change, _truncate, _insert, _swap)


def _with_right_checksums(content: bytes) -> bytes:
    """Return a PNG whose chunks, as far as they can be told apart, have the checksum they need."""
    if not content.startswith(PNG):
        return content
    mended, place = bytearray(content), len(PNG)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 8 + length
        if end + 4 > len(content):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(content[place + 4 : end]))
        place = end + 4
    return bytes(mended)
