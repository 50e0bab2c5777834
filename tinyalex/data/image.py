"""Decoding of image files to arrays of RGB pixels."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tinyalex.data.dataset import ImageError
from tinyalex.data.image_file import (
    MAX_PIXELS,
    FormatError,
    orientation_in,
    picture_of,
    read_file,
)
from tinyalex.text import printable

# Pillow looks at the content, not the name, and some of its readers start other programs (EPS
# calls Ghostscript): only these are allowed.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif")

# What is longer than this is cut to its centre before it is enlarged: a strip 20,000 x 10 would
# otherwise grow to 512,000 x 256.
MAX_ASPECT = 4

FAULTS_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of reading that are no file's fault: too many are open, or the memory is full."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpositions that turn a picture upright, by its EXIF orientation."""


def read_image(
    path: str | Path, shorter_side: int | None = None, resize: str = "shorter_side"
) -> np.ndarray:
    """Return the image in `path` as uint8 RGB [height, width, 3].

    JPEG, PNG, WebP, BMP and GIF (first frame) are read, whatever the file is called. The
    picture is turned upright as its EXIF or XMP tag says; grey, palette and CMYK become RGB; 16-bit
    grey is divided by 257; transparent parts are laid on white. All other metadata is ignored,
    whatever is wrong with it.

    `shorter_side` resizes by the rule `resize` of `RESIZES`, and lets a large JPEG be decoded at
    1/2, 1/4 or 1/8 of its size where that is still large enough: several times faster, and
    within a grey level or so of decoding it whole.

    Raises ImageError for anything that cannot be read in full: for truncated files, as the grey
    bands of half a photograph are not training data; for those that would take very long
    (`image_file.MAX_WORK`); for a disk that fails. What is no fault of the image stays itself, with
    the image's name: MemoryError, and OSError for too many open files.
    """
    return decode_image(read_bytes(path)[0], path, shorter_side, resize)


def read_bytes(path: str | Path) -> tuple[bytes, os.stat_result]:
    """Return bytes and status of an image file, for `decode_image`.

    Raises what that raises.
    """
    try:
        return read_file(path)
    except FormatError as error:
        raise ImageError(path, str(error)) from None
    except OSError as error:
        if error.errno in FAULTS_OF_THE_MACHINE:
            raise
        raise ImageError(path, error.strerror or str(error), lasting=False) from error
    except MemoryError:
        raise _out_of_memory(path) from None
    except ValueError as error:  # a name with a NUL
        raise ImageError(path, str(error)) from error


def decode_image(
    content: bytes,
    path: str | Path,
    shorter_side: int | None = None,
    resize: str = "shorter_side",
) -> np.ndarray:
    """Decode the bytes of a file as `read_image`; errors name `path`."""
    try:
        pixels = _decode(content, shorter_side)
        return pixels if shorter_side is None else resize_image(pixels, shorter_side, resize)
    except MemoryError:
        raise _out_of_memory(path) from None
    except UnidentifiedImageError:
        raise ImageError(path, _unidentified(content)) from None
    except (FormatError, OSError) as error:
        raise ImageError(path, str(error)) from error
    except Exception as error:  # decoders raise anything: SyntaxError, ValueError, struct.error
        raise ImageError(path, f"{type(error).__name__}: {error}") from error


def _out_of_memory(path: str | Path) -> MemoryError:
    return MemoryError(f"{printable(path)}: the memory does not suffice to decode it")


def resize_shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the shorter side of uint8 RGB `image` to `size` pixels (bilinear).

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
    return _bilinear(kept, round(keep_x * size / shorter), round(keep_y * size / shorter))


def warp(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch uint8 RGB `image` to a square (bilinear), as Caffe's tools do."""
    return _bilinear(image, size, size)


RESIZES = {"shorter_side": resize_shorter_side, "warp": warp}
"""Rules of resizing: keep the proportions, or give them up for a square."""


def check_resize(rule: str) -> None:
    """Raise ValueError for an unknown rule of resizing."""
    if rule not in RESIZES:
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}; got {rule!r}")


def resize_image(image: np.ndarray, size: int, rule: str = "shorter_side") -> np.ndarray:
    """Resize uint8 RGB `image` to `size` pixels by a rule of `RESIZES`."""
    check_resize(rule)
    return RESIZES[rule](image, size)


def _bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def spare(image: np.ndarray, size: int) -> tuple[int, int]:
    """Return the height and width of `image` beyond `size`; ValueError if smaller."""
    height, width = image.shape[0] - size, image.shape[1] - size
    if height < 0 or width < 0:
        raise ValueError(
            f"cannot cut {size} x {size} pixels from an image of "
            f"{image.shape[0]} x {image.shape[1]}: load it larger"
        )
    return height, width


def central_square(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central `size x size` pixels; ValueError if the image is smaller."""
    top, left = (extent // 2 for extent in spare(image, size))
    return image[top : top + size, left : left + size]


def _decode(content: bytes, shorter_side: int | None) -> np.ndarray:
    content, exif, xmp = picture_of(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise FormatError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        if shorter_side is not None:
            image.draft(None, (shorter_side, shorter_side))  # JPEG only; nothing for the others
        upright = UPRIGHT.get(orientation_in(exif, xmp))
        image.load()
        vars(image).pop("_decoder", None)  # of WebP, which holds two more pictures
        rgb = _to_rgb(image)
        return np.asarray(rgb if upright is None else rgb.transpose(upright))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255
        wide = np.asarray(image).astype(np.int64)
        wide[wide == image.info.get("transparency")] = 65535
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _unidentified(content: bytes) -> str:
    if not content:
        return "the file is empty"
    return f"not an image that can be read ({', '.join(FORMATS)})"
