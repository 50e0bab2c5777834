"""Thread that makes all calls of MPI, and knows which ranks live."""

from __future__ import annotations

import atexit
import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tinyalex.backends.types import Array
from tinyalex.distributed.communicator import CommunicationError, Communicator, Pending
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

LOOKS = 16
"""Looks for messages before a nap: with each, UCX takes in 64 KB at most."""

LONGEST_NAP = 1e-3
"""Seconds between two looks for messages at most."""

GRACE = 0.3
"""Seconds for words to get through before the job is ended."""

HEADER, LIFE = 1, 2
"""Tags of messages; others are those of arrays."""

_ALIVE, _LAST = b"a", b"l"  # signs of life: the last one of a rank comes before its end

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

    def __init__(self, owner: MPIThread, label: str, work: Callable[[], T]) -> None:
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


class MPIThread(Communicator):
    """Ranks under MPI, from the first call to the last.

    One thread makes all calls, so that MPI needs to know of no threads. It looks for what has come,
    with naps between: so it knows which ranks are missing, and other threads have the cores.

    Each request begins with a header to every rank. A header of one byte, an exit code, says that a
    rank leaves.

    Between requests, too, the thread tells the others that this rank lives, as long as it works or
    waits for them, and gives the job up where another says nothing for `timeout` seconds: it is
    dead, stopped or cut off, or its main thread hangs.
    """

    _gpu: Any = None

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.rank = self.size = -1
        self._host = socket.gethostname()
        self._mpi: Any = None
        self._ranks: Any = None  # a communicator of MPI
        self._others: list[int] = []
        self._queue: queue.SimpleQueue[_Request[Any] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._now: _Request[Any] | None = None
        self._heard = self._looked = time.monotonic()  # when the last message came; the last look
        self._alive: dict[int, float] = {}  # when each other rank last gave a sign of life
        self._beats: dict[int, Any] = {}  # sent to each, perhaps not taken yet
        self._ending = False  # the last word is said
        self._worked = 0.0  # the processor's time at the last beat
        self._waiting = False
        self._exit_code: int | None = None
        self._closed = False
        self._watcher: Watcher | None = None
        self._left: set[int] = set()  # ranks that have taken their leave
        self._dropped: Open = []  # messages on their way when the first did
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
        """Learn where other ranks are; connect to the host's watcher."""
        places = self.share("places", _place()).wait()
        self.hosts = [host for host, *_ in places]
        own = places[self.rank]
        self.sharing = sum([host, cores] == own[::2] for host, _, cores in places)
        here = [rank for rank, place in enumerate(places) if place[:2] == own[:2]]
        self.place = here.index(self.rank)
        name = f"rank {self.rank} ({self._host}, process {os.getpid()})"
        if self.place == 0 and sys.platform == "linux":
            self._watcher = Watcher(name, len(here))
        address = self._watcher.address if self._watcher else None
        addresses = self.share("watchers", address).wait()
        if self.place > 0 and addresses[here[0]]:
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
        awaited = "MPI" if self._gpu is None else "the GPU, NCCL or MPI"
        self.abort(
            f"{self._at(label)}{awaited} has not answered within {self.timeout:g} s"
            if self.rank >= 0
            else f"MPI has not started on all ranks within {self.timeout:g} s"
        )

    def _at(self, label: str) -> str:
        """Return the step and the label, as messages begin."""
        step = "" if self.step is None else f"step {self.step}, "
        return f"{step}{label}: " if label else step

    def _stuck_at(self, begun: float) -> float:
        return max(begun, self._looked) + self.timeout

    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print the message and end all ranks with the exit code."""
        who = f"rank {self.rank} ({self._host})" if self.rank >= 0 else self._host
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

    def leave(self, code: int) -> None:
        """End MPI after a signal, when all ranks have come here."""
        self._insist(self._put("leave", lambda: self._take_leave(code)))
        self._end()

    def _end(self) -> None:
        self._closed = True
        self._insist(self._put("end", self._finish))
        if self._watcher:
            self._watcher.close(WELL)

    def _insist(self, pending: Pending[Any]) -> None:
        """Wait in spite of a signal.

        It may come only now, where another rank has told of it, or at the very end.
        """
        while True:
            with suppress(LeftError, KeyboardInterrupt):
                pending.wait()
                return

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

        return self._put(label, unless_broken)

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
        self._others = [peer for peer in range(self.size) if peer != self.rank]
        self._alive = dict.fromkeys(self._others, time.monotonic())

    def _send_header(self, header: bytes) -> Open:
        self.sent += len(header) * len(self._others)
        return [(self._ranks.Isend(header, peer, HEADER), peer) for peer in self._others]

    def _headers(self, missing: set[int], open_: Open) -> Iterator[tuple[int, bytearray]]:
        """Yield what ranks ask for next, until none is `missing`."""
        status = self._mpi.Status()
        while missing:
            for peer in list(missing):
                if message := self._ranks.Improbe(peer, HEADER, status):
                    header = bytearray(status.Get_count())
                    open_.append((message.Irecv(header), peer))
                    self._note(peer)
                    yield peer, header
            if missing:
                self._nap()

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
        if not self._ending and (self._waiting or used - self._worked >= WORK):
            self._worked = used
            for peer in self._alive:
                before = self._beats.get(peer)
                if before is None or before.Test():
                    self._beats[peer] = self._ranks.Isend(_ALIVE, peer, LIFE)
        for peer, heard in self._alive.items():
            self._alive[peer] = min(now, heard + late)  # this rank was held up itself
        if silent := [str(peer) for peer, at in self._alive.items() if now - at >= self.timeout]:
            doing = self._at(self._now.label if self._now else "")
            self.abort(f"{doing}nothing came for {self.timeout:g} s from rank {', '.join(silent)}")
        return interval

    def _note(self, peer: int) -> None:
        """Take a message for a sign of life.

        It may be seen after the last word.
        """
        self._heard = time.monotonic()
        if peer in self._alive:
            self._alive[peer] = self._heard

    def _hear(self) -> None:
        """Receive the beats that have come."""
        status, word = self._mpi.Status(), bytearray(1)
        # A look may take in one message, and another one than a beat.
        for _ in range(3 * self.size):
            if message := self._ranks.Improbe(self._mpi.ANY_SOURCE, LIFE, status):
                message.Recv(word)
                self._alive[status.source] = self._looked
                if word == _LAST:
                    del self._alive[status.source]

    def _abort_if_asked(self) -> None:
        if self._exit_code is not None:
            world = self._mpi._handleof(self._mpi.COMM_WORLD)
            self._calls.MPI_Abort(ctypes.c_void_p(world), self._exit_code)

    def _take_leave(self, code: int) -> None:
        """Leave in place of a request, and wait until all others do.

        All of them have come to this one, and none of them beyond: those before are answered. After
        the end there is none to wait for.
        """
        if self._closed:
            return
        open_ = [*self._dropped, *self._send_header(bytes([code]))]
        missing = set(self._others) - self._left
        for peer, header in self._headers(missing, open_):
            if len(header) == 1:
                missing.remove(peer)
        self._complete(open_)

    def _come_to_end(self) -> None:
        self._share("end", None)
        self._closed = True

    def _finish(self) -> None:
        """Say the last word, wait for all others', and end MPI."""
        if self._ranks is None:  # a signal came after the end
            return
        self._ending = True  # nothing may follow the last word
        open_ = [(beat, peer) for peer, beat in self._beats.items()]
        open_ += [(self._ranks.Isend(_LAST, peer, LIFE), peer) for peer in self._others]
        self._complete(open_)
        while self._alive:
            self._hear()
            self._nap()
        self._ranks.Free()
        self._ranks = None
        self._calls.MPI_Finalize()


def _place() -> list[Any]:
    """Return the host, the name space of its sockets, and the cores."""
    system, cores = "", []
    with suppress(OSError):  # Linux has both
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        system = f"{boot.strip()} {os.stat('/proc/self/ns/net').st_ino}"
        cores = sorted(os.sched_getaffinity(0))
    return [socket.gethostname(), system, cores]
