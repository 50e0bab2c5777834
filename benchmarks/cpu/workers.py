"""Processes of the contestants, which take turns, and busy processes.

A worker prepares its net once and then waits for its turn, stopped by SIGSTOP, so that threads that
spin while they wait take nothing from the others. Memory, page faults and system time
are read inside the worker: they are its own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cpu.cases import Case
from cpu.peers import Contestant

CONTEXT = multiprocessing.get_context("spawn")  # a process from scratch: nothing is inherited
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class ContestantError(Exception):
    """A library that could not be set up; its message says why."""


class Worker:
    """A process that holds one contestant, stopped unless it is asked something."""

    def __init__(self, contestant: Contestant, case: Case, folder: Path) -> None:
        self.name = contestant.name
        self._connection, theirs = CONTEXT.Pipe()
        arguments = (theirs, contestant, case, folder)
        self._process = CONTEXT.Process(target=_serve, args=arguments, daemon=True)
        try:
            with _environment(contestant.environment):
                self._process.start()
            theirs.close()
            self.settings: dict[str, Any] = self._receive()
            if "error" in self.settings:
                raise ContestantError(self.settings["error"])
        except BaseException:
            self.close()
            raise

    def results(self, count: int) -> list[Any]:
        """Return what the next ``count`` calls return: losses, or logits."""
        return self._ask("results", count)

    def measure(self, count: int, pause: int = 0) -> dict[str, Any]:
        """Time ``count`` calls, ``pause`` ms apart, after one to wake up.

        Returns times, page faults and the peak memory.
        """
        return self._ask("measure", count, pause)

    def close(self) -> None:
        """End the process, stopped or not."""
        if self._process.pid:
            self._process.kill()
            self._process.join()

    def _ask(self, command: str, *arguments: int) -> Any:
        os.kill(self._process.pid, signal.SIGCONT)
        self._connection.send((command, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            reply = self._connection.recv()
        except EOFError:
            raise SystemExit(f"{self.name} ended early; its own message stands above") from None
        os.kill(self._process.pid, signal.SIGSTOP)
        return reply


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """Run ``count`` endless loops beside this block; yield their process ids."""
    processes = []
    try:
        for _ in range(count):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_loop, args=(theirs,), daemon=True)
            processes.append(process)
            process.start()
            ours.recv()
        yield [process.pid for process in processes if process.pid]
    finally:
        for process in processes:
            if process.pid:
                process.kill()
                process.join()


def run_alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``, calculated in a process that takes its memory with it."""
    with CONTEXT.Pool(1) as pool:
        return pool.apply(function, arguments)


def stop_cleanly_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit, which ends the workers too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# --- in the worker --------------------------------------------------------------------------------


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    # Should the parent be killed, a stopped process would never notice: the system ends it then.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _loop(connection: Connection) -> None:
    _end_with_parent()
    connection.send("ready")
    while True:
        pass


def _serve(connection: Connection, contestant: Contestant, case: Case, folder: Path) -> None:
    _end_with_parent()
    try:
        call, settings = contestant.build(case, folder)
    except Exception as error:
        reason = str(error).strip() or "no reason given"
        connection.send({"error": f"{type(error).__name__}: {reason.splitlines()[0]}"})
        return
    with suppress(OSError):  # the peak so far, of loading the weights, is not what is asked
        Path("/proc/self/clear_refs").write_text("5")
    connection.send(settings)
    commands: dict[str, Callable[..., Any]] = {"results": _results, "measure": _measure}
    while True:
        command, arguments = connection.recv()
        connection.send(commands[command](call, *arguments))


def _results(call: Callable[[], Any], count: int) -> list[Any]:
    return [call() for _ in range(count)]


def _measure(call: Callable[[], Any], count: int, pause: int) -> dict[str, Any]:
    call()  # after the others had the caches
    seconds, faults, system_seconds = [], [], []
    for _ in range(count):
        if pause:
            time.sleep(pause / 1000)
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
        faults.append(after.ru_minflt - before.ru_minflt)
        system_seconds.append(after.ru_stime - before.ru_stime)
        if not np.isfinite(result).all():
            raise ValueError("the result is not finite: its time does not count")
    return {
        "seconds": seconds,
        "faults": faults,
        "system_seconds": system_seconds,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    # Not getrusage: its maximum goes back to before this process had a memory of its own.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found
    return int(found.group(1)) * 1024
