"""ONNX graphs as chains of steps from image to answer.

Nodes are not executed. The value of each is a record: a constant array, or `Maps`, which knows its
shape and the steps that led to it. A step is described in words that `steps_of` has for the layers
of a variant too: what is equal computes the same. Anything else is refused with the node's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tinyalex.files import FileError
from tinyalex.interop.onnx_export import averaging
from tinyalex.models import Variant, spec
from tinyalex.models.alexnet import output_shape

BATCH = 7919
"""Number of images where the file leaves it open: no other size in an AlexNet."""

SMALL = 64
"""Largest number of elements of an array that shapes are computed with."""


class Step(NamedTuple):
    """Step of a network: words for it, its node, and its arrays."""

    words: str
    node: str = ""
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def weighted(self) -> bool:
        """True for a convolution or linear layer."""
        return self.weight is not None and self.words != SCALE


SCALE = "normalisation of the input"
SOFTMAX = "softmax"
RELU = "ReLU"


def convolution(filters: int, kernel: int, stride: int, begin: int, groups: int, out: int) -> str:
    """Return words for a convolution."""
    return (
        f"a convolution of {filters} filters of {kernel}x{kernel}, stride {stride}, padding "
        f"{begin}, groups {groups}, to maps of {out}x{out}"
    )


def pooling(kernel: int, stride: int, begin: int, out: int) -> str:
    """Return words for max-pooling."""
    window = f"{kernel}x{kernel}, stride {stride}, padding {begin}"
    return f"max-pooling of {window}, to maps of {out}x{out}"


def norm(size: int, alpha: float, beta: float, k: float, groups: int = 1) -> str:
    """Return words for a response normalisation across channels."""
    numbers = f"size {size}, alpha {alpha:.6g}, beta {beta:.6g}, k {k:.6g}"
    return f"LRN with {numbers}" + (f" in {groups} groups" if groups > 1 else "")


def steps_of(variant: Variant, size: int, num_classes: int) -> Iterator[str]:
    """Yield the steps of a variant for images of a size."""
    channels = variant.in_channels
    for layer in (*variant.features, *variant.classifier):
        before = size
        channels, size = output_shape(layer, channels, size)
        match layer:  # a Pad shows in the size of the maps that follow
            case spec.Conv(filters, kernel, stride, padding, groups):
                yield convolution(filters, kernel, stride, padding, groups, size)
            case spec.Pool(kernel, stride):
                yield pooling(kernel, stride, 0, size)
            case spec.AdaptivePool(cells) if cells != before:
                yield f"means over {cells}x{cells} cells"
            case spec.ReLU():
                yield RELU
            case spec.LRN(alpha, k, window, beta, groups):
                yield norm(window, alpha, beta, k, groups)
            case spec.WithinMapNorm(alpha, k, window, beta):
                yield norm(window, alpha, beta, k) + " within each map"
            case spec.Linear(features):
                yield f"a linear layer of {features or num_classes} outputs"


@dataclass(frozen=True, eq=False)
class Maps:
    """Activations: shape without the batch, and the steps that led to them."""

    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    positive: bool = False
    """True where no value is negative."""
    pad: int | None = None
    """Zeros before the first row and column, where a Pad has just been."""

    def then(self, step: Step, shape: tuple[int, ...] | None = None, positive: Any = None) -> Maps:
        """Return the activations after one more step."""
        if positive is None:
            positive = self.positive
        return Maps(shape or self.shape, (*self.steps, step), positive)


@dataclass(frozen=True, eq=False)
class Squares:
    """Squares of activations, on their way to the divisor of an LRN."""

    source: Maps
    lifted: bool = False
    """True where an axis of 1 stands before the channels."""
    pads: tuple[int, int] = (0, 0)
    window: int = 0
    within: bool = False
    alpha: float = 1.0
    k: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Part:
    """Equal part of the channels, and the numbers of its LRN."""

    source: Maps
    index: int
    count: int
    numbers: tuple[int, float, float, float] | None = None


class Quantized(NamedTuple):
    """Activations as integers, which DequantizeLinear turns back."""

    source: Maps


class Rows(NamedTuple):
    """Activations averaged along the rows into cells, by a product."""

    source: Maps
    cells: int


Value = Any  # an array or one of the records above


class Node:
    """Operator of a graph: name, attributes, and its refusals."""

    def __init__(self, proto: Any, opset: int) -> None:
        from onnx import helper

        self.op: str = proto.op_type
        self.opset = opset
        self.outputs = len(proto.output)
        self.label = f"node {proto.name or (proto.output or [''])[0]!r} ({self.op})"
        if proto.domain not in ("", "ai.onnx"):
            raise self.refuse(f"operators of the domain {proto.domain!r} are not known here")
        self.attributes: dict[str, Any] = {
            a.name: helper.get_attribute_value(a) for a in proto.attribute
        }

    def refuse(self, reason: str) -> FileError:
        """Return the error that refuses this node."""
        return FileError(f"{self.label}: {reason}")

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def expect(self, **values: Any) -> None:
        """Refuse any of these attributes that has another value."""
        for name, value in values.items():
            if (got := self.get(name, value)) != value:
                raise self.refuse(f"{name} must be {value}, got {got}")

    def maps(self, value: Value, ndim: int | None = None, padded: bool = False) -> Maps:
        """Return activations [C, H, W] (3) or [features] (1), refuse anything else."""
        if not isinstance(value, Maps):
            raise self.refuse("expected it on the way from the image to the answer")
        if ndim is not None and len(value.shape) != ndim:
            raise self.refuse(f"does not expect activations of shape {list(value.shape)}")
        if value.pad is not None and not padded:
            raise self.refuse("zeros were added before a layer that is no convolution or pool")
        return value

    def array(self, value: Value) -> np.ndarray:
        """Return a constant."""
        if not isinstance(value, np.ndarray):
            raise self.refuse("its weights and numbers must be constants in the file")
        return value

    def floats(self, value: Value) -> np.ndarray:
        """Return a constant of floating-point numbers."""
        array = self.array(value)
        if array.dtype.name not in ("float16", "float32", "float64", "bfloat16"):
            raise self.refuse(f"expected weights of a floating-point type, got {array.dtype}")
        return array

    def number(self, value: Value) -> float:
        """Return a constant that is one number."""
        array = self.floats(value)
        if array.size != 1:
            raise self.refuse(f"expected one number, got shape {list(array.shape)}")
        return float(array.reshape(()))

    def integers(self, value: Value) -> list[int]:
        """Return a constant list of whole numbers."""
        array = self.array(value)
        if array.size > SMALL or array.dtype.kind not in "iu":
            raise self.refuse(f"expected a few whole numbers, got {array.dtype} {array.shape}")
        return [int(number) for number in array.reshape(-1)]

    def step(self, words: str, *arrays: np.ndarray | None) -> Step:
        """Return a step of this node."""
        return Step(words, self.label, *arrays)


class MisfitError(FileError):
    """Weights that do not fit the activations before them, which `maps` are."""

    def __init__(self, message: str, maps: Maps) -> None:
        super().__init__(message)
        self.maps = maps


class Window(NamedTuple):
    """Square window that slides over maps."""

    kernel: int
    stride: int
    begin: int
    out: int
    beyond: bool
    """True if it reads padding of its own."""


def window_of(node: Node, size: int, kernel: list[int] | None = None) -> Window:
    """Return the window of a convolution or pool."""
    shape = [*node.get("kernel_shape", kernel or [])]
    strides = [*node.get("strides", [1, 1])]
    node.expect(dilations=[1] * len(node.get("dilations", [])))
    if len(shape) != 2 or len({*shape}) > 1 or len(strides) != 2 or len({*strides}) > 1:
        raise node.refuse(f"windows must be square, got kernel {shape} and strides {strides}")
    if kernel is not None and shape != kernel:
        raise node.refuse(f"kernel_shape is {shape}, the weights are of {kernel}")
    (width, _), (stride, _) = shape, strides
    if width < 1 or stride < 1:
        raise node.refuse(f"kernel {shape} and strides {strides} must be positive")
    pads = [*node.get("pads", [0] * 4)]
    auto = node.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        total = max((-(-size // stride) - 1) * stride + width - size, 0)
        begin = total // 2 if auto == b"SAME_UPPER" else total - total // 2
        pads = [begin, begin, total - begin, total - begin]
    elif auto not in (b"NOTSET", b"VALID", b""):
        raise node.refuse(f"auto_pad {auto!r} is not known")
    elif auto == b"VALID":
        pads = [0] * 4
    if len(pads) != 4 or pads[:2] != [pads[0]] * 2 or pads[2:] != [pads[2]] * 2 or min(pads) < 0:
        raise node.refuse(f"pads must be equal for rows and columns, got {pads}")
    begin, end = pads[0], pads[2]
    room = size + begin + end - width
    out = (-(-room // stride) if node.get("ceil_mode", 0) else room // stride) + 1
    if (out - 1) * stride >= size + begin:
        out -= 1  # a window that begins beyond the maps is none, as in torch
    if room < 0 or out < 1:
        raise node.refuse(f"windows of {width} do not fit maps of {size}")
    beyond = begin > 0 or (out - 1) * stride + width > size + begin
    return Window(width, stride, begin, out, beyond)


def conv(node: Node, x: Value, weight: Value, bias: Value = None) -> Maps:
    """A convolution of [C, H, W] with [K, C / groups, R, S]."""
    x, weight = node.maps(x, 3, padded=True), node.floats(weight)
    groups = node.get("group", 1)
    if weight.ndim != 4 or groups < 1 or weight.shape[1] * groups != x.shape[0]:
        shape = list(weight.shape)
        raise node.refuse(f"weights {shape} in {groups} groups do not fit {x.shape[0]} channels")
    window = window_of(node, x.shape[1], [*weight.shape[2:]])
    begin = window.begin + (x.pad or 0)
    filters, out = len(weight), window.out
    words = convolution(filters, window.kernel, window.stride, begin, groups, out)
    step = node.step(words, weight, None if bias is None else node.floats(bias))
    return x.then(step, (filters, out, out), positive=False)


def gemm(node: Node, x: Value, weight: Value, bias: Value = None) -> Maps:
    """A linear layer of [in] with [in, out], or [out, in] if transB."""
    node.expect(alpha=1.0, beta=1.0, transA=0)
    weight = node.floats(weight)
    weight = weight if node.get("transB", 0) else weight.T
    return _linear(node, x, weight, None if bias is None else node.floats(bias))


def matmul(node: Node, x: Value, other: Value) -> Value:
    """A linear layer without bias, or one half of an adaptive pool."""
    if isinstance(other, Maps) and isinstance(x, np.ndarray):
        maps = node.maps(other, 3)
        if x.ndim == 2 and x.shape[1] == maps.shape[1] and _averages(x):
            return Rows(maps, len(x))
    if isinstance(x, Rows) and isinstance(other, np.ndarray) and other.ndim == 2:
        maps, cells = x
        if other.shape == (maps.shape[2], cells) and _averages(other.T):
            words = f"means over {cells}x{cells} cells"
            return maps.then(node.step(words), (maps.shape[0], cells, cells))
    return _linear(node, x, node.floats(other).T, None)


def _averages(matrix: np.ndarray) -> bool:
    return max(matrix.shape) < 2**12 and np.array_equal(matrix, averaging(*matrix.shape[::-1]))


def _linear(node: Node, x: Value, weight: np.ndarray, bias: np.ndarray | None) -> Maps:
    x = node.maps(x, 1)
    if weight.ndim != 2 or weight.shape[1] != x.shape[0]:
        reason = f"weights [out, in] {[*weight.shape]} do not fit the {x.shape[0]} values before it"
        raise MisfitError(str(node.refuse(reason)), x)
    outputs = len(weight)
    step = node.step(f"a linear layer of {outputs} outputs", weight, bias)
    return x.then(step, (outputs,), positive=False)


def relu(node: Node, x: Value) -> Maps:
    """max(x, 0)."""
    x = node.maps(x)
    return x.then(node.step(RELU), positive=True)


def max_pool(node: Node, x: Value) -> Maps:
    """The maximum of each window, whose padding never wins."""
    x = node.maps(x, 3, padded=True)
    window = window_of(node, x.shape[1])
    if window.beyond and not x.positive:
        raise node.refuse("pads need a ReLU before, or the padding is not the zeros that we have")
    begin, out = window.begin + (x.pad or 0), window.out
    words = pooling(window.kernel, window.stride, begin, out)
    return x.then(node.step(words), (x.shape[0], out, out))


def average_pool(node: Node, x: Value) -> Value:
    """The mean of each window: of cells without overlap, or of squares."""
    if isinstance(x, Squares):
        return _average_squares(node, x)
    x = node.maps(x, 3)
    window = window_of(node, x.shape[1])
    if window.beyond or window.kernel != window.stride or window.kernel * window.out != x.shape[1]:
        raise node.refuse("windows must divide the maps into cells of one size")
    if window.kernel == 1:
        return x
    words = f"means over {window.out}x{window.out} cells"
    return x.then(node.step(words), (x.shape[0], window.out, window.out))


def global_average_pool(node: Node, x: Value) -> Maps:
    """The mean of each map."""
    x = node.maps(x, 3)
    return x.then(node.step("means over 1x1 cells"), (x.shape[0], 1, 1))


def lrn(node: Node, x: Value) -> Value:
    """Response normalisation across channels; alpha is divided by size."""
    defaults = {"size": 0, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    numbers = tuple(node.get(name, default) for name, default in defaults.items())
    if isinstance(x, Part) and x.numbers is None:
        return replace(x, numbers=numbers)
    x = node.maps(x, 3)
    return x.then(node.step(norm(*numbers)))


def split(node: Node, x: Value, sizes: Value = None) -> list[Part]:
    """Equal parts of the channels, as the towers have."""
    x, count = node.maps(x, 3), node.outputs
    given = node.get("split", None) if sizes is None else node.integers(sizes)
    node.expect(axis=1)
    if "axis" not in node.attributes or x.shape[0] % count:
        raise node.refuse(f"expected {count} equal parts of the {x.shape[0]} channels")
    if given is not None and [*given] != [x.shape[0] // count] * count:
        raise node.refuse(f"parts must be equal, got {[*given]}")
    return [Part(x, index, count) for index in range(count)]


def concat(graph: Graph, node: Node, *values: Value) -> Value:
    """The parts of a Split together again, or a small constant."""
    if all(isinstance(value, np.ndarray) for value in values):
        axis = node.get("axis", 1)
        return graph.folded(node, lambda *arrays: np.concatenate(arrays, axis), *values)
    first = values[0]
    if isinstance(first, Part) and [*values] == [
        replace(first, index=index) for index in range(first.count)
    ]:
        node.expect(axis=1)
        if first.numbers is None:
            return first.source
        return first.source.then(node.step(norm(*first.numbers, first.count)))
    raise node.refuse("joins what no AlexNet joins")


def flatten(node: Node, x: Value) -> Maps:
    """[C, H, W] as [C * H * W]."""
    x = node.maps(x)
    if node.get("axis", 1) not in (1, *([-3] if len(x.shape) == 3 else [-1])):
        raise node.refuse("axis must be 1")
    return replace(x, shape=(math.prod(x.shape),))


def _resolve(node: Node, old: tuple[int, ...], wanted: list[int]) -> tuple[int, ...]:
    """Return the shape that Reshape makes of one."""
    if not node.get("allowzero", 0):
        wanted = [old[i] if n == 0 and i < len(old) else n for i, n in enumerate(wanted)]
    rest = math.prod(number for number in wanted if number != -1)
    total = math.prod(old)
    if wanted.count(-1) == 1 and rest > 0:
        wanted = [total // rest if number == -1 else number for number in wanted]
    if min(wanted, default=1) < 0 or math.prod(wanted) != total:
        raise node.refuse(f"cannot make {wanted} of {[*old]}")
    return tuple(wanted)


def reshape(graph: Graph, node: Node, x: Value, shape: Value = None) -> Value:
    """Another shape of a constant, or [C, H, W] as [C * H * W]."""
    wanted = [*node.get("shape", [])] if shape is None else node.integers(shape)
    if isinstance(x, np.ndarray):
        return x.reshape(_resolve(node, x.shape, wanted))
    if isinstance(x, Squares):
        return _lift(graph, node, x, _resolve(node, graph.shape_of(x), wanted))
    x = node.maps(x)
    new = _resolve(node, graph.shape_of(x), wanted)
    if new == (graph.batch, *x.shape):
        return x
    if new != (graph.batch, math.prod(x.shape)):
        raise node.refuse(f"shape {[*new]} is not [N, {math.prod(x.shape)}]")
    return replace(x, shape=new[1:])


def squeeze(graph: Graph, node: Node, x: Value, axes: Value = None) -> Value:
    """Axes of one less."""
    wanted = node.get("axes", None) if axes is None else node.integers(axes)
    old = graph.shape_of(x)
    if wanted is None:
        wanted = [axis for axis, length in enumerate(old) if length == 1]
    gone = {axis % len(old) for axis in wanted}
    if any(old[axis] != 1 for axis in gone):
        raise node.refuse(f"axes {[*wanted]} of {[*old]} are not 1")
    return _reshaped(graph, node, x, tuple(n for i, n in enumerate(old) if i not in gone))


def unsqueeze(graph: Graph, node: Node, x: Value, axes: Value = None) -> Value:
    """Axes of one more."""
    wanted = [*node.get("axes", [])] if axes is None else node.integers(axes)
    new, total = [*graph.shape_of(x)], len(graph.shape_of(x)) + len(wanted)
    for axis in sorted(axis % total for axis in wanted):
        new.insert(axis, 1)
    return _reshaped(graph, node, x, tuple(new))


def _reshaped(graph: Graph, node: Node, x: Value, shape: tuple[int, ...]) -> Value:
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    return _lift(graph, node, x, shape)


def _lift(graph: Graph, node: Node, x: Value, shape: tuple[int, ...]) -> Squares:
    """Squares with or without an axis of 1 before the channels."""
    plain = (graph.batch, *x.source.shape) if isinstance(x, Squares) else None
    if plain is None or shape not in (plain, (plain[0], 1, *plain[1:])):
        raise node.refuse(f"makes {[*shape]} of activations, which no AlexNet does")
    return replace(x, lifted=len(shape) == 5)


def pad(node: Node, x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> Value:
    """Zeros around maps, or around the channels of squares."""
    node.expect(mode=b"constant", value=0.0)
    if (value is not None and node.number(value) != 0) or axes is not None:
        raise node.refuse("expected zeros, and pads for all axes")
    widths = node.integers(pads) if pads is not None else [*node.get("pads", [])]
    half = len(widths) // 2
    before, after = widths[:half], widths[half:]
    if isinstance(x, Squares) and x.lifted and not x.window and len(before) == len(after) == 5:
        if any(before[i] or after[i] for i in (0, 1, 3, 4)) or min(before[2], after[2]) < 0:
            raise node.refuse(f"pads {widths} are not those of an LRN")
        return replace(x, pads=(x.pads[0] + before[2], x.pads[1] + after[2]))
    x = node.maps(x, 3)
    if len(widths) != 8 or min(widths) < 0 or any(widths[i] for i in (0, 1, 4, 5)):
        raise node.refuse(f"pads {widths} must be zeros beside rows and columns")
    if before[2] != before[3] or after[2] != after[3]:
        raise node.refuse(f"pads {widths} must be equal for rows and columns")
    size = x.shape[1] + before[2] + after[2]
    return replace(x, shape=(x.shape[0], size, size), pad=before[2])


def _average_squares(node: Node, x: Squares) -> Squares:
    """Average squares over channels, or over a window of each map."""
    kernel, count = [*node.get("kernel_shape", [])], len(node.get("kernel_shape", []))
    node.expect(strides=[1] * count, dilations=[1] * count, ceil_mode=0, auto_pad=b"NOTSET")
    pads = [*node.get("pads", [0] * (2 * count))]
    if any(pads) and not node.get("count_include_pad", 0):
        raise node.refuse("count_include_pad must be 1, for zeros count as values in an LRN")
    size, own = max(kernel, default=0), x.pads
    if x.lifted and kernel[1:] == [1, 1] and len(pads) == 6 and pads[1:3] == pads[4:] == [0, 0]:
        own = (own[0] + pads[0], own[1] + pads[3])
        within = False
    elif not x.lifted and kernel == [size, size] and pads == [size // 2] * 4 and size % 2:
        own, within = (size // 2, size // 2), True
    else:
        raise node.refuse(f"kernel {kernel} with pads {pads} is not that of an LRN")
    if x.window or own != (size // 2, (size - 1) // 2):
        raise node.refuse(f"kernel {kernel} with pads {own} is not that of an LRN")
    return replace(x, window=size, within=within)


def arithmetic(graph: Graph, node: Node, a: Value, b: Value) -> Value:
    """Sums and products: input normalisation, biases, divisors of LRN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return graph.folded(node, ARITHMETIC[node.op], a, b)
    if isinstance(a, np.ndarray) and node.op in ("Add", "Mul"):
        a, b = b, a
    if node.op == "Mul" and isinstance(a, Maps) and a is b:
        return Squares(node.maps(a, 3))
    if node.op == "Div" and isinstance(b, Squares) and b.source is a:
        return _divide(node, node.maps(a, 3), b)
    if isinstance(a, Squares):
        if node.op == "Mul" and a.k is None:
            return replace(a, alpha=a.alpha * node.number(b))
        if node.op == "Add" and a.k is None:
            return replace(a, k=node.number(b))
        raise node.refuse("is not the step of an LRN")
    x, other = node.maps(a), node.floats(b)
    if "axis" in node.attributes:  # opset 6: where the axes of the second stand in the first
        after = len(x.shape) + 1 - node.attributes["axis"] - other.ndim
        other = other.reshape(other.shape + (1,) * max(after, 0))
    last = x.steps[-1] if x.steps else None
    if node.op == "Add" and last is not None and last.weighted and last.bias is None:
        bias = np.broadcast_to(other, (1, *x.shape))[0]
        if bias.ndim == 3:
            if (bias != bias[:, :1, :1]).any():
                raise node.refuse("a bias must be one number per channel")
            bias = bias[:, 0, 0]
        return replace(x, steps=(*x.steps[:-1], last._replace(bias=bias)))
    if all(step.words == SCALE for step in x.steps) and len(x.shape) == 3:
        shift, factor = np.zeros((1, 1, 1)), np.ones((1, 1, 1))
        values = np.broadcast_to(other.astype(np.float64), (1, *x.shape))[0]
        if (values == values[:, :1, :1]).all():
            values = values[:, :1, :1]
        match node.op:
            case "Add":
                shift = values
            case "Sub":
                shift = -values
            case "Mul":
                factor = values
            case "Div":
                factor = 1 / values
        return x.then(node.step(SCALE, factor, shift))
    raise node.refuse("is no step of an AlexNet here")


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Equal": np.equal,
    "Div": lambda a, b: a // b if a.dtype.kind in "iu" else a / b,
}


