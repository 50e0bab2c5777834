"""Check every gradient of tinyalex against finite differences.

For a function f and its input x, backward() claims to know the slope df/dx. The slope can also be
measured: ``(f(x + eps) - f(x - eps)) / (2 eps)``. Here both are compared, in float64, for every
operation of the library and each of its inputs, and then for whole AlexNets made small.

What is compared is the slope of ``L = sum(w * f(x))`` with random weights w: with w = 1, a gradient
with the right numbers in the wrong places would pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import models
from tinyalex.cli.common import command
from tinyalex.cli.parser import Parser, parser_of, whole
from tinyalex.models.alexnet import smallest_input
from tinyalex.progress import say

EXIT_CODES = "0 every gradient is right; 1 one is wrong; 2 arguments that cannot be used"
EPS = 1e-6
NETWORK = "whole network: "
TOLERANCE = 1e-5  # rounding costs about 1e-9; anything wrong in the mathematics costs far more


class Op(NamedTuple):
    """One line of the table: a function of the named inputs."""

    name: str
    fn: Callable[..., ta.Tensor]
    shapes: dict[str, tuple[int, ...]]
    smooth_near_zero: bool = True


def dropout(x: ta.Tensor) -> ta.Tensor:
    """Drop the same elements at every call: randomness has no slope."""
    ta.manual_seed(0)
    return F.dropout(x, 0.5)


MATRIX, IMAGES = (3, 4), (2, 4, 5, 6)
CONV = {"x": IMAGES, "weight": (6, 4, 3, 3), "bias": (6,)}
TOWERS = {"x": IMAGES, "weight": (6, 2, 3, 3), "bias": (6,)}
LABELS = np.array([0, 4, 2])

OPS = [
    Op("a + b, broadcast", lambda a, b: a + b, {"a": MATRIX, "b": (4,)}),
    Op("a - b", lambda a, b: a - b, {"a": MATRIX, "b": (3, 1)}),
    Op("a * b", lambda a, b: a * b, {"a": MATRIX, "b": MATRIX}),
    Op("a * b, broadcast", lambda a, b: a * b, {"a": (2, 4, 4), "b": (4, 1)}),
    Op("a / (b * b + 1)", lambda a, b: a / (b * b + 1), {"a": MATRIX, "b": MATRIX}),
    Op("(a * a + 1) ** b", lambda a, b: (a * a + 1) ** b, {"a": MATRIX, "b": (4,)}),
    Op("a @ b", lambda a, b: a @ b, {"a": (2, 3, 4), "b": (4, 5)}),
    Op("exp, log, sqrt", lambda a: (a.exp() + 1).log().sqrt(), {"a": MATRIX}),
    Op("tanh, sigmoid", lambda a: a.tanh() * a.sigmoid(), {"a": MATRIX}),
    Op("abs", abs, {"a": MATRIX}, False),
    Op("sum, mean", lambda a: a.sum(0) * a.mean(), {"a": MATRIX}),
    Op("max, min", lambda a: a.max(1).values * a.min(1).values, {"a": MATRIX}, False),
    Op("reshape, permute", lambda a: a.reshape(4, 3).permute(1, 0) * a, {"a": MATRIX}),
    Op("a[[0, 0, 2], 1:]", lambda a: a[[0, 0, 2], 1:], {"a": MATRIX}),
    Op("cat, stack", lambda a, b: ta.stack([ta.cat([a, b]), ta.cat([b, a])]),
       {"a": MATRIX, "b": MATRIX}),
    Op("where", lambda a, b: ta.where(np.eye(3, 4) > 0, a, b), {"a": MATRIX, "b": (4,)}),
    Op("pad", lambda x: F.pad(x, (1, 2, 0, 1)), {"x": MATRIX}),
    Op("conv2d", F.conv2d, CONV),
    Op("conv2d, stride 2, padding 1",
       lambda x, weight, bias: F.conv2d(x, weight, bias, stride=2, padding=1), CONV),
    Op("conv2d, dilation 2", lambda x, weight, bias: F.conv2d(x, weight, bias, dilation=2), CONV),
    Op("conv2d, two towers", lambda x, weight, bias: F.conv2d(x, weight, bias, groups=2), TOWERS),
    Op("max_pool2d, overlapping", lambda x: F.max_pool2d(x, 3, 2), {"x": IMAGES}, False),
    Op("max_pool2d, padded, ceil_mode", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
       {"x": IMAGES}, False),
    Op("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1), {"x": IMAGES}),
    Op("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (3, 4)), {"x": IMAGES}),
    Op("local_response_norm", lambda x: F.local_response_norm(x, 5, 0.9, k=2), {"x": IMAGES}),
    Op("within_channel_response_norm",
       lambda x: F.within_channel_response_norm(x, 3, 0.9, k=2), {"x": IMAGES}),
    Op("relu", F.relu, {"x": IMAGES}, False),
    Op("dropout", dropout, {"x": IMAGES}),
    Op("linear", F.linear, {"x": (3, 5), "weight": (4, 5), "bias": (4,)}),
    Op("softmax", lambda x: F.softmax(x, 1), {"x": (3, 5)}),
    Op("log_softmax", lambda x: F.log_softmax(x, 1), {"x": (3, 5)}),
    Op("cross_entropy", lambda x: F.cross_entropy(x, LABELS), {"logits": (3, 5)}),
    Op("cross_entropy, smoothed", lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1),
       {"logits": (3, 5)}),
]  # fmt: skip


class Row(NamedTuple):
    """Result of one operation or parameter."""

    name: str
    checked: str
    elements: int
    error: float


def draw(op: Op, rng: np.random.Generator) -> list[ta.Tensor]:
    """Draw inputs; with kinks, values apart and away from zero."""
    arrays = []
    for shape in op.shapes.values():
        values = rng.standard_normal(shape)
        if not op.smooth_near_zero:
            size = values.size
            values = ((rng.permutation(size) - size // 2 + 0.5) / size).reshape(shape)
        arrays.append(ta.Tensor(values, requires_grad=True))
    return arrays


def slope(loss: Callable[[], float], data: np.ndarray, direction: np.ndarray, eps: float) -> float:
    """Measure how fast the loss changes when ``data`` moves along ``direction``."""
    here = data.copy()
    ends = []
    for step in (eps, -eps):
        data[...] = here + step * direction
        with ta.no_grad():
            ends.append(loss())
    data[...] = here
    return (ends[0] - ends[1]) / (2 * eps)


def gradient_of(x: ta.Tensor) -> np.ndarray:
    """Return the gradient of backward(), zeros if there is none."""
    return np.zeros(x.shape) if x.grad is None else x.grad


def relative_error(measured: np.ndarray, computed: np.ndarray) -> float:
    """Return the largest difference relative to the largest slope.

    NaN counts as infinite.
    """
    difference = np.abs(measured - computed).max()
    largest = max(np.abs(measured).max(), np.abs(computed).max())
    if difference == 0:
        return 0.0
    return float(difference / largest) if np.isfinite(difference) else np.inf


def check_op(op: Op, rng: np.random.Generator) -> Row:
    """Compare every element of every input's gradient."""
    inputs = draw(op, rng)
    y = op.fn(*inputs)
    weights = rng.standard_normal(y.shape)
    y.backward(weights)

    def loss() -> float:
        return float((op.fn(*inputs).data * weights).sum())

    worst = 0.0
    for x in inputs:
        measured = np.empty(x.shape)
        for element in np.ndindex(x.shape):
            unit = np.zeros(x.shape)
            unit[element] = 1
            measured[element] = slope(loss, x.data, unit, EPS)
        worst = max(worst, relative_error(measured, gradient_of(x)))
    return Row(op.name, ", ".join(op.shapes), sum(x.size for x in inputs), worst)


