"""The stand-in's ndarray: a NumPy array with CuPy's methods only.

It is no subclass of NumPy's, as CuPy's is none. It mixes with no host array, is never turned into
one by accident, keeps results without axes as arrays, knows the device on which it lies, and takes
no argument that CuPy's method of that name does not list.
"""

from __future__ import annotations

import re
import weakref
from functools import cache

import numpy as np

from simt import memory

try:
    import cupy as real  # importable without a driver, and good for names and signatures only
except ImportError:
    real = None

PROPERTIES = ("shape", "strides", "ndim", "size", "itemsize", "nbytes", "dtype")
ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or")
IN_PLACE = ("fill", "sort", "put", "put_along_axis", "copyto", "at")
MOVES = (
    *("array", "asarray", "ascontiguousarray", "astype", "broadcast_to", "concatenate", "copy"),
    *("copyto", "expand_dims", "fill", "full_like", "moveaxis", "ravel", "reshape", "split"),
    *("squeeze", "swapaxes", "transpose", "view", "zeros_like", "__getitem__"),
)
UFUNCS = {  # of the operators; in place and on the right, they have another letter in front
    f"{side}{name}": ufunc
    for name, ufunc in {
        **{"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide"},
        **{"pow": "power", "neg": "negative", "abs": "absolute"},
        **{"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal"},
        **{"gt": "greater", "ge": "greater_equal"},
    }.items()
    for side in ("", "r", "i")
}
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]


_bases = weakref.WeakValueDictionary()  # by the id of the memory's owner on the host


class Flags:
    """The three flags that CuPy's arrays have; NumPy's ``writeable`` is not among them."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = flags.owndata


class Pointer:
    """What ``array.data`` is in CuPy: an address, and copies to and from it."""

    def __init__(self, array):
        self._array = array
        self.ptr = array._host.ctypes.data
        self.device_id = array.device.id

    def copy_from_host_async(self, pointer, size, stream=None):
        """Copy ``size`` bytes from a host address, on another stream as late as it may be."""
        memory.forbid_capture("a copy from the host")
        source = int(getattr(pointer, "value", pointer))
        keep = self._array._host
        if stream is None:
            memory.copy(self.ptr, source, size)
        else:
            stream.copy(self._array, lambda: memory.copy(keep.ctypes.data, source, size))


class ndarray:  # noqa: N801 (CuPy's name)
    """An array on a device that does not exist."""

    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        assert memptr is None, "the stand-in makes no arrays from pointers"
        self._adopt(memory.poisoned(shape, dtype))

    def _adopt(self, host):
        self._host, self.device = host, memory.current_device()
        self._lease = memory.lease(host)
        owner = memory.owner(host)
        self.base = _bases.get(id(owner))  # as in CuPy: the array whose memory a view's is
        if self.base is None and owner is not host:
            with self.device:
                self.base = wrap(owner)
        elif self.base is None:
            _bases[id(owner)] = self

    @property
    def flags(self):
        return Flags(self._host.flags)

    @property
    def data(self):
        return Pointer(self)

    @property
    def T(self):  # noqa: N802
        return self._view(self._host.T)

    def _view(self, host):
        with self.device:
            return wrap(host)

    def get(self, stream=None, order="C", out=None, blocking=True):
        """Copy to the host, which no stream under capture can."""
        memory.forbid_capture("a copy to the host")
        memory.use(self)
        if out is None:
            return np.array(self._host, order=order)
        out[...] = self._host
        return out

    def set(self, arr, stream=None):
        """Copy from the host."""
        memory.forbid_capture("a copy from the host")
        assert isinstance(arr, np.ndarray)
        assert arr.shape == self.shape
        memory.use(self)
        self._host[...] = arr

    def item(self):
        memory.forbid_capture("a copy to the host")
        memory.use(self)
        return self._host.item()

    __float__ = __int__ = __bool__ = __index__ = None  # set below

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        return repr(self.get())

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__":
            return NotImplemented
        return call(getattr(np, ufunc.__name__), inputs, options)

    def __array_function__(self, function, types, args, kwargs):
        return call(function, args, kwargs)

    def __getitem__(self, index):
        items = index if isinstance(index, tuple) else (index,)
        if all(isinstance(item, (int, np.integer)) for item in items):
            index = (*items, ...)  # of one element, too, a view, where NumPy copies the number
        return call(np.ndarray.__getitem__, (self, index), {})

    def __setitem__(self, index, value):
        host, index, value = unwrap(self), unwrap(index), unwrap(value)
        memory.enqueue(lambda: host.__setitem__(index, value))

    def __getattr__(self, name):
        if name in PROPERTIES:
            return getattr(self._host, name)
        if name.startswith("__") or (real is not None and not hasattr(real.ndarray, name)):
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        method = getattr(np.ndarray, name)

        def bound(*args, **options):
            known = arguments_of(name)
            for option in options:
                if known is not None and option not in known:
                    raise TypeError(f"cupy.ndarray.{name} takes no argument {option!r}")
            return call(method, (self, *args), options)

        return bound


def _number(kind):
    def convert(self):
        return kind(self.item())

    return convert


for _name, _kind in {"float": float, "int": int, "bool": bool, "index": int}.items():
    setattr(ndarray, f"__{_name}__", _number(_kind))


def _operator(name):
    def apply(self, *others):
        # As CuPy: what it does not know may know what to do with this array.
        if any(not isinstance(o, (ndarray, np.ndarray, int, float, np.generic)) for o in others):
            return NotImplemented
        return call(getattr(np.ndarray, name), (self, *others), {})

    return apply


def _in_place(name):
    def apply(self, other):
        host, other = unwrap(self), unwrap(other)
        memory.enqueue(lambda: getattr(np.ndarray, name)(host, other))
        return self

    return apply


for _name in ARITHMETIC:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in (*COMPARISONS, "neg", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


@cache
def arguments_of(method):
    """Return the names that the docstring of CuPy's method lists, None where it lists none."""
    text = getattr(real.ndarray, method).__doc__ if real else None
    match = re.match(rf"\w+\.{method}\(self(.*)\)", text or "")
    if not match or "**" in match[1] or "*args" in match[1]:
        return None
    return {re.split(r"[=:]", part)[0].split()[-1] for part in match[1].split(",") if part.strip()}


