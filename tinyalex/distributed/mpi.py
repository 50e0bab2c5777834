"""Messages between ranks through MPI."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from tinyalex.backends.shards import Tree
from tinyalex.distributed.communicator import (
    CommunicationError,
    Communicator,
    Pending,
    ranks_of,
)
from tinyalex.distributed.watcher import SAID, WELL, Watcher
from tinyalex.text import escaped

T = TypeVar("T")

TIMEOUT = 300.0
"""Seconds without a message after which the job is given up."""

PIECE = 1 << 20
"""Bytes of one message at most: each that arrives is a sign of life."""

BLOCK = 1 << 26
"""Bytes of an array that are summed at a time, which bounds the memory for it."""

LONGEST_NAP = 1e-3
"""Seconds between two looks for messages at most."""

GRACE = 0.3
"""Seconds for words to get through before the job is ended."""

_HEADER, _DATA = 1, 2  # tags of messages


def load() -> Any:
    """Import MPI, which begins nothing yet."""
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise CommunicationError(f"mpi4py does not work here ({error})") from error
    return MPI


class _Request(Pending[T]):
    """Request in the queue of the thread."""

    def __init__(self, owner: MPICommunicator, label: str, work: Callable[[], T]) -> None:
        self.label = label
        self.work = work
        self.done = threading.Event()
        self.result: T
        self.error: BaseException | None = None
        self._owner = owner

    def wait(self) -> T:
        if not self.done.is_set():
            self._owner.wait_for(self)
        if self.error is not None:
            raise self.error
        return self.result


class MPICommunicator(Communicator):
    """Ranks under MPI.

    One thread makes all calls of MPI, the first and the last included, so that MPI needs to know
    of no threads. It sends point to point and looks for what has come, with naps between: so it
    knows which ranks are missing, other threads have the cores, and sums are taken in an order
    that no library chooses.

    Each request begins with a header to every rank, which says what is asked for: ranks that do not
    ask for the same end with an error. `sum` sends chunk j of the array to rank j, which adds
    those of all ranks and sends the result to all: the bytes of a ring, 2 (n - 1) / n times the
    array from each of n ranks. It needs memory for n - 1 chunks of a block of `BLOCK` bytes.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.rank = self.size = -1
        self._host = socket.gethostname()
        self._mpi: Any = None
        self._ranks: Any = None  # a communicator of MPI
        self._queue: queue.SimpleQueue[_Request[Any] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._missing: set[int] = set()
        self._heard = time.monotonic()  # when the last message came
        self._exit_code: int | None = None
        self._closed = False
        self._watcher: Watcher | None = None
        start = _Request(self, "start", self._start)
        self._queue.put(start)
        self._thread = threading.Thread(target=self._serve, name="MPI", daemon=True)
        self._thread.start()
        start.wait()
        atexit.register(self._leave)
        places = self.share("places", _place()).wait()
        self.hosts = [host for host, *_ in places]
        own = places[self.rank]
        self.sharing = sum([host, cores] == own[::2] for host, _, cores in places)
        here = [rank for rank, place in enumerate(places) if place[:2] == own[:2]]
        self._watch(here, f"rank {self.rank} ({self._host}, process {os.getpid()})")

    def _watch(self, here: list[int], name: str) -> None:
        """Connect the ranks of a host to a watcher."""
        first = self.rank == here[0]
        if first and sys.platform == "linux":
            self._watcher = Watcher(name, len(here))
        address = self._watcher.address if self._watcher else None
        addresses = self.share("watchers", address).wait()
        if not first and addresses[here[0]]:
            self._watcher = Watcher(name, len(here), addresses[here[0]])

    def wait_for(self, request: _Request[Any]) -> None:
        """Wait for a request; end all ranks after `timeout` seconds of silence."""
        begun = heard = time.monotonic()
        while not request.done.wait(heard + self.timeout - time.monotonic()):
            heard = max(begun, self._heard)
            if time.monotonic() >= heard + self.timeout:
                missing = ", ".join(map(str, sorted(self._missing)))
                step = "" if self.step is None else f"step {self.step}, "
                self.abort(
                    f"{step}{request.label}: nothing came for {self.timeout:g} s "
                    f"from rank {missing}"
                    if self._ranks
                    else f"MPI has not started on all ranks within {self.timeout:g} s"
                )
        self.waited += time.monotonic() - begun

    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print the message and end all ranks with the exit code."""
        who = f"rank {self.rank} ({self._host})" if self._ranks else self._host
        line = f"{escaped(f'{who}: {message}')}\n"
        os.write(2, line.encode(errors="replace"))  # whole, and now
        if self._watcher:
            self._watcher.close(SAID)
        time.sleep(GRACE)
        self._exit_code = code or 1
        self._queue.put(None)
        if self._ranks:
            self._thread.join(1)
        os.kill(os.getpid(), signal.SIGKILL)  # the thread is stuck in MPI: the launcher sees this
        raise SystemExit(code)

    def close(self) -> None:
        """Wait until all ranks have come here, and end MPI."""
        if not self._closed:
            self.share("end", None).wait()
            if self._watcher:
                self._watcher.close(WELL)
            self._closed = True
            end = _Request(self, "end", self._finish)
            self._queue.put(end)
            end.wait()

    def _leave(self) -> None:
        if not self._closed:
            self.abort("ended before the others")

    def _ask(self, label: str, work: Callable[[], T]) -> Pending[T]:
        if self._closed:
            raise CommunicationError(f"{label}: requested after the communicator was closed")
        request = _Request(self, label, work)
        self._queue.put(request)
        return request

    # --- in the thread ----------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            request = self._queue.get()
            if request is None:
                self._abort_if_asked()
                continue
            self._heard = time.monotonic()
            try:
                if self._error is not None:
                    raise self._error
                request.result = request.work()
            except BaseException as error:
                self._error = request.error = error
            request.done.set()

    def _start(self) -> None:
        MPI = load()
        from mpi4py import __version__

        # mpi4py's own calls that start and end MPI would stop the other threads until they return.
        self._calls = ctypes.CDLL(MPI.__file__)
        if not MPI.Is_initialized():  # for one thread, this one
            self._calls.MPI_Init_thread(
                None, None, MPI.THREAD_FUNNELED, ctypes.byref(ctypes.c_int())
            )
        elif MPI.Query_thread() < MPI.THREAD_SERIALIZED:
            raise CommunicationError("MPI was started for the use of one thread, another one")
        self._mpi = MPI
        MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)  # which become exceptions
        library = MPI.Get_library_version().split("\n")[0].rstrip("\0")
        self.engine = f"{' '.join(library.replace('Version:', '').split())}, mpi4py {__version__}"
        self._ranks = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self._ranks.rank, self._ranks.size

    def _finish(self) -> None:
        self._ranks.Free()
        self._calls.MPI_Finalize()

    def _gather(self, label: str, array: np.ndarray) -> list[np.ndarray]:
        array = np.ascontiguousarray(array)
        like = ["gather", label, array.dtype.str, *array.shape[1:]]
        lengths = self._agree(like, len(array))
        arrays = [np.empty((length, *array.shape[1:]), array.dtype) for length in lengths]
        arrays[self.rank] = array
        self._transfer([array] * self.size, arrays)
        return arrays

    def _exchange(
        self, label: str, parts: list[np.ndarray], expect: list[tuple[int, ...]]
    ) -> list[np.ndarray]:
        parts = [np.ascontiguousarray(part) for part in parts]
        dtype = parts[self.rank].dtype
        shapes = self._agree(["exchange", label, dtype.str], [part.shape for part in parts])
        for peer, (shape, sent) in enumerate(zip(expect, shapes, strict=True)):
            if tuple(shape) != tuple(sent[self.rank]):
                raise CommunicationError(
                    f"{label}: rank {self.rank} expects {tuple(shape)} from rank {peer}, which "
                    f"sends {tuple(sent[self.rank])}"
                )
        received = [np.empty(shape, dtype) for shape in expect]
        received[self.rank] = parts[self.rank]
        self._transfer(parts, received)
        return received

    def _sum(self, label: str, array: np.ndarray, tree: Tree) -> None:
        what = ["sum", label, array.dtype.str]
        asked = self._agree(what, [*array.shape, repr(tree)])
        mine = asked[self.rank]
        group = [rank for rank, theirs in enumerate(asked) if theirs == mine]
        terms = set(ranks_of(tree, self.size))
        for rank, theirs in enumerate(asked):
            shared = rank in terms or terms & set(map(int, re.findall(r"\d+", theirs[-1])))
            if theirs != mine and shared:
                self._refuse([*what, *mine], [*what, *theirs], rank)
        line = np.ascontiguousarray(array).reshape(-1)
        length = BLOCK // array.itemsize
        for start in range(0, line.size, length):
            self._sum_block(line[start : start + length], tree, group)
        if not np.may_share_memory(line, array):
            array[...] = line.reshape(array.shape)

    def _sum_block(self, block: np.ndarray, tree: Tree, group: list[int]) -> None:
        nothing = block[:0]
        bounds = [len(block) * place // len(group) for place in range(len(group) + 1)]
        chunks = [nothing] * self.size
        for rank, (start, end) in zip(group, pairwise(bounds), strict=True):
            chunks[rank] = block[start:end]
        mine = chunks[self.rank]
        terms = ranks_of(tree, self.size)
        received = [np.empty_like(mine) if r in terms else nothing for r in range(self.size)]
        received[self.rank] = mine
        self._transfer(chunks if self.rank in terms else [nothing] * self.size, received)
        total = _add(tree, received)
        if total is not mine:
            mine[...] = total
        back = [mine if rank in group else nothing for rank in range(self.size)]
        self._transfer(back, chunks)

    def _share(self, label: str, value: Any) -> list[Any]:
        return self._agree(["share", label], value)

    def _agree(self, request: list[Any], value: Any = None) -> list[Any]:
        """Return the values of all ranks, whose requests must be the same."""
        header = json.dumps([request, value]).encode()
        others = [peer for peer in range(self.size) if peer != self.rank]
        open_ = [self._ranks.Isend(header, peer, _HEADER) for peer in others]
        self.sent += len(header) * len(others)
        headers: dict[int, bytes | bytearray] = {self.rank: header}
        self._missing = set(others)
        while self._missing:
            for peer in list(self._missing):
                status = self._mpi.Status()
                if message := self._ranks.Improbe(peer, _HEADER, status):
                    headers[peer] = bytearray(status.Get_count())
                    open_.append(message.Irecv(headers[peer]))
                    self._missing.remove(peer)
                    self._heard = time.monotonic()
            if self._missing:
                self._nap()
        self._complete(open_, others * 2)
        values = []
        for peer in range(self.size):
            theirs, value = json.loads(headers[peer])
            if theirs != request:
                self._refuse(request, theirs, peer)
            values.append(value)
        return values

    def _refuse(self, ours: list[Any], theirs: list[Any], peer: int) -> NoReturn:
        first, second = (" ".join(map(str, words)) for words in (ours, theirs))
        raise CommunicationError(
            f"ranks must ask for the same things in the same order, but rank {self.rank} asks for "
            f"{first}, and rank {peer} for {second}"
        )

    def _transfer(self, parts: Sequence[np.ndarray], into: Sequence[np.ndarray]) -> None:
        """Send a part to each other rank; receive one from each."""
        requests, peers = [], []
        for call, arrays in ((self._ranks.Irecv, into), (self._ranks.Isend, parts)):
            for away in range(1, self.size):  # each rank begins with another one
                peer = (self.rank + away) % self.size
                line = arrays[peer].reshape(-1).view(np.uint8)
                for start in range(0, len(line), PIECE):
                    requests.append(call(line[start : start + PIECE], peer, _DATA))
                    peers.append(peer)
        self.sent += sum(part.nbytes for peer, part in enumerate(parts) if peer != self.rank)
        self._complete(requests, peers)

    def _complete(self, requests: list[Any], peers: list[int]) -> None:
        """Wait for messages from and to `peers`."""
        while (done := self._mpi.Request.Testsome(requests)) is not None:
            self._missing = {peer for r, peer in zip(requests, peers, strict=True) if r}
            if done:
                self._heard = time.monotonic()
            else:
                self._nap()

    def _nap(self) -> None:
        """Sleep a tenth of the time for which nothing has come."""
        self._abort_if_asked()
        time.sleep(min(LONGEST_NAP, (time.monotonic() - self._heard) / 10))

    def _abort_if_asked(self) -> None:
        if self._exit_code is not None:
            world = self._mpi._handleof(self._mpi.COMM_WORLD)
            self._calls.MPI_Abort(ctypes.c_void_p(world), self._exit_code)


def _place() -> list[Any]:
    """Return the host, the name space of its sockets, and the cores."""
    system, cores = "", []
    with suppress(OSError):  # Linux has both
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        system = f"{boot.strip()} {os.stat('/proc/self/ns/net').st_ino}"
        cores = sorted(os.sched_getaffinity(0))
    return [socket.gethostname(), system, cores]


def _add(tree: Tree, terms: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum in the order of the tree; it overwrites terms."""
    if isinstance(tree, int):
        return terms[tree]
    left, right = (_add(branch, terms) for branch in tree)
    return np.add(left, right, out=left)
