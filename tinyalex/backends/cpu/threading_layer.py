"""The threads of parallel loops: our own pool, or Numba's threading layer.

Our own needs Linux. Where ``NUMBA_THREADING_LAYER`` (or its ``_PRIORITY``) is set, it decides.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module

import numba
import numpy as np
from numba import prange
from numba.np.ufunc.parallel import threading_layer

from tinyalex.backends.cpu.runtime import MOST_THREADS, loop_symbols, parallel_kernel
from tinyalex.threads import follow, get_num_threads

CHOICES = "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY"
PROCESSORS = "x86_64", "aarch64"  # whose system calls `thread_pool` knows


def choose() -> str:
    """Start the threads that suit, and return the name of their pool."""
    chosen = any(os.environ.get(name) for name in CHOICES)
    ours = sys.platform == "linux" and platform.machine() in PROCESSORS and not chosen
    if not (ours or chosen):  # OpenMP's threads need not spin while they wait: it asks only now
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    numba.get_num_threads()  # starts Numba's layer, on which a user's own loops run in any case
    if ours:
        pool = import_module("tinyalex.backends.cpu.thread_pool")
        loop_symbols.update(pool.prepare(get_num_threads()))
        if _works():
            follow(pool.set_num_threads, MOST_THREADS)
            return "tinyalex's own"
        loop_symbols.clear()
    return f"Numba's {threading_layer()}"


@parallel_kernel
def _mark(marks):
    for i in prange(marks.size):
        marks[i] += i + 1


def _works() -> bool:
    """Return whether Numba's loops call what we think they do."""
    marks = np.zeros(100, np.int64)
    _mark(marks)
    return bool((marks == np.arange(1, 101)).all())
