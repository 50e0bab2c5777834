"""Image files for tests: ordinary, odd but readable, and broken ones."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def write(path: Path, colour=(120, 30, 60), size=(40, 30)) -> Path:
    """Write an image of one colour, of the kind that the name says; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def folder(root: Path, **counts: int) -> Path:
    """Write `counts[name]` images into each class folder of `root`."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            write(root / name / f"{i:03}.png", colour=(i, 2 * i, 100))
    return root


def red_and_blue() -> Image.Image:
    """Return 32 x 16 pixels, the left half red, the right half blue."""
    image = Image.new("RGB", (32, 16), BLUE)
    image.paste(RED, (0, 0, 16, 16))
    return image


# Odd but readable. Each writes its file and returns the RGB pixels that must come back.


def grey(path: Path) -> np.ndarray:
    """Write a greyscale JPEG."""
    image = red_and_blue().convert("L")
    image.save(path, "JPEG", quality=100)
    return np.asarray(image.convert("RGB"))


def grey_16_bit(path: Path) -> np.ndarray:
    """Write a ramp of 16-bit values, which are 257 times the 8-bit ones."""
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp * 257).save(path, "PNG")
    return np.repeat(ramp[..., None], 3, axis=2)


def one_bit(path: Path) -> np.ndarray:
    """Write black and white, one bit per pixel."""
    image = Image.fromarray(np.eye(16) > 0)
    image.save(path, "PNG")
    return np.asarray(image.convert("RGB"))


def cmyk(path: Path) -> np.ndarray:
    """Write a JPEG for the printing press."""
    red_and_blue().convert("CMYK").save(path, "JPEG", quality=100, subsampling=0)
    return np.asarray(red_and_blue())


def palette(path: Path) -> np.ndarray:
    """Write a GIF of two frames, of which the first counts."""
    frame = Image.new("RGB", (32, 16), RED)
    red_and_blue().save(path, "GIF", save_all=True, append_images=[frame])
    return np.asarray(red_and_blue())


def palette_with_alpha(path: Path) -> np.ndarray:
    """Write a palette PNG whose red is transparent, to be laid on white."""
    image = red_and_blue().quantize(4)
    red = image.getpixel((0, 0))
    image.save(path, "PNG", transparency=bytes(0 if i == red else 255 for i in range(4)))
    return _white_and_blue()


def rgba(path: Path) -> np.ndarray:
    """Write colour with an alpha channel, its red transparent."""
    alpha = Image.new("L", (32, 16), 255)
    alpha.paste(0, (0, 0, 16, 16))
    image = red_and_blue()
    image.putalpha(alpha)
    image.save(path, "WEBP", lossless=True, exact=True)
    return _white_and_blue()


def exif_rotated(path: Path) -> np.ndarray:
    """Write a photograph taken with the camera on its side: turn it clockwise to see it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    red_and_blue().save(path, "JPEG", quality=100, subsampling=0, exif=exif)
    return np.rot90(np.asarray(red_and_blue()), k=-1)


def bmp_named_jpg(path: Path) -> np.ndarray:
    """Write another format than the name says."""
    red_and_blue().save(path, "BMP")
    return np.asarray(red_and_blue())


def one_pixel(path: Path) -> np.ndarray:
    """Write an image of 1 x 1."""
    Image.new("RGB", (1, 1), RED).save(path, "PNG")
    return np.array([[RED]])


def grey_with_alpha(path: Path) -> np.ndarray:
    """Write grey with an alpha channel, its left half transparent."""
    image = red_and_blue().convert("LA")
    alpha = Image.new("L", (32, 16), 255)
    alpha.paste(0, (0, 0, 16, 16))
    image.putalpha(alpha)
    image.save(path, "PNG")
    pixels = np.asarray(red_and_blue().convert("L").convert("RGB")).copy()
    pixels[:, :16] = 255
    return pixels


def text_bomb(path: Path) -> np.ndarray:
    """Write a PNG with a comment that unpacks to 128 MB."""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
        + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**27)))
        + chunk(b"IDAT", zlib.compress(bytes(4)))
        + chunk(b"IEND", b"")
    )
    return np.zeros((1, 1, 3), np.uint8)


def _white_and_blue() -> np.ndarray:
    pixels = np.asarray(red_and_blue()).copy()
    pixels[:, :16] = 255
    return pixels


# Broken.


def text(path: Path) -> None:
    """Write a text file."""
    path.write_text("404 not found\n")


def web_page(path: Path) -> None:
    """Write what a server sends instead of an image that is gone."""
    path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")


def empty(path: Path) -> None:
    """Write a file of no bytes."""
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    """Write a JPEG that lost its last ten bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:-10])


def half_a_jpeg(path: Path) -> None:
    """Write the first half of a JPEG."""
    truncated(path)
    os.truncate(path, path.stat().st_size // 2)


def wrong_checksum(path: Path) -> None:
    """Write a PNG whose header does not match its checksum."""
    red_and_blue().save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[29] ^= 1  # the first byte of the checksum of IHDR
    path.write_bytes(content)


def header_only(path: Path) -> None:
    """Write the first bytes of a PNG."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n")


def svg(path: Path) -> None:
    """Write a drawing, which is text."""
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>')


def postscript(path: Path) -> None:
    """Write a format for which Pillow starts another program."""
    red_and_blue().save(path, "EPS")


def pixel_bomb(path: Path) -> None:
    """Write a PNG of a few hundred bytes that claims 20,000 x 20,000 pixels."""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def large_pixel_bomb(path: Path) -> None:
    """Write one of 10,000 x 10,000, over the limit and below the one where Pillow stops it."""
    Image.new("L", (10_000, 10_000)).save(path, "PNG", compress_level=1)


def pipe(path: Path) -> None:
    """Make a named pipe, which to open would wait for ever."""
    os.mkfifo(path)


def directory(path: Path) -> None:
    """Make a folder with the name of an image."""
    path.mkdir()


def dangling_link(path: Path) -> None:
    """Link to what is not there."""
    path.symlink_to(path.with_name("gone.jpg"))


def link_to_itself(path: Path) -> None:
    """Make a loop of links."""
    path.symlink_to(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


ODD = {  # name: how far a value may be off, for JPEG rounds
    grey: 2,
    grey_16_bit: 0,
    grey_with_alpha: 0,
    one_bit: 0,
    cmyk: 3,
    palette: 0,
    palette_with_alpha: 0,
    rgba: 0,
    exif_rotated: 3,
    bmp_named_jpg: 0,
    one_pixel: 0,
    text_bomb: 0,
}

BROKEN = {  # name: what the reason must say
    text: "not an image that can be read",
    web_page: "not an image that can be read",
    svg: "not an image that can be read",
    empty: "the file is empty",
    truncated: "truncated",
    half_a_jpeg: "truncated",
    wrong_checksum: "not an image that can be read",
    header_only: "not an image that can be read",
    postscript: "not an image that can be read",
    pixel_bomb: "decompression bomb",
    large_pixel_bomb: "10000 x 10000 pixels",
    pipe: "not a regular file",
    directory: "not a regular file",
    dangling_link: "No such file",
    link_to_itself: "Too many levels",
}
