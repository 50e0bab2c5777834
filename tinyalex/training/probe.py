"""Linear probe: softmax regression on features, its penalty chosen by cross-validation.

How good a network's features are shows in what a linear classifier makes of them. Its objective,

    mean cross-entropy + strength / 2 * ||weight||^2,

is convex: there is one answer, which L-BFGS finds without a learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

STRENGTHS = tuple(float(10 ** (-k / 2)) for k in range(13))
"""Strengths of the penalty to choose from, 1 to 1e-6."""
FOLDS = 5
"""Parts of the images, each of which is held out once to choose the strength."""
ALONE = 0.1
"""Strength where a class has a single image, so that none can be held out."""
ROUGHLY, EXACTLY = (1e-5, 1e-9), (0.0, 1e-8)
"""When L-BFGS ends: relative decrease of the objective, largest component of its gradient."""


@dataclass(frozen=True)
class Probe:
    """Softmax regression on scaled features."""

    mean: np.ndarray
    """[D], of the images learned from."""
    scale: np.ndarray
    """[D], by which features are divided."""
    weight: np.ndarray
    """[C, D], for scaled features."""
    bias: np.ndarray
    """[C]."""
    strength: float
    """Strength of the penalty."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits [N, C] of features [N, D]."""
        return (features - self.mean) @ (self.weight / self.scale).T + self.bias

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of images that are classified right."""
        return float((self.logits(features).argmax(axis=1) == labels).mean())


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> Probe:
    """Return the probe learned from features [N, D] and labels [N].

    The strength is the one with the least cross-entropy on images held out of these: `FOLDS` parts
    with as many of each class, drawn with `seed`, or as many parts as the smallest class has
    images. Strengths are tried in their order, strong to weak, each from the answer for the one
    before, until the cross-entropy has risen twice.
    """
    mean, scale = scaling(features)
    problem = _Problem((features - mean) / scale, labels)
    folds = draw_folds(labels, seed)
    held_out = folds == np.arange(folds.max() + 1)[:, None]
    everything = np.ones((1, len(labels)), bool)
    parts = np.concatenate([~held_out, everything]) if len(held_out) > 1 else everything
    solutions = np.zeros((len(parts), num_classes, problem.rank + 1))
    best, strength, losses = solutions[-1:], ALONE, list[float]()
    for tried in strengths if len(parts) > 1 else ():
        solutions = problem.solve(parts, tried, solutions, ROUGHLY)
        losses.append(float(problem.losses(solutions)[:, :-1][held_out.T].mean()))
        if losses[-1] == min(losses):
            best, strength = solutions[-1:], tried
        elif min(losses[-2:]) > min(losses):
            break
    (solution,) = problem.solve(everything, strength, best, EXACTLY)
    weight = solution[:, :-1] @ problem.axes.T
    return Probe(mean, scale, weight, solution[:, -1], strength)


def scaling(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale of features, so that rows are shorter than 1.

    The scale is the standard deviation, with that of all features added in squares: a feature that
    is 0 for all images but one would be blown up otherwise.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    variance = features.var(axis=0, dtype=np.float64)
    return mean, np.sqrt((variance + (variance.mean() or 1)) * len(mean))


def draw_folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the part [N] of each image, with all classes spread evenly."""
    rng = np.random.default_rng(seed)
    parts = min(FOLDS, np.unique(labels, return_counts=True)[1].min())
    folds = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        folds[of_class] = np.arange(len(of_class)) % parts
    return folds


def draw_shots(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Return the positions of so many images of each class, in order."""
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


class _Problem:
    """Softmax regression of labels [N] on rows [N, D] along principal axes.

    With a penalty on its length the weight lies in the span of the rows: a part across all of them
    changes no logit and adds to the penalty. In an orthonormal basis of the span, lengths and
    products are what they were, so the answer is the same, with min(N, D) numbers per class. In
    that of the principal axes, the second derivatives are nearly known as well: L-BFGS starts from
    them, and takes a third of the steps.
    """

    def __init__(self, rows: np.ndarray, labels: np.ndarray) -> None:
        wide = rows.shape[1] > len(rows)
        squares, axes = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
        real = squares > 1e-12 * squares[-1]  # the rest is rounding
        squares, axes = squares[real], axes[:, real]
        self.axes = rows.T @ (axes / np.sqrt(squares)) if wide else axes
        """[D, rank]."""
        self.rank = len(squares)
        self._rows = axes * np.sqrt(squares) if wide else rows @ axes
        self._variance, self._labels = squares / len(rows), labels

    def losses(self, solutions: np.ndarray) -> np.ndarray:
        """Return the cross-entropies [N, P] of solutions [P, C, rank + 1], the bias last."""
        return self._cross_entropies(self._rows, solutions)[0]

    def solve(
        self, parts: np.ndarray, strength: float, start: np.ndarray, ends: tuple[float, float]
    ) -> np.ndarray:
        """Return the solutions for parts [P, N] of the rows, side by side."""
        shares = (parts / parts.sum(axis=1, keepdims=True)).T
        right = np.arange(len(self._labels)), slice(None), self._labels
        # In these units all second derivatives are about 1.
        unit = np.ones(self.rank + 1)
        unit[:-1] = 1 / np.sqrt(self._variance / start.shape[1] + strength)
        penalty = strength * unit**2
        penalty[-1] = 0
        rows = self._rows * unit[:-1]

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            solutions = flat.reshape(start.shape)
            losses, change = self._cross_entropies(rows, solutions)
            change[right] -= 1
            change *= shares[..., None]
            gradient = penalty * solutions
            by_row = change.reshape(len(rows), -1)
            gradient[..., :-1] += (by_row.T @ rows).reshape(*start.shape[:2], self.rank)
            gradient[..., -1] += change.sum(axis=0)
            loss = (losses * shares).sum() + (penalty * solutions**2).sum() / 2
            return float(loss), gradient.ravel()

        options = {"maxiter": 1000, "ftol": ends[0], "gtol": ends[1]}
        first = (start / unit).ravel()
        found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
        return found.x.reshape(start.shape) * unit

    def _cross_entropies(
        self, rows: np.ndarray, solutions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return cross-entropies [N, P] and probabilities [N, P, C]."""
        parts, classes, _ = solutions.shape
        weight = solutions[..., :-1].reshape(parts * classes, self.rank)
        logits = (rows @ weight.T).reshape(len(rows), parts, classes) + solutions[..., -1]
        logits -= logits.max(axis=2, keepdims=True)
        at_label = logits[np.arange(len(rows)), :, self._labels]
        probabilities = np.exp(logits, out=logits)
        sums = probabilities.sum(axis=2, keepdims=True)
        probabilities /= sums
        return np.log(sums[..., 0]) - at_label, probabilities
