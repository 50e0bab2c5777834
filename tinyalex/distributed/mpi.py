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
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from tinyalex.backends import array_module
from tinyalex.backends.devices import on_gpu, parse
from tinyalex.backends.shards import Tree
from tinyalex.backends.types import Array
from tinyalex.distributed.communicator import (
    CommunicationError,
    Communicator,
    Pending,
    ranks_of,
)
from tinyalex.distributed.nccl import GPULink
from tinyalex.distributed.watcher import SAID, WELL, Watcher
from tinyalex.interrupts import LeftError, code_of
from tinyalex.text import escaped

T = TypeVar("T")

TIMEOUT = 300.0
"""Seconds without a message after which the job is given up."""

BEAT = 0.5
"""Seconds between two signs of life of a rank at most."""

WORK = 0.01
"""Seconds of the processor's time that are a sign of life."""

PIECE = 240 << 10
"""Bytes of one message at most: each that arrives is a sign of life.

UCX, below MPICH, sends up to 253 KB at once, and asks the receiver before it sends more.
"""

BLOCK = 1 << 20
"""Bytes that are added at a time: they fit into a core's cache."""

AHEAD = 8
"""Blocks of a sum that are under way at a time."""

ROOM = 1 << 26
"""Bytes at most of what other ranks have sent for a sum."""

LOOKS = 16
"""Looks for messages before a nap: with each, UCX takes in 64 KB at most."""

LONGEST_NAP = 1e-3
"""Seconds between two looks for messages at most."""

GRACE = 0.3
"""Seconds for words to get through before the job is ended."""

_HEADER, _DATA, _BEAT, _TERM, _TOTAL = 1, 2, 3, 4, 5  # tags of messages
_ALIVE, _LAST = b"a", b"l"  # what a beat says: the last one of a rank comes before its end

Open = list[tuple[Any, int]]
"""Messages under way, each with the rank that it goes to or comes from."""


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


class _OnGPU(Pending[T]):
    """Request that an event of a GPU ends."""

    def __init__(self, owner: MPICommunicator, label: str, started: Pending[tuple[T, Any]]) -> None:
        self._owner, self._label, self._started = owner, label, started

    def wait(self) -> T:
        result, event = self._started.wait()
        self._owner.wait_for_gpu(self._label, event)
        return result


