"""Devices, streams and memory of the stand-in, and rules of captures."""

from __future__ import annotations

import ctypes
import gc
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

    @property
    def pci_bus_id(self):
        return f"0000:00:{self.id:02x}.0"

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


def capturing():
    """Return whether the current stream is being captured into a graph."""
    return getattr(state, "captured", None) is not None


def forbid_capture(what):
    """Raise the error of CUDA if the current stream is being captured into a graph."""
    if capturing():
        from simt.runtime import CUDARuntimeError

        raise CUDARuntimeError(900, f"operation not permitted when stream is capturing: {what}")


def enqueue(work):
    """Let the device do something: now, or at every launch of the graph that is being captured."""
    if capturing():
        state.captured.append(work)
    else:
        work()


def poisoned(shape, dtype):
    """Return memory in which every float is NaN: who reads before writing shall see it."""
    array = np.empty(shape, dtype)
    poison(array)
    return array


def poison(array):
    """Make every float of an array NaN."""
    array[...] = np.frombuffer(b"\xff" * array.itemsize, array.dtype)[0]


class Pool:
    """A pool of memory that never fragments: it grows to the most that was in use at once."""

    def __init__(self, allocator=None):
        self.used = self.total = 0
        self.graphs = weakref.WeakSet()  # those that were captured with this pool's memory

    def malloc(self, size):
        """Not called here: the stand-in asks whose method the allocator is."""

    def take(self, size):
        """Note that so many bytes are in use; raise for what spoils a graph."""
        if capturing() and self is default_pool:
            raise AssertionError("a graph captured with the default pool, which others use as well")
        if not capturing() and self.graphs:
            raise AssertionError("memory from the pool of a graph is used by others")
        if capturing() and self.used + size > self.total:
            raise AssertionError("a capture that makes its pool grow: warm up first")
        if capturing():
            state.pools.add(self)
        self.used += size
        self.total = max(self.total, self.used)

    def used_bytes(self):
        return self.used

    def total_bytes(self):
        return self.total

    def free_all_blocks(self, stream=None):
        """Give back what is not in use."""
        self.total = self.used


default_pool = Pool()


def current_pool():
    """Return the pool of the innermost ``with using_allocator(pool.malloc)``."""
    return getattr(state, "pool", default_pool)


@contextmanager
def using_allocator(allocator=None):
    """Take memory from the pool whose method ``malloc`` the allocator is."""
    before, state.pool = current_pool(), allocator.__self__
    try:
        yield
    finally:
        state.pool = before


class Lease:
    """Ownership of a piece of memory, shared by all device arrays in it.

    A graph that was captured keeps the memory, but not the lease: on a GPU the pool may use what is
    free again for what comes later in the capture.
    """

    busy = None
    """The stream on which NCCL sends or receives it."""

    def __init__(self, block):
        self._block = weakref.ref(block)
        self.uses = {}
        """When each stream used it last."""

    def bytes_at(self, address, size):
        """Return bytes of it, and what keeps them; None if they lie elsewhere."""
        block = self._block()
        if block is None or not 0 <= address - block.ctypes.data <= block.nbytes - size:
            return None
        return (ctypes.c_uint8 * size).from_address(address), block


def lease_at(address, size):
    """Return the lease of device memory at an address."""
    for lease in list(_leases.values()):
        if lease.bytes_at(address, size) is not None:
            return lease
    raise AssertionError(f"{size} bytes at {address:#x} are not memory of the device")


_leases: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()


def lease(host):
    """Take the memory behind a host array into account until no device array uses it."""
    block = owner(host)
    lease = _leases.get(id(block))
    if lease is None:
        _count(block.nbytes, current_pool(), lease := Lease(block))
        _leases[id(block)] = lease
    return lease


def _count(size, pool, lease):
    global used
    with _lock:
        if limit is not None and used + size > limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {size:,} bytes (allocated so far: {used:,} bytes, "
                f"limit set to: {limit:,} bytes)."
            )
        pool.take(size)
        used += size
    weakref.finalize(lease, _discount, pool, size)


def _discount(pool, size):
    global used
    with _lock:
        used -= size
        pool.used -= size


@contextmanager
def limited(size):
    """Give the devices so many bytes more than are in use."""
    global limit
    gc.collect()  # what goes later would be room as well
    limit = used + size
    try:
        yield
    finally:
        limit = None


def copy(target, source, size):
    """Copy bytes from one address to another."""
    ctypes.memmove(target, source, size)


_clock = 0
_last_use: dict[int, int] = {}  # of the memory, by its address, to which streams copy


def now():
    """Return a number that grows with everything that the current stream does."""
    return _clock


def use(*arrays):
    """Note that the current stream uses these device arrays, after all that it has to do."""
    global _clock
    stream = getattr(state, "streams", [None])[-1]
    if stream is not None and stream.position_done < stream.position:
        stream.run(stream.position)
    _clock += 1
    for array in arrays:
        host = getattr(array, "_host", None)
        if host is not None:
            lease = array._lease
            if lease.busy not in (None, stream):
                raise AssertionError("memory on its way, and no wait for the end")
            lease.uses[stream] = _clock
        if host is not None and (address := _address(host)) in _last_use:
            _last_use[address] = _clock


def check_unused(array, known):
    """Raise AssertionError if a device array was used after the moment ``known``."""
    if _last_use.setdefault(_address(array._host), 0) > known:
        raise AssertionError("a copy to memory that another stream may still be using")


def _address(host):
    return owner(host).ctypes.data


def owner(host):
    """Return the array in whose memory ``host`` lies, a view or it itself."""
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host
