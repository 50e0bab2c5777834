"""Numbers about a run: running averages, hit counts, and the file they are logged to.

A row of ``metrics.jsonl`` is one JSON object on one line. Whatever depends on the clock sits
under its key ``"time"``, so two runs that computed the same numbers have equal rows once that
key is dropped, whether or not one of them was interrupted on the way.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Tell for each row whether its label is among the k highest scores.

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
    """Mean loss and accuracy over some samples, as sums that add up and fit in a checkpoint."""

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
    """Rows appended to a file of JSON lines, which survives kills, resumes and a full disk.

    `keep` is the number of rows that the checkpoint in hand knows of: whatever a killed run wrote
    after that checkpoint is cut off, because the resumed run is about to write it again. Raises
    ValueError, and leaves the file alone, where it holds fewer rows.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 0) -> None:
        self.path = Path(path)
        self.rows = 0
        self._end = 0  # bytes of complete rows in the file
        self._unwritten = b""  # rows that a full disk refused
        with self.path.open("r+b") if self.path.exists() else io.BytesIO() as file:
            while self.rows < keep and (line := file.readline()).endswith(b"\n"):
                self.rows += 1
                self._end += len(line)
            if self.rows < keep:
                raise ValueError(
                    f"{self.path} has {self.rows} whole rows, the checkpoint counts {keep}: put "
                    "the file back, or begin anew with another --out"
                )
            file.truncate(self._end)
        self.path.touch()

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; on OSError it is kept and written with the next one."""
        self.rows += 1
        self._unwritten += json.dumps(row).encode() + b"\n"
        self._write()

    def sync(self) -> None:
        """Bring every row to the disk, so that no checkpoint counts rows that a crash can lose."""
        self._write(durable=True)

    def _write(self, durable: bool = False) -> None:
        with self.path.open("r+b") as file:
            file.seek(self._end)  # over half a row, if an earlier write broke off
            file.write(self._unwritten)
            file.flush()
            self._end += len(self._unwritten)
            self._unwritten = b""
            if durable:
                os.fsync(file.fileno())


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of a ``metrics.jsonl``; half a row at its end is left out."""
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
