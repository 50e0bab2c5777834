"""Why a run stops before its end: Ctrl-C, SIGTERM or SIGUSR1, or a limit that was set."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType

PAUSE = getattr(signal, "SIGUSR1", None)
"""What schedulers send some time before the end of a job that they will start again."""
STOP_SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, PAUSE)))


class StoppedError(Exception):
    """Training stopped before its end, after it had saved its state."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(f"stopped by {reason}")
        self.reason = reason
        self.exit_code = exit_code
        """What shells and schedulers expect: 130 after SIGINT, 143 after SIGTERM, else 0."""


class StopRequest:
    """Context manager that is true once the step under way should be the last, for `reason`.

    That is so after a first SIGINT, SIGTERM or SIGUSR1, once `step` has come to `steps`, and when
    fewer than `reserve` seconds are left until `deadline`, in the time of `time.monotonic`; whoever
    trains keeps `step` and `reserve` up to date. A second SIGINT or SIGTERM kills. Outside the main
    thread, where Python cannot set handlers, signals do what they did before.
    """

    def __init__(self, steps: int | None = None, deadline: float | None = None) -> None:
        self.reason: str | None = None
        self.exit_code = 0
        self.step = 0
        self.reserve = 0.0
        self._steps = math.inf if steps is None else steps
        self._deadline = math.inf if deadline is None else deadline
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        if self.reason is None:  # and once there is one, it stays
            if self.step >= self._steps:
                self.reason = f"the limit of {self._steps} steps"
            elif time.monotonic() + self.reserve >= self._deadline:
                self.reason = "the time limit"
        return self.reason is not None

    def error(self) -> StoppedError:
        """Return the error that tells those above."""
        return StoppedError(str(self.reason), self.exit_code)

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
        again = b""
        if signum == PAUSE:
            if self.reason is not None:
                return
        elif self.exit_code:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        else:
            self.exit_code = 128 + signum
            again = b" (once more to stop at once)"
        self.reason = signal.Signals(signum).name
        # os.write, not print: a handler may run in the middle of another print.
        os.write(2, b"\nfinishing this step, then saving" + again + b"\n")