def power(node: Node, x: Value, exponent: Value) -> Value:
    """The square of activations, or the exponent of an LRN."""
    number = node.number(exponent) if isinstance(exponent, np.ndarray) else None
    if isinstance(x, Maps) and number == 2:
        return Squares(node.maps(x, 3))
    if not isinstance(x, Squares) or x.k is None or x.beta is not None or number is None:
        raise node.refuse("is not the step of an LRN")
    return replace(x, beta=number)


def _divide(node: Node, x: Maps, squares: Squares) -> Maps:
    if not squares.window or squares.lifted or squares.k is None or squares.beta is None:
        raise node.refuse("its divisor is not that of an LRN")
    words = norm(squares.window, squares.alpha, squares.beta, squares.k)
    return x.then(node.step(words + (" within each map" if squares.within else "")))


def softmax(node: Node, x: Value) -> Maps:
    """Probabilities of logits."""
    x = node.maps(x, 1)
    if node.get("axis", 1) not in (1, -1):
        raise node.refuse("axis must be 1")
    return x.then(node.step(SOFTMAX))


def same(node: Node, x: Value, *unused: Value) -> Value:
    """The first input, unchanged in evaluation."""
    return x


def cast(node: Node, x: Value) -> Value:
    """Another type: of a constant, or floating-point of activations."""
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(node.get("to", 0))
    if isinstance(x, np.ndarray):
        with np.errstate(all="ignore"):
            return x.astype(dtype)
    if dtype.name not in ("float16", "float32", "float64", "bfloat16"):
        raise node.refuse(f"activations become {dtype}")
    return x


