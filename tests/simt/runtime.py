"""The stand-in's ``cupy.cuda``: names that tinyalex uses, with CuPy's signatures."""

from __future__ import annotations

import itertools
import threading
import time
import types
import weakref

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
    """A moment of a stream: what it was asked for before is done before the event."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.time = self.moment = 0
        self.stream, self.position = None, 0

    def record(self, stream=None):
        self.time, self.moment = time.perf_counter(), memory.now()
        self.stream = stream or get_current_stream()
        self.position = self.stream.position

    def synchronize(self):
        memory.forbid_capture("synchronisation")
        self.reach()

    def reach(self):
        """Do what comes before the event."""
        if self.stream is not None:
            self.stream.run(self.position)

    @property
    def done(self):
        if self.stream is not None:
            self.stream.look(self.position)
        return self.stream is None or self.stream.position_done >= self.position


class Stream:
    """A queue. Work on the current stream is done at once.

    Copies on another one are done as late as possible, when something waits for them, and are
    refused where they could come too early: to memory that was used since the last event waited
    for. Between `begin_capture` and `end_capture` nothing is done, only recorded for the graph;
    what CUDA forbids then is an error here too.
    """

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=0):
        self.ptr = next(_numbers)
        _streams_by_ptr[self.ptr] = self
        self.position = self.position_done = 0
        self._waiting, self._known = [], 0
        self._lock = threading.RLock()

    def __enter__(self):
        _streams().append(self)
        return self

    def __exit__(self, *exception):
        _streams().pop()

    def use(self):
        _streams()[-1] = self
        return self

    def copy(self, target, work):
        """Copy to a device array, at once or, if this is not the current stream, later."""
        if self is get_current_stream():
            memory.use(target)
            work()
            return
        memory.check_unused(target, self._known)
        self._waiting.append(work)
        self.position += 1

    def claim(self, lease):
        """Raise AssertionError where another stream may still be using memory."""
        if any(at > self._known for stream, at in lease.uses.items() if stream is not self):
            raise AssertionError("memory that another stream may still be using: wait for an event")
        assert lease.busy in (None, self), "memory on its way, and no wait for the end"

    def append(self, work):
        """Let work end later, once it is `ready()`."""
        self._waiting.append(work)
        self.position += 1

    def look(self, position):
        """Do what is ready, until `position`."""
        if self._lock.acquire(blocking=False):  # else a thread is at it
            while self.position_done < position and getattr(self._waiting[0], "ready", bool)():
                self.run(self.position_done + 1)
            self._lock.release()

    def run(self, position):
        """Do what was asked for until `position`."""
        with self._lock:
            while self.position_done < position:
                self._waiting.pop(0)()
                self.position_done += 1

    def synchronize(self):
        memory.forbid_capture("synchronisation")
        self.run(self.position)

    def wait_event(self, event):
        event.reach()
        self._known = max(self._known, event.moment)

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def begin_capture(self, mode=None):
        if self is Stream.null:
            raise CUDARuntimeError(900, "the default stream cannot be captured")
        memory.state.captured, memory.state.pools = [], set()

    def end_capture(self):
        work, memory.state.captured = memory.state.captured, None
        pools, memory.state.pools = memory.state.pools, None
        return Graph(work, pools)


_numbers, _streams_by_ptr = itertools.count(), weakref.WeakValueDictionary()
Stream.null = Stream()


def stream_at(ptr):
    """Return the stream whose `ptr` that is."""
    return _streams_by_ptr[ptr]


class Graph:
    """What was noted down during a capture."""

    def __init__(self, work, pools):
        self._work, self._pools = work, [weakref.ref(pool) for pool in pools]
        for pool in pools:
            pool.graphs.add(self)

    def launch(self, stream=None):
        if any(pool() is None for pool in self._pools):
            raise AssertionError("the pool of the graph is gone, and its memory may be reused")
        for work in self._work:
            work()


def _streams():
    if not hasattr(memory.state, "streams"):
        memory.state.streams = [Stream.null]
    return memory.state.streams


def get_current_stream():
    """Return the innermost stream of ``with stream:``."""
    return _streams()[-1]


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
    cuda.Device, cuda.Stream, cuda.Event, cuda.MemoryPool = Device, Stream, Event, memory.Pool
    cuda.get_current_stream, cuda.get_elapsed_time = get_current_stream, get_elapsed_time
    cuda.using_allocator = memory.using_allocator
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
