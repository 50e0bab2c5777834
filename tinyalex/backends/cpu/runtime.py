"""Compilation, threads and scratch memory of the CPU kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  loads the BLAS that compiled code calls
from llvmlite import binding
from numba.core.ccallback import CFunc
from numba.core.codegen import JitEngine
from numba.core.compiler_lock import global_compiler_lock
from numba.core.sigutils import normalize_signature
from numba.np.ufunc.parallel import get_thread_count
from numba.np.ufunc.parallel import get_thread_id as thread_id
from threadpoolctl import ThreadpoolController

from tinyalex.backends import memory
from tinyalex.backends.cpu.compiling import say_once
from tinyalex.backends.cpu.kernel_cache import ALWAYS, KernelCache
from tinyalex.backends.types import Array
from tinyalex.interrupts import signals_held

__all__ = [
    "MOST_THREADS",
    "callback",
    "kernel",
    "loop_symbols",
    "num_threads",
    "parallel_kernel",
    "plain",
    "quick_kernel",
    "set_num_threads",
    "thread_id",
    "workspace",
]

Function = TypeVar("Function", bound=Callable[..., Any])

MOST_THREADS: int = get_thread_count()  # NUMBA_NUM_THREADS or the number of cores
_count = MOST_THREADS

# Additions may be reordered and fused with products, -0 may become 0. Nothing else of "fastmath":
# the rest lets the compiler assume that there is no NaN, and a NaN must come out as a NaN.
_EXACT_ENOUGH = {"reassoc", "contract", "nsz"}
OPTIONS: dict[str, Any] = {"fastmath": _EXACT_ENOUGH, "error_model": "numpy", "nogil": True}

# LLVM calls Python back for kernels on the disk: one whose callback is interrupted has address 0.
# This holds for everything that Numba compiles in this process.
JitEngine.finalize_object = signals_held()(JitEngine.finalize_object)


# Addresses of the functions that ``prange`` loops of our kernels call by these names, in place of
# Numba's own.
loop_symbols: dict[str, int] = {}


@contextmanager
def _our_loops() -> Iterator[None]:
    """Let loops that are compiled or loaded in this block call `loop_symbols`."""
    before = {name: binding.address_of_symbol(name) for name in loop_symbols}
    _add(loop_symbols)
    try:
        yield
    finally:
        _add(before)


def _add(symbols: dict[str, int]) -> None:
    for name, address in symbols.items():
        binding.add_symbol(name, address)


def kernel(function: Function) -> Function:
    """Compile ``function`` and cache the machine code on disk.

    Numba's cache looks at the time stamp of the file that holds ``function``, not at those of the
    functions it calls: after a change to a helper in another file, delete ``__pycache__``.
    """
    return _compiled(function)


def quick_kernel(function: Function) -> Function:
    """`kernel` with fast float32 quotients and roots, inexact in the last digits.

    The processor's estimate and one step of Newton's method take half as long. On that way 0 and
    infinity become NaN: neither may come here.
    """
    return _compiled(function, fastmath=_EXACT_ENOUGH | {"arcp", "afn"})


def parallel_kernel(function: Function) -> Function:
    """As `kernel`, with its ``prange`` loops spread over the threads.

    Numba counts such loops in unsigned integers, and unsigned with signed gives a float: a body
    that calculates with the loop's index begins with ``np.int64(index)``.
    """
    made: Any = _compiled(function, parallel=True)
    compile_or_load = made.compile

    def compile(signature: Any) -> Any:
        with global_compiler_lock, _our_loops():
            return compile_or_load(signature)

    made.compile = compile
    return cast(Function, made)


def callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile what C code, or other compiled code, calls by its ``address``."""

    def compiled(function: Callable[..., Any]) -> CFunc:
        made = CFunc(function, normalize_signature(signature), {}, OPTIONS)
        _keep(made, function)
        made.compile()
        return made

    return compiled


def _compiled(function: Function, **options: Any) -> Function:
    made = numba.njit(**OPTIONS | options)(function)
    _keep(made, function)
    return cast(Function, made)


def _keep(made: Any, function: Callable[..., Any]) -> None:
    """Act as ``cache=True``, with a cache that tolerates spoilt files."""
    try:
        made._cache = KernelCache(function)
    except RuntimeError:
        say_once("no folder for kernels can be written (NUMBA_CACHE_DIR names one)", ALWAYS)


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
    """Return the threads of the next kernel, from any Python thread."""
    if not loop_symbols:
        numba.set_num_threads(_count)  # which has one for each Python thread
    return _count


def workspace(elements: int, dtype: np.dtype[Any]) -> Array:
    """Return scratch memory, one row of ``elements`` per possible thread.

    (`set_num_threads` may come between this and the kernel. Rows that no thread uses take no
    memory.)
    """
    num_threads()
    return memory.empty((MOST_THREADS, elements), dtype)


def plain(x: Array) -> Array:
    """Return contiguous ``x`` writable, the only form kernels are compiled for.

    Numba compiles every kernel anew for read-only arrays; they are rare, so they are copied.
    """
    return x if x.flags.carray else np.require(x, requirements=["C", "W", "A"])
