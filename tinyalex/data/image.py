"""One image file to one array of RGB pixels, or one ImageError that says why not."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tinyalex.data.dataset import ImageError

# Pillow looks at the content, not the name, and some of its readers start other programs (EPS
# calls Ghostscript): only these are allowed.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif")

# A small file can claim to be a very large picture and fill the memory when it is decoded.
# The figure is Pillow's own: a quarter of a GiB at three bytes a pixel.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

# What is longer than this is cut to its centre before it is enlarged: a strip 20,000 x 10 would
# otherwise grow to 512,000 x 256.
MAX_ASPECT = 4

FAULTS_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.EIO)


def read_image(path: str | Path, shorter_side: int | None = None) -> np.ndarray:
    """Return the image in `path` as uint8 RGB [height, width, 3].

    JPEG, PNG, WebP, BMP and GIF (first frame) are read, whatever the file is called. The
    picture is turned upright as its EXIF tag says; grey, palette and CMYK become RGB; 16-bit
    grey is divided by 257; transparent parts are laid on white.

    `shorter_side` resizes as `resize_shorter_side` does, and lets a large JPEG be decoded at
    1/2, 1/4 or 1/8 of its size where that is still large enough: several times faster, and
    within a grey level or so of decoding it whole.

    Raises ImageError for anything that cannot be read in full, truncated files included: the
    grey bands of half a photograph are not training data. What is no fault of the image stays
    itself: MemoryError, and OSError for too many open files and for a disk that fails.
    """
    try:
        # Opening a named pipe would wait for ever, so the kind of file is asked first.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(path, "not a regular file")
        with open(path, "rb") as file:
            pixels = _decode(file, shorter_side)
        return pixels if shorter_side is None else resize_shorter_side(pixels, shorter_side)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(path, _unidentified(path)) from None
    except OSError as error:
        if error.errno in FAULTS_OF_THE_MACHINE:
            raise
        raise ImageError(path, error.strerror or str(error)) from error
    except Exception as error:  # decoders raise anything: SyntaxError, ValueError, struct.error
        raise ImageError(path, f"{type(error).__name__}: {error}") from error


def resize_shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 RGB `image` with its shorter side resized to `size` pixels (bilinear).

    The proportions stay, except that a picture more than 4 times as long as it is wide is first
    cut to the central 4:1 part.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    keep_y, keep_x = min(height, MAX_ASPECT * shorter), min(width, MAX_ASPECT * shorter)
    top, left = (height - keep_y) // 2, (width - keep_x) // 2
    kept = image[top : top + keep_y, left : left + keep_x]
    if kept.size < image.size:
        kept = kept.copy()  # and let the rest go
    if shorter == size:
        return kept
    new_size = (round(keep_x * size / shorter), round(keep_y * size / shorter))
    return np.asarray(Image.fromarray(kept).resize(new_size, Image.Resampling.BILINEAR))


def spare(image: np.ndarray, size: int) -> tuple[int, int]:
    """Return how many pixels `image` is higher and wider than `size`; ValueError if it is not."""
    height, width = image.shape[0] - size, image.shape[1] - size
    if height < 0 or width < 0:
        raise ValueError(
            f"cannot cut {size} x {size} pixels from an image of "
            f"{image.shape[0]} x {image.shape[1]}: load it larger"
        )
    return height, width


def central_square(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central `size` x `size` pixels; ValueError for an image that is smaller."""
    top, left = (extent // 2 for extent in spare(image, size))
    return image[top : top + size, left : left + size]


def _decode(file: BinaryIO, shorter_side: int | None) -> np.ndarray:
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        if shorter_side is not None:
            image.draft(None, (shorter_side, shorter_side))  # JPEG only; nothing for the others
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _unidentified(path: str | Path) -> str:
    if os.path.getsize(path) == 0:
        return "the file is empty"
    return f"not an image that can be read ({', '.join(FORMATS)})"
