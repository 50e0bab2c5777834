"""Signals and time limits that end a run or a command early."""

from __future__ import annotations

import _thread
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

DONE, FAILED, USAGE, DIVERGED = 0, 1, 2, 3
"""Exit codes of commands that no signal ended."""

PAUSE = getattr(signal, "SIGUSR1", None)
"""Sent by schedulers some time before the end of a job that they will start again."""
HANGUP = getattr(signal, "SIGHUP", None)
"""Sent by a closed terminal, and by its shell perhaps once more."""
STOP_SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, HANGUP, PAUSE)))


Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class StoppedError(Exception):
    """Training stopped after it had saved its state."""

    def __init__(
        self, reason: str, exit_code: int, missing: str | None = None, call: str = ""
    ) -> None:
        super().__init__(reason, exit_code, missing, call)
        self.reason = reason
        self.missing = missing
        """Work left after training, in words; None unless training is over."""
        self.call = call
        """The command for that, "" for that which resumes the run."""
        self.exit_code = exit_code
        """As shells and schedulers expect: 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP,
        else 0.
        """

    def __str__(self) -> str:
        return f"stopped by {self.reason}"


class LeftError(SystemExit):
    """A signal ended a command that had nothing to save."""


def code_of(left: LeftError | KeyboardInterrupt) -> int:
    """Return the exit code of a command that a signal ended."""
    return int(left.code or 0) if isinstance(left, LeftError) else 130


class StopRequest:
    """Context manager, true once the current step should be the last.

    That is so after a first SIGINT, SIGTERM, SIGHUP or SIGUSR1, once `step` has come to `steps`,
    and when fewer than `reserve` seconds are left until `deadline`, in the time of
    `time.monotonic`; training keeps `step`, `reserve` and `under_way`, the answer to a signal, up
    to date. A second SIGINT or SIGTERM kills, and `lost` says what that loses. Outside the main
    thread, where Python cannot set handlers, signals do what they did before.
    """

    def __init__(self, steps: int | None = None, deadline: float | None = None) -> None:
        self.reason: str | None = None
        self.exit_code = 0
        self.step = 0
        self.reserve = 0.0
        self.under_way = "finishing this step, then saving"
        self.lost: Callable[[], str] = str
        self.silent = False
        self._steps = math.inf if steps is None else steps
        self._deadline = math.inf if deadline is None else deadline
        self._previous: list[dict[int, Handler]] = []  # one for each `with` under way
        self._insistent = False

    @property
    def at_limit(self) -> bool:
        """True once `step` has come to `steps`."""
        return self.step >= self._steps

    def __bool__(self) -> bool:
        if self.reason is None:  # and once there is one, it stays
            if self.at_limit:
                self.reason = "the limit of steps"
            elif time.monotonic() + self.reserve >= self._deadline:
                self.reason = "the time limit"
        return self.reason is not None

    def error(self, missing: str | None = None, call: str = "") -> StoppedError:
        """Return the error that tells those above."""
        return StoppedError(str(self.reason), self.exit_code, missing, call)

    def __enter__(self) -> StopRequest:
        self._previous.append(_answer(self._handle))
        return self

    def __exit__(self, *raised: object) -> None:
        _restore(self._previous.pop())

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        gentle = signum in (PAUSE, HANGUP)
        if gentle and self.reason is not None:
            return
        kills = self._insistent and not gentle
        self._insistent = not gentle
        self.reason, self.exit_code = signal.Signals(signum).name, _exit_code(signum)
        if kills:
            signal.signal(signum, signal.SIG_DFL)
        if not self.silent:
            again = "" if gentle else f" (once more to stop at once{self.lost()})"
            text = f"stopped at once{self.lost()}" if kills else self.under_way + again
            _tell(text.encode(), patient=not kills)
        if kills:
            os.kill(os.getpid(), signum)


@contextmanager
def leaving_on_signals(
    pause: bool = False, left: str = "with nothing to save", silent: bool = False
) -> Iterator[None]:
    """Let signals end a block by an exception, as Ctrl-C does.

    That of SIGTERM, SIGHUP and, with `pause`, SIGUSR1 is LeftError with the code that
    `StopRequest` would give. A second signal ends the process at once. A line on stderr
    says so, and what is `left`, unless that is `silent`. For what has nothing to save.
    """
    leaving: BaseException | None = None
    received = 0

    def leave(signum: int, frame: FrameType | None) -> None:
        nonlocal leaving, received
        if leaving is not None:
            os._exit(_exit_code(signum))
        said, received, leaving = received, signum, KeyboardInterrupt()
        if said != signum and not silent:  # else it comes once more, having been dropped
            _tell(f"stopped by {signal.Signals(signum).name}, {left}".encode())
        if signum != signal.SIGINT:
            leaving = LeftError(_exit_code(signum))
        raise leaving

    def report(dropped: sys.UnraisableHookArgs) -> None:
        nonlocal leaving
        if leaving is None or dropped.exc_value is not leaving:
            report_before(dropped)
        else:  # by a finalizer, say: once more, outside of it
            leaving = None
            threading.Timer(0.01, os.kill, (os.getpid(), received)).start()

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # in the background of a script
    besides = (PAUSE if not pause else None, signal.SIGINT if ignored else None)
    report_before, sys.unraisablehook = sys.unraisablehook, report
    previous = _answer(leave, besides)
    try:
        yield
    except BaseException as error:
        if leaving is not None and error is not leaving:
            raise leaving from error  # what an interrupted import makes of it, for one
        raise
    finally:
        _restore(previous)
        sys.unraisablehook = report_before


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals back during a block that runs callbacks from C code.

    Python drops an exception that a handler raises in a callback: the signal is lost, and so is
    what the callback was to return.
    """
    waiting: list[int] = []
    over = False

    def wait(signum: int, frame: FrameType | None) -> None:
        if over:
            handlers[signum](signum, frame)
        else:
            waiting.append(signum)

    here = threading.current_thread() is threading.main_thread()  # handlers run in no other
    found = {signum: signal.getsignal(signum) for signum in range(1, signal.NSIG) if here}
    handlers = {signum: handler for signum, handler in found.items() if callable(handler)}
    try:
        for signum in handlers:
            signal.signal(signum, wait)
        yield
    finally:
        over = True
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        # In one step: the handler of the first may raise.
        any(map(_thread.interrupt_main, waiting))  # type: ignore[arg-type]  # any number will do


def _exit_code(signum: int) -> int:
    return 0 if signum == PAUSE else 128 + signum


def _tell(what: bytes, patient: bool = True) -> None:
    """Write a line to stderr; unless `patient`, only if it is ready."""
    if sys.stderr is None:  # closed: the number may be that of another file by now
        return
    with suppress(OSError):  # without a reader
        if patient or select.select([], [2], [], 0)[1]:
            # os.write, not print: a handler may run in the middle of another print.
            os.write(2, b"\n" + what + b"\n")


def _answer(handle: Handler, besides: Sequence[int | None] = ()) -> dict[int, Handler]:
    """Let `handle` answer the signals; return what did before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    previous = {
        signum: signal.getsignal(signum) for signum in STOP_SIGNALS if signum not in besides
    }
    if previous.get(HANGUP) == signal.SIG_IGN:  # by nohup, to continue
        del previous[HANGUP]
    for signum in previous:
        signal.signal(signum, handle)
    return previous


def _restore(previous: dict[int, Handler]) -> None:
    for signum, handler in previous.items():
        signal.signal(signum, signal.SIG_DFL if handler is None else handler)