def transpose(node: Node, x: Value) -> np.ndarray:
    """Another order of a constant's axes."""
    if not isinstance(x, np.ndarray):
        raise node.refuse("activations must stay [N, C, H, W]")
    return x.transpose(node.get("perm", None))


def quantize(node: Node, x: Value, scale: Value, zero: Value = None) -> Value:
    """Integers of a constant, or of activations, which stay unrounded."""
    if isinstance(x, np.ndarray):
        scale, zero = _along_axis(node, x, scale, zero)
        limits = np.iinfo(zero.dtype)
        quantized = np.rint(x / scale) + zero
        return np.clip(quantized, limits.min, limits.max).astype(zero.dtype)
    x = node.maps(x)
    lowest = zero is not None and (node.array(zero) == np.iinfo(zero.dtype).min).all()
    if lowest and x.steps and x.steps[-1].weighted:
        x = x.then(node.step(RELU), positive=True)  # a range that begins at 0 replaces the ReLU
    return Quantized(x)


def dequantize(graph: Graph, node: Node, x: Value, scale: Value, zero: Value = None) -> Value:
    """Floating-point numbers of integers."""
    if isinstance(x, Quantized):
        graph.note("activations that were rounded to 8 bits (QDQ) are not rounded here")
        return x.source
    x = node.array(x)
    scale, zero = _along_axis(node, x, scale, zero)
    graph.note("weights of 8 bits (QDQ) were turned back into float32")
    whole = x.astype(np.int32) - zero.astype(np.int32)
    return whole.astype(np.float32) * scale


