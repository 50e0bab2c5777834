"""Row of the table of faults.py, and shared helpers."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

processes = multiprocessing.get_context("forkserver")


class Row(NamedTuple):
    """A line of the table."""

    fault: str
    result: str
    held: bool


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder, and remove it."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        yield Path(name)


def progress(number: int, count: int) -> None:
    """Show that there is progress, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{number + 1}/{count} ", end="", file=sys.stderr, flush=True)
