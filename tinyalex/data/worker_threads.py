"""Threads that read images, and are replaced when stuck."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from tinyalex.data import worker_processes
from tinyalex.data.dataset import ImageError
from tinyalex.data.worker_processes import POLL_SECONDS, StuckError, late
from tinyalex.threads import available_cores

WORKERS = min(2, available_cores())
"""Threads, or processes, that load images where no number is given."""

FAREWELL = 0.5
"""Seconds for which the threads are waited for at the end: those at work finish their image."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Begin:
    """Images that a call has begun; tells it when to end."""

    def __init__(self, stop: threading.Event) -> None:
        self.images: list[int] = []
        self.given_up = False
        self._stop = stop

    def __call__(self, index: int) -> bool:
        """Record an image before it is read; return True to end."""
        self.images.append(index)
        return self.given_up or self._stop.is_set()


class Task:
    """A call in a thread: `function(begin, *args)`, where `begin(index)` announces an image."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], stop: threading.Event
    ) -> None:
        self.future: Future[Any] = Future()
        self.function, self.args, self.begin = function, args, Begin(stop)

    def run(self) -> None:
        """Call the function."""
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.function(self.begin, *self.args))
            except BaseException as error:
                self.future.set_exception(error)
                del self  # which has the error, which has this frame: a cycle, and a batch in it


class Threads:
    """`count` threads that call functions.

    ThreadPoolExecutor waits for all of its threads, at the latest when the interpreter ends: for
    ever, where one reads from a disk that does not answer. These are waited for a moment only, and
    another takes the place of one that is stuck.
    """

    def __init__(self, count: int) -> None:
        self.stop = threading.Event()
        """Set once results are wanted no more."""
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        for _ in range(count):
            self.start()

    def submit(self, function: Callable[..., Any], *args: Any) -> Task:
        """Have a thread call the function; those asked for first begin first."""
        task = Task(function, args, self.stop)
        self._queue.put(task)
        return task

    def result(self, task: Task, give_up: Callable[[int, float], object]) -> Any:
        """Return what the function returns; raise what it raises.

        Where a thread has been at one image for `PATIENCE` seconds, `give_up(index, seconds)` is
        called, and another thread begins the task anew.
        """
        while True:
            again = Task(task.function, task.args, self.stop)
            try:
                return self.once(task)
            except StuckError as error:
                give_up(error.position, worker_processes.PATIENCE)
            finally:
                del task  # as in `Task.run`
            task = again
            self.start(task)

    def once(self, task: Task) -> Any:
        """Return the result of a task; raise StuckError for a stuck thread."""
        begun, known, silent = task.begin.images, 0, 0.0
        while not wait((task.future,), timeout=POLL_SECONDS).done:
            silent = silent + POLL_SECONDS if len(begun) == known else 0.0
            known = len(begun)
            if silent > worker_processes.PATIENCE and known:
                task.begin.given_up = True
                raise StuckError("a thread is stuck", begun[-1])
        future = task.future
        try:
            return future.result()
        finally:
            del future, task  # as in `Task.run`

    def close(self) -> None:
        """Let the threads end; return when they have ended, or soon."""
        self.stop.set()
        while True:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task.future.cancel()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + FAREWELL
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def start(self, first: Task | None = None) -> None:
        """Add a thread, which does the task `first` first."""
        name = f"tinyalex-data_{len(self._threads)}"
        thread = threading.Thread(target=_work, args=(self._queue, first), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


def readable(
    load: Callable[[Item], Result],
    items: Iterable[Item],
    skip: Callable[[Item, str], object],
    describe: Callable[[Item], str],
) -> Generator[tuple[Item, Result], None, None]:
    """Yield each item that is read in time, with `load(item)`.

    `skip(item, reason)` is called for the others. Raises WorkerError when `MAX_STUCK` of them are
    stuck: then the disk is.
    """
    threads = Threads(1)
    stuck = 0
    try:
        for item in items:
            try:
                yield item, threads.once(threads.submit(_load_one, load, item))
            except ImageError as error:
                skip(item, error.reason)
            except StuckError:
                stuck += 1
                skip(item, late(worker_processes.PATIENCE, stuck, describe(item)))
                threads.start()
    finally:
        threads.close()


def _load_one(begin: Callable[[int], bool], load: Callable[[Item], Result], item: Item) -> Result:
    begin(0)
    return load(item)


def _work(tasks: queue.SimpleQueue[Task | None], task: Task | None) -> None:
    while task := task or tasks.get():
        task.run()
        task = None  # and the result with it: the next one may be long in coming
