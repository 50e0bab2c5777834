"""Numbers about a run: averages, throughput, hit counts, and their file.

A row of ``metrics.jsonl`` is one JSON object on one line. Whatever depends on the clock sits
under its key ``"time"``, so two runs that computed the same numbers have equal rows once that
key is dropped, whether or not one of them was interrupted on the way.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinyalex.folders import Folder, open_regular, sync
from tinyalex.schema import check, number, one_of, whole
from tinyalex.text import counted, printable

METRICS = "metrics.jsonl"

LONGEST_LINE = 2**16
"""Bytes above which a line is no row of metrics, and neither is what follows."""

ROWS = {
    kind: {
        "kind": one_of([kind]),
        **dict.fromkeys(counts, whole(1)),
        **dict.fromkeys(names, number(-1e300, 1e300)),
    }
    for kind, counts, names in (
        ("step", ("step", "epoch"), ("loss", "top1")),
        ("epoch", ("step", "epoch"), ("val_loss", "val_top1", "val_top5")),
        ("test", ("step",), ("loss", "top1", "top5")),
    )
}
"""Schemas of the rows that pictures are drawn from."""


def hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Return, per row, whether the label is among the k highest scores.

    scores [N, C], labels [N] -> bool [N]. Ties go to the lower class index, as with argmax, so a
    network that gives every class the same score gets no credit for it. With fewer than k
    classes every label is a hit.
    """
    if k == 1:
        return scores.argmax(axis=1) == labels
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1)


@dataclass
class Average:
    """Mean loss and accuracy, stored as sums."""

    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0

    def __add__(self, other: Average) -> Average:
        return Average(
            self.loss_sum + other.loss_sum,
            self.correct + other.correct,
            self.count + other.count,
        )

    @property
    def loss(self) -> float:
        """Mean loss per sample (nan before the first)."""
        return self.loss_sum / self.count if self.count else float("nan")

    @property
    def top1(self) -> float:
        """Share of samples classified right, 0 to 1 (nan before the first)."""
        return self.correct / self.count if self.count else float("nan")


