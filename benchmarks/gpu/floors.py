"""Floors: the least time for a net's operations and bytes, from shapes.

Every pass of a layer must read its two operands and write its result once, and multiply as often as
the definition says. Its floor is the larger of two times: those operations at the rate of a large
matrix product, and those bytes at the bandwidth of a large copy. What can be done on the way is
free: bias and ReLU when an output is written, response normalisation while it is pooled. So the
floor of a net is below what layers that run one by one can reach, fused ones included.

Not here: Winograd's algorithm, which multiplies less often (docs/gpu.md says why not), and whatever
part of the weights stays in the cache from one pass to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

from gpu import cases
from shared.network import walk_one_image
from tinyalex import nn

BYTES = {"A": 4, "B": 4, "C": 2}  # of a number in memory, in the best case that a class admits
SGD_BYTES = 5 * 4  # read the weight, its gradient and velocity; write weight and velocity: float32


@dataclass(frozen=True)
class Ceilings:
    """Limits of a GPU: operations per second by class, bytes per second.

    ``loops`` are those of `gpu.loops`, which count in no floor.
    """

    operations: dict[str, float]
    bandwidth: float
    loops: dict[str, float] = field(default_factory=dict)

    def rate(self, precision: str) -> float | None:
        """Return the rate for a class.

        Class A may use the tensor cores, by three TF32 products.

        (A float32 is about the sum of two TF32 numbers; their two small parts are not multiplied.)
        """
        rates = [self.operations[precision]] if precision in self.operations else []
        if precision == "A" and "B" in self.operations:
            rates.append(self.operations["B"] / 3)
        return max(rates, default=None)


# NVIDIA's H100 Tensor Core GPU Datasheet, SXM5, dense: what no measurement reaches.
H100 = Ceilings({"A": 67e12, "B": 495e12, "C": 990e12}, 3.35e12)


@dataclass(frozen=True)
class Work:
    """One pass of a layer: its operations and its memory traffic.

    ``numbers`` are read or written in the class's format, ``fixed`` bytes in any case.
    """

    layer: str
    part: str
    operations: float
    numbers: int
    fixed: int = 0

    def bytes(self, precision: str) -> int:
        """Return the bytes that must cross the memory bus."""
        return self.numbers * BYTES[precision] + self.fixed

    def seconds(self, ceilings: Ceilings, precision: str) -> float | None:
        """Return the floor, None without a rate for the class."""
        rate = ceilings.rate(precision)
        if rate is None:
            return None
        return max(self.operations / rate, self.bytes(precision) / ceilings.bandwidth)


WEIGHTED = (nn.Conv2d, nn.Linear)
FORWARD, INPUT, WEIGHT, UPDATE = "forward", "input gradient", "weight gradient", "SGD step"


def works(net: cases.Net, images: int, training: bool) -> list[Work]:
    """Return all the work of one step or of one prediction."""
    steps = sizes(net)
    found = [work for index in range(len(steps)) for work in _works(steps, index, images, training)]
    if training:
        parameters = sum(step.parameters for step in steps)
        found.append(Work("all weights", UPDATE, 0.0, 0, SGD_BYTES * parameters))
    return found


def floor(
    net: cases.Net, images: int, training: bool, ceilings: Ceilings, precision: str
) -> float | None:
    """Return the floor of one step or prediction, None where not known."""
    seconds = [w.seconds(ceilings, precision) for w in works(net, images, training)]
    return None if None in seconds else sum(s for s in seconds if s is not None)


@dataclass(frozen=True)
class Step:
    """A layer with its usual name and the shapes around it."""

    name: str
    layer: nn.Module
    x: tuple[int, ...]
    y: tuple[int, ...]


def shapes(net: cases.Net, images: int) -> Iterator[Step]:
    """Yield the layers in the order in which they run."""
    for name, layer, x, y in walk_one_image(net.build(), net.pixels):
        if not isinstance(layer, (nn.Dropout, nn.Flatten)):
            yield Step(name, layer, (images, *x.shape[1:]), (images, *y.shape[1:]))


@dataclass(frozen=True)
class Size:
    """Numbers of weights and activations of a layer, for one image."""

    name: str
    kind: type[nn.Module]
    weights: int
    parameters: int  # weights and biases
    x: int
    y: int
    channels: int  # of y


@lru_cache
def sizes(net: cases.Net) -> tuple[Size, ...]:
    """Return the sizes of all layers, without their net."""
    return tuple(
        Size(
            step.name,
            type(step.layer),
            step.layer.weight.size if isinstance(step.layer, WEIGHTED) else 0,
            sum(p.size for p in step.layer.parameters()),
            prod(step.x),
            prod(step.y),
            step.y[1],
        )
        for step in shapes(net, 1)
    )


def _works(steps: tuple[Size, ...], index: int, images: int, training: bool) -> Iterator[Work]:
    step, before = steps[index], steps[index - 1] if index else None
    x, y = images * step.x, images * step.y
    if step.kind in WEIGHTED:
        operations = 2.0 * step.weights * y / step.channels  # a weight serves every output pixel
        moved = x + step.weights + y
        yield Work(step.name, FORWARD, operations, moved)
        if training and before:
            # The ReLU in front is undone on the way: its output is read once more.
            mask = x if before.kind is nn.ReLU else 0
            yield Work(step.name, INPUT, operations, moved + mask)
        if training:
            yield Work(step.name, WEIGHT, operations, moved)
    if step.kind is nn.MaxPool2d:
        normed = before is not None and before.kind is nn.LocalResponseNorm
        name = f"{before.name}+{step.name}" if normed else step.name
        taps = y if training else 0  # a byte each: the place of the largest
        yield Work(name, FORWARD, 0.0, x + y, taps)
        if training:
            # Normalisation needs its input again; a ReLU alone shows in what was pooled.
            yield Work(name, INPUT, 0.0, y + x + (x if normed else y), taps)
    if training and index == len(steps) - 1:
        yield Work("loss", "both", 0.0, 2 * y)  # read the logits, write their gradient
