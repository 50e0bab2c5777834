"""Progress bars and messages, which no reader, name or disk can break."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tinyalex.optional import PackageError, borrowed
from tinyalex.text import escaped, printable

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Errors of a stream that has no reader any more."""
BAR = "{desc} {n_fmt}/{total_fmt} |{bar:8}| {postfix[0]}"
BESIDE = len(" / |12345678| ") + 1
"""Columns of a bar beside its title, its numbers and its text."""


class Progress:
    """Progress bar or periodic lines for one pass over the data.

    A terminal with tqdm installed gets a bar that is redrawn, with as much of the text as there is
    room for; everything else (a pipe, a file, no tqdm) gets a line for the first update of the run
    and then one every `seconds`, without carriage returns. With `silent`, or without a reader,
    nothing is shown.
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
        """Begin a pass of `total` steps, of which `done` are already done."""
        self._title, self._total = title, total
        if self._tqdm is not None:
            with self._drawing():
                self._bar = self._tqdm(
                    total=total,
                    initial=done,
                    desc=title,
                    file=self.stream,
                    bar_format=BAR,
                    postfix=[""],  # what {postfix[0]} stands for
                    ncols=columns(),
                    nrows=20,  # or none is drawn on a terminal that does not know its size
                    leave=False,
                )

    def update(self, done: int, text: str) -> None:
        """Show that `done` steps are behind us; `text` says how it goes.

        Its parts are two spaces apart; a bar on a narrow terminal leaves out the last ones.
        """
        if self._bar is not None:
            with self._drawing():
                self._bar.ncols = columns()  # it may have been resized
                taken = len(f"{self._title}{done}{self._total}") + BESIDE
                self._bar.postfix[0] = _fitting(text, self._bar.ncols - taken)
                self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last_line >= self.seconds:
            self._last_line = time.monotonic()
            self.say("  ".join(filter(None, [self._title, f"step {done}/{self._total}", text])))

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            with self._drawing():
                self._bar.close()
            self._bar = None

    def say(self, text: str) -> None:
        """Print lines that stay, above the bar if there is one."""
        if self._bar is not None:
            with self._drawing():
                self._bar.clear()
        say(text, self.stream)
        if self._bar is not None:
            with self._drawing():
                self._bar.refresh()

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Fall back to plain lines if the package that draws bars fails."""
        try:
            with ignoring_write_errors(self.stream):
                yield
        except Exception:
            self._tqdm = self._bar = None


def say(text: str, stream: TextIO | None = None) -> None:
    """Print lines, on stdout by default, if they can be read.

    What steers terminals is escaped, and so is what the stream cannot encode.
    """
    show("\n".join(map(escaped, text.split("\n"))) + "\n", stream or sys.stdout)


def warn(text: str) -> None:
    """Print lines on stderr, if they can be read."""
    if sys.stderr is not None:
        say(text, sys.stderr)


def show(text: str, stream: TextIO | None) -> None:
    """Write text unchanged to a stream; ignore write errors."""
    if stream is not None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        with ignoring_write_errors(stream):
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


@contextmanager
def ignoring_write_errors(stream: TextIO) -> Iterator[None]:
    """Ignore write errors of a stream: output never ends a run.

    A disk may be full for a while. The stream goes silent for good where the reader of a pipe has
    ended, perhaps by the same Ctrl-C, or a terminal is gone.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError: it was closed
        # No file: it is asked again the next time.
        with suppress(OSError, ValueError), ExitStack() as after:
            descriptor = stream.fileno()
            if getattr(error, "errno", None) not in GONE:
                before = os.dup(descriptor)
                after.callback(os.close, before)
                after.callback(os.dup2, before, descriptor)
            os.dup2(after.enter_context(open(os.devnull, "w")).fileno(), descriptor)
            stream.flush()  # what is left would be tried again, at the very end as well


def open_standard_streams() -> None:
    """Open closed standard streams, lest a run's file be taken for one."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest number that is free


def columns() -> int:
    """Return the width of the terminal, or what the variable COLUMNS says."""
    return shutil.get_terminal_size((80, 24)).columns


def output_width() -> int | None:
    """Return the width of stdout's terminal, or None if it is none."""
    return columns() if sys.stdout is not None and sys.stdout.isatty() else None


def cells(text: str) -> int:
    """Return the terminal columns that a text takes (wide letters 2, accents 0)."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def padded(text: str, width: int) -> str:
    """Return text padded with spaces, or cut, to `width` columns."""
    while cells(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text + " " * (width - cells(text))


def folded(text: str, indent: int) -> str:
    """Break long lines between words for a terminal, not for a pipe."""
    if (room := output_width()) is None:
        return text
    further = " " * min(indent, room // 3)
    return "\n".join(
        textwrap.fill(
            line,
            room,
            subsequent_indent=further,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.split("\n")
    )


def _fitting(text: str, width: int) -> str:
    """Return as many parts of the text as fit into the width.

    Parts are two spaces apart.
    """
    parts = text.split("  ")
    while parts and len("  ".join(parts)) > width:
        parts.pop()
    return "  ".join(parts)


def _tqdm() -> Any:
    try:
        with borrowed("tqdm"):
            from tqdm import tqdm
    except PackageError:
        return None
    return tqdm


def reason_of(error: BaseException) -> str:
    """Return an error's reason without the file name."""
    return getattr(error, "strerror", None) or one_sentence(error)


def one_sentence(error: BaseException) -> str:
    """Return an error's message on one line, an OSError's without its number.

    >>> one_sentence(NotADirectoryError(20, "Not a directory", "runs/a"))
    'runs/a: Not a directory'
    """
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += ", there is no room for the file"
        if isinstance(error.filename, (str, bytes, os.PathLike)):
            return f"{printable(os.fsdecode(error.filename))}: {reason}"
        return f"the current folder is gone: {reason}" if _is_nowhere() else reason
    text, kind = escaped(str(error).strip()), type(error).__name__
    if isinstance(error, (LookupError, TypeError, AttributeError)):  # whose texts say too little
        return f"{kind}: {text}"
    return text or kind


def unwritable(folder: Path, reason: str) -> str:
    """Return the words on a folder that cannot be written to."""
    return f"{printable(folder)} cannot be written to ({reason})"


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


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
