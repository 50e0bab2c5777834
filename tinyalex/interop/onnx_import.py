"""ONNX in: the zoo's bvlcalexnet, exports, quantised twins.

The graph decides the variant: its steps must be those of one variant, numbers included. Whether
the colours are BGR is in no graph. Files from Caffe are (https://github.com/BVLC/caffe/wiki/
Image-Format:-BGR-not-RGB); for the zoo's, its README cites the program that measured 54.80 %
(intel/neural-compressor, examples/onnxrt/image_recognition/onnx_model_zoo/alexnet): both sides
resized to 224, BGR minus (103.939, 116.779, 123.68). All other files are taken as RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyalex.files import DamagedError, FileError
from tinyalex.folders import open_regular
from tinyalex.interop.description import KEY, described
from tinyalex.interop.means import IMAGENET_MEAN
from tinyalex.interop.onnx_graph import Graph
from tinyalex.interop.onnx_nodes import Maps, MisfitError
from tinyalex.interop.onnx_steps import SCALE, SOFTMAX, Step, steps_of
from tinyalex.interop.reading import Request
from tinyalex.interop.weights import Weights, array_names
from tinyalex.models import VARIANTS
from tinyalex.optional import borrowed
from tinyalex.text import counted

LARGEST = 2**31 - 1
"""Bytes of a file: what protobuf allows."""

GROWTH = 6
"""Bytes that constants may unfold to, per byte of the file: from 8 bits to float32, and copies."""

CAFFE_MEAN = (123.68, 116.779, 103.939)
"""Mean colour, RGB, with which the zoo's bvlcalexnet was measured."""


def read(request: Request) -> Weights:
    """Read the weights of an AlexNet."""
    with borrowed("onnx"):
        import onnx
    if request.size > LARGEST:
        raise FileError(f"it has {request.size:,} bytes, an ONNX file at most {LARGEST:,}")
    try:
        model = onnx.load_model_from_string(request.file.read(request.size))
    except Exception as error:  # protobuf's own class, and it lacks a stable place
        raise DamagedError(f"it is damaged, or no ONNX file ({error})") from error
    if model.functions or model.graph.sparse_initializer:
        raise FileError("functions and sparse weights are not read; inline them with onnx.inliner")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    options = described(metadata[KEY]) if KEY in metadata else {}
    load = _loader(Path(request.name).parent)
    graph = Graph(model, load, GROWTH * request.size + 2**20)
    said = options.pop("variant", None)
    variant, size, maps = _choose(graph, request.variant or said, options.get("input_size", 0))
    scales = [step for step in maps.steps if step.words == SCALE]
    weighted = [step for step in maps.steps if step.weighted]
    parts = (part for step in weighted for part in _arrays(step))
    arrays = dict(zip(array_names(VARIANTS[variant]), parts, strict=True))
    channels = "RGB" if VARIANTS[variant].in_channels == 3 else "grey"
    if KEY not in metadata:
        options = _scale(scales, size)
        if channels == "RGB" and _is_bgr(model, variant, options.get("mean")):
            channels = "BGR"
            arrays["conv1.weight"] = np.ascontiguousarray(arrays["conv1.weight"][:, ::-1])
            options = {name: _flipped(value) for name, value in options.items()}
            graph.context.notes.append("its colours are taken as BGR, and were turned to RGB")
            if variant == "caffe_onnx":
                zoo = {"mean": CAFFE_MEAN, "std": (1.0,) * 3, "resize": "warp"}
                options = {**zoo, "shorter_side": size, **options}
        options["input_size"] = size
    producer = " ".join(filter(None, (model.producer_name, model.producer_version)))
    return Weights(
        arrays,
        variant,
        source=f"ONNX, opset {graph.opset}" + (f", by {producer}" if producer else ""),
        channels=channels,
        notes=tuple(graph.context.notes),
        **options,
    )


def _loader(folder: Path) -> Callable[[Any], np.ndarray]:
    """Return a function that turns a stored tensor into an array."""
    from onnx import TensorProto, numpy_helper

    def load(tensor: Any) -> np.ndarray:
        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor = _external(tensor, folder)
            return numpy_helper.to_array(tensor)
        except FileError:
            raise
        except Exception as error:
            raise DamagedError(f"the weights {tensor.name!r} are damaged ({error})") from error

    return load


def _external(tensor: Any, folder: Path) -> Any:
    """Return a tensor with its bytes from a file beside."""
    from onnx import TensorProto, helper

    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    if not name or name in (".", "..") or any(mark in name for mark in "/\\:\0"):
        raise FileError(f"the weights {tensor.name!r} are in {name!r}: no name of a file beside it")
    itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    length, offset = math.prod(tensor.dims) * itemsize, int(entries.get("offset", 0))
    try:
        file = open_regular(folder / name)
    except OSError as error:
        raise FileError(
            f"its weights are in {name!r}, which is needed beside it ({error})"
        ) from error
    with file:
        end = file.seek(0, 2)
        if not 0 <= offset <= offset + length <= end or length != int(
            entries.get("length", length)
        ):
            raise FileError(f"the weights {tensor.name!r} do not fit into {name!r}")
        file.seek(offset)
        content = file.read(length)
    return TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=content
    )


class Try(NamedTuple):
    """Comparison of a graph with a variant: leading steps that agree."""

    same: int
    variant: str
    size: int
    maps: Maps


