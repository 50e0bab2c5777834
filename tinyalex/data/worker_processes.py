"""Worker processes, whose death or silence is noticed."""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
_ALIVE = "alive"
NOWHERE = -1
"""The position of a process that is at no image."""

PARENT_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
"""Signals sent to all processes that only the parent answers."""

START_SECONDS = 60.0
"""Seconds until a process's first sign of life: it imports what it needs."""

SIGN_SECONDS = 1.0
"""Seconds between two signs of life of a process at work."""

PATIENCE = 8.0
"""Seconds for which a loader's worker may be silent: at one image, or stopped."""

MAX_STUCK = 4
"""Images that may take too long before that is the disk's fault."""

POLL_SECONDS = 0.1
"""Seconds of one wait for a worker. Silence is counted in them, for no clock disturbs that: while
the computer slept, or all of this was stopped, there was one wait."""


class WorkerError(RuntimeError):
    """Worker that ended or got stuck before its work was done."""


class StuckError(WorkerError):
    """Worker stuck at the image `position`."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message, position)
        self.position = position

    def __str__(self) -> str:
        return str(self.args[0])


def late(seconds: float, stuck: int, last: str, most: int = MAX_STUCK) -> str:
    """Return the reason of an image that was not read in time.

    Raises WorkerError where it is the last of `most` that were `stuck`, or more.
    """
    reason = f"not read within {seconds:.0f} s"
    if stuck >= most:
        images = "an image was" if stuck == 1 else f"{stuck} images were"
        raise WorkerError(
            f"{images} {reason}, the last one {last}: the disk does not answer, or is very slow"
        )
    return reason


Work = Callable[[Any, Callable[..., object]], Any]
"""Called as `work(task, alive)`; it calls `alive()` now and then, `alive(i)` before its image i."""


GiveUp = Callable[[Any, int, float], Any]
"""Called as `give_up(task, i, seconds)`; it returns the task without its image i."""


class Workers:
    """`count` processes that do tasks, one at a time each.

    In each process `make(memory, *arguments)` returns the function `work`, and `work(task, alive)`
    the result of a task; `memory` is an array of `shared_bytes` bytes that the process shares with
    this one (`Worker.memory`), for results too large to be sent. `make`, the arguments, tasks and
    results are pickled. The processes are started anew ("spawn"), leave Ctrl-C, SIGTERM and SIGUSR1
    to this one, print no warnings, and end when this process does, however that ends.
    """

    def __init__(
        self,
        count: int,
        make: Callable[..., Work],
        *arguments: Any,
        patience: float = 60.0,
        shared_bytes: int = 0,
    ) -> None:
        self.all: list[Worker] = []
        # Called when this object goes, and at the end of this process, too.
        self.close = Finalize(self, _close, (self.all,), exitpriority=10)
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for number in range(1, count + 1):
            name = f"{number} of {count}"
            self.all.append(Worker(name, make, arguments, patience, shared_bytes))
            self._idle.put(self.all[-1])

    def kill(self) -> None:
        """End the processes at once, in the middle of whatever they do."""
        for worker in self.all:
            worker.process.kill()
        self.close()

    @contextmanager
    def idle(self) -> Iterator[Worker]:
        """Wait for a process that is free, and have it."""
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def map(self, tasks: Iterable[Any], give_up: GiveUp | None = None) -> Iterator[Any]:
        """Yield the results in order; tasks are taken as needed.

        `give_up` is as in `Worker.ask`.
        """
        stop = threading.Event()
        pending: deque[Future[Any]] = deque()

        def ask(task: Any) -> Any:
            with self.idle() as worker:
                return worker.ask(task, stop, give_up)

        with ThreadPoolExecutor(len(self.all)) as pool:
            try:
                for task in tasks:
                    pending.append(pool.submit(ask, task))
                    if len(pending) > 2 * len(self.all):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)


class Worker:
    """One of the processes; raises WorkerError once it has ended."""

    def __init__(
        self,
        name: str,
        make: Callable[..., Work],
        arguments: tuple[Any, ...],
        patience: float,
        shared_bytes: int,
    ) -> None:
        self.patience = patience
        self.memory = _CONTEXT.RawArray("b", shared_bytes)
        self._make, self._arguments, self._number = make, arguments, name
        self._start()

    def _start(self) -> None:
        self._at = _CONTEXT.RawArray("q", [NOWHERE, 0])  # the image, and how many have been begun
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(
            target=_serve,
            args=(theirs, self._make, self.memory, self._arguments, self._at),
            daemon=True,
        )
        before = _mask("SIG_BLOCK", PARENT_SIGNALS)  # in the process, too, until it ignores them
        try:
            self.process.start()
        finally:
            _mask("SIG_SETMASK", before)
        theirs.close()  # so that the end of the process ends the connection
        self.name = f"worker process {self.process.pid} ({self._number})"
        self._started = False
        self._owed = 0

    def replace(self) -> None:
        """End the process at once, whatever it does, and start another one."""
        self.process.kill()
        self.process.join(timeout=1)  # waiting for a broken disk, it cannot even be killed
        self.connection.close()
        self._start()

    def ask(
        self,
        task: Any,
        stop: threading.Event,
        give_up: GiveUp | None = None,
    ) -> Any:
        """Return the result of a task, or None once `stop` is set.

        Where the process is stuck at image i, another one takes its place and does the task
        `give_up(task, i, seconds)` instead; without `give_up` that is a StuckError. Raises what the
        task raised; WorkerError if the process has ended, or says nothing for `patience` seconds.
        """
        while True:
            try:
                return self._ask(task, stop)
            except StuckError as error:
                if give_up is None:
                    raise
                task = give_up(task, error.position, self.patience)
                self.replace()

    def _ask(self, task: Any, stop: threading.Event) -> Any:
        silent, begun = 0.0, 0
        try:
            self.connection.send(task)
            self._owed += 1
            while not stop.is_set():
                silent = silent + POLL_SECONDS if self._at[1] == begun else 0.0
                begun = self._at[1]
                if self.connection.poll(POLL_SECONDS):
                    kind, content = self.connection.recv()
                    silent, self._started = 0.0, True
                    self._owed -= kind != _ALIVE
                    if kind != _ALIVE and self._owed == 0:  # else of a task that was given up
                        return _result(kind, content)
                patience = self.patience if self._started else max(START_SECONDS, self.patience)
                if silent > patience:
                    said = (
                        f"{self.name} has said nothing for {patience:.0f} s: it is stopped, waits "
                        "for a disk that does not answer, or is very slow"
                    )
                    raise WorkerError(said) if self._at[0] < 0 else StuckError(said, self._at[0])
        except (EOFError, ConnectionError):
            raise WorkerError(self._obituary()) from None
        return None

    def _obituary(self) -> str:
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += ", which is also what a system without memory left does"
        else:
            how = f"ended with exit code {code}; its own message, if any, stands above"
        return f"{self.name} {how}"


def _mask(how: str, signals: Iterable[int]) -> Iterable[int]:
    """Change which signals are blocked in this thread; return those that were."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        return ()
    return signal.pthread_sigmask(getattr(signal, how), signals)


