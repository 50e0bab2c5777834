"""Ctrl-C and SIGTERM as a polite request: finish the step, save, then stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """Training stopped because of a signal, after it had saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What shells and schedulers expect of a process that a signal ended: 130 or 143."""
        return 128 + self.signum


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into a flag; the second one kills.

    Outside the main thread, where Python cannot set handlers, it stays false and signals do what
    they did before.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signum is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signum
        # os.write, not print: a handler may run in the middle of another print.
        os.write(2, b"\nfinishing this step, then saving (once more to stop at once)\n")
