"""MatConvNet's networks, which its import-caffe.py made of Caffe's: imagenet-caffe-alex, -ref.

Filters lie as H x W x C x K, fully connected layers are convolutions, and conv1 and the mean are
already turned to RGB. The mean image belongs to an image squeezed to the network's size, the mean
colour to one that is larger by the border and is cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyalex.files import FileError, naming
from tinyalex.interop.layers import Layers, fitting
from tinyalex.interop.matlab_files import read_variables
from tinyalex.interop.means import IMAGENET_MEAN, Mean, as_mean
from tinyalex.interop.reading import Request
from tinyalex.interop.weights import Weights, array_names, check_shapes
from tinyalex.models import VARIANTS
from tinyalex.models.spec import LRN, Conv, Linear, Pool, ReLU
from tinyalex.text import counted

FULLY_CONNECTED = 3
"""Convolutions at the end that stand for fully connected layers."""

KINDS = {"normalize": "lrn", "pooling": "pool", "softmaxloss": "softmax"}
"""Other names of types; DagNN's are dagnn.Conv, dagnn.ReLU, ..."""


def read(request: Request) -> Weights:
    """Return the weights in a .mat file of MatConvNet."""
    net = read_variables(request.file, request.size)
    if isinstance(net.get("net"), dict):
        net = net["net"]
    layers, arrays = _translate(list(_simple(net)))
    name = fitting(layers, request.variant)
    own = dict(zip(array_names(VARIANTS[name]), arrays, strict=True))
    shaped = {place: _shaped(place, own.pop(place)) for place in list(own)}
    check_shapes({place: array.shape for place, array in shaped.items()}, name)
    meta = net["meta"] if isinstance(net.get("meta"), dict) else net
    size = VARIANTS[name].input_size
    mean, shorter_side, keep_aspect = _preparation(meta.get("normalization"), size)
    notes = ["MatConvNet resizes images by bicubic interpolation"]
    if mean is None:
        mean, shorter_side = IMAGENET_MEAN, 256
    if mean is IMAGENET_MEAN and request.mean is None:
        notes.append("the file has no mean: ImageNet's is subtracted, a number per colour")
    classes = meta.get("classes")
    names = classes.get("description") if isinstance(classes, dict) else None
    if not isinstance(names, list) or len(names) != len(arrays[-1].ravel()):
        names = None
    return Weights(
        shaped,
        variant=name,
        source="MatConvNet's network",
        mean=mean,
        std=(1.0, 1.0, 1.0),
        resize="shorter_side" if keep_aspect else "warp",
        shorter_side=shorter_side,
        input_size=size,
        classes=[str(one) for one in names] if names else None,
        layout="H, W, C, K",
        notes=tuple(notes),
    )


