"""Tensor: an array, its gradient, and the node that made it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from tinyalex import random
from tinyalex.autograd import Function
from tinyalex.autograd import backward as run_backward
from tinyalex.backends import array_module
from tinyalex.backends.devices import device_of, move, on_gpu, parse, same_device, using
from tinyalex.backends.types import Array
from tinyalex.ops import arithmetic, matmul, reduction, shape
from tinyalex.ops.arguments import dimension, flag, number

DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_DTYPES = frozenset(map(np.dtype, DTYPES))
Axis: TypeAlias = "int | Sequence[int] | None"


class Tensor:
    """An n-dimensional array that remembers how it was computed.

    ``data`` is an array of NumPy or CuPy, or anything that makes one of NumPy: Python floats become
    float32, integers int64, arrays keep their dtype and are not copied. With ``requires_grad`` the
    tensor is a leaf: `backward` leaves d(result)/d(this) in ``grad``, an array of the same shape,
    dtype and device.

    Operators broadcast as in NumPy and have torch's meaning. Raises TypeError for dtypes other than
    float32, float64, integers and bool, and for an integer tensor that requires a gradient.
    """

    __array_priority__ = 1000  # array + tensor is the tensor's business
    __slots__ = ("__weakref__", "data", "grad", "grad_fn", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data = data.data
        if not isinstance(data, np.ndarray) and not on_gpu(data):
            given = data
            data = np.asarray(data)
            if data.dtype == np.float64 and not isinstance(given, np.generic):
                data = data.astype(np.float32)
        if data.dtype not in _DTYPES:
            raise TypeError(
                f"a Tensor holds float32, float64, integers or bool in the machine's byte order, "
                f"got {data.dtype}; convert the array first, for example with .astype(np.float32)"
            )
        if requires_grad and data.dtype.kind != "f":
            raise TypeError(f"only float32 and float64 tensors have gradients, got {data.dtype}")
        self.data: Array = data
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.grad_fn: Function | None = None

    # --- what it is -------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every axis."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def device(self) -> str:
        """Where the array lies: ``"cpu"``, or ``"cuda:0"`` and so on."""
        return device_of(self.data)

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self.grad_fn is None

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("a tensor without axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        text = np.array2string(move(self.data, "cpu"), separator=", ", prefix="tensor(")
        kind = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        kind += "" if self.device == "cpu" else f', device="{self.device}"'
        if self.grad_fn is not None:
            return f"tensor({text}{kind}, grad_fn={type(self.grad_fn).__name__})"
        return f"tensor({text}{kind}{', requires_grad=True' if self.requires_grad else ''})"

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._host_data(), dtype=dtype, copy=copy)

    def _host_data(self) -> Array:
        if self.device != "cpu":
            raise TypeError(f"this tensor is on {self.device}; copy it to the host first: .cpu()")
        return self.data

    # --- gradients --------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) into the ``grad`` of every leaf that this tensor was computed from.

        ``gradient`` is d(loss)/d(self), of this tensor's shape; for a single element it defaults
        to 1. The graph is freed on the way unless ``retain_graph``. Raises RuntimeError when there
        is nothing to differentiate, when the graph was freed before, or when ``gradient`` is
        missing; ValueError when its shape is wrong.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "this tensor was not computed from any tensor with requires_grad=True, "
                "or it was computed under no_grad()"
            )
        if gradient is None and self.size != 1:
            raise RuntimeError(
                f"backward() without a gradient needs one element, got shape {self.shape}; "
                "reduce to a loss first (.sum(), .mean()) or pass gradient="
            )
        array = gradient.data if isinstance(gradient, Tensor) else gradient
        if isinstance(array, np.ndarray) or on_gpu(array):
            same_device("backward", self.data, array)
        with using(self.device):
            xp = array_module(self.data)
            # A number from the host would be copied, and waited for; ones are a kernel's.
            array = xp.ones((), self.dtype) if array is None else xp.array(array, self.dtype)
            if array.shape != self.shape and not (array.ndim == 0 and self.size == 1):
                raise ValueError(f"expected a gradient of shape {self.shape}, got {array.shape}")
            array = array.reshape(self.shape)
        run_backward(self.grad_fn or self, array, retain_graph)

    def detach(self) -> Tensor:
        """Return a tensor on the same array, outside the graph."""
        return Tensor(self.data)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Switch whether this leaf collects a gradient; returns itself."""
        if not self.is_leaf:
            raise RuntimeError("only leaves can change requires_grad; use detach() first")
        if requires_grad and self.dtype.kind != "f":
            raise TypeError(f"only float32 and float64 tensors have gradients, got {self.dtype}")
        self.requires_grad = requires_grad
        return self

    # --- conversions ------------------------------------------------------------------------------

    def numpy(self) -> Array:
        """Return the array itself (no copy).

        Raises RuntimeError if it is part of a graph, TypeError if it is on a GPU.
        """
        if self.requires_grad:
            raise RuntimeError("this tensor requires a gradient; use .detach().numpy() or .data")
        return self._host_data()

    def item(self) -> Any:
        """Return the only element as a Python number. Raises ValueError if there are more."""
        if self.size != 1:
            raise ValueError(f"item() needs a single element, got shape {self.shape}")
        return self.data.item()

    def to(self, target: Any) -> Tensor:
        """Return this tensor on a device ("cpu", "cuda", "cuda:1") or in a dtype (``np.float64``).

        The tensor itself if it is so already; the gradient flows back through a change of either.
        Raises ValueError for what is neither, DeviceError if there is no such GPU, or no CuPy.
        """
        if target is None:
            raise TypeError("to() expects a device or a dtype, got None")
        if isinstance(target, str) and target not in DTYPES:
            try:
                device = parse(target)
            except ValueError as error:
                raise ValueError(f"{error}; dtypes are {', '.join(DTYPES)}") from None
            return self if device == self.device else shape.Move.apply(self, device=device)
        dtype = np.dtype(target)
        if dtype == self.dtype:
            return self
        if dtype.kind != "f":
            with using(self.device):
                return Tensor(self.data.astype(dtype))  # integers have no gradients
        return shape.Cast.apply(self, dtype=dtype)

    def cpu(self) -> Tensor:
        """Return this tensor on the host."""
        return self.to("cpu")

    def cuda(self) -> Tensor:
        """Return this tensor on the first GPU."""
        return self.to("cuda")

    # --- arithmetic -------------------------------------------------------------------------------

    def _number(self, value: Any) -> Tensor:
        dtype = self._dtype_beside(value)
        if self.device == "cpu":
            return Tensor(np.asarray(value, dtype))
        with using(self.device):  # a kernel, where a copy from the host would wait
            return Tensor(array_module(self.data).full((), value, dtype))

    def _binary(self, function: type[Function], other: Any, swapped: bool = False) -> Tensor:
        if isinstance(other, (bool, int, float, np.generic)):
            other = self._number(other)
        elif isinstance(other, np.ndarray) or on_gpu(other):
            other = Tensor(other)
        elif not isinstance(other, Tensor):
            return NotImplemented
        a, b = (other, self) if swapped else (self, other)
        # Integers become what they meet: int64 + float32 is float32, as in torch, not float64.
        if a.dtype.kind != b.dtype.kind and "f" in (a.dtype.kind, b.dtype.kind):
            a, b = (a.to(b.dtype), b) if b.dtype.kind == "f" else (a, b.to(a.dtype))
        elif function is arithmetic.Div and a.dtype.kind != "f":
            a, b = a.to(np.float32), b.to(np.float32)
        return function.apply(a, b)

    def _dtype_beside(self, number: Any) -> Any:
        """Return the dtype of a number that meets this tensor: the tensor's, if it can hold it."""
        kind, own = np.asarray(number).dtype.kind, self.dtype.kind
        if own == "f" or kind == "b":
            return self.dtype
        if kind == "f":
            return np.float32
        return np.int64 if own == "b" else self.dtype

    def __add__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Add, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Sub, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Sub, other, swapped=True)

    def __mul__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Mul, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Div, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Div, other, swapped=True)

    def __pow__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Pow, other)

    def __rpow__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Pow, other, swapped=True)

    def __matmul__(self, other: Any) -> Tensor:
        return self._binary(matmul.MatMul, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return self._binary(matmul.MatMul, other, swapped=True)

    def __neg__(self) -> Tensor:
        return arithmetic.Neg.apply(self)

    def __abs__(self) -> Tensor:
        return arithmetic.Abs.apply(self)

    abs = __abs__

    def exp(self) -> Tensor:
        """Return e ** x."""
        return arithmetic.Exp.apply(self)

    def log(self) -> Tensor:
        """Return the natural logarithm."""
        return arithmetic.Log.apply(self)

    def sqrt(self) -> Tensor:
        """Return the square root."""
        return arithmetic.Sqrt.apply(self)

    def tanh(self) -> Tensor:
        """Return the hyperbolic tangent."""
        return arithmetic.Tanh.apply(self)

    def sigmoid(self) -> Tensor:
        """Return 1 / (1 + e ** -x)."""
        return arithmetic.Sigmoid.apply(self)

    def relu(self) -> Tensor:
        """Return max(x, 0)."""
        from tinyalex.ops.activation import ReLU

        return ReLU.apply(self)

    # --- comparisons: plain answers, outside the graph --------------------------------------------

    def _compare(self, ufunc: str, other: Any) -> Tensor:
        other = other.data if isinstance(other, Tensor) else other
        if isinstance(other, np.ndarray) or on_gpu(other):
            same_device("a comparison", self.data, other)
        with using(self.device):
            return Tensor(getattr(array_module(self.data), ufunc)(self.data, other))

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self._compare("equal", other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self._compare("not_equal", other)

    def __lt__(self, other: Any) -> Tensor:
        return self._compare("less", other)

    def __le__(self, other: Any) -> Tensor:
        return self._compare("less_equal", other)

    def __gt__(self, other: Any) -> Tensor:
        return self._compare("greater", other)

    def __ge__(self, other: Any) -> Tensor:
        return self._compare("greater_equal", other)

    __hash__ = object.__hash__

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """Return the index of the (first) maximum along ``dim``, or in the flattened tensor."""
        with using(self.device):
            index = self.data.argmax(axis=dim, keepdims=keepdim)
            return Tensor(array_module(self.data).asarray(index))

    # --- reductions -------------------------------------------------------------------------------

    def sum(
        self, dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Tensor:
        """Sum over ``dim``, one axis or several, or over all; NumPy's spellings work too."""
        return self._reduce(reduction.Sum, dim, axis, keepdim, keepdims)

    def mean(
        self, dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Tensor:
        """Average over ``dim``, one axis or several, or over all."""
        if self.dtype.kind != "f":
            raise TypeError(f"mean expects float32 or float64, got {self.dtype}; use .to(dtype)")
        return self._reduce(reduction.Mean, dim, axis, keepdim, keepdims)

    def max(
        self, dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Tensor:
        """Maximum over ``dim`` or over all; equal maxima share the gradient (torch's ``amax``)."""
        return self._reduce(reduction.Max, dim, axis, keepdim, keepdims)

    def min(
        self, dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Tensor:
        """Minimum over ``dim`` or over all; equal minima share the gradient (torch's ``amin``)."""
        return -(-self).max(dim, keepdim, axis=axis, keepdims=keepdims)

    def _reduce(
        self, function: type[Function], dim: Axis, axis: Axis, keepdim: bool, keepdims: bool
    ) -> Tensor:
        if dim is not None and axis is not None:
            raise TypeError(f"give dim or axis, which mean the same, got {dim!r} and {axis!r}")
        chosen = dim if dim is not None else axis
        if chosen is None:
            axes = tuple(range(self.ndim))
        else:
            items = chosen if isinstance(chosen, Sequence) else (chosen,)
            axes = tuple(dimension(item, self.ndim) for item in items)
            if len(set(axes)) != len(axes):
                raise ValueError(f"the same axis twice in dim={chosen!r}")
        keep = flag(keepdim, "keepdim") or flag(keepdims, "keepdims")
        return function.apply(self, axes=axes, keepdim=keep)

    # --- shape ------------------------------------------------------------------------------------

    def reshape(self, *sizes: Any) -> Tensor:
        """Return the same elements in another shape; one size may be -1, to be worked out."""
        return shape.Reshape.apply(self, shape=_unpack(sizes))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Join the axes ``start_dim`` .. ``end_dim`` (included) into one."""
        start, end = dimension(start_dim, self.ndim), dimension(end_dim, self.ndim)
        if start > end:
            raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
        joined = int(np.prod(self.shape[start : end + 1]))
        return self.reshape(*self.shape[:start], joined, *self.shape[end + 1 :])

    def permute(self, *dims: Any) -> Tensor:
        """Return the axes in the order ``dims``."""
        order = tuple(dimension(dim, self.ndim) for dim in _unpack(dims))
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"permute expects each of {self.ndim} axes once, got {_unpack(dims)}")
        return shape.Permute.apply(self, dims=order)

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Swap two axes."""
        order = list(range(self.ndim))
        a, b = dimension(dim0, self.ndim), dimension(dim1, self.ndim)
        order[a], order[b] = order[b], order[a]
        return shape.Permute.apply(self, dims=tuple(order))

    @property
    def T(self) -> Tensor:  # noqa: N802 (NumPy's and torch's name)
        """The axes in reverse order."""
        return shape.Permute.apply(self, dims=tuple(reversed(range(self.ndim))))

    def unsqueeze(self, dim: int) -> Tensor:
        """Insert an axis of length 1 before position ``dim``."""
        at = dimension(dim, self.ndim + 1)
        return self.reshape(*self.shape[:at], 1, *self.shape[at:])

    def squeeze(self, dim: int | None = None) -> Tensor:
        """Drop the axis ``dim`` if its length is 1, or all such axes."""
        chosen = range(self.ndim) if dim is None else (dimension(dim, self.ndim),)
        return self.reshape(*(n for i, n in enumerate(self.shape) if i not in chosen or n != 1))

    def __getitem__(self, index: Any) -> Tensor:
        items = index if isinstance(index, tuple) else (index,)
        arrays = tuple(item.data if isinstance(item, Tensor) else item for item in items)
        for array in arrays:
            if isinstance(array, np.ndarray) or on_gpu(array):
                same_device("indexing", self.data, array)
        return shape.Index.apply(self, index=arrays if isinstance(index, tuple) else arrays[0])


def _unpack(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the integers of f(2, 3) and of f((2, 3)) alike."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    return tuple(operator.index(size) for size in sizes)


# --- making tensors -------------------------------------------------------------------------------


def tensor(
    data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """Return a new leaf tensor with a copy of ``data``; see `Tensor` for what it accepts."""
    source = data.data if isinstance(data, Tensor) else data
    array = Tensor(source).data
    with using(device_of(array)):
        if dtype is not None:
            # From the source: a Python float has more digits than the float32 that it becomes.
            array = array.astype(dtype) if on_gpu(source) else np.array(source, dtype=dtype)
        if device is not None:
            array = move(array, device)
        return Tensor(array.copy() if array is source else array, requires_grad)


def zeros(*shape: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Return a tensor of zeros."""
    return Tensor(np.zeros(_unpack(shape), dtype), requires_grad)


def ones(*shape: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Return a tensor of ones."""
    return Tensor(np.ones(_unpack(shape), dtype), requires_grad)


def full(
    shape: Sequence[int], value: Any, dtype: Any = np.float32, requires_grad: bool = False
) -> Tensor:
    """Return a tensor filled with ``value``, a number."""
    if not isinstance(value, (bool, np.bool_)):
        number(value, "value")
    return Tensor(np.full(_unpack((shape,)), value, dtype), requires_grad)


def arange(*limits: Any, dtype: Any = None) -> Tensor:
    """Return start, start + step, ... below stop: int64, or float32 if a limit is a float."""
    if dtype is None and any(isinstance(limit, float) for limit in limits):
        dtype = np.float32
    return Tensor(np.arange(*limits, dtype=dtype))


def randn(*shape: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Return draws from the standard normal distribution (see `tinyalex.manual_seed`)."""
    return Tensor(random.generator().standard_normal(_unpack(shape), dtype), requires_grad)


def rand(*shape: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Return draws from the uniform distribution on [0, 1)."""
    return Tensor(random.generator().random(_unpack(shape), dtype), requires_grad)


def _expect_tensors(op: str, *values: Any) -> None:
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(f"{op} expects Tensors, got {type(value).__name__}")


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors along the axis ``dim``; their other axes must be equal."""
    if not tensors:
        raise ValueError("cat expects at least one tensor, got none")
    _expect_tensors("cat", *tensors)
    if tensors[0].ndim == 0:
        raise ValueError("cat expects tensors with at least one axis; for numbers use stack")
    axis = dimension(dim, tensors[0].ndim)
    shapes = [t.shape for t in tensors]
    if len({(len(s), s[:axis], s[axis + 1 :]) for s in shapes}) > 1:
        raise ValueError(f"cat: all axes but dim={dim} must be equal, got shapes {shapes}")
    return shape.Cat.apply(*tensors, axis=axis)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis at position ``dim``."""
    _expect_tensors("stack", *tensors)
    return cat([t.unsqueeze(dim) for t in tensors], dim)


def where(condition: Any, a: Tensor, b: Tensor) -> Tensor:
    """Return a where ``condition`` holds, else b."""
    _expect_tensors("where", a, b)
    mask = condition.data if isinstance(condition, Tensor) else condition
    if not on_gpu(mask):
        mask = np.asarray(mask)
    same_device("where", a.data, mask)
    if mask.dtype != bool:
        raise TypeError(f"where expects a condition of bools, got {mask.dtype}")
    return arithmetic.Where.apply(a, b, condition=mask)
