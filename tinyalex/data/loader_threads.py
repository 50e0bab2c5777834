"""Threads that read images, of which nobody waits for one that is stuck."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from tinyalex.data.workers import PATIENCE, POLL_SECONDS, WorkerError
from tinyalex.threads import available_cores

WORKERS = min(2, available_cores())
"""Threads, or processes, that load images where no number is given."""

FAREWELL = 0.5
"""Seconds for which the threads are waited for at the end: those at work finish their image."""

Queue = queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]


class Threads:
    """`count` threads that call functions.

    ThreadPoolExecutor waits for all of its threads, at the latest when the interpreter ends: for
    ever, where one reads from a disk that does not answer. These are waited for a moment only.
    """

    def __init__(self, count: int) -> None:
        self._queue: Queue = queue.SimpleQueue()
        self._threads = [
            threading.Thread(
                target=_work, args=(self._queue,), name=f"tinyalex-data_{number}", daemon=True
            )
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a thread call the function; those asked for first begin first."""
        future: Future[Any] = Future()
        self._queue.put((future, function, args))
        return future

    def close(self) -> None:
        """Let the threads end when they have done what they were asked for, and was not cancelled.

        Returns when they have ended, or soon.
        """
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + FAREWELL
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


def result_of(future: Future[Any], images: list[int], describe: Callable[[int], str]) -> Any:
    """Return the result of a thread that adds to `images` the index of each before it begins it.

    Raises what the thread raised; WorkerError if it has been at one image for `PATIENCE` seconds.
    """
    known, silent = 0, 0.0
    while not wait((future,), timeout=POLL_SECONDS).done:
        silent = silent + POLL_SECONDS if len(images) == known else 0.0
        known = len(images)
        if silent > PATIENCE and images:
            raise WorkerError(
                f"a thread has been at one image for {PATIENCE:.0f} s, {describe(images[-1])}: it "
                "waits for a disk that does not answer, or is very slow"
            )
    try:
        return future.result()
    finally:
        del future  # which has the error, which has this frame: a cycle, and a batch in it


def _work(tasks: Queue) -> None:
    while (task := tasks.get()) is not None:
        _do(*task)
        del task  # and the result with it: the next one may be long in coming


def _do(future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)
            del future  # as in `result_of`
