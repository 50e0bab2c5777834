"""Trainer of a rank that writes no files: the first one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyalex.progress import Progress
from tinyalex.training.checkpoint import Checkpoints
from tinyalex.training.metrics import METRICS, MetricsFile
from tinyalex.training.run import Run
from tinyalex.training.trainer import Trainer


class NoCheckpoints(Checkpoints):
    """Checkpoints that another process writes."""

    def here(self) -> Path:
        """Return the folder, which is not looked for."""
        return self.folder

    def up_to_date(self, run: Run) -> bool:
        """Return True."""
        return True

    def due(self, epoch_ends: bool = False) -> bool:
        """Return False."""
        return False

    def keep_best(self, run: Run) -> bool:
        """Return True."""
        return True

    def save_best(self) -> None:
        """Write nothing."""


class NoMetrics(MetricsFile):
    """Rows of metrics, counted and not written."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path, self.rows = path, keep

    def append(self, row: dict[str, Any]) -> None:
        """Count a row."""
        self.rows += 1

    def sync(self) -> None:
        """Write nothing."""


class Follower(Trainer):
    """`Trainer` that computes its part and leaves files to the first rank."""

    def __init__(self, run: Run, folder: Path) -> None:
        metrics = NoMetrics(folder / METRICS, run.state.rows)
        super().__init__(run, NoCheckpoints(folder), metrics, Progress(silent=True))
