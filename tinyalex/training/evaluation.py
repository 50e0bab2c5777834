"""Scores of a network on images outside its training set."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

import tinyalex.functional as F
from tinyalex.backends.bfloat16 import is_bfloat16
from tinyalex.backends.types import Array
from tinyalex.data import Batch, Loader, TenCropTransform
from tinyalex.grad_mode import no_grad
from tinyalex.interrupts import StopRequest
from tinyalex.nn import Module
from tinyalex.progress import Progress
from tinyalex.tensor import Tensor
from tinyalex.text import counted
from tinyalex.training.metrics import hits
from tinyalex.training.ranks import Ranks

Result = TypeVar("Result")


@dataclass(frozen=True)
class Scores:
    """Results over some images, in total and per class; they add up."""

    loss_sum: float
    class_counts: np.ndarray
    class_top1: np.ndarray
    """Images per class that were classified right."""
    class_top5: np.ndarray
    """Images per class whose class was among the five most probable."""

    @classmethod
    def of(cls, labels: np.ndarray, log_probabilities: np.ndarray) -> Scores:
        """Compare answers [N, C] with what is right, labels [N]."""
        classes = log_probabilities.shape[1]
        losses = -log_probabilities[np.arange(len(labels)), labels]
        right, among_five = (labels[hits(log_probabilities, labels, k)] for k in (1, 5))
        counts = (np.bincount(some, minlength=classes) for some in (labels, right, among_five))
        return cls(float(losses.sum(dtype=np.float64)), *counts)

    def as_lists(self) -> list[Any]:
        """Return the numbers as JSON has them."""
        arrays = self.class_counts, self.class_top1, self.class_top5
        return [self.loss_sum, *(array.tolist() for array in arrays)]

    @classmethod
    def from_lists(cls, lists: list[Any]) -> Scores:
        """Rebuild what `as_lists` returned."""
        return cls(lists[0], *(np.array(counts, np.int64) for counts in lists[1:]))

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            self.loss_sum + other.loss_sum,
            self.class_counts + other.class_counts,
            self.class_top1 + other.class_top1,
            self.class_top5 + other.class_top5,
        )

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.class_counts.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy: -ln of the probability of the right class."""
        return self.loss_sum / self.count

    @property
    def top1(self) -> float:
        """Share of images classified right, 0 to 1."""
        return float(self.class_top1.sum() / self.count)

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five most probable."""
        return float(self.class_top5.sum() / self.count)

    @property
    def spread(self) -> float:
        """Standard deviation of top-1 over other sets of as many images."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.count)

    @property
    def balanced(self) -> float:
        """Mean over the classes that have images of their shares classified right."""
        some = self.class_counts > 0
        return float(np.mean(self.class_top1[some] / self.class_counts[some]))

    @property
    def guessed(self) -> bool:
        """True where the balanced share may be chance, and need not be.

        Without a look at the images it is 1 / C for C classes, and hardly ever two standard
        deviations more. Where some classes have no images, the network may do worse than that and
        still have learned.
        """
        if self.class_counts.min() == 0:
            return False
        chance = 1 / len(self.class_counts)
        variance = chance**2 * (1 - chance) * float(np.mean(1 / self.class_counts))
        return self.balanced <= chance + 2 * math.sqrt(variance) < 1


@dataclass(frozen=True)
class Answers:
    """Predictions of a network for N images."""

    indices: np.ndarray
    """Their positions in the data set, int64 [N]."""
    labels: np.ndarray
    """Their right classes, int64 [N]."""
    log_probabilities: np.ndarray
    """float32 [N, C]."""

    @property
    def predicted(self) -> np.ndarray:
        """The most probable classes, int64 [N]; of equal ones the first."""
        return self.log_probabilities.argmax(axis=1)

    @property
    def scores(self) -> Scores:
        """Loss, top-1 and top-5."""
        return Scores.of(self.labels, self.log_probabilities)

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, int64 [C, C]: rows are right classes, columns are answers."""
        classes = self.log_probabilities.shape[1]
        pairs = np.bincount(self.labels * classes + self.predicted, minlength=classes**2)
        return pairs.reshape(classes, classes)

    def most_confused(self, count: int = 10) -> list[tuple[int, int, int]]:
        """Return (right class, answer, number of images) of the most frequent mistakes."""
        mistakes = self.confusion
        np.fill_diagonal(mistakes, 0)
        order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
        pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
        found = [(int(right), int(wrong), int(mistakes[right, wrong])) for right, wrong in pairs]
        return [pair for pair in found if pair[2]]

    def worst_mistakes(self, count: int = 20) -> np.ndarray:
        """Return the positions of wrong answers, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        surest = self.log_probabilities[wrong].max(axis=1)
        return wrong[np.argsort(-surest, kind="stable")[:count]]


