"""Devices, streams and memory of the stand-in: what is used up, and what a capture forbids."""

from __future__ import annotations

import ctypes
import threading
import weakref
from contextlib import contextmanager

import numpy as np

DEVICES = 2
state = threading.local()
used = 0
limit = None  # bytes; None is no limit
_lock = threading.Lock()


class OutOfMemoryError(MemoryError):
    """As ``cupy.cuda.memory.OutOfMemoryError``."""


class Device:
    """A device: a number, attributes, and a context in which it is the current one."""

    attributes = {  # noqa: RUF012
        "MultiProcessorCount": 4,
        "MaxSharedMemoryPerBlockOptin": 227 << 10,
    }
    compute_capability = "90"
    mem_info = (60 << 30, 80 << 30)

    def __init__(self, index=None):
        self.id = current_device().id if index is None else int(index)

    def __enter__(self):
        _stack().append(self)
        return self

    def __exit__(self, *exception):
        _stack().pop()

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return self.id

    def use(self):
        _stack()[-1] = self

    def synchronize(self):
        """All work is done at once here."""


def _stack():
    if not hasattr(state, "devices"):
        first = Device.__new__(Device)
        first.id = 0
        state.devices = [first]
    return state.devices


def current_device():
    """Return the device on which new arrays are made."""
    return _stack()[-1]


def forbid_capture(what):
    """Raise the error of CUDA if the current stream is being captured into a graph."""
    if getattr(state, "capturing", False):
        from simt.runtime import CUDARuntimeError

        raise CUDARuntimeError(900, f"operation not permitted when stream is capturing: {what}")


def poisoned(shape, dtype):
    """Return memory in which every float is NaN: who reads before writing shall see it."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array


def count(array):
    """Take an array's memory into account until it is gone."""
    global used
    size = array.nbytes
    with _lock:
        if limit is not None and used + size > limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {size:,} bytes (allocated so far: {used:,} bytes, "
                f"limit set to: {limit:,} bytes)."
            )
        used += size
    weakref.finalize(array, _discount, size)


def _discount(size):
    global used
    with _lock:
        used -= size


@contextmanager
def limited(size):
    """Give the devices so many bytes more than are in use."""
    global limit
    limit = used + size
    try:
        yield
    finally:
        limit = None


def copy(target, source, size):
    """Copy bytes from one address to another."""
    ctypes.memmove(target, source, size)
