"""Thousands of image files spoilt at random: read right, or refused."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from faults_row import Row, progress, temporary_folder
from mutants import mutant, outcome

from tinyalex.data import WorkerError, read_image
from tinyalex.data.worker_processes import Work, Workers

PATIENCE = 10.0
"""Seconds after which a file that is still being read counts as a hang."""

MEMORY = 500e6
"""Bytes that the process which reads the files may take in all."""

Read = Callable[..., np.ndarray]


def mutated_images(count: int) -> Row:
    """Read spoilt files: each is RGB or an ImageError."""
    found, seconds, size = read_mutants(count, read_image, PATIENCE)
    decoded, refused, crashes, hangs = (
        found.pop(what, 0) for what in ("decoded", "refused", "crashes", "hangs")
    )
    said = (
        f"{count:,} files with Pillow {PIL.__version__}: {decoded:,} decoded to RGB, {refused:,} "
        f"refused with a reason; {crashes} crashes, {hangs} hangs ({PATIENCE:.0f} s), "
        f"{sum(found.values())} other errors {', '.join(found)}".rstrip()
        + f"; the slowest took {seconds:.2f} s, the process {size / 1e6:.0f} MB"
    )
    held = decoded + refused == count and min(decoded, refused) > count / 10 and size < MEMORY
    return Row("JPEG, PNG, WebP, BMP, GIF: bytes changed, inserted, swapped, cut off", said, held)


def mutants_read_badly() -> Row:
    """Show that the test above can fail."""
    found = read_mutants(20, read_badly, patience=2.0)[0]
    expected = {"crashes": 2, "hangs": 1, "KeyError": 1, "not RGB": 1}
    right = all(found[what] == number for what, number in expected.items())
    said = ", ".join(f"{found[what]} of {number} {what}" for what, number in expected.items())
    return Row(
        "the same with a reader that crashes, hangs and errs, to see that the test can fail",
        f"noticed: {said}",
        right and sum(found.values()) == 20,
    )


def read_badly(path: Path, shorter_side: int | None) -> np.ndarray:
    """Read an image, with every fault that a reader can have."""
    match path.stem:
        case "3" | "4":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "6":
            time.sleep(60)
        case "8":
            raise KeyError(path)
        case "10":
            return np.zeros((18, 24), np.uint8)
    return read_image(path, shorter_side)


def read_mutants(count: int, read: Read, patience: float) -> tuple[Counter[str], float, float]:
    """Return how often each outcome came, the longest time in seconds, the memory in bytes.

    The files are read in a process; where that dies or hangs, another takes the next file.
    """
    found: Counter[str] = Counter()
    longest = largest = 0.0
    workers = None
    with temporary_folder() as folder:
        for number in range(count):
            workers = workers or Workers(1, _reader, read, folder, patience=patience)
            try:
                what, seconds, size = workers.all[0].ask(number, threading.Event())
                longest, largest = max(longest, seconds), max(largest, size)
            except WorkerError as error:
                what = "hangs" if "has said nothing" in str(error) else "crashes"
                workers.kill()
                workers = None
            found[what] += 1
            progress(number, count)
        if workers:
            workers.close()
    return found, longest, largest


def _reader(memory: Any, read: Read, folder: Path) -> Work:
    """Return what reads a mutant in the other process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def work(number: int, alive: Callable[[], object]) -> tuple[str, float, float]:
        path = folder / f"{number}.jpg"
        path.write_bytes(mutant(number))
        began = time.monotonic()
        what = outcome(read, path, shorter_side=(None, 16)[number % 2])
        seconds = time.monotonic() - began
        path.unlink()
        return what, seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    return work
