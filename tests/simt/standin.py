"""Stand-in for ``cupy``: arrays on the host, kernels in the shim.

`install` puts it where ``import cupy`` finds it, so that the whole GPU path of tinyalex runs on a
machine without a GPU. It is stricter than it is complete: a name that CuPy lacks, a keyword that
CuPy's function does not take, or a host array among device arrays is an error here as there.
"""

from __future__ import annotations

import inspect
import sys
import types
from functools import cache

import numpy as np

from simt import memory, nccl, runtime
from simt.arrays import call, expect_known, ndarray, real, unwrap, wrap
from simt.build import RawModule

_UFUNC_OPTIONS = ("out", "dtype", "casting")


def _check(name, function, options):
    """Raise TypeError for a keyword that CuPy's function does not take."""
    if real is None:
        return
    theirs = getattr(real, name)
    if isinstance(function, np.ufunc):
        known = _UFUNC_OPTIONS
    else:
        try:
            parameters = inspect.signature(theirs).parameters
        except ValueError:
            return
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        known = tuple(parameters)
    wrong = [option for option in options if option not in known]
    if wrong:
        raise TypeError(f"cupy.{name} takes no argument {wrong[0]!r}")


class _Ufunc:
    def __init__(self, name):
        self._name, self._function = name, getattr(np, name)

    def __call__(self, *args, **options):
        _check(self._name, self._function, options)
        return call(self._function, args, options)

    def at(self, array, index, values):
        """Add unbuffered; of CuPy's types for that, bfloat16 is none."""
        expect_known(f"{self._name}.at", [unwrap(array), unwrap(values)])
        self._function.at(unwrap(array), unwrap(index), unwrap(values))


def _forward(name):
    function = getattr(np, name)
    if isinstance(function, type) or not callable(function):
        return function
    if isinstance(function, np.ufunc):
        return _Ufunc(name)

    def forwarded(*args, **options):
        _check(name, function, options)
        return call(function, args, options)

    return forwarded


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__") or (real is not None and not hasattr(real, name)):
            raise AttributeError(f"module 'cupy' has no attribute {name!r}")
        value = _forward(name)
        setattr(self, name, value)
        return value


def empty(shape, dtype=float, order="C"):
    """Return memory full of NaN."""
    return wrap(memory.poisoned(shape, dtype))


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    """Return memory full of NaN in the layout of ``prototype``."""
    host = np.empty_like(unwrap(prototype), dtype, order, shape=shape)
    memory.poison(host)
    return wrap(host)


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    """Copy a host array to the device, in C's order unless it lies in Fortran's; a device array
    stays what it is.
    """
    if isinstance(a, ndarray):
        unwrap(a)
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    memory.forbid_capture("a copy from the host")
    return wrap(np.array(a, dtype, order=order or "A"))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """Copy anything to a new device array."""
    if isinstance(obj, ndarray):
        return call(np.array, (obj, dtype), {})
    return asarray(obj, dtype)


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    """Copy to the host."""
    return a.get(out=out) if isinstance(a, ndarray) else np.asarray(a)


def as_strided(x, shape=None, strides=None):
    """Return a view of the memory of ``x``, which must hold it."""
    host, block = unwrap(x), memory.owner(unwrap(x))
    offset = host.ctypes.data - block.ctypes.data
    block = block.transpose(np.argsort([-step for step in block.strides], kind="stable"))
    return wrap(np.ndarray(shape, host.dtype, block, offset, strides))


def may_share_memory(a, b, max_work=None):
    """Return whether the two may overlap."""
    if a.device != b.device:
        return False
    return np.may_share_memory(a._host, b._host)


@cache
def modules() -> dict[str, types.ModuleType]:
    """Return the stand-ins for ``cupy`` and its like, by the names under which to find them."""
    module = _Module("cupy")
    module.__path__ = []
    for function in (empty, empty_like, asarray, array, asnumpy, may_share_memory):
        setattr(module, function.__name__, function)
    module.ndarray, module.RawModule, module.cuda = ndarray, RawModule, runtime.make()
    module.lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=as_strided))
    module.get_default_memory_pool = lambda: memory.default_pool
    module.__version__ = "stand-in"
    cupyx = types.ModuleType("cupyx")
    cupyx.empty_pinned = runtime.empty_pinned
    return {
        "cupy": module,
        "cupy.cuda": module.cuda,
        "cupy.cuda.nccl": nccl.make(),
        "cupyx": cupyx,
    }


def install() -> None:
    """Make ``import cupy`` find the stand-in from now on, in this whole process."""
    sys.modules.update(modules())
