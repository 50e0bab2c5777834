"""ONNX out: an AlexNet as a graph that any runtime executes.

Opset 17 and IR 8, both of 2022, are old enough for the runtimes in use. Dropout, which does nothing
in evaluation, is left out. https://onnx.ai/onnx/operators says what the operators compute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tinyalex.folders import write_atomically
from tinyalex.interop.weights import Weights
from tinyalex.models import VARIANTS, AlexNet, Variant, spec
from tinyalex.models.alexnet import output_shape, parameter_shapes
from tinyalex.optional import borrowed
from tinyalex.text import counted
from tinyalex.version import __version__

OPSET, IR = 17, 8


class Trained(Protocol):
    """Trained network with its preprocessing: a `training.Classifier`."""

    model: AlexNet
    classes: list[str]
    mean: tuple[float, ...] | np.ndarray
    std: tuple[float, ...]
    input_size: int
    shorter_side: int
    resize: str


@dataclass
class Content:
    """Network and preprocessing of a file, as in `Weights`; None is unknown."""

    network: Variant
    arrays: Mapping[str, np.ndarray]
    input_size: int
    mean: tuple[float, ...] | np.ndarray | None = None
    std: tuple[float, ...] | None = None
    resize: str = "shorter_side"
    shorter_side: int = 0
    classes: list[str] | None = None

    @property
    def variant(self) -> str:
        """Name of the variant."""
        return self.network.name

    @property
    def num_classes(self) -> int:
        """Number of outputs."""
        return len(list(self.arrays.values())[-1])

    def check(self) -> None:
        """Raise ValueError where network, variant and size do not fit together."""
        shapes = {name: array.shape for name, array in self.arrays.items()}
        if shapes != parameter_shapes(self.network, self.num_classes):
            raise ValueError(f"the network has other layers than its variant {self.variant!r}")
        if self.input_size != self.network.input_size and not self.network.any_size:
            expected = f"images of {self.network.input_size} pixels"
            raise ValueError(
                f"the variant {self.variant!r} takes {expected}, not {self.input_size}"
            )

    def description(self, pixels: bool, output: str) -> str:
        """Return what a person needs to prepare images."""
        side, size, mean = self.shorter_side, self.input_size, self.mean
        channels = self.network.in_channels
        text = f"AlexNet (variant {self.variant}), {counted(self.num_classes, 'class')}. "
        if side:
            how = "the shorter side" if self.resize == "shorter_side" else "both sides"
            text += f"Resize {how} of an image to {side} pixels. "
        colours = "RGB" if channels == 3 else "grey"
        text += f"Take the central {size} x {size} pixels, {colours}, as numbers 0..255. "
        if pixels:
            text += "The graph itself subtracts the mean and divides by std. "
        elif mean is not None:
            numbers = "the image in the metadata" if isinstance(mean, np.ndarray) else list(mean)
            text += f"Subtract the mean: {numbers}. Divide by std: {list(self.std or ())}. "
        else:
            text += "Subtract the mean of the training images, which this file does not know. "
        shape = f"[N, {channels}, {size}, {size}]"
        return f"{text}Input images: float32 {shape}. Output: {output}."


def export_onnx(
    network: AlexNet | Weights | Trained,
    path: str | os.PathLike[str],
    *,
    softmax: bool = False,
    pixels: bool = False,
) -> None:
    """Write an AlexNet as an ONNX file, whole or not at all.

    The input `images` is float32 [N, C, H, W] for any N: what the network itself takes, or with
    `pixels` numbers of 0..255, which the graph normalises. The output is `logits`, or with
    `softmax` `probabilities`, [N, classes]. The file says how to prepare an image, in its
    description for people and in its metadata for programs. Raises ValueError for a network that
    ONNX cannot express (LRN of an even size) and where `pixels` needs a mean that is not known,
    PackageError where the package onnx is missing, OSError where the file cannot be written.
    """
    with borrowed("onnx"):
        import onnx.checker
        from onnx import helper
    from tinyalex.interop.description import KEY, describe  # which knows images, so Pillow

    content = _content(network)
    content.check()
    graph = Graph()
    if pixels:
        _normalise(graph, content)
    _add_layers(graph, content)
    if softmax:
        graph.add("Softmax", axis=1)
    output = "probabilities" if softmax else "logits"
    graph.nodes[-1].output[0] = output

    kind, size = onnx.TensorProto.FLOAT, content.input_size
    shape: list[str | int | None] = ["N", content.network.in_channels, size, size]
    images = helper.make_tensor_value_info("images", kind, shape)
    answers = helper.make_tensor_value_info(output, kind, ["N", content.num_classes])
    text = content.description(pixels, output)
    model = helper.make_model(
        helper.make_graph(graph.nodes, "AlexNet", [images], [answers], graph.constants, text),
        ir_version=IR,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="tinyalex",
        producer_version=__version__,
        doc_string=text,
    )
    helper.set_model_props(model, {KEY: describe(content)})
    bits = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(bits, full_check=True)
    write_atomically(path, lambda file: file.write(bits))


def _content(network: AlexNet | Weights | Trained) -> Content:
    if isinstance(network, Weights):
        variant = VARIANTS[network.variant]
        return Content(
            variant,
            network.state_dict(),
            network.input_size or variant.input_size,
            variant.pixels.mean if network.mean is None else network.mean,
            variant.pixels.std if network.std is None else network.std,
            network.resize,
            network.shorter_side,
            network.classes,
        )
    if isinstance(network, AlexNet):
        variant, pixels = network.variant, network.variant.pixels
        arrays = network.state_dict()
        return Content(variant, arrays, variant.input_size, pixels.mean, pixels.std)
    return Content(
        network.model.variant,
        network.model.state_dict(),
        network.input_size,
        network.mean,
        network.std,
        network.resize,
        network.shorter_side,
        list(network.classes),
    )


class Graph:
    """Chain of ONNX nodes that begins with the value `images`."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.value = "images"

    def add(self, op: str, *others: str, name: str = "", **attributes: Any) -> str:
        """Append an operator on the current value and others."""
        return self.join(op, self.value, *others, name=name, **attributes)

    def join(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append an operator; its output becomes the current value."""
        self.value = name or f"{op.lower()}_{len(self.nodes)}"
        self._append(op, inputs, [self.value], **attributes)
        return self.value

    def split(self, parts: int) -> list[str]:
        """Split the current value's channels into equal parts."""
        names = [f"split_{len(self.nodes)}_{part}" for part in range(parts)]
        self._append("Split", (self.value,), names, axis=1)
        return names

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Store an array, and return its name."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(np.asarray(value, dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _append(self, op: str, inputs: tuple[str, ...], outputs: list[str], **more: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], **more))


def _normalise(graph: Graph, content: Content) -> None:
    """Subtract the mean and divide by std, as `data.EvalTransform`."""
    from tinyalex.data import EvalTransform

    if content.mean is None or content.std is None:
        raise ValueError(
            "pixels=True needs a mean: export a trained classifier, or weights with it"
        )
    size, channels = content.input_size, content.network.in_channels
    transform = EvalTransform(size, content.mean, content.std, channels)
    mean = transform.mean
    if mean.ndim == 3:
        start = (len(mean) - size) // 2
        mean = mean[start : start + size, start : start + size].transpose(2, 0, 1)
    else:
        mean = mean[:, None, None]
    graph.add("Sub", graph.constant("mean", mean[None]))
    graph.add("Div", graph.constant("std", transform.std[None, :, None, None]))


def _add_layers(graph: Graph, content: Content) -> None:
    """Append the network's layers."""
    variant = content.network
    channels, size, weighted = variant.in_channels, content.input_size, 0
    for part, layers in (("features", variant.features), ("classifier", variant.classifier)):
        if part == "classifier":
            graph.add("Flatten", axis=1)
        for place, layer in enumerate(layers):
            parameters, name = [], ""
            if isinstance(layer, (spec.Conv, spec.Linear)):
                weighted += 1
                name = f"{'conv' if isinstance(layer, spec.Conv) else 'fc'}{weighted}"
                parameters = [
                    graph.constant(f"{name}.{kind}", content.arrays[f"{part}.{place}.{kind}"])
                    for kind in ("weight", "bias")
                ]
            _add_layer(graph, layer, size, name, parameters)
            channels, size = output_shape(layer, channels, size)


def _add_layer(
    graph: Graph, layer: spec.Layer, size: int, name: str, parameters: list[str]
) -> None:
    match layer:
        case spec.Conv(_, kernel, stride, padding, groups):
            graph.add(
                "Conv",
                *parameters,
                name=name,
                kernel_shape=[kernel] * 2,
                strides=[stride] * 2,
                pads=[padding] * 4,
                group=groups,
            )
        case spec.Linear():
            graph.add("Gemm", *parameters, name=name, transB=1)
        case spec.ReLU():
            graph.add("Relu")
        case spec.Pool(kernel, stride):
            graph.add("MaxPool", kernel_shape=[kernel] * 2, strides=[stride] * 2)
        case spec.AdaptivePool(cells):
            _add_adaptive_pool(graph, size, cells)
        case spec.Pad(width):
            pads = [0] * 6 + [width] * 2
            graph.add("Pad", graph.constant(f"pads_{len(graph.nodes)}", pads, np.int64))
        case spec.LRN():
            _add_lrn(graph, layer)
        case spec.WithinMapNorm():
            _add_within_map_norm(graph, layer)


def _add_adaptive_pool(graph: Graph, size: int, cells: int) -> None:
    """Append the mean over a grid of cells, if needed."""
    if size % cells == 0:
        if size > cells:
            window = [size // cells] * 2
            graph.add("AveragePool", kernel_shape=window, strides=window)
        return
    # Cells overlap: ONNX has no operator for that, but means along an axis are products.
    means = averaging(size, cells)
    rows = graph.constant("means_of_rows", means)
    graph.join("MatMul", rows, graph.value)
    graph.add("MatMul", graph.constant("means_of_columns", means.T))


def averaging(size: int, cells: int) -> np.ndarray:
    """Return the matrix [cells, size] of an adaptive pool in one dimension."""
    means = np.zeros((cells, size), np.float32)
    for cell in range(cells):
        start, end = cell * size // cells, -(-(cell + 1) * size // cells)
        means[cell, start:end] = 1 / (end - start)
    return means


def _add_lrn(graph: Graph, layer: spec.LRN) -> None:
    """Append an LRN per tower; ONNX divides alpha by size, as torch."""
    if layer.size % 2 == 0:
        raise ValueError(
            f"ONNX has no LRN of size {layer.size}: an even window reaches further forward there, "
            "and further back in torch and here; use an odd size"
        )
    numbers: dict[str, Any] = {"alpha": layer.alpha, "beta": layer.beta, "bias": float(layer.k)}
    numbers["size"] = layer.size
    if layer.groups == 1:
        graph.add("LRN", **numbers)
    else:
        towers = [graph.join("LRN", tower, **numbers) for tower in graph.split(layer.groups)]
        graph.join("Concat", *towers, axis=1)


def _add_within_map_norm(graph: Graph, layer: spec.WithinMapNorm) -> None:
    """Append x / (k + alpha * mean of x ** 2 over a window) ** beta."""
    x, start = graph.value, f"norm_{len(graph.nodes)}"
    graph.add("Mul", x)
    graph.add(
        "AveragePool",
        kernel_shape=[layer.size] * 2,
        pads=[layer.size // 2] * 4,
        count_include_pad=1,
    )
    graph.add("Mul", graph.constant(f"{start}.alpha", layer.alpha))
    graph.add("Add", graph.constant(f"{start}.k", layer.k))
    graph.add("Pow", graph.constant(f"{start}.beta", layer.beta))
    graph.join("Div", x, graph.value)