def _result(kind: str, content: Any) -> Any:
    if kind == "error":
        error, text = content
        raise error from WorkerError(f"in a worker process:\n{text}")
    return content


def _close(workers: list[Worker]) -> None:
    """Close the connections, which ends the processes; kill those that remain."""
    for worker in workers:
        worker.connection.close()
    deadline = time.monotonic() + 5
    for worker in workers:
        worker.process.join(timeout=max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(timeout=1)  # waiting for a broken disk, it cannot even be killed


# --- in the process -------------------------------------------------------------------------------


def _serve(
    connection: Connection,
    make: Callable[..., Work],
    memory: Any,
    arguments: tuple[Any, ...],
    at: Any,
) -> None:
    for signum in PARENT_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    _mask("SIG_UNBLOCK", PARENT_SIGNALS)
    warnings.simplefilter("ignore")  # Pillow's do not say which image they are about
    alive = _SignOfLife(connection, at)
    try:
        alive()
        work = make(memory, *arguments)
        while True:
            task = connection.recv()
            try:
                reply = ("done", work(task, alive))
            except ConnectionError:
                raise
            except Exception as error:
                reply = ("error", (_portable(error), traceback.format_exc()))
            at[0] = NOWHERE
            connection.send(reply)
    except (EOFError, ConnectionError):  # the parent has closed the connection, or is gone
        pass


class _SignOfLife:
    def __init__(self, connection: Connection, at: Any) -> None:
        self._connection, self._at = connection, at
        self._last = float("-inf")

    def __call__(self, position: int | None = None) -> None:
        """Report to the parent now and then; end without it.

        The parent sees at once which image is begun, in memory that both share.
        """
        if position is not None:
            self._at[0] = position
            self._at[1] += 1
        if time.monotonic() - self._last > SIGN_SECONDS:
            self._last = time.monotonic()
            self._connection.send((_ALIVE, None))


def _portable(error: Exception) -> Exception:
    """Return the error if it can be pickled, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