def _along_axis(node: Node, x: np.ndarray, scale: Value, zero: Value) -> tuple[Any, Any]:
    """Reshape scale and zero point to broadcast along the node's axis."""
    node.expect(block_size=0)
    scale = node.floats(scale)
    zero = np.zeros(scale.shape, np.uint8) if zero is None else node.array(zero)
    if x.dtype.kind == "f":
        np.iinfo(zero.dtype)  # raises ValueError for float8
    if scale.size == 1:
        return scale.reshape(()), zero.reshape(())
    shape = [1] * x.ndim
    shape[node.get("axis", 1)] = -1
    return scale.reshape(shape), zero.reshape(shape)


def shape(graph: Graph, node: Node, x: Value) -> np.ndarray:
    """The shape of a value, as a constant."""
    whole = np.array(graph.shape_of(x), np.int64)
    return whole[node.get("start", 0) : node.get("end", len(whole))]


def gather(graph: Graph, node: Node, x: Value, indices: Value) -> np.ndarray:
    """Elements of a small constant."""
    return graph.folded(node, np.take, x, indices, axis=node.get("axis", 0))


def slice_(graph: Graph, node: Node, x: Value, *ranges: Value) -> np.ndarray:
    """A range of a small constant."""
    attributes = [node.get(name, []) for name in ("starts", "ends", "axes")]
    starts, ends, axes, steps = [*(map(node.integers, ranges) if ranges else attributes), [], []][
        :4
    ]
    cut = [slice(None)] * node.array(x).ndim
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        step = steps[place] if steps else 1
        stop = None if step < 0 and end < -(2**31) else end
        cut[axes[place] if axes else place] = slice(start, stop, step)
    return graph.folded(node, lambda array: array[tuple(cut)], x)