class MPICommunicator(Communicator):
    """Ranks under MPI.

    One thread makes all calls of MPI, the first and the last included, so that MPI needs to know
    of no threads. It sends point to point and looks for what has come, with naps between: so it
    knows which ranks are missing, other threads have the cores, and sums are taken in an order
    that no library chooses.

    Each request begins with a header to every rank, which says what is asked for: ranks that do not
    ask for the same end with an error. A header of one byte, an exit code, says that a rank leaves.
    `sum` sends chunk j of the array to rank j, which adds those of all ranks and sends the result
    to all: the bytes of a ring, 2 (n - 1) / n times the array from each of n ranks. It needs memory
    for `AHEAD` blocks of each other rank. Arrays on GPUs are sent and added in the same way, as
    much of them as fits into `ROOM`: once the headers are there, the thread asks a stream for it
    (`nccl.GPULink`).

    Between requests, too, the thread tells the others that this rank lives, as long as it works or
    waits for them, and gives the job up where another says nothing for `timeout` seconds: it is
    dead, stopped or cut off, or its main thread hangs.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.rank = self.size = -1
        self._host = socket.gethostname()
        self._mpi: Any = None
        self._ranks: Any = None  # a communicator of MPI
        self._queue: queue.SimpleQueue[_Request[Any] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._now: _Request[Any] | None = None
        self._heard = self._looked = time.monotonic()  # when the last message came; the last look
        self._alive: dict[int, float] = {}  # when each other rank last gave a sign of life
        self._beats: dict[int, Any] = {}  # sent to each, perhaps not taken yet
        self._worked = 0.0  # the processor's time at the last beat
        self._waiting = False
        self._exit_code: int | None = None
        self._closed = False
        self._watcher: Watcher | None = None
        self._gpu: GPULink | None = None
        self._left: set[int] = set()  # ranks that have taken their leave
        self._dropped: list[Any] = []  # messages on their way when the first did
        start = self._put("start", self._start)
        self._thread = threading.Thread(target=self._serve, name="MPI", daemon=True)
        self._thread.start()
        start.wait()
        atexit.register(self._abort_at_exit)
        try:
            self._meet()
        except (LeftError, KeyboardInterrupt) as left:
            self.leave(code_of(left))
            raise

    def _meet(self) -> None:
        """Learn where the other ranks are."""
        places = self.share("places", _place()).wait()
        self.hosts = [host for host, *_ in places]
        own = places[self.rank]
        self.sharing = sum([host, cores] == own[::2] for host, _, cores in places)
        here = [rank for rank, place in enumerate(places) if place[:2] == own[:2]]
        self.place = here.index(self.rank)
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
        """Wait for a request; end all ranks where MPI is stuck."""
        begun = time.monotonic()
        self._waiting = True
        while not request.done.wait(self._stuck_at(begun) - time.monotonic()):
            # After a pause of the whole job, the thread needs a moment to look.
            if not request.done.wait(GRACE) and time.monotonic() >= self._stuck_at(begun):
                self._give_up(request.label)
        self._waiting = False
        self.waited += time.monotonic() - begun

    def _give_up(self, label: str) -> NoReturn:
        step = "" if self.step is None else f"step {self.step}, "
        who = "MPI" if self._gpu is None else "the GPU, NCCL or MPI"
        self.abort(
            f"{step}{label}: {who} has not answered within {self.timeout:g} s"
            if self._ranks
            else f"MPI has not started on all ranks within {self.timeout:g} s"
        )

    def wait_for_gpu(self, label: str, event: Any) -> None:
        """Wait for an event; end all ranks after `timeout` seconds."""
        assert self._gpu is not None
        begun = now = time.monotonic()
        waited = 0.0
        self._waiting = True
        while not self._gpu.ended(label, event):
            if waited >= self.timeout:
                self._give_up(label)
            time.sleep(min(LONGEST_NAP, waited / 10))
            before, now = now, time.monotonic()
            waited += min(BEAT, now - before)  # it is longer after a pause of the whole job
        self._waiting = False
        self.waited += time.monotonic() - begun

    def _stuck_at(self, begun: float) -> float:
        return max(begun, self._looked) + self.timeout

    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print the message and end all ranks with the exit code."""
        who = f"rank {self.rank} ({self._host})" if self._ranks else self._host
        line = f"{escaped(f'{who}: {message}')}\n"
        os.write(2, line.encode(errors="replace"))  # whole, and now
        if self._watcher:
            self._watcher.close(SAID)
        time.sleep(GRACE)
        self._exit_code = code or 1
        signal.alarm(1)  # should MPI be stuck: the launcher sees how this process ends
        if threading.current_thread() is self._thread:
            self._abort_if_asked()
        elif self._ranks:
            self._queue.put(None)
            self._thread.join()
        os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit(code)

    def close(self) -> None:
        """Wait until all ranks have come here, and end MPI."""
        if not self._closed:
            self._ask("end", self._come_to_end).wait()
            self._end()

    def connect(self, device: str) -> None:
        """Connect this device with those of all ranks, at once."""
        if (device := parse(device)) != "cpu":
            index = int(device.partition(":")[2])
            self._ask("the start of NCCL", lambda: self._connect(index)).wait()

    def leave(self, code: int) -> None:
        """End MPI after a signal, when all ranks have come here."""
        self._insist("leave", lambda: self._take_leave(code))
        self._end()

    def _end(self) -> None:
        if self._watcher:
            self._watcher.close(WELL)
        self._closed = True
        self._insist("end", self._finish)

    def _insist(self, label: str, work: Callable[[], None]) -> None:
        """Request work, and wait for it in spite of a signal.

        The signal may come only now, where another rank has told of it, or at the very end.
        """
        request, answered = self._put(label, work), False
        while not answered:
            with suppress(LeftError, KeyboardInterrupt):
                request.wait()
                answered = True

    def _abort_at_exit(self) -> None:
        if not self._closed:
            self.abort("ended before the others")

    def _put(self, label: str, work: Callable[[], T]) -> _Request[T]:
        request = _Request(self, label, work)
        self._queue.put(request)
        return request

    def _ask(self, label: str, work: Callable[[], T], array: Array | None = None) -> Pending[T]:
        if self._closed:
            raise CommunicationError(f"{label}: requested after the communicator was closed")

        def unless_broken() -> T:
            if self._error is not None:
                raise self._error
            return work()

        if not on_gpu(array):
            return self._put(label, unless_broken)
        if (gpu := self._gpu) is None:
            raise CommunicationError(f"{label}: an array on a GPU, before `connect`")
        ready = gpu.now()
        return _OnGPU(self, label, self._put(label, lambda: gpu.run(label, ready, unless_broken)))

    # --- in the thread ----------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                request = self._now = self._queue.get(timeout=self._beat() if self._alive else None)
            except queue.Empty:
                continue
            if request is None:
                self._abort_if_asked()
                continue
            self._heard = time.monotonic()
            try:
                request.result = request.work()
            except BaseException as error:
                self._error = request.error = error
            self._now = None
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
        others = [peer for peer in range(self.size) if peer != self.rank]
        self._alive = dict.fromkeys(others, time.monotonic())

    def _beat(self) -> float:
        """Give a sign of life, if due; look for those of others.

        Returns the seconds until the next is due.
        """
        now, interval = time.monotonic(), min(BEAT, self.timeout / 4)
        late = now - self._looked - interval
        if late < 0:
            return -late
        self._looked = now
        self._hear()
        used = time.process_time() - time.thread_time()  # by all threads but this one
        if self._waiting or used - self._worked >= WORK:
            self._worked = used
            self._tell(_ALIVE, self._alive)
        for peer, heard in self._alive.items():
            self._alive[peer] = min(now, heard + late)  # this rank was held up itself
        if silent := [str(peer) for peer, at in self._alive.items() if now - at >= self.timeout]:
            step = "" if self.step is None else f"step {self.step}, "
            doing = f"{step}{self._now.label}: " if self._now else step
            self.abort(f"{doing}nothing came for {self.timeout:g} s from rank {', '.join(silent)}")
        return interval

    def _note(self, peer: int) -> None:
        """Take a message for a sign of life.

        It may be seen after the last word.
        """
        self._heard = time.monotonic()
        if peer in self._alive:
            self._alive[peer] = self._heard

    def _tell(self, word: bytes, peers: Iterable[int]) -> None:
        """Send a beat to others that have taken the last one."""
        for peer in peers:
            before = self._beats.get(peer)
            if peer != self.rank and (before is None or before.Test()):
                self._beats[peer] = self._ranks.Isend(word, peer, _BEAT)

    def _hear(self) -> None:
        """Receive the beats that have come."""
        status, word = self._mpi.Status(), bytearray(1)
        # A look may take in one message, and another one than a beat.
        for _ in range(3 * self.size):
            if message := self._ranks.Improbe(self._mpi.ANY_SOURCE, _BEAT, status):
                message.Recv(word)
                self._alive[status.source] = self._looked
                if word == _LAST:
                    del self._alive[status.source]

    def _connect(self, index: int) -> None:
        self._gpu = GPULink(index, self.rank)
        way = self._gpu.join(self._agree(["connect"], self._gpu.offer()))
        self.engine += f", arrays on GPUs {way}"

    def _come_to_end(self) -> None:
        self._share("end", None)
        self._closed = True

    def _finish(self) -> None:
        if self._ranks is None:  # a signal came after the end
            return
        if self._gpu is not None:
            self._gpu.close()
        self._mpi.Request.Waitall(list(self._beats.values()))
        self._beats.clear()
        self._tell(_LAST, range(self.size))  # also those that have told theirs
        while self._alive:
            self._hear()
            time.sleep(LONGEST_NAP)
        self._mpi.Request.Waitall(list(self._beats.values()))
        self._ranks.Free()
        self._ranks = None
        self._calls.MPI_Finalize()

    def _gather(self, label: str, array: np.ndarray) -> list[np.ndarray]:
        array = np.ascontiguousarray(array)
        like = ["gather", label, array.dtype.str, *array.shape[1:]]
        lengths = self._agree(like, len(array))
        arrays = [np.empty((length, *array.shape[1:]), array.dtype) for length in lengths]
        arrays[self.rank] = array
        self._transfer([array] * self.size, arrays)
        return arrays

    def _exchange(self, label: str, parts: list[Array], into: list[Array]) -> list[Array]:
        xp, dtype = array_module(parts[0]), parts[0].dtype
        parts = [xp.ascontiguousarray(part) for part in parts]
        shapes = self._agree(["exchange", label, dtype.str], [part.shape for part in parts])
        for peer, (array, sent) in enumerate(zip(into, shapes, strict=True)):
            if array.shape != tuple(sent[self.rank]):
                raise CommunicationError(
                    f"{label}: rank {self.rank} expects {array.shape} from rank {peer}, which "
                    f"sends {tuple(sent[self.rank])}"
                )
        self._transfer(parts, into)
        return into

    def _sum(self, label: str, array: Array, tree: Tree) -> None:
        what = ["sum", label, array.dtype.str]
        asked = self._agree(what, [*array.shape, repr(tree)])
        mine = asked[self.rank]
        group = [rank for rank, theirs in enumerate(asked) if theirs == mine]
        terms = set(ranks_of(tree, self.size))
        for rank, theirs in enumerate(asked):
            shared = rank in terms or terms & set(map(int, re.findall(r"\d+", theirs[-1])))
            if theirs != mine and shared:
                self._refuse([*what, *mine], [*what, *theirs], rank)
        xp = array_module(array)
        line = xp.ascontiguousarray(array).reshape(-1)
        if on_gpu(line):
            length = ROOM // line.itemsize
            for start in range(0, line.size, length):
                self._sum_on_gpu(line[start : start + length], tree, group)
        else:
            self._sum_line(line, tree, group)
        if not xp.may_share_memory(line, array):
            array[...] = line.reshape(array.shape)

    def _sum_on_gpu(self, block: Array, tree: Tree, group: list[int]) -> None:
        nothing, xp = block[:0], array_module(block)
        bounds = [len(block) * place // len(group) for place in range(len(group) + 1)]
        chunks = [nothing] * self.size
        for rank, (start, end) in zip(group, pairwise(bounds), strict=True):
            chunks[rank] = block[start:end]
        mine = chunks[self.rank]
        terms = ranks_of(tree, self.size)
        received = [xp.empty_like(mine) if r in terms else nothing for r in range(self.size)]
        received[self.rank] = mine
        self._transfer(chunks if self.rank in terms else [nothing] * self.size, received)
        total = _add(tree, dict(enumerate(received)))
        if total is not mine:
            mine[...] = total
        back = [mine if rank in group else nothing for rank in range(self.size)]
        self._transfer(back, chunks)

    def _sum_line(self, line: np.ndarray, tree: Tree, group: list[int]) -> None:
        """Sum a line over the ranks of a group.

        A block is added while it is in the processor's cache, and goes back while others come.
        """
        here = group.index(self.rank)
        others = group[here + 1 :] + group[:here]  # each rank begins with another one
        terms = set(ranks_of(tree, self.size))
        senders = [rank for rank in others if rank in terms]
        bounds = [len(line) * place // len(group) for place in range(len(group) + 1)]
        chunks = {rank: line[a:b] for rank, (a, b) in zip(group, pairwise(bounds), strict=True)}
        mine = chunks[self.rank]
        length = max(1, min(BLOCK, ROOM // (AHEAD * len(group))) // line.itemsize)
        room = np.empty((AHEAD, len(senders), min(length, len(mine))), line.dtype)
        under_way = deque[tuple[slice, dict[int, np.ndarray], Open, Open]]()
        back = deque[Open]()

        def begin(number: int) -> None:
            """Send a block of each chunk to the rank that adds it."""
            block = slice(number * length, (number + 1) * length)
            rows = [row[: len(mine[block])] for row in room[number % AHEAD]]
            got = dict(zip(senders, rows, strict=True))
            coming = [one for rank in senders for one in self._receive(got[rank], rank, _TERM)]
            going: Open = []
            for rank in others if self.rank in terms else ():
                going += self._send(chunks[rank][block], rank, _TERM)
            under_way.append((block, got, coming, going))

        def finish() -> None:
            """Add a block of this rank's chunk, and send it to all."""
            block, got, coming, going = under_way.popleft()
            own = mine[block]
            self._complete(coming)
            total = _add(tree, {**got, self.rank: own}, own)
            if total is not own:
                own[...] = total
            self._complete(going)  # before their places are taken by sums
            sums: Open = []
            for rank in others:
                sums += self._receive(chunks[rank][block], rank, _TOTAL)
                sums += self._send(own, rank, _TOTAL)
            back.append(sums)
            if len(back) > AHEAD:  # those have come before the terms of this block
                self._complete(back.popleft())

        for number in range(-(-max(map(len, chunks.values())) // length)):
            if len(under_way) == AHEAD:
                finish()
            begin(number)
        while under_way:
            finish()
        for sums in back:
            self._complete(sums)

    def _share(self, label: str, value: Any) -> list[Any]:
        return self._agree(["share", label], value)

    def _agree(self, request: list[Any], value: Any = None) -> list[Any]:
        """Return the values of all ranks, whose requests must be the same."""
        header = json.dumps([request, value]).encode()
        others = [peer for peer in range(self.size) if peer != self.rank]
        open_ = [self._ranks.Isend(header, peer, _HEADER) for peer in others]
        self.sent += len(header) * len(others)
        headers: dict[int, bytes | bytearray] = {self.rank: header}
        missing = set(others)
        while missing:
            for peer in list(missing):
                if (theirs := self._next_header(peer, open_)) is None:
                    continue
                if len(theirs) == 1:
                    open_[-1].Wait()
                    self._left.add(peer)
                    self._dropped = open_
                    raise LeftError(theirs[0])
                headers[peer] = theirs
                missing.remove(peer)
            if missing:
                self._nap()
        self._complete(list(zip(open_, others * 2, strict=True)))
        values = []
        for peer in range(self.size):
            asked, value = json.loads(headers[peer])
            if asked != request:
                self._refuse(request, asked, peer)
            values.append(value)
        return values

    def _next_header(self, peer: int, open_: list[Any]) -> bytearray | None:
        """Receive what a rank asks for next, if that has come."""
        status = self._mpi.Status()
        if not (message := self._ranks.Improbe(peer, _HEADER, status)):
            return None
        header = bytearray(status.Get_count())
        open_.append(message.Irecv(header))
        self._note(peer)
        return header

    def _take_leave(self, code: int) -> None:
        """Leave in place of a request, and wait until all others do.

        All of them have come to this one, and none of them beyond: those before are answered. After
        the end there is none to wait for.
        """
        if self._closed:
            return
        others = [peer for peer in range(self.size) if peer != self.rank]
        open_ = [self._ranks.Isend(bytes([code]), peer, _HEADER) for peer in others]
        open_ += self._dropped
        missing = set(others) - self._left
        while missing:
            for peer in list(missing):
                header = self._next_header(peer, open_)
                if header is not None and len(header) == 1:
                    missing.remove(peer)
            self._nap()
        self._mpi.Request.Waitall(open_)

    def _refuse(self, ours: list[Any], theirs: list[Any], peer: int) -> NoReturn:
        first, second = (" ".join(map(str, words)) for words in (ours, theirs))
        raise CommunicationError(
            f"ranks must ask for the same things in the same order, but rank {self.rank} asks for "
            f"{first}, and rank {peer} for {second}"
        )

    def _transfer(self, parts: Sequence[Array], into: Sequence[Array]) -> None:
        """Send a part to each other rank; receive one from each."""
        if self._gpu is not None and on_gpu(parts[self.rank]):
            self.sent += self._gpu.transfer(parts, into, self._transfer)
            return
        peers = [(self.rank + away) % self.size for away in range(1, self.size)]
        open_: Open = []
        for peer in peers:
            open_ += self._receive(into[peer], peer, _DATA)
        for peer in peers:  # each rank begins with another one
            open_ += self._send(parts[peer], peer, _DATA)
        self._complete(open_)

    def _send(self, array: np.ndarray, peer: int, tag: int) -> Open:
        self.sent += array.nbytes
        return self._open(self._ranks.Isend, array, peer, tag)

    def _receive(self, array: np.ndarray, peer: int, tag: int) -> Open:
        return self._open(self._ranks.Irecv, array, peer, tag)

    def _open(self, call: Callable[..., Any], array: np.ndarray, peer: int, tag: int) -> Open:
        line = array.reshape(-1).view(np.uint8)
        starts = range(0, len(line), PIECE)
        return [(call(line[start : start + PIECE], peer, tag), peer) for start in starts]

    def _complete(self, messages: Open) -> None:
        """Wait for messages."""
        requests = [request for request, _ in messages]
        looks = 0
        while (done := self._mpi.Request.Testsome(requests)) is not None:
            for index in done:
                self._note(messages[index][1])
            self._beat()
            looks = 0 if done else looks + 1
            if looks == LOOKS:
                self._nap()
                looks = 0

    def _nap(self) -> None:
        """Sleep a tenth of the time for which nothing has come."""
        self._abort_if_asked()
        self._beat()
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


def _add(tree: Tree, terms: Mapping[int, Array], into: Array | None = None) -> Array:
    """Return the sum in the order of the tree; it overwrites terms."""
    if isinstance(tree, int):
        return terms[tree]
    left, right = (_add(branch, terms) for branch in tree)
    return np.add(left, right, out=left if into is None else into)
