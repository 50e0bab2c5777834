"""Messages while kernels are compiled, each once per machine."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from typing import Any

from numba.core.event import Listener, register

PACKAGE = __name__.partition(".")[0]
FIRST = "compiling kernels that are used for the first time"
CLEAR = "\r\033[K"  # begin the line anew, on a terminal


class _Announcer(Listener):
    """Message on the terminal while a kernel compiles; elsewhere one line.

    Numba tells of kernels that it compiles, not of those that it finds on the disk. One kernel's
    compilation may start that of others, which it calls.
    """

    def __init__(self) -> None:
        self._depth = self._count = 0
        self._seconds = 0.0
        self._started = 0.0

    def on_start(self, event: Any) -> None:
        if not self._is_ours(event):
            return
        self._depth += 1
        self._count += 1
        if self._depth == 1:
            self._started = time.perf_counter()
        if _on_a_terminal():
            name = event.data["dispatcher"].py_func.__name__.strip("_")
            seconds = self._seconds + time.perf_counter() - self._started
            text = f"{FIRST} ({self._count}: {name}, {seconds:.0f} s)"
            _write(CLEAR + text[: shutil.get_terminal_size().columns - 1])  # of one line only
        elif self._count == 1:
            _write(f"{FIRST}: up to 30 s, then they are kept\n")

    def on_end(self, event: Any) -> None:
        if not self._is_ours(event):
            return
        self._depth -= 1
        if self._depth == 0:
            self._seconds += time.perf_counter() - self._started
            if _on_a_terminal():
                _write(CLEAR)

    @staticmethod
    def _is_ours(event: Any) -> bool:
        if sys.stdout is None:  # a rank, for which the first one speaks
            return False
        return bool(event.data["dispatcher"].py_func.__module__.partition(".")[0] == PACKAGE)


def announce() -> None:
    """From now on, say when a kernel of this package is compiled."""
    register("numba:compile", _Announcer())


_said: set[str] = set()


def say_once(cause: str, effect: str) -> None:
    """Write a line, the first with this effect."""
    if effect not in _said:
        _said.add(effect)
        _write(f"{CLEAR if _on_a_terminal() else ''}warning: {cause}: {effect}\n")


def _on_a_terminal() -> bool:
    with suppress(OSError, ValueError):
        return sys.stderr is not None and sys.stderr.isatty()
    return False


def _write(text: str) -> None:
    """Write to stderr, and ignore a stderr that fails."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()
