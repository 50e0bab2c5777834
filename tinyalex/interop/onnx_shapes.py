"""ONNX operators for constants, shapes and types."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tinyalex.interop.onnx_nodes import SMALL, Maps, Node, Quantized, Squares, Value
from tinyalex.interop.onnx_steps import RELU


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


def reshape(node: Node, x: Value, shape: Value = None) -> Value:
    """Another shape of a constant, or [C, H, W] as [C * H * W]."""
    wanted = [*node.get("shape", [])] if shape is None else node.integers(shape)
    if isinstance(x, np.ndarray):
        return x.reshape(_resolve(node, x.shape, wanted))
    if isinstance(x, Squares):
        return _lift(node, x, _resolve(node, node.shape_of(x), wanted))
    x = node.maps(x)
    new = _resolve(node, node.shape_of(x), wanted)
    if new == (node.context.batch, *x.shape):
        return x
    if new != (node.context.batch, math.prod(x.shape)):
        raise node.refuse(f"shape {[*new]} is not [N, {math.prod(x.shape)}]")
    return replace(x, shape=new[1:])


def squeeze(node: Node, x: Value, axes: Value = None) -> Value:
    """Axes of one less."""
    wanted = node.get("axes", None) if axes is None else node.integers(axes)
    old = node.shape_of(x)
    if wanted is None:
        wanted = [axis for axis, length in enumerate(old) if length == 1]
    gone = {axis % len(old) for axis in wanted}
    if any(old[axis] != 1 for axis in gone):
        raise node.refuse(f"axes {[*wanted]} of {[*old]} are not 1")
    return _reshaped(node, x, tuple(n for i, n in enumerate(old) if i not in gone))


def unsqueeze(node: Node, x: Value, axes: Value = None) -> Value:
    """Axes of one more."""
    wanted = [*node.get("axes", [])] if axes is None else node.integers(axes)
    new, total = [*node.shape_of(x)], len(node.shape_of(x)) + len(wanted)
    for axis in sorted(axis % total for axis in wanted):
        new.insert(axis, 1)
    return _reshaped(node, x, tuple(new))


def _reshaped(node: Node, x: Value, shape: tuple[int, ...]) -> Value:
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    return _lift(node, x, shape)


def _lift(node: Node, x: Value, shape: tuple[int, ...]) -> Squares:
    """Squares with or without an axis of 1 before the channels."""
    plain = (node.context.batch, *x.source.shape) if isinstance(x, Squares) else None
    if plain is None or shape not in (plain, (plain[0], 1, *plain[1:])):
        raise node.refuse(f"makes {[*shape]} of activations, which no AlexNet does")
    return replace(x, lifted=len(shape) == 5)


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


def dequantize(node: Node, x: Value, scale: Value, zero: Value = None) -> Value:
    """Floating-point numbers of integers."""
    if isinstance(x, Quantized):
        node.note("activations that were rounded to 8 bits (QDQ) are not rounded here")
        return x.source
    x = node.array(x)
    scale, zero = _along_axis(node, x, scale, zero)
    node.note("weights of 8 bits (QDQ) were turned back into float32")
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


def shape(node: Node, x: Value) -> np.ndarray:
    """The shape of a value, as a constant."""
    whole = np.array(node.shape_of(x), np.int64)
    return whole[node.get("start", 0) : node.get("end", len(whole))]


def gather(node: Node, x: Value, indices: Value) -> np.ndarray:
    """Elements of a small constant."""
    return node.folded(np.take, x, indices, axis=node.get("axis", 0))


def slice_(node: Node, x: Value, *ranges: Value) -> np.ndarray:
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
    return node.folded(lambda array: array[tuple(cut)], x)


def constant_of_shape(node: Node, wanted: Value) -> np.ndarray:
    """A small constant of one value."""
    from onnx import numpy_helper

    sizes = node.integers(wanted)
    if math.prod(sizes) > SMALL or min(sizes, default=1) < 0:
        raise node.refuse("weights must be stored in the file")
    value = node.get("value", None)
    number = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return np.full(sizes, number.reshape(-1)[0])


def constant(node: Node) -> np.ndarray:
    """A constant that is stored in the node."""
    for name, value in node.attributes.items():
        if name == "value":
            return node.context.load(value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    raise node.refuse("has no value that is a number")


SHAPES: dict[str, Callable[..., Any]] = {
    "Flatten": flatten, "Reshape": reshape, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "Identity": same, "Dropout": same, "Cast": cast, "Transpose": transpose,
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize, "Shape": shape,
    "Gather": gather, "Slice": slice_,
    "Constant": constant, "ConstantOfShape": constant_of_shape,
}  # fmt: skip
