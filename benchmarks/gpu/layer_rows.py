"""Single passes of single layers: their kernels, arguments and float64 results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu import floors
from gpu.cases import LR, MOMENTUM, TOLERANCES, WEIGHT_DECAY, Net
from gpu.floors import FORWARD, INPUT, UPDATE, WEIGHT, Step, Work
from tinyalex import nn
from tinyalex.backends import cpu
from tinyalex.backends.geometry import (
    ConvOptions,
    NormOptions,
    PoolOptions,
    SGDOptions,
    pool_output_size,
)

# Of the norm: sums of products of operands that were rounded to 24, 11 and 8 bits, and for bfloat16
# a result rounded to as many.
TOLERANCE = {"A": 1e-5, "B": 1.5e-3, "C": 1e-2}
ALONE = {"relu": 2, "relu_input_grad": 3}  # numbers moved by what has no floor of its own


@dataclass
class Row:
    """One pass: a kernel of any backend with its float32 arguments.

    ``pooled`` are the images that a pooling's gradient belongs to, for libraries that keep them
    themselves. Where rounding decides which pixel is the largest, ``loose`` asks for no
    more than of a whole net.
    """

    work: Work
    kernel: str
    arguments: tuple[Any, ...]
    pooled: np.ndarray
    loose: bool = False

    def expected(self) -> np.ndarray:
        """Return the result in float64, by the kernels for the CPU."""
        arguments = [double(a) for a in self.arguments]
        return np.asarray(self.result(getattr(cpu, self.kernel)(*arguments), arguments))

    def result(self, returned: Any, arguments: Sequence[Any]) -> Any:
        """Return the velocity of an update, else what was returned, without taps."""
        if self.kernel == "sgd_step":
            return arguments[2]
        return returned[0] if isinstance(returned, tuple) else returned

    def tolerance(self, precision: str) -> float:
        """Return how far a result may be from the expected one."""
        return TOLERANCES[precision]["worst gradient"] if self.loose else TOLERANCE[precision]


def double(argument: Any) -> Any:
    """Return a float32 array in float64; anything else unchanged."""
    if isinstance(argument, np.ndarray) and argument.dtype == np.float32:
        return argument.astype(np.float64)
    return argument


def _sgd(work: Work) -> Row:
    """Return the update of all weights, as if they were one array."""
    size = work.fixed // floors.SGD_BYTES
    rng = np.random.default_rng(2)
    weight, grad, velocity = (rng.standard_normal(size, np.float32) for _ in range(3))
    options = SGDOptions(LR, MOMENTUM, 0.0, WEIGHT_DECAY, False, "torch")
    return Row(work, "sgd_step", (weight, grad, velocity, options), weight)


def rows(net: Net, images: int, kind: type[nn.Module] = nn.Module) -> Iterator[Row]:
    """Yield each pass of a ``kind`` of layers that has a floor."""
    works = {(w.layer, w.part): w for w in floors.works(net, images, training=True)}
    steps = list(floors.shapes(net, images))
    rng = np.random.default_rng(1)
    for before, step in zip([None, *steps], steps, strict=False):
        if not isinstance(step.layer, kind):
            continue
        x = rng.standard_normal(step.x, np.float32)
        grad = rng.standard_normal(step.y, np.float32)
        made = _kernels(before, step, x, grad)
        for layer, part, kernel, arguments in made:
            if before is None and part == INPUT:
                continue  # the photographs need no gradient
            loose = kernel == "norm_max_pool2d_input_grad"
            work = works.get((layer, part)) or Work(layer, part, 0.0, ALONE[kernel] * x.size)
            yield Row(work, kernel, arguments, x, loose)
    if kind is nn.Module:
        yield _sgd(works["all weights", UPDATE])


Made = tuple[str, str, str, tuple[Any, ...]]


def _kernels(before: Step | None, step: Step, x: np.ndarray, grad: np.ndarray) -> Iterator[Made]:
    name, layer = step.name, step.layer
    match layer:
        case nn.Conv2d():
            weight, bias = layer.weight.data, layer.bias.data
            x = np.maximum(x, 0) if before else x  # what a ReLU lets through
            top, left = layer.padding
            sides = (top, top), (left, left)
            options = ConvOptions(layer.stride, sides, layer.dilation, layer.groups)
            yield name, FORWARD, "conv2d", (x, weight, bias, options)
            yield name, INPUT, "conv2d_input_grad", (grad, weight, x.shape, options)
            yield name, WEIGHT, "conv2d_weight_grad", (grad, x, weight.shape, options)
        case nn.Linear():
            weight, bias = layer.weight.data, layer.bias.data
            x = np.maximum(x.reshape(len(x), -1), 0)
            yield name, FORWARD, "linear", (x, weight, bias)
            yield name, INPUT, "linear_input_grad", (grad, weight)
            yield name, WEIGHT, "linear_weight_grad", (grad, x)
        case nn.MaxPool2d():
            window = PoolOptions((layer.kernel_size,) * 2, (layer.stride,) * 2)
            size = pool_output_size(x.shape[2:], window)
            if before and isinstance(before.layer, nn.LocalResponseNorm):
                norm = before.layer
                name = f"{before.name}+{name}"
                numbers = NormOptions(norm.size, norm.alpha, norm.beta, norm.k, norm.groups)
                options = numbers, window
                yield name, FORWARD, "norm_max_pool2d", (x, *options, size)
                taps = cpu.norm_max_pool2d(x, *options, size)[1]
                yield name, INPUT, "norm_max_pool2d_input_grad", (grad, taps, x, *options)
            else:
                yield name, FORWARD, "max_pool2d", (x, window, size)
                taps = cpu.max_pool2d(x, window, size)[1]
                yield name, INPUT, "max_pool2d_input_grad", (grad, taps, x.shape, window)
        case nn.ReLU() if name == "relu1":
            yield name, FORWARD, "relu", (x,)
            yield name, INPUT, "relu_input_grad", (grad, np.maximum(x, 0))