def constant_of_shape(node: Node, wanted: Value) -> np.ndarray:
    """A small constant of one value."""
    from onnx import numpy_helper

    sizes = node.integers(wanted)
    if math.prod(sizes) > SMALL or min(sizes, default=1) < 0:
        raise node.refuse("weights must be stored in the file")
    value = node.get("value", None)
    number = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return np.full(sizes, number.reshape(-1)[0])


def constant(graph: Graph, node: Node) -> np.ndarray:
    """A constant that is stored in the node."""
    for name, value in node.attributes.items():
        if name == "value":
            return graph.load(value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    raise node.refuse("has no value that is a number")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": conv, "Gemm": gemm, "MatMul": matmul, "Relu": relu, "MaxPool": max_pool,
    "AveragePool": average_pool, "GlobalAveragePool": global_average_pool, "LRN": lrn,
    "Split": split, "Flatten": flatten, "Pad": pad, "Pow": power,
    "Softmax": softmax, "LogSoftmax": softmax, "Identity": same, "Dropout": same,
    "Cast": cast, "Transpose": transpose, "QuantizeLinear": quantize,
    "ConstantOfShape": constant_of_shape,
}  # fmt: skip

WITH_GRAPH: dict[str, Callable[..., Any]] = {
    "Reshape": reshape, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "DequantizeLinear": dequantize, "Shape": shape, "Gather": gather, "Slice": slice_,
    "Constant": constant, "Concat": concat, **dict.fromkeys(ARITHMETIC, arithmetic),
}  # fmt: skip
"""Operators that need more than their inputs: the graph comes first."""

