"""How a run shows that it is alive: a bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""How a system says that nobody will ever read."""
BAR = "{desc} {n_fmt}/{total_fmt} |{bar:8}| {postfix[0]}"


class Progress:
    """One bar or a few lines per pass over the data; the caller supplies the text.

    A terminal with tqdm installed gets a bar that is redrawn; everything else (a pipe, a file, no
    tqdm) gets a line for the first update of the run and then one every `seconds`, without
    carriage returns. With `silent` nothing is shown, nor is anything where nobody reads any more.
    """

    def __init__(
        self, stream: TextIO | None = None, seconds: float = 10.0, silent: bool = False
    ) -> None:
        self.stream = (None if silent else stream or sys.stdout) or io.StringIO()
        self.seconds = seconds
        self._tqdm = _tqdm() if self.stream.isatty() else None
        self._bar: Any = None
        self._title, self._total = "", 0
        self._last_line = float("-inf")

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begin a pass of `total` steps, `done` of which lie behind us already."""
        self._title, self._total = title, total
        if self._tqdm is not None:
            with unbroken(self.stream):
                self._bar = self._tqdm(
                    total=total,
                    initial=done,
                    desc=title,
                    file=self.stream,
                    bar_format=BAR,
                    postfix=[""],  # what {postfix[0]} stands for
                    dynamic_ncols=True,
                    leave=False,
                )

    def update(self, done: int, text: str) -> None:
        """Show that `done` steps are behind us; `text` says how it goes."""
        if self._bar is not None:
            self._bar.postfix[0] = text
            with unbroken(self.stream):
                self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last_line >= self.seconds:
            self._last_line = time.monotonic()
            self.say(f"{self._title}  step {done}/{self._total}  {text}")

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            with unbroken(self.stream):
                self._bar.close()
            self._bar = None

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        if self._bar is not None:
            with unbroken(self.stream):
                self._bar.write(text, file=self.stream)
        else:
            say(text, self.stream)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, on stdout by default, if there still is somebody to read it."""
    stream = stream or sys.stdout
    with unbroken(stream):
        print(text, file=stream, flush=True)


@contextmanager
def unbroken(stream: TextIO) -> Iterator[None]:
    """Drop what a stream does not take: what is shown never ends a run.

    A disk may be full for a while. The stream goes silent for good where the reader of a pipe has
    ended, perhaps by the same Ctrl-C, or a terminal is gone.
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError), ExitStack() as after:  # no file: it is asked again the next time
            descriptor = stream.fileno()
            if error.errno not in GONE:
                before = os.dup(descriptor)
                after.callback(os.close, before)
                after.callback(os.dup2, before, descriptor)
            os.dup2(after.enter_context(open(os.devnull, "w")).fileno(), descriptor)
            stream.flush()  # what is left would be tried again, at the very end as well


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def duration(seconds: float) -> str:
    """Write a time as people read it.

    >>> duration(0.84), duration(8), duration(185), duration(7650)
    ('0.8 s', '8 s', '3:05', '2:07:30')
    """
    if seconds < 5:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