def unwrap(value):
    """Return the NumPy array behind ``value``; raise TypeError for a host array, as CuPy does."""
    if isinstance(value, ndarray):
        memory.use(value)
        if value.device.id != memory.current_device().id:
            raise ValueError(
                f"Array device must be same as the current device: array device = "
                f"{value.device.id} while current = {memory.current_device().id}"
            )
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)(map(unwrap, value))
    return value


def wrap(value):
    """Return arrays, and numbers that NumPy made of arrays without axes, as device arrays."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(wrap, value))
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    array = ndarray.__new__(ndarray)
    array._adopt(np.asarray(value))
    return array


def expect_known(name, hosts):
    """Raise TypeError where an array is bfloat16, which CuPy, if it is here, does not take.

    It takes it in what moves numbers, and in ufuncs that list it among their types.
    """
    halves = any(dtype_of(host) == "bfloat16" for host in hosts)
    if real is None or not halves or name in MOVES:
        return
    ufunc = getattr(real, UFUNCS.get(name.strip("_"), name), None)
    if "E" not in "".join(getattr(ufunc, "types", ())):
        raise TypeError(f"cupy's {name} does not take bfloat16, as far as the stand-in knows")


def dtype_of(value):
    """Return the name of the dtype of an array, or of the first in a list of them."""
    if isinstance(value, (tuple, list)) and value:
        return dtype_of(value[0])
    return value.dtype.name if isinstance(value, np.ndarray) else None


def call(function, args, options):
    """Run NumPy's ``function`` on the arrays behind the arguments."""
    out = options.pop("out", None)
    hosts = [unwrap(value) for value in args]
    expect_known(function.__name__, hosts)
    options = {name: unwrap(value) for name, value in options.items()}
    if out is not None:
        options["out"] = unwrap(out)

    @np.errstate(all="ignore")  # a GPU does not warn
    def run():
        return function(*hosts, **options)

    if out is not None or function.__name__ in IN_PLACE:
        memory.enqueue(run)
        return out[0] if isinstance(out, tuple) else out
    result = wrap(run())
    if memory.capturing():
        _note(run, result, hosts)
    return result


def _note(run, result, hosts):
    """Let a capture compute ``result`` at each launch, and leave nothing in it until then."""
    several = isinstance(result, (tuple, list))
    targets = [a._host for a in (result if several else [result]) if isinstance(a, ndarray)]
    inputs = [host for host in hosts if isinstance(host, np.ndarray)]
    if any(np.may_share_memory(target, host) for target in targets for host in inputs):
        return  # a view

    def again():
        found = run()
        for target, value in zip(targets, found if several else [found], strict=True):
            target[...] = value

    for target in targets:
        memory.poison(target)
    memory.enqueue(again)
