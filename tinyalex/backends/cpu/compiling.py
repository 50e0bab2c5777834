"""Say what takes so long when kernels are compiled: half a minute, once on a machine."""

from __future__ import annotations

import sys
import time
from typing import Any

from numba.core.event import Listener, register

PACKAGE = __name__.partition(".")[0]
CLEAR = "\r\033[K"  # begin the line anew, on a terminal


class _Announcer(Listener):
    """Writes to the terminal while a kernel is being compiled; elsewhere one line in all.

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
        if sys.stderr.isatty():
            name = event.data["dispatcher"].py_func.__name__.strip("_")
            seconds = self._seconds + time.perf_counter() - self._started
            self._write(
                f"{CLEAR}compiling for this processor, once: kernel {self._count}, {name} "
                f"({seconds:.0f} s of about 30)"
            )
        elif self._count == 1:
            self._write("compiling kernels for this processor: about 30 s, once\n")

    def on_end(self, event: Any) -> None:
        if not self._is_ours(event):
            return
        self._depth -= 1
        if self._depth == 0:
            self._seconds += time.perf_counter() - self._started
            if sys.stderr.isatty():
                self._write(CLEAR)

    @staticmethod
    def _is_ours(event: Any) -> bool:
        return bool(event.data["dispatcher"].py_func.__module__.partition(".")[0] == PACKAGE)

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def announce() -> None:
    """From now on, say when a kernel of this package is compiled."""
    register("numba:compile", _Announcer())