INTEGER = ("QLinear", "Integer", "QGemm", "DynamicQuantizeLinear")


class Graph:
    """A file's graph: its constants, and the values of its nodes."""

    def __init__(self, model: Any, load: Callable[[Any], np.ndarray], budget: int) -> None:
        self.model, self.load, self.budget = model, load, budget
        self.notes: list[str] = []
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        versions = [e.version for e in model.opset_import if e.domain in ("", "ai.onnx")]
        self.opset = max(versions, default=1)
        inputs = [value for value in model.graph.input if value.name not in self.constants]
        outputs = model.graph.output
        if len(inputs) != 1 or len(outputs) != 1:
            raise FileError(
                f"expected one input and one output, got {len(inputs)} and {len(outputs)}"
            )
        self.input, self.output = inputs[0], outputs[0]
        shape = [d.dim_value for d in self.input.type.tensor_type.shape.dim]
        if len(shape) != 4 or min(shape) < 0 or max(shape) > 2**14:
            raise FileError(f"the input {self.input.name!r} must be [N, C, H, W], got {shape}")
        self.batch, self.channels, *sides = shape[0] or BATCH, *shape[1:]
        if len({*sides}) > 1 or not self.channels:
            raise FileError(f"the input {self.input.name!r} must be square images, got {shape}")
        self.size: int = sides[0]
        """Side of the images; 0 where the file leaves it open."""

    def note(self, text: str) -> None:
        """Remember what the person who reads the file should know."""
        if text not in self.notes:
            self.notes.append(text)

    def shape_of(self, value: Value) -> tuple[int, ...]:
        """Return a value's shape."""
        if isinstance(value, np.ndarray):
            return value.shape
        if isinstance(value, Squares):
            return (self.batch, *([1] if value.lifted else []), *value.source.shape)
        if isinstance(value, Maps):
            return (self.batch, *value.shape)
        raise FileError("the shape of quantised or split activations is not known here")

    def folded(self, node: Node, function: Callable[..., Any], *arrays: Value, **more: Any) -> Any:
        """Return a function of small constants."""
        if any(node.array(array).size > SMALL for array in arrays):
            raise node.refuse("computes with weights, which must be ready in the file")
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays, **more))

    def needed(self) -> list[Any]:
        """Return the nodes that the output depends on, in the file's order."""
        nodes = self.model.graph.node
        makers = {name: place for place, node in enumerate(nodes) for name in node.output}
        wanted, found = [self.output.name], set()
        while wanted:
            place = makers.get(wanted.pop())
            if place is not None and place not in found:
                found.add(place)
                branches = (a.g.node for a in nodes[place].attribute if a.HasField("g"))
                for node in (nodes[place], *(node for branch in branches for node in branch)):
                    wanted.extend(node.input)
        return [nodes[place] for place in sorted(found)]

    def follow(self, size: int) -> Maps:
        """Return the output for images of a size."""
        values: dict[str, Value] = {self.input.name: Maps((self.channels, size, size))}
        self._run(self.needed(), values)
        answer = values.get(self.output.name)
        if not isinstance(answer, Maps) or len(answer.shape) != 1:
            raise FileError(f"the output {self.output.name!r} is no list of logits")
        return answer

    def _run(self, nodes: Iterable[Any], values: dict[str, Value]) -> None:
        """Give the outputs of nodes their values."""

        def value_of(name: str) -> Value:
            if name and name not in values and name in self.constants:
                values[name] = self.load(self.constants[name])
            return values[name] if name else None

        for proto in nodes:
            node = Node(proto, self.opset)
            try:
                inputs = [value_of(name) for name in proto.input]
                if node.op == "If":  # torch's squeeze has one that asks for a shape
                    chosen = node.attributes["then_branch" if inputs[0].all() else "else_branch"]
                    self._run(chosen.node, values)
                    results = [value_of(output.name) for output in chosen.output]
                else:
                    results = self._evaluate(node, inputs)
            except FileError:
                raise
            except KeyError as error:
                raise node.refuse(f"no node before it makes {error}") from error
            except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
                raise node.refuse(f"is malformed ({error})") from error
            new = (r for r in results if isinstance(r, np.ndarray) and r.base is None)
            self.budget -= sum(array.nbytes for array in new)
            if self.budget < 0:
                raise node.refuse("the file would unfold to many times its size")
            values.update(zip(proto.output, results, strict=False))

    def _evaluate(self, node: Node, inputs: list[Value]) -> list[Value]:
        if node.op in WITH_GRAPH:
            result = WITH_GRAPH[node.op](self, node, *inputs)
        elif node.op in OPERATORS:
            result = OPERATORS[node.op](node, *inputs)
        elif any(word in node.op for word in INTEGER):
            raise node.refuse(
                "operators on 8-bit integers are not read; take the float file, or the QDQ one"
            )
        else:
            raise node.refuse("is no layer of an AlexNet here")
        return result if isinstance(result, list) else [result]
