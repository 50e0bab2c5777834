"""How good a network is on images it did not learn from: loss, top-1 and top-5."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import tinyalex.functional as F
from tinyalex.autograd import no_grad
from tinyalex.data import Batch, Loader
from tinyalex.nn import Module
from tinyalex.tensor import Tensor
from tinyalex.training.metrics import hits
from tinyalex.training.progress import Progress
from tinyalex.training.signals import StopRequest


@dataclass(frozen=True)
class Scores:
    """Results over one pass, whole and per class (arrays of length C)."""

    loss: float
    class_counts: np.ndarray
    class_top1: np.ndarray
    """How many images of each class were classified right."""
    class_top5: np.ndarray
    """For how many images of each class it was among the five most probable."""

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.class_counts.sum())

    @property
    def top1(self) -> float:
        """Share of images classified right, 0 to 1."""
        return float(self.class_top1.sum() / self.count)

    @property
    def top5(self) -> float:
        """Share of images with the right class among the five most probable, 0 to 1."""
        return float(self.class_top5.sum() / self.count)


@np.errstate(over="ignore", invalid="ignore")  # the caller sees the loss
def evaluate(
    model: Module,
    loader: Loader,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    title: str = "evaluating",
) -> Scores | None:
    """Run the network in evaluation mode over the loader, each image once.

    Returns None if a stop was requested on the way. The loss is the mean cross-entropy.
    """
    classes = len(loader.dataset.classes)
    counts, top1, top5 = (np.zeros(classes, np.int64) for _ in range(3))
    loss_sum, seen = 0.0, 0
    model.eval()
    progress = progress or Progress(silent=True)
    progress.start(title, len(loader))
    try:
        for number, batch in enumerate(loader.epoch(0), start=1):
            with no_grad():
                logits = model(Tensor(batch.images))
                loss_sum += F.cross_entropy(logits, batch.labels, reduction="sum").item()
            scores, labels = logits.numpy(), batch.labels
            counts += np.bincount(labels, minlength=classes)
            top1 += np.bincount(labels[hits(scores, labels)], minlength=classes)
            top5 += np.bincount(labels[hits(scores, labels, 5)], minlength=classes)
            seen += len(batch)
            progress.update(number, f"{seen} images")
            if stop:
                return None
    finally:
        progress.stop()
    return Scores(loss_sum / seen, counts, top1, top5)


@np.errstate(over="ignore", invalid="ignore")  # the caller sees the loss
def judge(model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits [N, C] of a batch and its loss, the mean cross-entropy."""
    logits = model(Tensor(batch.images))
    return logits, F.cross_entropy(logits, batch.labels)
