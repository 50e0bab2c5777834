"""Asynchronous copies to a GPU: pinned memory, two buffers, their own stream.

The copy of one batch and the computation on the one before run side by side::

    compute   | batch 0         | batch 1         | batch 2
    copies    | to place B: 1   | to place A: 2   | to place B: 3

That takes memory of the host which the system does not move ("pinned"), and a stream that does not
wait for the others. What must not overlap is kept apart by events: a copy waits until nothing uses
its place any more, and a computation until its batch is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array

Item = TypeVar("Item")
Sent = TypeVar("Sent")


def empty_pinned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return uninitialised pinned host memory, for copies beside computation.

    Memory that is free again is kept for the next array.
    """
    cupy()
    import cupyx

    return cupyx.empty_pinned(shape, dtype)


class Place:
    """Device memory, and the host array that was last copied there."""

    def __init__(self) -> None:
        self.memory: Array | None = None
        self.source: np.ndarray | None = None
        self.arrived = cupy().cuda.Event(disable_timing=True)

    def receive(self) -> Array:
        """Return the array, arrived for all later work of the current stream.

        Of an array of records the bytes, [N, bytes].
        """
        assert self.source is not None
        assert self.memory is not None
        cupy().cuda.get_current_stream().wait_event(self.arrived)
        shape, dtype = self.source.shape, self.source.dtype
        line = self.memory[: self.source.nbytes]
        if dtype.names is not None:
            return line.reshape(*shape, dtype.itemsize)
        return line.view(dtype).reshape(shape)


class Uploads:
    """Two buffers that arrays are copied to in turn, on their stream."""

    def __init__(self) -> None:
        self._stream = cupy().cuda.Stream(non_blocking=True)
        self._places = [Place(), Place()]

    def send(self, array: np.ndarray) -> Place:
        """Begin to copy a C-contiguous pinned array; return its destination.

        Its place is the one of the array before the last. What the current stream has been asked
        for until now may still use that; what it is asked for later may not.
        """
        assert array.flags.c_contiguous
        place, xp = self._places[0], cupy()
        self._places.reverse()
        if place.source is not None:
            place.arrived.synchronize()  # the host's memory is free from here on
        if place.memory is None or place.memory.nbytes < array.nbytes:
            place.memory = xp.empty(array.nbytes, np.uint8)
        self._stream.wait_event(xp.cuda.get_current_stream().record())
        place.memory.data.copy_from_host_async(array.ctypes.data, array.nbytes, self._stream)
        place.arrived.record(self._stream)
        place.source = array
        return place


def one_ahead(items: Iterator[Item], send: Callable[[Item], Sent]) -> Iterator[tuple[Item, Sent]]:
    """Yield each item with `send` of it, once the next is sent.

    An error of the next one is raised when its turn has come.
    """
    sent: deque[tuple[Item, Sent]] = deque()
    end: Exception | None = None
    while sent or end is None:
        if end is None:
            try:
                item = next(items)
                sent.append((item, send(item)))
            except Exception as error:  # at last StopIteration
                end = error
        if len(sent) == 2 or (sent and end is not None):
            yield sent.popleft()
    if not isinstance(end, StopIteration):
        raise end
