"""NumPy's files with Caffe's weights: bvlc_alexnet.npy, as caffe-tensorflow writes it, and .npz.

Filters lie as H, W, C, K and linear layers as in, out, where fc6's inputs are in the order H, W, C
(kaffe/transformers.py, DataReshaper); conv1 takes BGR. A .npy is a pickled dict of layers, each
[weights, biases] or a dict of both, and read without running it; a .npz has names like conv1_W.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from tinyalex.files import DamagedError, FileError
from tinyalex.interop.caffe import SHORTER_SIDE, turn_colours
from tinyalex.interop.means import IMAGENET_MEAN
from tinyalex.interop.names import LAYERS, as_float32
from tinyalex.interop.npy_files import read_header, stored_array
from tinyalex.interop.reading import Request
from tinyalex.interop.unpickling import NUMPY, PLAIN, unpickle
from tinyalex.interop.weights import Weights, check_shapes
from tinyalex.interop.zip_files import members_of
from tinyalex.models import VARIANTS

NAME = re.compile(rf"({'|'.join(LAYERS)})[._/]?(?:(W|weights?)|(b|bias|biases))(?:\.npy)?", re.I)
Arrays = dict[str, np.ndarray]


def read(request: Request) -> Weights:
    """Return the weights in a .npy or .npz file."""
    packed = request.file.read(2) == b"PK"
    request.file.seek(0)
    arrays: Arrays = {}
    for key, array in (_npz if packed else _npy)(request.file, request.size):
        match = NAME.fullmatch(key)
        place = f"{match[1].lower()}.{'weight' if match[2] else 'bias'}" if match else key
        if not match or place in arrays:
            raise FileError(f"it has the array {key!r} besides an AlexNet's, conv1 to fc8")
        arrays[place] = array
    name = request.variant or "caffe"
    own = {place: _turned(place, arrays) for place in sorted(arrays)}
    check_shapes({place: array.shape for place, array in own.items()}, name)
    own = {place: as_float32(array) for place, array in own.items()}
    turn_colours(own["conv1.weight"])
    notes = []
    if request.mean is None:
        notes.append("ImageNet's mean is subtracted, a number per colour")
    if request.variant is None:
        notes.append(
            "taken for bvlc_alexnet's; CaffeNet's have the same shapes: ask for 'caffenet'"
        )
    return Weights(
        own,
        variant=name,
        source="Caffe's weights in a NumPy file",
        mean=IMAGENET_MEAN,
        std=(1.0, 1.0, 1.0),
        resize="warp",
        shorter_side=SHORTER_SIDE,
        input_size=VARIANTS[name].input_size,
        layout="H, W, C, K",
        channels="BGR",
        notes=tuple(notes),
    )


def _turned(place: str, arrays: Arrays) -> np.ndarray:
    """Return an array with its axes as in `Weights`."""
    array = arrays[place]
    if array.dtype.kind != "f":
        raise FileError(f"{place} must have floating-point numbers, got {array.dtype}")
    if place.endswith("bias"):
        return array
    if place.startswith("conv"):
        if array.ndim != 4 or array.shape[0] != array.shape[1]:
            raise FileError(f"{place} of shape {array.shape} does not lie as H, W, C, K")
        return array.transpose(3, 2, 0, 1)
    if array.ndim != 2:
        raise FileError(f"{place} of shape {array.shape} has not 2 axes, in and out")
    if place == "fc6.weight" and "conv5.weight" in arrays:
        inputs, outputs = array.shape
        channels = (*arrays["conv5.weight"].shape, 1)[3] or 1
        side = math.isqrt(inputs // channels)
        if side * side * channels == inputs:
            pixels = array.reshape(side, side, channels, outputs)
            return pixels.transpose(3, 2, 0, 1).reshape(outputs, inputs)
    return array.T


def _npy(file: BinaryIO, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a pickled dict."""
    shape, _, dtype = read_header(file)
    if dtype.kind != "O" or shape != ():
        raise FileError(f"it has one array of shape {list(shape)}, a dict of layers is expected")
    found = unpickle(file, {**PLAIN, **NUMPY})
    layers = found.ravel()[0] if isinstance(found, np.ndarray) and found.size == 1 else None
    if not isinstance(layers, dict):
        raise FileError("it has no dict of layers")
    for layer, parts in layers.items():
        if isinstance(parts, (list, tuple)) and len(parts) == 2:
            parts = dict(zip(("weights", "biases"), parts, strict=True))
        if not isinstance(parts, dict):
            raise FileError(f"layer {layer!r} is neither [weights, biases] nor a dict of them")
        for part, array in parts.items():
            if not isinstance(array, np.ndarray):
                raise FileError(f"{part!r} of layer {layer!r} is no array")
            yield f"{_text(layer)}.{_text(part)}", array


def _npz(file: BinaryIO, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of an archive, which must not be compressed."""
    members = members_of(file, size)
    stored = {}
    for name, member in members.items():
        member.check(file)
        stored[name] = stored_array(file, member.position, member.size)
    if sum(math.prod(array.shape) for array in stored.values()) > size:
        raise DamagedError("its arrays have more numbers than it has bytes")
    for name, array in stored.items():
        yield name, array.read()


def _text(name: Any) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)
