"""Nodes of an ONNX graph, and the values between them.

Nodes are not executed. The value of each is a constant array or a record: `Maps` knows its shape
and the steps that led to it. Anything else is refused with the node's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinyalex.files import FileError
from tinyalex.interop.onnx_steps import Step

SMALL = 64
"""Largest number of elements of an array that shapes are computed with."""


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


class Context(NamedTuple):
    """Facts of a whole file that some operators need."""

    batch: int
    load: Callable[[Any], np.ndarray]
    """Function that turns a stored tensor into an array."""
    notes: list[str]
    """Sentences for the person who reads the file."""


class Node:
    """Operator of a graph: name, attributes, and its refusals."""

    def __init__(self, proto: Any, context: Context) -> None:
        from onnx import helper

        self.op: str = proto.op_type
        self.context = context
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

    def shape_of(self, value: Value) -> tuple[int, ...]:
        """Return a value's shape."""
        if isinstance(value, np.ndarray):
            return value.shape
        if isinstance(value, Squares):
            return (self.context.batch, *([1] if value.lifted else []), *value.source.shape)
        if isinstance(value, Maps):
            return (self.context.batch, *value.shape)
        raise FileError("the shape of quantised or split activations is not known here")

    def folded(self, function: Callable[..., Any], *arrays: Value, **more: Any) -> Any:
        """Return a function of small constants."""
        if any(self.array(array).size > SMALL for array in arrays):
            raise self.refuse("computes with weights, which must be ready in the file")
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays, **more))

    def note(self, text: str) -> None:
        """Remember what the person who reads the file should know."""
        if text not in self.context.notes:
            self.context.notes.append(text)

    def step(self, words: str, *arrays: np.ndarray | None) -> Step:
        """Return a step of this node."""
        return Step(words, self.label, *arrays)


class MisfitError(FileError):
    """Weights that do not fit the activations before them, which `maps` are."""

    def __init__(self, message: str, maps: Maps) -> None:
        super().__init__(message)
        self.maps = maps
