"""Stand-in for ``cupy.cuda.nccl``: bytes between processes, over sockets.

Names and signatures are CuPy's. A message is sent when its stream has come to it and the other side
receives it, and not before: calls that do not pair up wait for ever, as on GPUs. What is received
lands as late as it may: when the stream continues, or when something asks for an event behind it.
An error here is what would be a race or a wrong address there: memory that another stream may still
use, that changes while it is sent, that is used before the end, or is none of the device.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import types
import uuid
from contextlib import suppress

from simt import memory, runtime

SIZES = {0: 1, 1: 1, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2}
"""Bytes of NCCL's types, by their numbers."""
ERRORS = {
    3: "NCCL_ERROR_INTERNAL_ERROR",
    4: "NCCL_ERROR_INVALID_ARGUMENT",
    5: "NCCL_ERROR_INVALID_USAGE",
    6: "NCCL_ERROR_REMOTE_ERROR",
}
_HEADER, _HELLO = struct.Struct("qq"), 64
_thread = threading.local()


class NcclError(RuntimeError):
    """As ``cupy.cuda.nccl.NcclError``."""

    def __init__(self, status):
        self.status = status
        super().__init__(f"{ERRORS[status]}: simulated")


class NcclCommunicator:
    """A communicator of one device, one of several processes."""

    def __init__(self, ndev, commId, rank, config=None):
        assert config is None
        assert isinstance(commId, bytes)
        assert len(commId) == 128
        self._size, self._rank, self._device = ndev, rank, memory.current_device()
        self._error, self._last, self._gone = 0, None, False
        self._to, self._from = {}, {}
        name = commId.rstrip(b"\0").decode()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{name}-{rank}")
            listener.listen(ndev)
            own = f"{rank} {self._device.pci_bus_id}"
            for peer in range(ndev):
                if peer != rank:
                    self._to[peer] = _connected(f"\0{name}-{peer}")
                    self._to[peer].sendall(own.encode().ljust(_HELLO))
            gpus = {self._device.pci_bus_id}
            for _ in range(ndev - 1):
                link, _ = listener.accept()
                peer, gpu = _received(link, _HELLO).decode().split()
                self._from[int(peer)] = link
                gpus.add(gpu)
        if len(gpus) < ndev:  # "Duplicate GPU detected"
            self.abort()
            raise NcclError(5)

    def send(self, sendbuf, count, datatype, peer, stream):
        """Send an array to a rank that receives it."""
        self._ask(
            _Message(self._to, sendbuf, count * SIZES[datatype], datatype, peer, True), stream
        )

    def recv(self, recvbuf, count, datatype, peer, stream):
        """Receive an array that a rank sends."""
        size = count * SIZES[datatype]
        self._ask(_Message(self._from, recvbuf, size, datatype, peer, False), stream)

    def _ask(self, message, stream):
        if self._gone or not 0 <= message.peer < self._size or message.peer == self._rank:
            raise NcclError(4)
        if memory.current_device() != self._device:
            raise NcclError(5)
        if getattr(_thread, "depth", 0):
            _thread.group.append((self, message, runtime.stream_at(stream)))
        else:
            _launch(self, [message], runtime.stream_at(stream))

    def check_async_error(self):
        """Raise the error of a message that was asked for before."""
        if self._error:
            raise NcclError(self._error)

    def abort(self):
        """Give up at once."""
        self._gone = True
        for link in (*self._to.values(), *self._from.values()):
            with suppress(OSError):  # the other side has gone
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def destroy(self):
        """Never return, as it may be on GPUs; CuPy calls this for what is not needed any more."""
        while not self._gone:
            time.sleep(1)

    __del__ = destroy


def _connected(name):
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(name)
        except ConnectionRefusedError:  # that rank is not there yet
            link.close()
            time.sleep(0.002)
        else:
            return link


