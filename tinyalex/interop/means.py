"""Mean images and colours in the files of Caffe's networks.

Their colours are in the order blue, green, red; here they are turned to RGB. Rows and columns stand
in the order that the kind of file has: nothing in a mean image says which is which.
"""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from tinyalex.files import FileError, naming
from tinyalex.folders import open_regular
from tinyalex.interop.blobs import blob_array, blob_shape
from tinyalex.interop.matlab_files import read_variables
from tinyalex.interop.npy_files import read_npy
from tinyalex.interop.protobuf import Reader
from tinyalex.text import printable

IMAGENET_MEAN = (122.67891434, 116.66876762, 104.00698793)
"""Mean of the colours over Caffe's python/caffe/imagenet/ilsvrc_2012_mean.npy, as RGB.

train_val.prototxt of bvlc_reference_caffenet has it rounded: mean_value 104, 117, 123, as BGR.
"""

Mean = tuple[float, ...] | np.ndarray
"""Number per colour, or a float32 image [H, W, 3]; RGB, in 0..255."""


def read_mean(path: str | os.PathLike[str]) -> Mean:
    """Return the mean in a .binaryproto, .npy or .mat file.

    The bytes of the file decide, not its name. Raises FileError for what is no mean.
    """
    with naming(f"the mean {printable(path)}"), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(128) or b""
        file.seek(0)
        if head.startswith(b"\x93NUMPY"):
            return as_mean(read_npy(file, size, MOST_NUMBERS))
        if head.startswith(b"MATLAB"):
            return _from_matlab(read_variables(file, size))
        return as_mean(_from_blob(file, size))


MOST_NUMBERS = 3 * 1024 * 1024
"""Numbers of a mean image."""


def _from_blob(file: BinaryIO, size: int) -> np.ndarray:
    """Return the array in a .binaryproto file: one image, [1, 3, H, W]."""
    reader = Reader(file, size)
    blob = reader.fields(reader.whole)
    return blob_array(reader, blob, blob_shape(reader, blob))


def _from_matlab(variables: dict[str, np.ndarray]) -> Mean:
    """Return the mean in Caffe's ilsvrc_2012_mean.mat.

    "mean_data" is W x H x BGR; before May 2015 it was "image_mean", H x W x BGR (BVLC/caffe#2527).
    """
    orders = {"mean_data": (2, 1, 0), "image_mean": (2, 0, 1)}
    names = [name for name in variables if name in orders]
    if len(names) != 1:
        raise FileError(
            f"it has {', '.join(variables) or 'nothing'}; mean_data (W x H x BGR) or image_mean "
            "(H x W x BGR) is expected"
        )
    image = variables[names[0]]
    if image.ndim != 3 or image.dtype.kind not in "fiu":
        raise FileError(f"{names[0]} of shape {image.shape} is no image of three colours")
    return as_mean(image.transpose(orders[names[0]]))


def as_mean(mean: np.ndarray, order: str = "BGR") -> Mean:
    """Return the mean [3], [3, 1, 1] or [3, H, W] in BGR as RGB."""
    while mean.ndim > 3 and len(mean) == 1:
        mean = mean[0]
    if mean.dtype.kind not in "fiu" or mean.ndim not in (1, 3) or len(mean) != 3:
        raise FileError(
            f"an image [3, H, W] or three numbers are expected, in BGR; got {mean.dtype} of shape "
            f"{list(mean.shape)}"
        )
    if mean.ndim == 3 and mean.shape[1] != mean.shape[2]:
        raise FileError(f"its image of {mean.shape[2]} x {mean.shape[1]} pixels is not square")
    rgb = mean[::-1].astype(np.float32)
    if not (np.isfinite(rgb).all() and rgb.min() >= 0 and rgb.max() <= 255):
        raise FileError("its values must lie in 0..255")
    if 0 < rgb.max() <= 1:
        raise FileError("its values lie in 0..1; those of pixels in 0..255 are expected")
    colours = tuple(rgb.reshape(3, -1).mean(1, dtype=np.float64).tolist())
    check_order(colours, order)
    if rgb[0].size == 1:
        return colours
    return np.ascontiguousarray(rgb.transpose(1, 2, 0))


def check_order(colours: tuple[float, ...], expected: str = "BGR") -> None:
    """Raise FileError for ImageNet's mean colours in the wrong order."""
    if np.abs(np.subtract(colours, IMAGENET_MEAN[::-1])).max() < 4:
        raise FileError(
            f"its colours are those of ImageNet in the wrong order: {expected} is expected"
        )
