"""How the kernels are compiled, on how many threads they run, and where they keep scratch data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  loads the BLAS that compiled code calls
from numba.np.ufunc.parallel import get_thread_id as thread_id
from threadpoolctl import ThreadpoolController

from tinyalex.backends import memory
from tinyalex.backends.types import Array

__all__ = [
    "MOST_THREADS",
    "kernel",
    "num_threads",
    "parallel_kernel",
    "plain",
    "quick_kernel",
    "set_num_threads",
    "thread_id",
    "workspace",
]

Function = TypeVar("Function", bound=Callable[..., Any])

MOST_THREADS = numba.get_num_threads()  # what NUMBA_NUM_THREADS or the number of cores allows
_count = MOST_THREADS

# Additions may be reordered and fused with products, -0 may become 0. Nothing else of "fastmath":
# the rest lets the compiler assume that there is no NaN, and a NaN must come out as a NaN.
_EXACT_ENOUGH = {"reassoc", "contract", "nsz"}


def kernel(function: Function) -> Function:
    """Compile ``function``, and keep the machine code on disk for the next process.

    Numba's cache looks at the time stamp of the file that holds ``function``, not at those of the
    functions it calls: after a change to a helper in another file, delete ``__pycache__``.
    """
    return _compiled(function, parallel=False)


def quick_kernel(function: Function) -> Function:
    """As `kernel`; float32 quotients and roots may be off by some units in the last place.

    The processor's estimate and one step of Newton's method take half as long. (Infinity becomes
    NaN on that way.)
    """
    return _compiled(function, parallel=False, fastmath=_EXACT_ENOUGH | {"arcp", "afn"})


def parallel_kernel(function: Function) -> Function:
    """As `kernel`, with its ``prange`` loops spread over the threads.

    Numba counts such loops in unsigned integers, and unsigned with signed gives a float: a body
    that calculates with the loop's index begins with ``np.int64(index)``.
    """
    return _compiled(function, parallel=True)


def _compiled(function: Function, parallel: bool, fastmath: set[str] = _EXACT_ENOUGH) -> Function:
    options: dict[str, Any] = {
        "fastmath": fastmath,
        "error_model": "numpy",
        "nogil": True,
        "parallel": parallel,
    }
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no directory for the cache is writable: compile in every process
        return numba.njit(**options)(function)


def set_num_threads(count: int) -> None:
    """Let kernels use ``count`` threads, and the BLAS inside them one.

    Every task of a parallel kernel calls BLAS for itself; a BLAS with threads of its own would
    start ``count`` of them in each.
    """
    global _count
    _count = count
    numba.set_num_threads(_count)
    libraries = ThreadpoolController().select(user_api="blas")
    paths = [library.filepath for library in libraries.lib_controllers]
    # Wheels bring one BLAS for SciPy (which Numba calls) and one for NumPy, which we leave alone.
    # Elsewhere (conda, Linux distributions) they share one.
    for_scipy = [path for path in paths if "scipy.libs" in path or "scipy/.dylibs" in path]
    libraries.select(filepath=for_scipy or paths).limit(limits=1)


def num_threads() -> int:
    """Return how many threads the next kernel uses, whichever Python thread calls it."""
    numba.set_num_threads(_count)  # Numba keeps the number for each Python thread separately
    return _count


def workspace(elements: int, dtype: np.dtype[Any]) -> Array:
    """Return scratch memory, one row of ``elements`` for each thread."""
    return memory.empty((num_threads(), elements), dtype)


def plain(x: Array) -> Array:
    """Return contiguous ``x`` as the one kind of array that kernels are compiled for: writable.

    Numba compiles every kernel anew for read-only arrays; they are rare, so they are copied.
    """
    return x if x.flags.carray else np.require(x, requirements=["C", "W", "A"])