@np.errstate(over="ignore", invalid="ignore")  # the caller sees the loss
def evaluate(
    model: Module,
    loader: Loader,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    title: str = "evaluating",
    ranks: Ranks | None = None,
) -> Scores | None:
    """Run the network in evaluation mode over the loader, each image once.

    With `TenCropTransform` as the loader's transform the softmax outputs of the ten views of an
    image are averaged, as in the paper (section 4.1). Several `ranks` take turns at the batches,
    and all of them return the scores of all. Returns None if a stop was requested on the way.
    """
    if ranks is not None and not ranks.alone:
        stops = stop if ranks.stop is None else ranks.stop
        return _evaluate_together(model, loader, progress, title, ranks, stops)
    scores: Scores | None = None
    for batch, views in _answered(model, loader, progress, title):
        some = Scores.of(batch.labels, averaged(views))
        scores = some if scores is None else scores + some
        if stop:
            return None
    return scores


def _evaluate_together(
    model: Module,
    loader: Loader,
    progress: Progress | None,
    title: str,
    ranks: Ranks,
    stop: StopRequest | None,
) -> Scores | None:
    """Return the scores of all ranks, added as one rank adds them."""
    rank, size = ranks.link.rank, ranks.link.size
    answered = _answered(model, loader, progress, title, rank, size)
    mine = ranks.watched(answered, loader, title)
    scores: Scores | None = None
    with closing(answered):
        for first in range(0, len(loader), size):
            found = next(mine, None) if first + rank < len(loader) else None
            own = None if found is None else Scores.of(found[0].labels, averaged(found[1]))
            for told in ranks.tell(title, loader, scores=own and own.as_lists()):
                if told["scores"] is not None:
                    some = Scores.from_lists(told["scores"])
                    scores = some if scores is None else scores + some
            if stop:
                return None
    return scores


@np.errstate(over="ignore", invalid="ignore")
def examine(
    model: Module, loader: Loader, progress: Progress | None = None, title: str = "evaluating"
) -> dict[int, Answers]:
    """Do as `evaluate` and keep every answer, for a close look.

    Returns the answers by number of crops: those to the central crop under 1 and, where the
    loader's transform is `TenCropTransform`, from the same pass the averaged ones under 10.
    """
    indices: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    answers: dict[int, list[np.ndarray]] = {}
    for batch, views in _answered(model, loader, progress, title):
        indices.append(batch.indices)
        labels.append(batch.labels)
        centre = views[:, TenCropTransform.CENTRE if views.shape[1] == 10 else 0]
        answers.setdefault(1, []).append(centre)
        if views.shape[1] == 10:
            answers.setdefault(10, []).append(averaged(views))
    return {
        crops: Answers(np.concatenate(indices), np.concatenate(labels), np.concatenate(parts))
        for crops, parts in answers.items()
    }


def device_of_model(model: Module) -> str:
    """Return the device of the model's parameters, "cpu" if it has none."""
    first = next(model.parameters(), None)
    return "cpu" if first is None else first.device


def log_probabilities(model: Module, images: Array) -> np.ndarray:
    """Return the log softmax for each view of each image, [N, V, C].

    images [N, V, C, H, W], or [N, C, H, W] for V = 1, on any device. The model is as its caller set
    it.
    """
    pixels = images.reshape(-1, *images.shape[-3:])
    with no_grad():
        answers = F.log_softmax(model(Tensor(pixels).to(device_of_model(model))), dim=1)
    found = answers.cpu().numpy()
    return found.reshape(len(images), -1, found.shape[1])


def averaged(log_probabilities: np.ndarray) -> np.ndarray:
    """Return the logarithm of the mean probability over the views: [N, V, C] -> [N, C].

    The mean of the softmax outputs (paper, section 4.1), which is not the softmax of the mean
    logits. Computed on logarithms, where no probability is too small to be told from 0.
    """
    views = log_probabilities.shape[1]
    return np.logaddexp.reduce(log_probabilities, axis=1) - math.log(views)


def _answered(
    model: Module,
    loader: Loader,
    progress: Progress | None,
    title: str,
    first: int = 0,
    every: int = 1,
) -> Generator[tuple[Batch, np.ndarray], None, None]:
    """Return each batch with the network's `log_probabilities`."""
    model.eval()
    return computed(partial(log_probabilities, model), loader, progress, title, first, every)


def computed(
    compute: Callable[[Array], Result],
    loader: Loader,
    progress: Progress | None,
    title: str,
    first: int = 0,
    every: int = 1,
) -> Generator[tuple[Batch, Result], None, None]:
    """Yield each batch with what `compute` makes of its images.

    It may be only the `first` and each `every`-th behind it.
    """
    progress = progress or Progress(silent=True)
    progress.start(title, len(loader))
    seen = 0
    try:
        for number, batch in enumerate(loader.epoch(0, min(first, len(loader)), every)):
            found = compute(batch.images)
            seen += len(batch)
            progress.update(min(first + (number + 1) * every, len(loader)), counted(seen, "image"))
            yield batch, found
    finally:
        progress.stop()


@np.errstate(over="ignore", invalid="ignore")  # the caller sees the loss
def logits_and_loss(model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return a batch's logits [N, C] and its loss, the mean cross-entropy.

    Both are on the model's device, wherever the batch is.
    """
    device = device_of_model(model)
    logits = model(Tensor(batch.images).to(device))
    if is_bfloat16(logits.dtype):
        logits = logits.to(np.float32)
    target = batch.labels if batch.targets is None else batch.targets
    return logits, F.cross_entropy(logits, Tensor(target).to(device))