def _choose(graph: Graph, asked: str | None, said: int) -> tuple[str, int, Maps]:
    """Return the variant, its image size, and the steps of the graph."""
    if asked is not None and asked not in VARIANTS:
        raise FileError(f"variant must be one of {', '.join(VARIANTS)}; got {asked!r}")
    given = graph.size or said
    tries: list[Try] = []
    failures: list[FileError] = []
    for size in [given] if given else sorted({v.input_size for v in VARIANTS.values()}):
        try:
            maps = graph.follow(size)
        except MisfitError as error:  # perhaps because of a step before
            failures.append(error)
            nearest = max(_tries(error.maps, size, asked), key=lambda found: found.same)
            if nearest.same < len(_compared(error.maps)):
                failures[-1] = _misfit(graph, nearest)
        except FileError as error:  # where the file leaves the size open, another may do
            failures.append(error)
        else:
            tries += _tries(maps, size)
    if not tries:
        raise failures[0]
    fitting = [
        (name, size, maps)
        for same, name, size, maps in tries
        if same == len(_compared(maps)) == len(_expected(maps, name, size))
        and (VARIANTS[name].any_size or VARIANTS[name].input_size == size)
        and VARIANTS[name].in_channels == graph.channels
    ]
    chosen = [found for found in fitting if asked in (None, found[0])]
    if chosen:
        return chosen[0]
    if fitting:
        raise FileError(f"it is of the variant {fitting[0][0]!r}, not {asked!r}")
    near = [found for found in tries if asked in (None, found.variant)]
    raise _misfit(graph, max(near, key=lambda found: found.same))


def _tries(maps: Maps, size: int, asked: str | None = None) -> list[Try]:
    """Return the comparisons with the variants."""
    names = [name for name in VARIANTS if asked in (None, name)]
    return [Try(_agreement(maps, name, size), name, size, maps) for name in names]


def _compared(maps: Maps) -> list[Step]:
    """Return the steps that make the variant, without normalisation and softmax."""
    steps = [step for step in maps.steps if step.words != SCALE]
    return steps[:-1] if steps and steps[-1].words == SOFTMAX else steps


def _expected(maps: Maps, name: str, size: int) -> list[str]:
    return list(steps_of(VARIANTS[name], size, maps.shape[0]))


def _agreement(maps: Maps, name: str, size: int) -> int:
    """Return how many steps agree from the beginning."""
    pairs = zip((step.words for step in _compared(maps)), _expected(maps, name, size), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _misfit(graph: Graph, nearest: Try) -> FileError:
    """Return the error that names the first step that differs."""
    same, name, size, maps = nearest
    pairs = list(zip_longest(_compared(maps), _expected(maps, name, size)))[same:]
    near = f"{name!r}, the nearest variant,"
    if not pairs:
        variant = VARIANTS[name]
        expected = f"{counted(variant.in_channels, 'channel')} and {variant.input_size} pixels"
        return FileError(
            f"it takes images of {counted(graph.channels, 'channel')} and {size} pixels, {near} "
            f"{expected}"
        )
    step, expected = pairs[0]
    if step is None:
        return FileError(f"it ends where {near} has {expected}")
    return FileError(f"{step.node} is {step.words}; {near} has {expected or 'nothing'} there")


def _arrays(step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight and the bias of a step as float32."""
    weight = step.weight
    assert weight is not None
    bias = np.zeros(len(weight)) if step.bias is None else step.bias.reshape(-1)
    with np.errstate(over="ignore"):  # what is too large is refused as not finite
        return np.array(weight, np.float32, order="C"), np.array(bias, np.float32)


def _scale(steps: list[Step], size: int) -> dict[str, Any]:
    """Return mean and std in units of 0..255."""
    if not steps:
        return {}
    factor: Any = np.ones((1, 1, 1))
    shift: Any = np.zeros((1, 1, 1))
    for step in steps:
        factor, shift = factor * step.weight, shift * step.weight + step.bias
    if factor.shape[1:] != (1, 1) or not (np.isfinite(factor).all() and (factor > 0).all()):
        raise FileError(f"{steps[-1].node}: the input must be divided by positive numbers")
    mean, std = -shift / factor, 1 / factor
    if np.abs(mean).max() <= 1 and std.max() <= 1:  # pixels of 0..1
        mean, std = 255 * mean, 255 * std
    scale = {"std": tuple(np.broadcast_to(std[:, 0, 0], 3).tolist())}
    if mean.shape[1:] == (1, 1):
        return {**scale, "mean": tuple(np.broadcast_to(mean[:, 0, 0], 3).tolist())}
    image = np.broadcast_to(mean, (3, size, size)).transpose(1, 2, 0).astype(np.float32)
    return {**scale, "mean": image, "shorter_side": size}


def _flipped(value: Any) -> Any:
    """Return colours in the other order."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value[..., ::-1])
    return value[::-1] if isinstance(value, tuple) else value


def _is_bgr(model: Any, variant: str, mean: Any) -> bool:
    """Tell whether a file's colours are blue, green, red."""
    if mean is not None:
        colours = np.mean(mean, (0, 1)) if isinstance(mean, np.ndarray) else np.array(mean)
        for order, answer in ((1, False), (-1, True)):  # ImageNet's blue is darker than its red
            if np.abs(colours - IMAGENET_MEAN[::order]).max() < 4:
                return answer
    names = f"{model.producer_name} {model.graph.name}".lower()
    return variant == "caffe_onnx" or "caffe" in names or "bvlc" in names
