"""The same network as an ONNX file, for ONNX Runtime and OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper

from tinyalex import models, nn


def _node(layer: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Return operator and attributes for ``layer``; None for one without effect."""
    match layer:
        case nn.Conv2d():
            attributes = {
                "kernel_shape": layer.kernel_size,
                "strides": layer.stride,
                "pads": layer.padding * 2,  # top, left, bottom, right
                "dilations": layer.dilation,
                "group": layer.groups,
            }
            return "Conv", attributes
        case nn.Linear():
            return "Gemm", {"transB": 1}
        case nn.MaxPool2d():
            return "MaxPool", {
                "kernel_shape": [layer.kernel_size] * 2,
                "strides": [layer.stride] * 2,
            }
        case nn.LocalResponseNorm(groups=1):
            scale = {"alpha": layer.alpha, "beta": layer.beta, "bias": float(layer.k)}
            return "LRN", {"size": layer.size, **scale}
        case nn.ReLU():
            return "Relu", {}
        case nn.Flatten():
            return "Flatten", {}
        case nn.Dropout() | nn.AdaptiveAvgPool2d():
            return None  # at the net's own image size every cell of the mean is one pixel
    raise TypeError(f"no twin for {layer!r}")


def write_onnx(model: models.AlexNet, batch_size: int, path: Path) -> None:
    """Write ``model`` with its weights, for batches of exactly ``batch_size`` images."""
    nodes, weights, current = [], [], "images"
    for i, layer in enumerate([*model.features, nn.Flatten(), *model.classifier]):
        if (found := _node(layer)) is None:
            continue
        operator, attributes = found
        inputs = [current]
        for name, parameter in layer.named_parameters():
            weights.append(numpy_helper.from_array(parameter.data, f"{name}{i}"))
            inputs.append(f"{name}{i}")
        current = f"layer{i}"
        nodes.append(helper.make_node(operator, inputs, [current], **attributes))
    size = model.variant.input_size
    images = _float_info("images", [batch_size, model.variant.in_channels, size, size])
    logits = _float_info(current, [batch_size, model.num_classes])
    graph = helper.make_graph(nodes, model.variant.name, [images], [logits], weights)
    # An older format than onnx's newest, so that the libraries need not be of the same month.
    twin = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(twin)
    onnx.save(twin, path)


def _float_info(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
