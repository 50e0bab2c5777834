"""Caffe's .caffemodel files, of all three generations of its format.

A file holds the whole network, layer by layer (src/caffe/proto/caffe.proto has the numbers of the
fields), and is read as that variant whose layers are the same, number for number. Caffe's networks
see pixels as blue, green, red: conv1 and the mean are turned to RGB here, once. So are images
stretched to a square before a square is cut from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tinyalex.files import FileError, naming
from tinyalex.interop.blobs import blob_array, blob_shape
from tinyalex.interop.layers import fitting
from tinyalex.interop.means import IMAGENET_MEAN, Mean, as_mean
from tinyalex.interop.protobuf import EMPTY, Fields, Reader, Run, Value
from tinyalex.interop.reading import Request
from tinyalex.interop.weights import Weights, array_names, check_shapes
from tinyalex.models import VARIANTS
from tinyalex.models.spec import LRN, Conv, Layer, Linear, Pool, ReLU

SHORTER_SIDE = 256
"""Pixels of the square that Caffe's examples stretch an image to."""


class Generation(NamedTuple):
    """Numbers of the fields of a layer."""

    title: str
    name: int
    type: int
    blobs: int
    messages: dict[str, int]
    """Messages with the settings of each kind of layer; the oldest layers had their own."""
    settings: dict[str, dict[str, int]]
    unread: dict[str, dict[int, int | None]]
    """Settings that an AlexNet has no use for, with the value that changes nothing, if any."""


SETTINGS = {
    "conv": {"padding": 3, "groups": 5, "stride": 6},
    "pool": {"method": 1, "kernel": 2, "stride": 3, "padding": 4},
    "norm": {"size": 1, "alpha": 2, "beta": 3, "k": 5},
    "data": {"scale": 1, "crop": 3, "mean": 5},
}
UNREAD: dict[str, dict[int, int | None]] = {
    "conv": {**dict.fromkeys(range(9, 15)), 18: 1},  # numbers per side; dilation
    "pool": {**dict.fromkeys(range(5, 11)), 12: 0},  # numbers per side; whole maps
    "norm": {4: 0},  # within channels
    "fc": {5: 1, 6: 0},  # axis; transposed
    "relu": {1: 0},  # slope below 0
}
V2 = Generation(
    *("layer", 1, 2, 7),
    {"conv": 106, "pool": 121, "norm": 118, "fc": 117, "relu": 123, "data": 100},
    SETTINGS,
    UNREAD,
)
V1 = Generation(
    *("layers", 4, 5, 6),
    {"conv": 10, "pool": 19, "norm": 18, "fc": 17, "relu": 30, "data": 36},
    SETTINGS,
    UNREAD,
)
V0 = Generation(
    *("layers.layer", 1, 2, 50),
    {},
    {
        "conv": {"padding": 7, "groups": 9, "stride": 10},
        "pool": {"method": 11, "kernel": 8, "stride": 10, "padding": 7},
        "norm": {"size": 13, "alpha": 14, "beta": 15, "k": 22},
        "data": {"scale": 17, "crop": 20},
        "padding": {"padding": 7},
    },
    {},
)
LAYER, LAYERS, LAYERS_LAYER = 100, 2, 1
"""Fields of a network that have layers of V2 and V1, and of such a layer that has one of V0."""

FLOATS = ("alpha", "beta", "k", "scale", "mean")
"""Settings that are no whole numbers."""

KINDS: dict[str | int, str] = {
    **dict.fromkeys(("Convolution", 4, "conv"), "conv"),
    **dict.fromkeys(("InnerProduct", 14, "innerproduct"), "fc"),
    **dict.fromkeys(("Pooling", 17, "pool"), "pool"),
    **dict.fromkeys(("LRN", 15, "lrn"), "norm"),
    **dict.fromkeys(("ReLU", 18, "relu"), "relu"),
    **dict.fromkeys(("Data", 5, "data", "ImageData", 12, "images"), "data"),
    "padding": "padding",
    **dict.fromkeys(("Input", "DummyData", 32, "MemoryData", 29, "HDF5Data", 9, "hdf5_data"), ""),
    **dict.fromkeys(("Dropout", 6, "dropout", "Split", 22, "split", "Silence", 36), ""),
    **dict.fromkeys(("Softmax", 20, "softmax", "SoftmaxWithLoss", 21, "softmax_loss"), ""),
    **dict.fromkeys(("Accuracy", 1, "accuracy"), ""),
}
"""Types of layers in the three generations; "" for those that change no answer."""


class Blob(NamedTuple):
    """Array in the file."""

    shape: tuple[int, ...]
    fields: Fields