class _Message:
    """Bytes to or from another rank, and their place on this device."""

    def __init__(self, links, address, size, datatype, peer, leaves):
        self.peer, self.size, self.leaves = peer, size, leaves
        self._links, self._datatype, self._address = links, datatype, address
        self.lease = memory.lease_at(address, size)
        self._there, self._block = self.lease.bytes_at(address, size)

    def go(self):
        """Send or receive; wait until the other side has done so."""
        link = self._links[self.peer]
        if self.leaves:
            self.content = bytes(self._there)
            link.sendall(_HEADER.pack(self.size, self._datatype) + self.content)
            _received(link, 1)
            return
        size, datatype = _HEADER.unpack(_received(link, _HEADER.size))
        if (size, datatype) != (self.size, self._datatype):
            raise NcclError(4)  # NCCL itself may hang, or write too much
        self.content = _received(link, size)
        link.sendall(b".")

    def land(self):
        """Write what was received; check what was sent."""
        if self.leaves and bytes(self._there) != self.content:
            raise AssertionError("memory that NCCL sends was written to before the end")
        if not self.leaves:
            memory.copy(self._address, self.content, self.size)


def _received(link, size):
    content = bytearray()
    while len(content) < size:
        some = link.recv(size - len(content))
        if not some:
            raise ConnectionError("the other rank has gone")
        content += some
    return bytes(content)


class _Group:
    """Messages that go at once, in their turn on a stream."""

    def __init__(self, owner, messages, before):
        self._owner, self._messages, self._before = owner, messages, before
        self._landed = threading.Lock()
        self._there = self._failed = False
        self.thread = threading.Thread(target=self._go, daemon=True)
        self.thread.start()

    def _go(self):
        if self._before is not None:
            self._before()
            self._before = None
        threads = [
            threading.Thread(target=self._one, args=(m,), daemon=True) for m in self._messages
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, message):
        try:
            message.go()
        except (OSError, NcclError) as error:
            self._owner._error, self._failed = getattr(error, "status", 6), True

    def ready(self):
        """Return whether all messages have gone."""
        return not self.thread.is_alive() and not self._failed

    def __call__(self):
        """Wait until all messages have gone; let them land."""
        self.thread.join()
        while self._failed:  # it stays on the stream
            time.sleep(1)
        with self._landed:
            if not self._there:
                for message in self._messages:
                    message.lease.busy = None
                    message.land()
            self._there = True


def _launch(owner, messages, stream):
    assert stream is not runtime.Stream.null, "NCCL on the stream that waits for all others"
    for message in messages:
        stream.claim(message.lease)
    for message in messages:
        message.lease.busy = stream
    owner._last = group = _Group(owner, messages, owner._last)
    stream.append(group)


def get_unique_id():
    """Return the id of a new clique of ranks."""
    return f"tinyalex-{os.getpid()}-{uuid.uuid4()}".encode().ljust(128, b"\0")


def get_version():
    """Return the version of NCCL."""
    return 22707


def groupStart():  # noqa: N802
    """Begin messages that go at once."""
    if not getattr(_thread, "depth", 0):
        _thread.depth, _thread.group = 0, []
    _thread.depth += 1


def groupEnd():  # noqa: N802
    """Let them go."""
    if not getattr(_thread, "depth", 0):
        raise NcclError(5)
    _thread.depth -= 1
    if _thread.depth:
        return
    asked, _thread.group = _thread.group, []
    for owner, stream in {(owner, stream) for owner, _, stream in asked}:
        _launch(owner, [m for o, m, s in asked if (o, s) == (owner, stream)], stream)


def make():
    """Return the module that stands in for ``cupy.cuda.nccl``."""
    nccl = types.ModuleType("cupy.cuda.nccl")
    for thing in (NcclCommunicator, NcclError, get_unique_id, get_version, groupStart, groupEnd):
        setattr(nccl, thing.__name__, thing)
    nccl.NCCL_UINT8, nccl.available = 1, True
    return nccl
