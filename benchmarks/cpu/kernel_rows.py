"""Rows of the kernel benchmark: one layer's kernel, by each library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from cpu.cases import Case, batch
from shared.network import network, walk
from tinyalex import nn
from tinyalex.backends import cpu, reference
from tinyalex.backends.cpu.conv import choose, im2col
from tinyalex.backends.geometry import (
    ConvOptions,
    NormOptions,
    PoolOptions,
    SGDOptions,
    pool_output_size,
)

if find_spec("torch"):
    import torch
    import torch.nn.functional as T

    from shared import torch_kernels
else:
    torch_kernels = None

Call = Callable[[], Any]
Arguments = Callable[..., tuple[Any, ...]]  # from arrays to what a kernel is called with
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
DROPOUT, KEY = 0.5, 1


@dataclass
class Row:
    """One kernel, and the call of each library.

    ``comparable`` is False for masks: torch draws its own.
    """

    layer: str
    work: str
    calls: dict[str, Call]
    algorithm: str = ""  # that tinyalex chose, where there is a choice
    comparable: bool = True


def rows(variant: str, batch_size: int) -> Iterator[Row]:
    """Yield all layers' kernels, on the activations of a real forward pass.

    Of the layers without weights that differ in nothing but their size, the first stands for all.
    """
    images, _ = batch(Case("train", variant, batch_size, 224))
    rng = np.random.default_rng(1)
    seen = set()
    for name, layer, inputs, outputs in walk(network(variant), images):
        x = np.ascontiguousarray(inputs.data)
        grad = rng.standard_normal(outputs.shape, np.float32)
        match layer:
            case nn.Conv2d():
                yield from _convolution(name, layer, x, grad)
            case nn.Linear():
                yield from _linear(name, layer, x, grad)
            case nn.LocalResponseNorm():
                yield from _norm(name, layer, x, grad)
            case nn.MaxPool2d():
                yield from _pool(name, layer, x, grad)
            case nn.ReLU() if nn.ReLU not in seen:
                yield from _relu(name, x, grad)
            case nn.Dropout() if nn.Dropout not in seen:
                yield _dropout(name, x)
        seen.add(type(layer))


def _last(array: np.ndarray) -> np.ndarray:
    """Return images channels last in memory, as our layers give them."""
    if array.ndim != 4:
        return array
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _ours(kernel: str, arguments: Arguments, *arrays: np.ndarray) -> dict[str, Call]:
    """Return both versions of a kernel; ``arguments`` takes arrays in either layout."""
    return {
        "reference": partial(getattr(reference, kernel), *arguments(*arrays)),
        "tinyalex": partial(getattr(cpu, kernel), *arguments(*map(_last, arrays))),
    }


def _theirs(function: Callable[..., Any], inputs: Any, *gradient: Any) -> dict[str, Call]:
    return torch_kernels.calls(function, inputs, *gradient) if torch_kernels else {}


def _convolution(name: str, layer: nn.Conv2d, x: np.ndarray, grad: np.ndarray) -> Iterator[Row]:
    weight, bias = layer.weight.data, layer.bias.data
    (top, left), groups = layer.padding, layer.groups
    sides = (top, top), (left, left)
    options = ConvOptions(layer.stride, sides, layer.dilation, groups)
    chosen = choose.algorithm(choose.Problem(grad.shape, weight.shape, options, x.dtype))

    def torch_conv(x: Any, weight: Any, bias: Any) -> Any:
        return T.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, groups)

    def row(work: str, kernel: str, by_columns: Any, arguments: Arguments, *gradient: Any) -> Row:
        return Row(
            name,
            work,
            {
                **_ours(kernel, arguments, x, grad),
                "im2col": partial(by_columns, *arguments(_last(x), _last(grad))),
                **_theirs(torch_conv, (x, weight, bias), *gradient),
            },
            chosen.__name__.rpartition(".")[2],
        )

    yield row("forward", "conv2d", im2col.forward, lambda x, _: (x, weight, bias, options))
    if name != "conv1":  # the photograph needs no gradient
        yield row(
            "input gradient",
            "conv2d_input_grad",
            im2col.input_grad,
            lambda x, grad: (grad, weight, x.shape, options),
            grad,
            0,
        )
    yield row(
        "weight gradient",
        "conv2d_weight_grad",
        im2col.weight_grad,
        lambda x, grad: (grad, x, weight.shape, options),
        grad,
        1,
    )


def _linear(name: str, layer: nn.Linear, x: np.ndarray, grad: np.ndarray) -> Iterator[Row]:
    weight, bias = layer.weight.data, layer.bias.data
    for work, kernel, arguments, gradient in (
        ("forward", "linear", (x, weight, bias), ()),
        ("input gradient", "linear_input_grad", (grad, weight), (grad, 0)),
        ("weight gradient", "linear_weight_grad", (grad, x), (grad, 1)),
    ):
        theirs = _theirs(lambda x, w, b: T.linear(x, w, b), (x, weight, bias), *gradient)
        yield Row(name, work, {**_ours(kernel, lambda *a: a, *arguments), **theirs})
    if name == "fc6":
        yield _sgd(name, weight)


def _sgd(name: str, weight: np.ndarray) -> Row:
    grad = np.random.default_rng(2).standard_normal(weight.shape, np.float32)

    def ours(module: Any) -> Call:
        parameter, velocity = weight.copy(), np.zeros_like(weight)

        def step() -> np.ndarray:
            options = SGDOptions(LR, MOMENTUM, 0.0, WEIGHT_DECAY, False, "torch")
            module.sgd_step(parameter, grad, velocity, options)
            return parameter

        return step

    calls = {"reference": ours(reference), "tinyalex": ours(cpu)}
    if torch_kernels:
        options = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
        calls |= torch_kernels.sgd(weight, grad, LR, **options)
    return Row(name, "SGD step", calls)


def _norm(name: str, layer: Any, x: np.ndarray, grad: np.ndarray) -> Iterator[Row]:
    options = NormOptions(layer.size, layer.alpha, layer.beta, layer.k, layer.groups)

    def torch_norm(x: Any) -> Any:
        return T.local_response_norm(x, *options[:4])

    forward = _ours("local_response_norm", lambda x: (x, options), x)
    yield Row(name, "forward", {**forward, **_theirs(torch_norm, (x,))})
    backward = _ours("local_response_norm_input_grad", lambda grad, x: (grad, x, options), grad, x)
    yield Row(name, "input gradient", {**backward, **_theirs(torch_norm, (x,), grad)})


def _pool(name: str, layer: nn.MaxPool2d, x: np.ndarray, grad: np.ndarray) -> Iterator[Row]:
    kernel, stride = (layer.kernel_size,) * 2, (layer.stride,) * 2
    options = PoolOptions(kernel, stride)
    size = pool_output_size(x.shape[2:], options)

    def torch_pool(x: Any) -> Any:
        return T.max_pool2d(x, kernel, stride)

    forward = _ours("max_pool2d", lambda x: (x, options, size), x)
    yield Row(name, "forward", {**forward, **_theirs(torch_pool, (x,))})
    _, taps = reference.max_pool2d(x, options, size)
    backward = _ours(
        "max_pool2d_input_grad",
        lambda grad, taps: (grad, taps, x.shape, options),
        grad,
        taps,
    )
    yield Row(name, "input gradient", {**backward, **_theirs(torch_pool, (x,), grad)})


def _relu(name: str, x: np.ndarray, grad: np.ndarray) -> Iterator[Row]:
    torch_relu = torch.relu if torch_kernels else None
    yield Row(name, "forward", {**_ours("relu", lambda x: (x,), x), **_theirs(torch_relu, (x,))})
    backward = _ours("relu_input_grad", lambda *a: a, grad, np.maximum(x, 0))
    yield Row(name, "input gradient", {**backward, **_theirs(torch_relu, (x,), grad)})


def _dropout(name: str, x: np.ndarray) -> Row:
    ours = _ours("dropout", lambda x: (x, DROPOUT, KEY), x)
    theirs = _theirs(lambda x: T.dropout(x, DROPOUT), (x,))
    return Row(name, "forward", {**ours, **theirs}, comparable=False)