class MetricsFile:
    """File of JSON lines that survives kills, resumes and full disks.

    `keep` is the number of rows that the checkpoint in hand knows of: whatever a killed run wrote
    after that checkpoint is cut off, because the resumed run is about to write it again. A file
    that holds fewer, or loses some later because it is removed, rotated or spoilt, is continued as
    it is, and `say` is told so; no other file changes with it, through links of either
    kind. `folder` is the one that the path is in, if it is open already.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        keep: int = 0,
        say: Callable[[str], None] = lambda text: None,
        folder: Folder | None = None,
    ) -> None:
        self.path = Path(path)
        self.rows = 0
        self.say = say
        self._folder = folder
        self._keep = keep
        self._end: int | None = None  # bytes of complete rows in the file, once it could be read
        self._unwritten: list[bytes] = []  # rows that a full disk refused
        try:
            self._write()
        except OSError as error:
            say(
                f"warning: {printable(self.path)} cannot be written now ({error.strerror or error})"
            )

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; after an OSError it is written with the next."""
        self.rows += 1
        self._unwritten.append(json.dumps(row).encode() + b"\n")
        self._write()

    def sync(self) -> None:
        """Fsync all rows, so that no checkpoint counts rows a crash loses."""
        self._write(durable=True)

    def _open(self) -> BinaryIO:
        if self._folder is not None:
            return self._folder.open_own(self.path.name)
        with Folder(self.path.parent) as folder:
            return folder.open_own(self.path.name)

    def _write(self, durable: bool = False) -> None:
        with self._open() as file:
            if self._end is None:
                expected = f"the checkpoint counts {self._keep}"
                self._end = self._find_end(file, self._keep, expected)
                file.truncate(self._end)
            elif not _ends_a_line(file, self._end):
                self._end = self._find_end(file, sys.maxsize, "and had more a moment ago")
            file.seek(self._end)  # over half a row, if an earlier write broke off
            text = b"".join(self._unwritten)
            file.write(text)
            file.flush()
            self._end += len(text)
            self._unwritten.clear()
            if durable:
                sync(file.fileno())

    def _find_end(self, file: BinaryIO, keep: int, expected: str) -> int:
        """Return the end of the first `keep` rows; warn of missing ones."""
        rows = end = 0
        file.seek(0)
        while rows < keep and (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
            end += len(line)
            rows += _row_in(line) is not None
        if rows < keep:
            self.say(
                f"warning: {printable(self.path)} has {counted(rows, 'whole row')}, {expected}: "
                "those that are missing are missing in the curves, and training continues"
            )
        self.rows = rows + len(self._unwritten)
        return end


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`; broken rows are left out."""
    rows = []
    with open_regular(path) as file:
        while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
            if (row := _row_in(line)) is not None:
                rows.append(row)
    return rows


def rows_of(kind: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the complete rows of a kind, "step", "epoch" or "test"."""
    found = []
    for row in rows:
        with suppress(ValueError):
            check(row, ROWS[kind])
            found.append(row)
    return found


WARN_WAIT_SHARE = 0.3
"""Share of the time spent waiting for images from which on it is remarked on."""

WARN_WAIT_SECONDS = 5.0
"""But not for fewer seconds than this."""

WARN_MIN_STEPS = 20
"""Nor before so many steps: an epoch begins with waiting."""


class Throughput:
    """Clock of a run: seconds spent waiting for images and computing.

    Nothing here enters a checkpoint: it is about this process, and for showing.
    """

    def __init__(self, total_steps: int, epochs: int, window: int = 20) -> None:
        self._total_steps, self._epochs = total_steps, epochs
        self._results: deque[Average] = deque(maxlen=window)
        self._times: deque[tuple[float, float, int]] = deque(maxlen=window)
        self._readings = 0
        self.validation_seconds = 0.0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin to count an epoch."""
        self._waited = self._worked = 0.0
        self._steps = self._images = 0

    def add(self, waited: float, worked: float, results: Sequence[Average]) -> None:
        """Add steps: seconds waited, seconds computed, and results per step."""
        if self._readings == 1:
            self._times.clear()  # the first steps compile and warm up
        self._readings += 1
        for result in results:
            self._results.append(result)
            self._times.append((waited / len(results), worked / len(results), result.count))
            self._images += result.count
        self._waited += waited
        self._worked += worked
        self._steps += len(results)

    @property
    def average(self) -> Average:
        """Loss and accuracy of the last steps."""
        return sum(self._results, Average())

    @property
    def epoch_seconds(self) -> float:
        """Seconds that the epoch has taken, validation included."""
        return self._waited + self._worked + self.validation_seconds

    def _sums(self, whole_epoch: bool) -> tuple[float, float, int]:
        if whole_epoch:
            return self._waited, self._worked, self._images
        waited = sum(waited for waited, _, _ in self._times)
        worked = sum(worked for _, worked, _ in self._times)
        return waited, worked, sum(images for *_, images in self._times)

    def images_per_second(self, whole_epoch: bool = False) -> float:
        """Images learned from per second, waiting included."""
        waited, worked, images = self._sums(whole_epoch)
        return images / (waited + worked) if images else 0.0

    def data_share(self, whole_epoch: bool = False) -> float:
        """Share of the time that went by waiting for images, 0 to 1."""
        waited, worked, images = self._sums(whole_epoch)
        return waited / (waited + worked) if images else 0.0

    def waits(self, epoch_ends: bool) -> bool:
        """Tell whether much of the epoch so far was spent waiting."""
        enough = epoch_ends or self._steps >= WARN_MIN_STEPS
        share = self.data_share(whole_epoch=True)
        return enough and share > WARN_WAIT_SHARE and self._waited > WARN_WAIT_SECONDS

    def as_row(self, whole_epoch: bool = False) -> dict[str, float]:
        """Return both figures for a row of metrics."""
        return {
            "images_per_second": round(self.images_per_second(whole_epoch), 2),
            "data_share": round(self.data_share(whole_epoch), 4),
        }

    @property
    def typical_step(self) -> float:
        """Median seconds of the last steps, some of which save."""
        return statistics.median(waited + worked for waited, worked, _ in self._times)

    def seconds_left(self, step: int, epoch: int) -> float | None:
        """Estimate the seconds to the end of the run; None at first."""
        if self._readings < 2:
            return None
        rest = self._total_steps - step
        return rest * self.typical_step + (self._epochs - epoch) * self.validation_seconds


def _row_in(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _ends_a_line(file: BinaryIO, place: int) -> bool:
    """Tell whether a line of the file ends at `place`."""
    file.seek(max(0, place - 1))
    return place == 0 or file.read(1) == b"\n"