def check_network(name: str, rng: np.random.Generator) -> Row:
    """Check the slopes of an AlexNet's loss, one direction per parameter."""
    variant = models.VARIANTS[name]
    size = smallest_input(variant) + 4
    net = models.alexnet(variant.thinner(16, size), num_classes=5).to(np.float64)
    for p in net.parameters():  # so large that every layer has a say in so small a network
        p.data[...] = rng.standard_normal(p.shape) * np.sqrt(2 / np.prod(p.shape[1:], initial=4))
    images = ta.Tensor(rng.standard_normal((2, variant.in_channels, size, size)))

    def loss() -> ta.Tensor:
        ta.manual_seed(0)  # the same dropout at every call
        return F.cross_entropy(net(images), np.array([0, 3]))

    loss().backward()
    errors = {}
    for parameter, p in net.named_parameters():
        direction = rng.standard_normal(p.shape)
        direction[
            gradient_of(p) * direction < 0
        ] *= -1  # uphill: the terms add up instead of cancelling
        direction /= np.linalg.norm(direction)
        # A small step, lest one of thousands of ReLUs and pools change its mind on the way.
        measured = slope(lambda: loss().item(), p.data, direction, EPS / 10)
        errors[parameter] = relative_error(np.array(measured), (gradient_of(p) * direction).sum())
    worst = max(errors, key=lambda parameter: errors[parameter])
    elements = sum(p.size for p in net.parameters())
    return Row(NETWORK + name, f"worst: {worst}", elements, errors[worst])


def rows(seed: int, only: str) -> Iterator[Row]:
    """Yield the rows of the table whose names contain ``only``."""
    rng = np.random.default_rng(seed)
    for op in OPS:
        if only in op.name:
            yield check_op(op, rng)
    for name in models.VARIANTS:
        if only in NETWORK + name:
            yield check_network(name, rng)


@command
def main(argv: list[str] | None = None) -> int:
    """Print the table; return 0 if every gradient is right, else 1."""
    parser = make_parser()
    options = parser.parse_args(argv)
    names = [*(op.name for op in OPS), *(NETWORK + name for name in models.VARIANTS)]
    if not any(options.only in name for name in names):
        parser.error(f"--only {options.only!r} is in no name; there are {'; '.join(names)}")
    ta.threads.get_num_threads()  # refuses an environment variable that is none
    say(f"backend {options.backend}, float64, seed {options.seed}, tolerance {TOLERANCE:g}\n")
    say(f"{'operation':<30} {'inputs':<28} {'elements':>8} {'worst error':>12}")
    failed = 0
    with ta.use_backend(options.backend):
        for row in rows(options.seed, options.only):
            ok = row.error <= TOLERANCE
            failed += not ok
            verdict = "ok" if ok else "WRONG"
            say(f"{row.name:<30} {row.checked:<28} {row.elements:>8} {row.error:>12.1e}  {verdict}")
    say(f"\n{failed} wrong" if failed else "\nevery gradient is right")
    return 1 if failed else 0


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("gradcheck", __doc__, EXIT_CODES)
    parser.add_argument("--backend", choices=("cpu", "reference"), default="cpu")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose names contain TEXT")
    parser.add_argument("--seed", type=whole(0), default=0, help="of all random inputs")
    return parser
