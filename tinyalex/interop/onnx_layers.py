"""ONNX operators that become steps of an AlexNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tinyalex.interop.onnx_export import averaging
from tinyalex.interop.onnx_nodes import Maps, MisfitError, Node, Part, Rows, Squares, Value
from tinyalex.interop.onnx_steps import RELU, SCALE, SOFTMAX, convolution, norm, pooling
from tinyalex.text import counted


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
        raise node.refuse(
            f"weights {shape} in {counted(groups, 'group')} do not fit "
            f"{counted(x.shape[0], 'channel')}"
        )
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
        reason = (
            f"weights [out, in] {[*weight.shape]} do not fit the "
            f"{counted(x.shape[0], 'value')} before it"
        )
        raise MisfitError(str(node.refuse(reason)), x)
    outputs = len(weight)
    step = node.step(f"a linear layer of {counted(outputs, 'output')}", weight, bias)
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
        raise node.refuse(
            f"expected {counted(count, 'equal part')} of the {counted(x.shape[0], 'channel')}"
        )
    if given is not None and [*given] != [x.shape[0] // count] * count:
        raise node.refuse(f"parts must be equal, got {[*given]}")
    return [Part(x, index, count) for index in range(count)]


def concat(node: Node, *values: Value) -> Value:
    """The parts of a Split together again, or a small constant."""
    if all(isinstance(value, np.ndarray) for value in values):
        axis = node.get("axis", 1)
        return node.folded(lambda *arrays: np.concatenate(arrays, axis), *values)
    first = values[0]
    if isinstance(first, Part) and [*values] == [
        replace(first, index=index) for index in range(first.count)
    ]:
        node.expect(axis=1)
        if first.numbers is None:
            return first.source
        return first.source.then(node.step(norm(*first.numbers, first.count)))
    raise node.refuse("joins what no AlexNet joins")


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


def arithmetic(node: Node, a: Value, b: Value) -> Value:
    """Sums and products: input normalisation, biases, divisors of LRN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return node.folded(ARITHMETIC[node.op], a, b)
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


LAYERS: dict[str, Callable[..., Any]] = {
    "Conv": conv, "Gemm": gemm, "MatMul": matmul, "Relu": relu, "MaxPool": max_pool,
    "AveragePool": average_pool, "GlobalAveragePool": global_average_pool, "LRN": lrn,
    "Split": split, "Concat": concat, "Pad": pad, "Pow": power,
    "Softmax": softmax, "LogSoftmax": softmax, **dict.fromkeys(ARITHMETIC, arithmetic),
}  # fmt: skip