class Net:
    """Network in a file: layers in our words, their arrays, its input."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.layers: list[tuple[str, Layer]] = []
        self.blobs: list[Blob] = []
        self.input: dict[str, Any] = {}
        self._padding = 0  # the oldest networks pad in a layer of its own
        top = reader.fields(reader.whole)
        self.name = reader.text(top[1][-1]) if 1 in top else ""
        for place in top.get(LAYERS, []):
            content = reader.fields(place)
            self.generation = V0 if LAYERS_LAYER in content else V1
            for one in content.get(LAYERS_LAYER, [place]):
                self._add(reader.fields(one), self.generation)
        for place in top.get(LAYER, []):
            self.generation = V2
            self._add(reader.fields(place), V2)
        if not self.layers:
            raise FileError("it has no layers")

    def _add(self, content: Fields, generation: Generation) -> None:
        name = self.reader.text(content.get(generation.name, [EMPTY])[-1])
        with naming(f"layer {name!r}"):
            self._translate(name, content, generation)

    def _translate(self, name: str, content: Fields, generation: Generation) -> None:
        """Add a layer in our words, and its arrays."""
        value = content.get(generation.type, [0])[-1]
        told = value if isinstance(value, int) else self.reader.text(value)
        kind = KINDS.get(told)
        if kind is None:
            raise FileError(f"an AlexNet has no layer of the type {told!r}")
        settings = self._settings(kind, content, generation)
        layer: Layer
        if kind == "conv":
            weight = self._blobs(content, generation, 4)
            if weight[2] != weight[3]:
                raise FileError(f"its filters of {weight[2]} x {weight[3]} pixels are not square")
            settings["padding"] = settings.get("padding", 0) + self._padding
            self._padding = 0
            layer = Conv(weight[0], weight[2], **settings)
        elif kind == "fc":
            layer = Linear(self._blobs(content, generation, 2)[0])
        elif kind == "pool":
            if settings.pop("method", 0) or settings.pop("padding", 0):
                raise FileError("it pools by another rule than the largest, or with padding")
            layer = Pool(settings.get("kernel", 0), settings.get("stride", 1))
        elif kind == "norm":
            layer = LRN(**{"alpha": 1.0, "k": 1.0, **settings})
        elif kind == "relu":
            layer = ReLU()
        else:
            self.input.update(settings if kind == "data" else {})
            self._padding = settings.get("padding", self._padding)
            return
        self.layers.append((name, layer))

    def _settings(self, kind: str, content: Fields, generation: Generation) -> dict[str, Any]:
        message = content
        if generation.messages:
            place = content.get(generation.messages.get(kind, 0), [EMPTY])[-1]
            message = self.reader.fields(place)
        for number, harmless in generation.unread.get(kind, {}).items():
            if number in message and set(self._numbers(message[number])) != {harmless}:
                raise FileError(f"it has settings that an AlexNet has not (field {number})")
        found = {}
        for name, number in generation.settings.get(kind, {}).items():
            if number in message:
                found[name] = self._setting(name, message[number])
        return found

    def _numbers(self, values: list[Value]) -> Iterable[float]:
        floats = isinstance(values[0], Run)
        return self.reader.floats(values, 4) if floats else self.reader.whole_numbers(values)

    def _setting(self, name: str, values: list[Value]) -> Any:
        if name in FLOATS:  # as they are written: 1e-4, where float32 has 9.99999975e-05
            numbers: list[Any] = [float(f"{x:.6g}") for x in self.reader.floats(values, 4)]
        else:
            numbers = self.reader.whole_numbers(values)
        if name == "mean" and len(numbers) == 3:
            return tuple(numbers)
        if len(set(numbers)) != 1:
            raise FileError(f"its {name} is {numbers}, where one number is expected")
        return numbers[0]

    def _blobs(self, content: Fields, generation: Generation, axes: int) -> tuple[int, ...]:
        """Keep a layer's weight and bias; return the weight's shape."""
        blobs = content.get(generation.blobs, [])
        if len(blobs) != 2:
            raise FileError(
                f"it has {len(blobs)} arrays, a weight and a bias are expected"
                + ("; bring the .caffemodel, not the description of the network" * (not blobs))
            )
        for blob, count in zip(blobs, (axes, 1), strict=True):
            message = self.reader.fields(blob)
            shape = blob_shape(self.reader, message)
            while len(shape) > count and shape[0] == 1:  # once all arrays had four axes
                shape = shape[1:]
            if len(shape) != count:
                raise FileError(f"its shape {shape} has not {count} axes")
            self.blobs.append(Blob(shape, message))
        return self.blobs[-2].shape


def read(request: Request) -> Weights:
    """Return the weights in a .caffemodel file."""
    reader = Reader(request.file, request.size)
    net = Net(reader)
    name = fitting(net.layers, request.variant)
    variant = VARIANTS[name]
    crop = net.input.get("crop", variant.input_size)
    if crop != variant.input_size:
        raise FileError(f"it takes {crop} pixels, the variant {name!r} {variant.input_size}")
    blobs = dict(zip(array_names(variant), net.blobs, strict=True))
    check_shapes({own: blob.shape for own, blob in blobs.items()}, name)
    arrays = {own: blob_array(reader, blob.fields, blob.shape) for own, blob in blobs.items()}
    turn_colours(arrays["conv1.weight"])
    scale = net.input.get("scale", 1.0)
    if not scale > 0:
        raise FileError(f"it multiplies pixels by {scale}")
    notes = [f"the format's layers are {net.generation.title!r}"]
    mean: Mean = IMAGENET_MEAN
    if "mean" in net.input:
        mean = as_mean(np.broadcast_to(net.input["mean"], 3))
    elif request.mean is None:
        notes.append("the file has no mean: ImageNet's is subtracted, a number per colour")
    return Weights(
        arrays,
        variant=name,
        source=f"Caffe's network {net.name!r}",
        mean=mean,
        std=(1 / scale,) * 3,
        resize="warp",
        shorter_side=SHORTER_SIDE,
        input_size=variant.input_size,
        channels="BGR",
        notes=tuple(notes),
    )


def turn_colours(weight: np.ndarray) -> None:
    """Turn filters [K, C, H, W] from BGR to RGB, in place."""
    if weight.shape[1] == 3:
        weight[:, [0, 2]] = weight[:, [2, 0]]