def _simple(net: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the layers as SimpleNN has them, all in one struct."""
    layers = net.get("layers")
    params = net.get("params")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise FileError("it has no layers of MatConvNet")
    values = {}
    for param in params if isinstance(params, list) else []:
        if isinstance(param, dict):
            values[str(param.get("name"))] = param.get("value")
    for layer in layers:
        block = layer.get("block")
        if isinstance(block, dict):  # DagNN: settings in a block, weights by their names
            names = layer.get("params")
            own = [values.get(str(name)) for name in names] if isinstance(names, list) else []
            block = {"pool": block.get("poolSize"), **block}
            yield {**block, "name": layer.get("name"), "type": layer.get("type"), "weights": own}
        elif "filters" in layer:  # before 2015
            yield {**layer, "weights": [layer["filters"], layer.get("biases")]}
        else:
            yield layer


def _translate(theirs: list[dict[str, Any]]) -> tuple[Layers, list[np.ndarray]]:
    """Return layers in our words, and their weights and biases."""
    layers: Layers = []
    arrays: list[np.ndarray] = []
    weighted = sum(_kind(layer) == "conv" for layer in theirs)
    channels = 3
    for layer in theirs:
        name, kind = str(layer.get("name", "")), _kind(layer)
        with naming(f"layer {name!r}"):
            if kind == "conv":
                weight, bias = _weights(layer.get("weights"))
                inputs, outputs = weight.shape[2:]
                if _number(layer, "dilate", 1) != 1:
                    raise FileError("its filters are dilated")
                if len(arrays) < 2 * (weighted - FULLY_CONNECTED):
                    settings = _number(layer, "stride", 1), _number(layer, "pad", 0)
                    groups = channels // inputs if inputs and channels % inputs == 0 else 0
                    layers.append((name, Conv(outputs, len(weight), *settings, groups)))
                else:
                    layers.append((name, Linear(outputs)))
                arrays += [weight, bias]
                channels = outputs
            elif kind == "relu":
                if _number(layer, "leak", 0):
                    raise FileError("it lets negative values through")
                layers.append((name, ReLU()))
            elif kind == "lrn":
                size, k, alpha, beta = _numbers(layer.get("param"), 4)
                layers.append((name, LRN(float(f"{alpha * size:.6g}"), k, int(size), beta)))
            elif kind == "pool":
                if layer.get("method", "max") != "max" or _number(layer, "pad", 0):
                    raise FileError("it pools by another rule than the largest, or with padding")
                layers.append((name, Pool(_number(layer, "pool", 0), _number(layer, "stride", 1))))
            elif kind not in ("dropout", "softmax", "loss"):
                raise FileError(f"an AlexNet has no layer of the type {kind!r}")
    return layers, arrays


def _kind(layer: dict[str, Any]) -> str:
    kind = str(layer.get("type", "")).rpartition(".")[2].lower()
    return KINDS.get(kind, kind)


def _weights(pair: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return filters [H, W, C, K] and biases [K]."""
    if not isinstance(pair, list) or len(pair) != 2:
        raise FileError("a weight and a bias are expected")
    if not all(isinstance(array, np.ndarray) and 2 <= array.ndim <= 4 for array in pair):
        raise FileError("its weights are no arrays of H x W x C x K numbers")
    weight = pair[0].reshape(*pair[0].shape, *(1,) * (4 - pair[0].ndim))
    if weight.shape[0] != weight.shape[1]:
        raise FileError(f"its filters of {weight.shape[0]} x {weight.shape[1]} are not square")
    return weight, pair[1].ravel()


def _shaped(place: str, array: np.ndarray) -> np.ndarray:
    """Return an array as [K, C, H, W], [out, in] or [K]."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
        if place.startswith("fc"):
            array = array.reshape(len(array), -1)
    return np.ascontiguousarray(array)


def _numbers(values: Any, count: int | None = None) -> list[float]:
    numbers = values.ravel().tolist() if isinstance(values, np.ndarray) else []
    if not numbers or not np.isfinite(numbers).all() or count not in (None, len(numbers)):
        raise FileError(
            f"it has {counted(len(numbers), 'number')} where {count or 'some'} are expected"
        )
    return [float(f"{x:.6g}") for x in numbers]


def _number(layer: dict[str, Any], name: str, default: int) -> int:
    """Return a setting that is the same on all sides."""
    if layer.get(name) is None:
        return default
    sides = set(_numbers(layer[name]))
    if len(sides) != 1 or min(sides) % 1:
        raise FileError(f"its {name} is {sorted(sides)}, where one whole number is expected")
    return int(sides.pop())


def _preparation(settings: Any, size: int) -> tuple[Mean | None, int, bool]:
    """Return mean, size to resize to, and if aspects are kept."""
    if not isinstance(settings, dict):
        return None, 256, False
    keep_aspect = bool(_numbers(settings.get("keepAspect", np.zeros(1, np.float32)))[0])
    image = settings.get("averageImage")
    if not isinstance(image, np.ndarray) or image.size < 3:
        return None, 256, keep_aspect
    if image.ndim == 2:
        image = image.reshape(1, 1, -1)
    if image.ndim != 3:
        raise FileError(f"its averageImage of shape {image.shape} is no image")
    mean = as_mean(image.transpose(2, 0, 1)[::-1], "RGB")
    if not isinstance(mean, np.ndarray):
        border = _numbers(settings.get("border", np.full(1, 256 - size, np.float32)))
        return mean, size + int(border[0]), keep_aspect
    if len(mean) != size:
        raise FileError(f"its averageImage has {len(mean)} pixels, {size} are expected")
    return mean, size, keep_aspect
