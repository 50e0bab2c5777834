"""How a run shows that it is alive: a bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import io
import sys
import time
from typing import Any, TextIO

BAR = "{desc} {n_fmt}/{total_fmt} |{bar:8}| {postfix[0]}"


class Progress:
    """One bar or a few lines per pass over the data; the caller supplies the text.

    A terminal with tqdm installed gets a bar that is redrawn; everything else (a pipe, a file, no
    tqdm) gets a line for the first update of the run and then one every `seconds`, without
    carriage returns. With `silent` nothing is shown.
    """

    def __init__(
        self, stream: TextIO | None = None, seconds: float = 10.0, silent: bool = False
    ) -> None:
        self.stream = io.StringIO() if silent else stream or sys.stdout
        self.seconds = seconds
        self._tqdm = _tqdm() if self.stream.isatty() else None
        self._bar: Any = None
        self._title, self._total = "", 0
        self._last_line = float("-inf")

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begin a pass of `total` steps, `done` of which lie behind us already."""
        self._title, self._total = title, total
        if self._tqdm is not None:
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
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last_line >= self.seconds:
            self._last_line = time.monotonic()
            self.say(f"{self._title}  step {done}/{self._total}  {text}")

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)


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
