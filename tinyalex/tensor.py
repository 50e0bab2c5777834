"""Tensor: an array, its gradient, and the node that made it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from tinyalex import random
from tinyalex.autograd import Function, writable
from tinyalex.autograd import backward as run_backward
from tinyalex.backends import array_module, numerics
from tinyalex.backends.bfloat16 import as_float32, computing, is_bfloat16, is_floating
from tinyalex.backends.devices import device_of, move, on_gpu, parse, same_device, using
from tinyalex.backends.types import Array
from tinyalex.grad_mode import is_grad_enabled
from tinyalex.hooks import HookHandle, Registration
from tinyalex.ops import activation, arithmetic, matmul, reduction, shape
from tinyalex.ops.arguments import dimension, flag, is_integer, number
from tinyalex.ops.ingress import looks_like_array, plain_array
from tinyalex.ops.promotion import number_beside, promote
from tinyalex.storage import Storage

DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_DTYPES = frozenset(map(np.dtype, DTYPES))
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)
# Of dtypes: each may be put into the same, or later ones. "V" is bfloat16's.
_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2, "V": 2}
Axis: TypeAlias = "int | Sequence[int] | None"
Self = TypeVar("Self", bound="Tensor")


class Tensor:
    """An n-dimensional array that remembers how it was computed.

    ``data`` is an array of NumPy or CuPy, or anything that makes one of NumPy (`plain_array`):
    Python floats become float32, integers int64, arrays keep their dtype and are not copied. With
    ``requires_grad`` the tensor is a leaf: `backward` leaves d(result)/d(this) in ``grad``, an
    array of the same shape, dtype and device.

    Operators broadcast as in NumPy and have torch's meaning and dtypes (`ops.promotion`). Raises
    TypeError for dtypes other than float32, float64, integers and bool (on a GPU also bfloat16, in
    which `set_float32_matmul_precision` may let results lie), for masked elements, and for an
    integer tensor that requires a gradient.
    """

    _values: Array
    _grad: Array | None
    _grad_fn: Function | None
    _grad_hooks: tuple[Registration, ...]
    _requires_grad: bool
    _storage: Storage

    # Not `_data`, which numpy.ma would take without asking.
    __slots__ = (
        "__weakref__",
        "_grad",
        "_grad_fn",
        "_grad_hooks",
        "_requires_grad",
        "_storage",
        "_values",
    )

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            self._storage, data = data._storage, data._values
        else:
            self._storage = Storage()
            if type(data) is not np.ndarray:
                data = plain_array(data)
        if data.dtype not in _DTYPES and not (is_bfloat16(data.dtype) and on_gpu(data)):
            raise TypeError(
                f"a Tensor holds float32, float64, integers or bool in the machine's byte order, "
                f"got {data.dtype}; convert the array first, for example with .astype(np.float32)"
            )
        self._values = data
        self._grad = None
        self._grad_fn = None
        self._grad_hooks = ()
        self._requires_grad = False
        if requires_grad is not False:
            self.requires_grad = requires_grad

    # --- what it is -------------------------------------------------------------------------------

    @property
    def data(self) -> Array:
        """The array; another of equal shape, dtype and device may replace it.

        That counts as a write, which backward notices. Writing into the array does not.
        """
        return self._values

    @data.setter
    def data(self, array: Array) -> None:
        self._check_like("data", array)
        self._replace(array, self._grad)

    def _replace(self, data: Array, grad: Array | None) -> None:
        self._storage.version += 1
        if data is not self._values:
            self._values, self._storage = data, Storage()
        self._grad = grad

    @property
    def grad(self) -> Array | None:
        """d(result)/d(this) after `backward`, an array of the same shape, dtype and device."""
        return self._grad

    @grad.setter
    def grad(self, array: Array | None) -> None:
        if array is not None:
            self._check_like("grad", array)
        self._grad = array

    def _check_like(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray) and not on_gpu(array):
            raise TypeError(
                f"{name} must be an array of NumPy or CuPy, got {type(array).__name__}; a tensor's "
                "array is its .data"
            )
        expected = self.shape, self.dtype, self.device
        got = array.shape, array.dtype, device_of(array)
        if got != expected:
            raise ValueError(
                f"{name} must have this tensor's shape, dtype and device, "
                f"{', '.join(map(str, expected))}; got {', '.join(map(str, got))}"
            )

    @property
    def requires_grad(self) -> bool:
        """True if `backward` computes a gradient for this tensor."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        if not isinstance(requires_grad, bool):
            raise TypeError(f"requires_grad must be True or False, got {requires_grad!r}")
        if not self.is_leaf:
            raise RuntimeError("only leaves can change requires_grad; use detach() first")
        if requires_grad and not is_floating(self.dtype):
            raise TypeError(f"only float32 and float64 tensors have gradients, got {self.dtype}")
        self._requires_grad = requires_grad

    @property
    def grad_fn(self) -> Function | None:
        """The graph node that made this tensor; None for a leaf."""
        return self._grad_fn

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every axis."""
        return self._values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        return self._values.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._values.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._values.size

    @property
    def device(self) -> str:
        """The device of the array: ``"cpu"``, or ``"cuda:0"`` and so on."""
        return device_of(self._values)

    @property
    def is_leaf(self) -> bool:
        """True if no recorded operation made this tensor."""
        return self._grad_fn is None

    def __repr__(self) -> str:
        text = np.array2string(move(self.data, "cpu"), separator=", ", prefix="tensor(")
        kind = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        kind += "" if self.device == "cpu" else f', device="{self.device}"'
        if self.grad_fn is not None:
            return f"tensor({text}{kind}, grad_fn={type(self.grad_fn).__name__})"
        return f"tensor({text}{kind}{', requires_grad=True' if self.requires_grad else ''})"

    def _host_data(self) -> Array:
        if self.device != "cpu":
            raise TypeError(f"this tensor is on {self.device}; copy it to the host first: .cpu()")
        return self.data

    # --- as a container, and as a number ----------------------------------------------------------

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("a tensor without axes has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("a tensor without axes cannot be iterated over; .item() is its number")
        return (self[i] for i in range(len(self)))

    def __reversed__(self) -> Tensor:
        return self[::-1] if self.ndim else self

    def __contains__(self, element: Any) -> bool:
        if not isinstance(element, (Tensor, *_NUMBERS)):
            raise TypeError(f"`in` expects a number or a Tensor, got {type(element).__name__}")
        return bool((self == element).any())

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"a tensor of shape {self.shape} is neither true nor false; use .any() or .all()"
            )
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        if is_floating(self.dtype) or self.size != 1:
            raise TypeError(
                f"an index must be a single integer, got {self.dtype} of shape {self.shape}"
            )
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else super().__format__(spec)

    # --- for NumPy: plain arrays, and nothing that would lose a gradient --------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] = (), **options: Any
    ) -> Any:
        """Compute ``array + tensor`` as the tensor does, others (``np.exp(tensor)``) in arrays."""
        reflected = _REFLECTED.get(ufunc.__name__)
        if reflected and method == "__call__" and not out and not isinstance(inputs[0], Tensor):
            return getattr(self, reflected)(inputs[0])
        if any(isinstance(target, Tensor) for target in out):
            raise TypeError("NumPy cannot write into a Tensor; write into an array, or into .data")
        if out:
            options["out"] = out
        return getattr(ufunc, method)(*_for_numpy(inputs), **_for_numpy(options))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Compute ``np.concatenate`` and its like in arrays."""
        if function in (np.shape, np.ndim, np.size):
            return function(self.data, *args[1:], **kwargs)
        return function(*_for_numpy(args), **_for_numpy(kwargs))

    # --- copies -----------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        self._expect_leaf_to_copy()
        with using(self.device):
            copy = _rebuild(type(self), self.data.copy(order="K"), self.requires_grad)
            copy.grad = None if self.grad is None else self.grad.copy(order="K")
        return copy

    def __copy__(self) -> Tensor:
        self._expect_leaf_to_copy()
        return _rebuild(type(self), self, self.requires_grad)  # on the same memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For ``pickle``; without gradients, as in torch."""
        self._expect_leaf_to_copy()
        return _rebuild, (type(self), self._computing(), self.requires_grad)

    def _expect_leaf_to_copy(self) -> None:
        if not self.is_leaf:
            raise RuntimeError(
                "a tensor in a graph cannot be copied or pickled: its copy would be cut off; use "
                ".detach() first"
            )

    # --- gradients --------------------------------------------------------------------------------

    @numerics.quiet
    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) into the ``grad`` of every leaf below this tensor.

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
        dtype = computing(self.dtype)
        array = None if gradient is None else Tensor(as_array(gradient, dtype)).data
        if isinstance(gradient, (Tensor, np.ndarray)) or on_gpu(gradient):
            same_device("backward", self.data, array)
        with using(self.device):
            xp = array_module(self.data)
            # A number from the host would be copied, and waited for; ones are a kernel's.
            array = xp.ones((), dtype) if array is None else xp.array(array, dtype)
            if array.shape != self.shape and not (array.ndim == 0 and self.size == 1):
                raise ValueError(f"expected a gradient of shape {self.shape}, got {array.shape}")
            array = array.reshape(self.shape).astype(self.dtype, copy=False)
        run_backward(self.grad_fn or self, array, retain_graph)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], object]) -> HookHandle:
        """Call ``hook(tensor)`` in backward, once this leaf's ``grad`` is complete.

        Layers below may not have theirs yet. Raises RuntimeError unless this is a leaf that
        requires a gradient, TypeError for what cannot be called.
        """
        if not (self.is_leaf and self.requires_grad):
            raise RuntimeError("only a leaf that requires a gradient has a grad to wait for")
        return HookHandle(self, "_grad_hooks", hook, "hook(tensor)")

    def detach(self) -> Tensor:
        """Return a tensor on the same array, outside the graph."""
        return Tensor(self)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Switch whether this leaf collects a gradient; returns itself."""
        self.requires_grad = requires_grad
        return self

    # --- changes in place -------------------------------------------------------------------------

    def _records(self, *values: Any) -> bool:
        """Return whether a write of ``values`` into this tensor enters the graph.

        Raises RuntimeError where the graph would no longer tell the truth.
        """
        if not is_grad_enabled():
            return False
        if self.is_leaf and self.requires_grad:
            raise RuntimeError(
                "a leaf that requires grad cannot be changed in place while operations are "
                "recorded; do it under no_grad(): with no_grad(): w -= lr * w.grad"
            )
        wanted = is_floating(self.dtype) and any(
            isinstance(t, Tensor) and t.requires_grad for t in (self, *values)
        )
        if any(wanted or other.requires_grad for other in self._storage.others(self)):
            raise RuntimeError(
                "a tensor that shares its memory with a view, or is one, cannot be changed in "
                "place as part of the graph; compute a new one, as in y = y + ..., or do it under "
                "no_grad()"
            )
        return wanted

    def _become(self, result: Tensor) -> None:
        """Take over the values of ``result``, and its place in the graph.

        Raises ValueError for another shape, TypeError for values of a kind that this cannot hold.
        """
        if result.shape != self.shape:
            raise ValueError(
                f"a tensor of shape {self.shape} cannot become one of shape {result.shape} in place"
            )
        if _KINDS[result.dtype.kind] > _KINDS[self.dtype.kind]:
            raise TypeError(f"{result.dtype} cannot be put into a tensor of {self.dtype} in place")
        result = result.to(self.dtype)
        self._write(..., result.data)
        if result.requires_grad:
            self._requires_grad, self._grad_fn = True, result.grad_fn

    @numerics.quiet
    def _write(self, index: Any, values: Any) -> None:
        if not writable(self.data):
            raise RuntimeError(
                "this tensor's memory is read-only, or holds one value for several elements; "
                "write into a copy: tinyalex.tensor(x)"
            )
        with using(self.device):
            first, second = shape.in_steps(index)
            self.data[first][second] = values
        self._storage.version += 1

    def _update(self: Self, operation: Callable[[Any, Any], Tensor], other: Any) -> Self:
        before: Tensor = self
        if self._records(other):  # backward may want what is about to be overwritten
            with using(self.device):
                before = Tensor(self.data.copy())
            before._requires_grad, before._grad_fn = self._requires_grad, self._grad_fn
        self._become(operation(before, before if other is self else other))
        return self

    def __iadd__(self: Self, other: Any) -> Self:
        return self._update(operator.add, other)

    def __isub__(self: Self, other: Any) -> Self:
        return self._update(operator.sub, other)

    def __imul__(self: Self, other: Any) -> Self:
        return self._update(operator.mul, other)

    def __itruediv__(self: Self, other: Any) -> Self:
        return self._update(operator.truediv, other)

    def __ipow__(self: Self, other: Any) -> Self:
        return self._update(operator.pow, other)

    def __iand__(self: Self, other: Any) -> Self:
        return self._update(operator.and_, other)

    def __ior__(self: Self, other: Any) -> Self:
        return self._update(operator.or_, other)

    def __ixor__(self: Self, other: Any) -> Self:
        return self._update(operator.xor, other)

    def __setitem__(self, index: Any, value: Any) -> None:
        index = self._indices(index)
        if not isinstance(value, _NUMBERS):
            value = value if isinstance(value, Tensor) else Tensor(value)
            same_device("assignment", self.data, value.data)
            if value.size == 1:
                value = value.reshape(())  # NumPy puts into one element what has no axes
        if self._records(value):
            value = value if isinstance(value, Tensor) else Tensor(self._beside(value))
            self._become(shape.Put.apply(self, value, index=index))
        else:
            self._write(index, value.data if isinstance(value, Tensor) else value)

    # --- conversions ------------------------------------------------------------------------------

    def numpy(self) -> Array:
        """Return the array itself (no copy).

        Raises RuntimeError if it is part of a graph, TypeError if it is on a GPU.
        """
        if self.requires_grad:
            raise RuntimeError(
                "this tensor requires a gradient, of which NumPy knows nothing: use tinyalex's "
                "functions (ta.stack, F.relu, methods) or, to leave the graph, .detach() or .item()"
            )
        return self._host_data()

    def item(self) -> Any:
        """Return the only element as a Python number; ValueError for several."""
        if self.size != 1:
            raise ValueError(f"item() needs a single element, got shape {self.shape}")
        return self._computing().item()

    def tolist(self) -> Any:
        """Return the elements as nested lists of Python numbers."""
        return self._computing().tolist()

    def _computing(self) -> Array:
        """Return the array, bfloat16 copied to float32."""
        with using(self.device):
            return as_float32(self.data)

    @numerics.quiet
    def to(self, target: Any) -> Tensor:
        """Return this tensor on another device ("cuda:1") or in another dtype (``np.float64``).

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
        try:
            dtype = np.dtype(target)
        except TypeError:
            raise TypeError(f"to() expects a device or a dtype, got {target!r}") from None
        if dtype == self.dtype:
            return self
        if not is_floating(dtype):
            with using(self.device), np.errstate(invalid="ignore"):  # NaN becomes any integer
                return Tensor(self.data.astype(dtype))  # integers have no gradients
        return shape.Cast.apply(self, dtype=dtype)

    def cpu(self) -> Tensor:
        """Return this tensor on the host."""
        return self.to("cpu")

    def cuda(self) -> Tensor:
        """Return this tensor on the first GPU."""
        return self.to("cuda")

    # --- arithmetic -------------------------------------------------------------------------------

    def _beside(self, value: Any) -> Array | None:
        """Return a number or an array as an array, else None."""
        if isinstance(value, Tensor):
            return value._computing()
        value = _unboxed(value)
        if isinstance(value, _NUMBERS):
            number, dtype = number_beside(self.data, value)
            if isinstance(self.data, np.ndarray):
                return numerics.as_array(number, dtype)
            with using(self.device):  # a kernel, where a copy from the host would wait
                return array_module(self.data).full((), number, dtype)
        if isinstance(value, str):
            return None
        return Tensor(value).data if looks_like_array(value) else None

    def _binary(self, function: type[Function], other: Any, swapped: bool = False) -> Tensor:
        if not isinstance(other, Tensor):
            beside = self._beside(other)
            if beside is None:
                return NotImplemented
            if beside.ndim and self.requires_grad and is_grad_enabled():
                beside = beside.copy()  # backward may want it, and it is the caller's to change
            other = Tensor(beside)
        return function.apply(other, self) if swapped else function.apply(self, other)

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
        return self._binary(arithmetic.Div, _divided(other))

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Div, _divided(other), swapped=True)

    def __pow__(self, other: Any) -> Tensor:
        other = _unboxed(other)
        if not is_floating(self.dtype) and is_integer(other):
            if other < 0:
                raise ValueError(
                    f"an integer to the power of {other} is no integer; use .to(np.float32) first"
                )
            _expect_fit(other, self)
        return self._binary(arithmetic.Pow, other)

    def __rpow__(self, other: Any) -> Tensor:
        return self._binary(arithmetic.Pow, other, swapped=True)

    def __matmul__(self, other: Any) -> Tensor:
        return self._binary(matmul.MatMul, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return self._binary(matmul.MatMul, other, swapped=True)

    def __pos__(self) -> Tensor:
        return self

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
        return activation.ReLU.apply(self)

    # --- comparisons and masks: plain answers, outside the graph ----------------------------------

    def _plain(self, ufunc: str, other: Any) -> Tensor:
        beside = self._beside(other)
        if beside is None:
            return NotImplemented
        with using(same_device(ufunc, self.data, beside)):
            a, b = as_float32(self.data), beside
            if a.dtype is not b.dtype:
                a, b = promote(a, b)
            return Tensor(getattr(array_module(a), ufunc)(a, b))

    def _bitwise(self, ufunc: str, other: Any) -> Tensor:
        for operand in (self.data, self._beside(other)):
            if operand is not None and is_floating(operand.dtype):
                raise TypeError(f"{ufunc} expects bools or integers, got {operand.dtype}")
        return self._plain(ufunc, other)

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self._plain("equal", other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self._plain("not_equal", other)

    def __lt__(self, other: Any) -> Tensor:
        return self._plain("less", other)

    def __le__(self, other: Any) -> Tensor:
        return self._plain("less_equal", other)

    def __gt__(self, other: Any) -> Tensor:
        return self._plain("greater", other)

    def __ge__(self, other: Any) -> Tensor:
        return self._plain("greater_equal", other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Tensor:
        return self._bitwise("bitwise_and", other)

    def __or__(self, other: Any) -> Tensor:
        return self._bitwise("bitwise_or", other)

    def __xor__(self, other: Any) -> Tensor:
        return self._bitwise("bitwise_xor", other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Tensor:
        if is_floating(self.dtype):
            raise TypeError(f"~ expects bools or integers, got {self.dtype}")
        with using(self.device):
            return Tensor(~self.data)

    def any(self, dim: Axis = None, keepdim: bool = False) -> Tensor:
        """Return whether any element is true (not 0), over ``dim`` or over all."""
        return self._truth("any", dim, keepdim)

    def all(self, dim: Axis = None, keepdim: bool = False) -> Tensor:
        """Return whether all elements are true (not 0), over ``dim`` or over all."""
        return self._truth("all", dim, keepdim)

    def _truth(self, name: str, dim: Axis, keepdim: bool) -> Tensor:
        with using(self.device):
            axes, keep = self._axes(dim, None), flag(keepdim, "keepdim")
            answer = getattr(as_float32(self.data), name)(axis=axes, keepdims=keep)
            return Tensor(array_module(self.data).asarray(answer))

    def argmax(
        self,
        dim: int | None = None,
        keepdim: bool = False,
        *,
        axis: int | None = None,
        keepdims: bool = False,
    ) -> Tensor:
        """Return the index of the first maximum along ``dim``, or flattened.

        A NaN counts as the maximum, as in torch.
        """
        return self._index_of("argmax", dim, axis, _kept(keepdim, keepdims))

    def argmin(
        self,
        dim: int | None = None,
        keepdim: bool = False,
        *,
        axis: int | None = None,
        keepdims: bool = False,
    ) -> Tensor:
        """Return the index of the first minimum; see `argmax`."""
        return self._index_of("argmin", dim, axis, _kept(keepdim, keepdims))

    def _index_of(self, name: str, dim: int | None, axis: int | None, keepdim: bool) -> Tensor:
        chosen = _either(dim, axis)
        at = None if chosen is None or self.ndim == 0 else dimension(chosen, self.ndim)
        with using(self.device):
            return Tensor(reduction.index_of(name, self.data, at, keepdim))

    # --- reductions -------------------------------------------------------------------------------

    def sum(
        self, dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Tensor:
        """Sum over ``dim``, one axis or several, or over all axes."""
        return self._reduce(reduction.Sum, dim, axis, _kept(keepdim, keepdims))

    def mean(
        self, dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Tensor:
        """Average over ``dim``, one axis or several, or over all."""
        if not is_floating(self.dtype):
            raise TypeError(f"mean expects float32 or float64, got {self.dtype}; use .to(dtype)")
        return self._reduce(reduction.Mean, dim, axis, _kept(keepdim, keepdims))

    def max(
        self, dim: Any = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Any:
        """Return the maximum of all or, along ``dim``, torch's pair ``(values, indices)``.

        Along ``dim`` the index is that of the first maximum, and the gradient goes there; of all,
        equal maxima share it. NumPy's spelling ``max(axis=...)`` returns the values alone: `amax`.
        """
        return self._extreme("max", dim, axis, _kept(keepdim, keepdims))

    def min(
        self, dim: Any = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Any:
        """Return the minimum of all or, along ``dim``, ``(values, indices)``: see `max`."""
        return self._extreme("min", dim, axis, _kept(keepdim, keepdims))

    def amax(
        self, dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Tensor:
        """Return the maximum over ``dim`` or over all; ties share the gradient."""
        options = {"name": "max", "nan_shares": False}
        return self._reduce(reduction.Extreme, dim, axis, _kept(keepdim, keepdims), **options)

    def amin(
        self, dim: Axis = None, keepdim: bool = False, *, axis: Axis = None, keepdims: bool = False
    ) -> Tensor:
        """Return the minimum over ``dim`` or over all; ties share the gradient."""
        options = {"name": "min", "nan_shares": False}
        return self._reduce(reduction.Extreme, dim, axis, _kept(keepdim, keepdims), **options)

    def _extreme(self, name: str, dim: Any, axis: Axis, keepdim: bool) -> Any:
        if dim is None:
            options = {"name": name, "nan_shares": axis is None}
            return self._reduce(reduction.Extreme, None, axis, keepdim, **options)
        if not is_integer(dim):
            raise TypeError(
                f"{name} expects one axis, an integer, got {type(dim).__name__}; over several axes "
                f"use a{name}(dim), of two tensors a and b where(a > b, a, b)"
            )
        at, x = dimension(_either(dim, axis), self.ndim), self if self.ndim else self.reshape(1)
        with using(self.device):
            indices = Tensor(reduction.index_of(f"arg{name}", x.data, at, keepdim=True))
        values = reduction.Take.apply(x, index=indices.data, axis=at)
        if keepdim and self.ndim:
            return ValuesAndIndices(values, indices)
        return ValuesAndIndices(values.squeeze(at), indices.squeeze(at))

    def _reduce(
        self, function: type[Function], dim: Axis, axis: Axis, keepdim: bool, **options: Any
    ) -> Tensor:
        return function.apply(self, axes=self._axes(dim, axis), keepdim=keepdim, **options)

    def _axes(self, dim: Axis, axis: Axis) -> tuple[int, ...]:
        """Return the axes of a reduction: all, where none are named."""
        chosen = _either(dim, axis)
        items = () if chosen is None else chosen if isinstance(chosen, Sequence) else (chosen,)
        axes = tuple(dimension(item, self.ndim) for item in items)
        if len(set(axes)) != len(axes):
            raise ValueError(f"the same axis twice in dim={chosen!r}")
        return axes if axes and self.ndim else tuple(range(self.ndim))

    # --- shape ------------------------------------------------------------------------------------

    def reshape(self, *sizes: Any) -> Tensor:
        """Return the same elements in another shape; one size may be -1."""
        return shape.Reshape.apply(self, shape=_unpack(sizes))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Join the axes ``start_dim`` .. ``end_dim`` (included) into one."""
        start, end = dimension(start_dim, self.ndim), dimension(end_dim, self.ndim)
        if start > end:
            raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
        joined = math.prod(self.shape[start : end + 1])
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
        return shape.Index.apply(self, index=self._indices(index))

    def _indices(self, index: Any) -> Any:
        """Return an index as the array library takes it."""
        return tuple(map(self._index, index)) if isinstance(index, tuple) else self._index(index)

    def _index(self, item: Any) -> Any:
        """Return one part of an index."""
        if item is None or item is Ellipsis or isinstance(item, (int, np.integer, slice)):
            return item
        array = as_array(item)
        listed = isinstance(item, (list, tuple, range))
        if listed and array.size == 0:
            array = array.astype(np.int64)  # an empty list holds no floats
        if array.dtype.kind not in "biu":
            raise IndexError(
                "an index must be of integers or bools, a slice, ... or None, got "
                f"{type(item).__name__} of {array.dtype}"
            )
        if listed or isinstance(item, np.generic):
            with using(self.device):
                return array_module(self.data).asarray(array)
        same_device("indexing", self.data, array)
        if array.ndim == 0 and array.dtype.kind != "b" and isinstance(array, np.ndarray):
            return int(array)
        return array


class ValuesAndIndices(NamedTuple):
    """Result of `Tensor.max` and `Tensor.min` along an axis."""

    values: Tensor
    indices: Tensor


# Of a ufunc with an array on the left, as ``array + tensor`` calls it: the method on the right.
_REFLECTED = {
    "add": "__radd__",
    "subtract": "__rsub__",
    "multiply": "__rmul__",
    "divide": "__rtruediv__",
    "power": "__rpow__",
    "matmul": "__rmatmul__",
    "bitwise_and": "__rand__",
    "bitwise_or": "__ror__",
    "bitwise_xor": "__rxor__",
    "equal": "__eq__",
    "not_equal": "__ne__",
    "less": "__gt__",
    "less_equal": "__ge__",
    "greater": "__lt__",
    "greater_equal": "__le__",
}


def _unboxed(value: Any) -> Any:
    """Return a NumPy array without axes as the number that it is."""
    return plain_array(value)[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _divided(number: Any) -> Any:
    """Return an integer as a float: quotients must not wrap around."""
    if isinstance(number, Tensor):
        return number
    number = _unboxed(number)
    return float(number) if is_integer(number) else number


def _expect_fit(number: int, beside: Tensor) -> None:
    if number_beside(beside.data, number)[0] != number:
        raise OverflowError(f"{number} does not fit into the {beside.dtype} that it meets")


def _for_numpy(value: Any) -> Any:
    """Return arguments of a NumPy function with arrays in place of tensors."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {name: _for_numpy(item) for name, item in value.items()}
    return type(value)(map(_for_numpy, value)) if type(value) in (tuple, list) else value


def _rebuild(cls: type[Tensor], data: Any, requires_grad: bool) -> Tensor:
    tensor = cls.__new__(cls)
    Tensor.__init__(tensor, data, requires_grad)
    return tensor


def _either(dim: Any, axis: Any) -> Any:
    """Return the one of torch's and NumPy's spelling that was used."""
    if dim is not None and axis is not None:
        raise TypeError(f"give dim or axis, which mean the same, got {dim!r} and {axis!r}")
    return axis if dim is None else dim


def _kept(keepdim: bool, keepdims: bool) -> bool:
    return flag(keepdim, "keepdim") or flag(keepdims, "keepdims")


def _unpack(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the integers of f(2, 3) and of f((2, 3)) alike."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    return tuple(operator.index(size) for size in sizes)


def as_array(value: Any, dtype: Any = None) -> Array:
    """Return the array of a tensor, or `plain_array` of anything else."""
    return value.data if isinstance(value, Tensor) else plain_array(value, dtype)


# --- making tensors -------------------------------------------------------------------------------


@numerics.quiet
def tensor(
    data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """Return a new leaf tensor with a copy of ``data``; see `Tensor`."""
    source = as_array(data, dtype)
    with using(device_of(source)):
        array = Tensor(source).data
        if dtype is not None:
            array = array.astype(dtype, copy=False)
        if device is not None:
            array = move(array, device)
        return Tensor(array.copy() if array is source else array, requires_grad)


def zeros(*shape: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Return a tensor of zeros."""
    return Tensor(np.zeros(_unpack(shape), dtype), requires_grad)


def ones(*shape: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Return a tensor of ones."""
    return Tensor(np.ones(_unpack(shape), dtype), requires_grad)


@numerics.quiet
def full(
    shape: Sequence[int], value: Any, dtype: Any = None, requires_grad: bool = False
) -> Tensor:
    """Return a tensor filled with a number; its dtype is the default."""
    if not isinstance(value, (bool, np.bool_)):
        number(value, "value")
    filling = plain_array(value.item() if isinstance(value, np.generic) else value, dtype)
    return Tensor(np.full(_unpack((shape,)), filling, dtype), requires_grad)


def arange(*limits: Any, dtype: Any = None) -> Tensor:
    """Return start, start + step, ... below stop.

    int64, or float32 if a limit is a float.
    """
    if dtype is None and any(isinstance(limit, (float, np.floating)) for limit in limits):
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
    """Join tensors along the axis ``dim``; other axes must be equal."""
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(f"cat expects a list of Tensors, got {type(tensors).__name__}")
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


def where(condition: Any, input: Any, other: Any) -> Tensor:
    """Return ``input`` where ``condition`` holds, else ``other``: tensors, or numbers beside one.

    Dtypes promote. Raises TypeError for a condition of anything but bools, for operands that are
    neither tensors nor numbers; OverflowError for an integer that the other side's dtype lacks.
    """
    mask = as_array(condition)
    if mask.dtype.kind != "b":
        raise TypeError(f"where expects a condition of bools, got {mask.dtype}; compare: x != 0")
    sides = (input, other)
    _expect_tensors("where", *(side for side in sides if not isinstance(side, _NUMBERS)))
    like = next((side for side in sides if isinstance(side, Tensor)), Tensor(mask))
    for side in sides:
        if is_integer(side):
            _expect_fit(side, like)
    a, b = (side if isinstance(side, Tensor) else Tensor(like._beside(side)) for side in sides)
    same_device("where", a.data, mask)
    return arithmetic.Where.apply(a, b, condition=mask)


Function.Output = Tensor
