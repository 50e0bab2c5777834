"""What the commands in examples/ share: exit codes, arguments, errors that are one sentence."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from tinyalex.backends.devices import DeviceError
from tinyalex.data import ImageError, WorkerError
from tinyalex.data.image import EXTENSIONS
from tinyalex.threads import get_num_threads
from tinyalex.training.classifier import CROPS
from tinyalex.training.progress import say

DONE, FAILED, USAGE, DIVERGED = 0, 1, 2, 3
EXIT_CODES = (
    "exit codes: 0 done, or stopped and saved at a limit or by SIGUSR1; 1 failed on the way; "
    "2 arguments or data that cannot be used; 3 the loss, a gradient or a weight was no longer a "
    "number; 129, 130 and 143 stopped and saved by SIGHUP, Ctrl-C and SIGTERM"
)

EXPECTED_ERRORS = (
    ValueError,
    OSError,
    MemoryError,
    ModuleNotFoundError,
    WorkerError,
    DeviceError,
)
"""What a mistake of the user's, or of the machine's, raises before the work begins."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, without the list of all options.

    From then on, what stdout and stderr cannot encode is printed as question marks.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")

    def error(self, message: str) -> NoReturn:
        """Print the complaint and exit with code 2."""
        self.exit(USAGE, f"{self.prog}: {message} (--help explains all options)\n")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows defaults where there are any, and keeps the lines of its description.

    Only lines that are too long for the terminal, or for 99 columns, are broken, between words.
    """

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size((101, 40)).columns  # if it is a terminal
        super().__init__(prog, max_help_position=26, width=min(99, columns - 2))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(textwrap.fill(line, width) for line in text.splitlines())

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def seconds_in(text: str) -> float:
    """Return how many seconds a time such as 2h, 1h30m or 90s has.

    >>> seconds_in("1h30m"), seconds_in("90s")
    (5400.0, 90.0)
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    seconds = 0.0
    if found:
        for number, unit in zip(found.groups("0"), (3600, 60, 1), strict=True):
            seconds += int(number) * unit
    if seconds == 0:
        raise argparse.ArgumentTypeError(f"expected a time like 2h, 1h30m or 90s, got {text!r}")
    return seconds


def add_network_arguments(parser: Parser) -> None:
    """Add what the commands that use a trained network begin with: it, and what computes it."""
    add_checkpoint(parser)
    add_threads(parser)
    add_device(parser)


def add_checkpoint(parser: Parser) -> None:
    """Add CHECKPOINT."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a .safetensors file of a run, or the run's folder, of which the best is taken",
    )


def add_threads(parser: argparse._ActionsContainer) -> None:
    """Add --threads."""
    parser.add_argument(
        "--threads", type=int, default=get_num_threads(), metavar="N", help="threads that compute"
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", default="cpu", help="what computes: cpu, or a GPU: cuda, cuda:1, ..."
    )


def add_crops(parser: Parser, default: int) -> None:
    """Add --crops."""
    parser.add_argument(
        "--crops",
        type=int,
        choices=CROPS,
        default=default,
        help="1: what the network says to the centre of an image; 10: to its corners and centre "
        "and their reflections, on average, which takes ten times as long (paper section 4.1)",
    )


def check_file(out: Path) -> None:
    """See that a file can go there, before the work is done."""
    if out.is_dir():
        raise ValueError(f"--out must name a file, {out} is a folder")
    if not out.parent.is_dir():
        raise ValueError(f"--out must name a file in a folder that is there, {out.parent} is none")
    check_writable(out.parent)


def check_writable(folder: Path) -> None:
    """See that files can go into a folder, before the work is done."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{folder} cannot be written to ({error.strerror})"
        raise ValueError(f"{reason}: give another place with --out") from error


def find_images(paths: list[str]) -> Iterator[str]:
    """Yield each file given, and the images in each folder given and below it, sorted."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        found = sorted(_images_below(path))
        if not found:
            raise ValueError(f"no images ({' '.join(EXTENSIONS)}) in {path}")
        yield from found


def _images_below(root: str) -> Iterator[str]:
    for folder, _, files in os.walk(root):
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield os.path.join(folder, name)


Item = TypeVar("Item")


def readable(
    load: Callable[[Item], np.ndarray], items: Iterable[Item]
) -> Iterator[tuple[Item, np.ndarray]]:
    """Yield each item with its image where `load` can read it; name the others on stderr."""
    for item in items:
        try:
            yield item, load(item)
        except ImageError as error:
            print(f"skipped: {error}", file=sys.stderr)


def this_python() -> str:
    """Return how to call the Python that runs, with which the commands begin that are printed."""
    if shutil.which("python") == sys.executable:
        return "python"
    return min(os.path.relpath(sys.executable), sys.executable, key=len)


def complain(error: BaseException | str, code: int | None = None) -> int:
    """Print an error as one line on stderr; return the code, by default what fits the error."""
    if code is None:
        code = FAILED if isinstance(error, WorkerError) else USAGE
    text = error if isinstance(error, str) else one_sentence(error)
    say(f"error: {text}", sys.stderr)
    return code


def one_sentence(error: BaseException) -> str:
    """Return the message of an error on one line, an OSError's without its number.

    >>> one_sentence(NotADirectoryError(20, "Not a directory", "runs/a"))
    'runs/a: Not a directory'
    """
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += ", there is no room for the file"
        return f"{error.filename}: {reason}" if error.filename else reason
    return " ".join(str(error).split()) or type(error).__name__
