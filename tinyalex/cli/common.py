"""Signals, errors and arguments that commands share."""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tinyalex.backends.devices import DeviceError
from tinyalex.cli.parser import Parser, option
from tinyalex.data import WorkerError, worker_threads
from tinyalex.data.image import EXTENSIONS, FAULTS_OF_THE_MACHINE
from tinyalex.data.index import images_below, in_words
from tinyalex.data.layout import LAYOUTS
from tinyalex.folders import FAULTS_OF_THE_DISK, nearest_folder
from tinyalex.interrupts import FAILED, USAGE, leaving_on_signals
from tinyalex.progress import one_sentence, open_standard_streams, unwritable, warn
from tinyalex.schema import SettingError
from tinyalex.text import escaped, printable
from tinyalex.threads import get_num_threads
from tinyalex.training.classifier import CROPS

FAULTS = {*FAULTS_OF_THE_DISK, *FAULTS_OF_THE_MACHINE}
"""Reasons of an OSError that are no mistake: the command fails with code 1."""

EXPECTED_ERRORS = (
    ValueError,
    OSError,
    MemoryError,
    ImportError,
    WorkerError,
    DeviceError,
)
"""Errors reported as one line instead of a traceback."""


ELSEWHERE = "give another place with --out"

Main = Callable[[list[str] | None], int]


def command(main: Main) -> Callable[..., int]:
    """Decorate a command's main function with signals, streams and exit codes.

    Standard streams that are closed are opened on the null device, signals end it with their exit
    code and without a traceback, and so do errors that are expected, in one sentence.
    """

    @functools.wraps(main)
    def whole(argv: list[str] | None = None) -> int:
        open_standard_streams()
        try:
            with leaving_on_signals():
                return main(argv)
        except EXPECTED_ERRORS as error:
            return complain(error)
        except KeyboardInterrupt:
            return 130

    return whole


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


def add_layout(parser: argparse._ActionsContainer) -> None:
    """Add --layout."""
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        metavar="WORD",
        help="what folders called train, val or test are: classes, or splits",
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


def check_picture(out: Path, suffix: str = ".png", what: str = "pictures") -> None:
    """Check, before the work, that a picture or page can go there."""
    if out.is_dir():
        raise ValueError(f"--out must name a file, {printable(out)} is a folder")
    if out.suffix.lower() != suffix:
        raise ValueError(f"--out must name a {suffix} file, which {what} are, got {printable(out)}")
    if not out.parent.is_dir():
        raise ValueError(
            f"--out must name a file in a folder that is there, {printable(out.parent)} is none"
        )
    check_writable(out.parent)


def check_writable(folder: Path, advice: str = ELSEWHERE) -> None:
    """Check that a folder is writable, once made."""
    place = folder
    try:
        place = nearest_folder(folder)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        where = "" if place == folder else f"{printable(place)}: "
        told = unwritable(folder, f"{where}{error.strerror}")
        raise OSError(error.errno, f"{told}: {advice}") from error


def find_images(paths: list[str]) -> Iterator[str]:
    """Yield the given files, and images below the given folders, sorted.

    Skipped files are reported on stderr.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        found, scan = images_below(path)
        for sentence in scan.unreadable:
            warn(f"skipped: {sentence}")
        skipped = in_words(scan.passed_over)
        if not found:
            where = f"no images ({' '.join(EXTENSIONS)}) in {printable(path)}"
            raise ValueError("; ".join(filter(None, [where, skipped])))
        if skipped:
            warn(f"{printable(path)}: {skipped}")
        yield from found


Item = TypeVar("Item")
Result = TypeVar("Result")


def readable(
    load: Callable[[Item], Result],
    items: Iterable[Item],
    skipped: list[Item],
    describe: Callable[[Item], str],
) -> Generator[tuple[Item, Result], None, None]:
    """Yield each item with its loaded result, if read in time.

    Names the others on stderr and adds them to `skipped`. Raises WorkerError where the disk does
    not answer.
    """

    def skip(item: Item, reason: str) -> None:
        skipped.append(item)
        warn(f"skipped: {describe(item)}: {reason}")

    return worker_threads.readable(load, items, skip, describe)


def complain(error: BaseException | str, code: int | None = None) -> int:
    """Print an error as one line on stderr; return the exit code."""
    if code is None:
        lacks = isinstance(error, OSError) and error.errno in FAULTS
        code = FAILED if lacks or isinstance(error, (WorkerError, MemoryError)) else USAGE
    if isinstance(error, SettingError):
        error = f"{option(error.setting)} {error.reason}"
    warn(f"error: {escaped(error) if isinstance(error, str) else one_sentence(error)}")
    return code
