"""The stand-in's ``cupy.cuda``: just what tinyalex calls, each under CuPy's name and signature."""

from __future__ import annotations

import time
import types
from contextlib import contextmanager

import numpy as np

from simt import memory
from simt.memory import Device


class CUDARuntimeError(RuntimeError):
    """As ``cupy.cuda.runtime.CUDARuntimeError``."""

    def __init__(self, status, message="simulated"):
        self.status = status
        super().__init__(f"cudaError {status}: {message}")


class CUDADriverError(RuntimeError):
    """As ``cupy.cuda.driver.CUDADriverError``."""


class CompileException(Exception):  # noqa: N818 (CuPy's name)
    """As ``cupy.cuda.compiler.CompileException``."""


class Event:
    """A moment: everything before it is done when it is recorded."""

    def __init__(self, block=True, disable_timing=False, interprocess=False):
        self.time = None

    def record(self, stream=None):
        self.time = time.perf_counter()

    def synchronize(self):
        """Nothing is ever under way."""

    @property
    def done(self):
        return True


class Stream:
    """A queue that does everything at once; a capture records nothing but forbids what CUDA does.

    What runs during a capture runs here too, while on a GPU it is only noted down: a captured step
    must therefore be one that may run once more.
    """

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=0):
        self.ptr = 0

    def __enter__(self):
        _streams().append(self)
        return self

    def __exit__(self, *exception):
        _streams().pop()

    def use(self):
        _streams()[-1] = self
        return self

    def synchronize(self):
        memory.forbid_capture("synchronisation")

    def wait_event(self, event):
        """Every event is in the past."""

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event


Stream.null = Stream()


def _streams():
    if not hasattr(memory.state, "streams"):
        memory.state.streams = [Stream.null]
    return memory.state.streams


def get_current_stream():
    """Return the innermost stream of ``with stream:``."""
    return _streams()[-1]


class MemoryPool:
    """A pool that hands out what the system has."""

    def __init__(self, allocator=None):
        self.malloc = object()

    def used_bytes(self):
        return memory.used

    def total_bytes(self):
        return memory.used

    def free_all_blocks(self, stream=None):
        """Nothing is kept here."""


@contextmanager
def using_allocator(allocator=None):
    """Choose where memory comes from; the stand-in has one place only."""
    yield


def get_elapsed_time(start_event, end_event):
    """Return milliseconds."""
    return (end_event.time - start_event.time) * 1000


def get_device_count():
    """Return how many devices the stand-in plays."""
    return memory.DEVICES


def empty_pinned(shape, dtype=float, order="C"):
    """As ``cupyx.empty_pinned``: an ordinary NumPy array here."""
    return np.empty(shape, dtype, order)


def make():
    """Return the module that stands in for ``cupy.cuda``."""
    cuda = types.ModuleType("cupy.cuda")
    cuda.Device, cuda.Stream, cuda.Event, cuda.MemoryPool = Device, Stream, Event, MemoryPool
    cuda.get_current_stream, cuda.get_elapsed_time = get_current_stream, get_elapsed_time
    cuda.using_allocator = using_allocator
    cuda.get_device_id = lambda: memory.current_device().id
    cuda.is_available = lambda: memory.DEVICES > 0
    cuda.runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=get_device_count,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        getDeviceProperties=lambda index: {"name": b"stand-in", "major": 9, "minor": 0},
    )
    cuda.driver = types.SimpleNamespace(CUDADriverError=CUDADriverError)
    cuda.compiler = types.SimpleNamespace(CompileException=CompileException)
    cuda.memory = types.SimpleNamespace(OutOfMemoryError=memory.OutOfMemoryError)
    return cuda
