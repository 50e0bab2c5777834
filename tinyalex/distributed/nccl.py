"""Messages between GPUs through NCCL.

Not yet run on hardware. MPI starts the ranks and carries what lies on the host. NCCL carries bytes
from GPU to GPU, and does nothing else: no library chooses the order in which they are added.
"""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tinyalex.backends.gpu import cupy, download, failure
from tinyalex.backends.types import Array
from tinyalex.calls import pip_install
from tinyalex.distributed.communicator import CommunicationError

T = TypeVar("T")
Send = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], None]
Offer = tuple[str, str, str]
"""A rank's GPU, its unique id for NCCL, and why it cannot use NCCL."""


class GPULink:
    """GPU of a rank, connected with those of the others.

    Its work goes to a stream of its own, beside backward. The thread that makes it makes all calls
    but `now` and `ended`.
    """

    def __init__(self, index: int, rank: int) -> None:
        self._rank = rank
        self._device = cupy().cuda.Device(index)
        self._device.use()
        self._stream = cupy().cuda.Stream(non_blocking=True)
        self._stream.use()
        self._nccl: Any = None
        self._ranks: Any = None  # a communicator of NCCL

    def offer(self) -> Offer:
        """Return what the other ranks have to know for `join`."""
        ident = ""
        with warnings.catch_warnings():  # that the library is missing
            warnings.simplefilter("ignore")
            nccl = importlib.import_module("cupy.cuda.nccl")
        if not nccl.available:
            return "", "", f"NCCL is not there: {pip_install('tinyalex[nccl13]')} (or [nccl12])"
        self._nccl = nccl
        try:
            if self._rank == 0:
                ident = self._nccl.get_unique_id().hex()
        except self._nccl.NcclError as error:
            return "", "", str(error)
        return f"{_machine()} {self._device.pci_bus_id}", ident, ""

    def join(self, offers: Sequence[Offer]) -> str:
        """Connect the GPUs by NCCL, if possible; return the way."""
        why = obstacle(offers)
        if why is not None:
            return f"by way of the host ({why})"
        ident = bytes.fromhex(offers[0][1])
        with self._named("the start of NCCL"):
            self._ranks = self._nccl.NcclCommunicator(len(offers), ident, self._rank)
        # CuPy would free it at the end, which may hang (nccl#1777): the system does that as well.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._ranks))
        version = self._nccl.get_version()
        return f"by NCCL {version // 10000}.{version // 100 % 100}.{version % 100}"

    def now(self) -> Any:
        """Return an event after all work of the current stream."""
        stream = cupy().cuda.get_current_stream()
        return stream.record(cupy().cuda.Event(disable_timing=True))

    def run(self, label: str, ready: Any, work: Callable[[], T]) -> tuple[T, Any]:
        """Start work; return its result and the event of its end.

        It begins once the event `ready` is there.
        """
        with self._named(label):
            self._stream.wait_event(ready)
            return work(), self.now()

    def ended(self, label: str, event: Any) -> bool:
        """Return whether work has ended; raise CommunicationError if NCCL has failed."""
        with self._named(label):
            if self._ranks is not None:
                self._ranks.check_async_error()
            return event.done

    def transfer(self, parts: Sequence[Array], into: Sequence[Array], by_host: Send) -> int:
        """Send a part to each other rank, and receive one from each.

        Returns the bytes that NCCL sends.
        """
        others = [rank for rank in range(len(parts)) if rank != self._rank]
        if self._ranks is None:
            copies = {id(part): download(part) for part in {id(p): p for p in parts}.values()}
            received = [np.empty(array.shape, array.dtype) for array in into]
            by_host([copies[id(part)] for part in parts], received)
            for rank in others:
                into[rank].set(received[rank])
            return 0
        self._nccl.groupStart()
        try:
            for call, arrays in ((self._ranks.send, parts), (self._ranks.recv, into)):
                for rank in others:
                    if (array := arrays[rank]).size:
                        count, kind = array.nbytes, self._nccl.NCCL_UINT8
                        call(array.data.ptr, count, kind, rank, self._stream.ptr)
        finally:
            self._nccl.groupEnd()
        return sum(parts[rank].nbytes for rank in others)

    @contextmanager
    def _named(self, label: str) -> Iterator[None]:
        """Turn errors of NCCL and CUDA into those of tinyalex."""
        try:
            yield
        except Exception as error:
            if self._nccl is not None and isinstance(error, self._nccl.NcclError):
                raise CommunicationError(f"{label}: {error}") from error
            raise failure(error, label) from error


def obstacle(offers: Sequence[Offer]) -> str | None:
    """Return why ranks cannot use NCCL, None if they can.

    It refuses two ranks on one GPU.
    """
    ranks: dict[str, int] = {}
    for rank, (gpu, _, why) in enumerate(offers):
        if why:
            return f"rank {rank}: {why}"
        if ranks.setdefault(gpu, rank) != rank:
            return f"ranks {ranks[gpu]} and {rank} have the same GPU, which NCCL refuses"
    return None


def _machine() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # NCCL runs on Linux alone
