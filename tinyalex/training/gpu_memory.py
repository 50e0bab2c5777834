"""Check that a step fits into GPU memory, and which batch would."""

from __future__ import annotations

import itertools
import math
from typing import Any

from tinyalex import random
from tinyalex.backends import array_module
from tinyalex.backends.devices import parse, using
from tinyalex.data import Batch
from tinyalex.text import counted
from tinyalex.training.evaluation import logits_and_loss
from tinyalex.training.run import Run
from tinyalex.training.transfer import set_training

PLACES = 4
"""Buffers for batches: two for each of the loaders of training and of validation."""
OTHERS = 2
"""Batches there besides the one computed on: the one before, and a graph's input."""


def check_memory(run: Run) -> None:
    """Raise MemoryError, with a batch size that fits, unless a step does.

    Steps on black images are tried, forward and backward, first of the run's batch size, then of
    the half of it and so on. Nothing is learned and no chance is used up. On the CPU, where it can
    only be known too late, nothing is checked.
    """
    size, device = run.train_data.batch_size, parse(run.settings.device)
    if device == "cpu":
        return
    fits = size
    with using(device):
        while fits and not _fits(run, fits):
            fits //= 2
    if fits < size:
        advice = f"{fits} fit" if fits else "not even one fits"
        raise MemoryError(f"{device} has no room for steps of {counted(size, 'image')}, {advice}")


def _fits(run: Run, count: int) -> bool:
    """Tell whether a step on so many images fits."""
    fits = True
    try:
        _try_step(run, count)
    except MemoryError:
        fits = False
    run.classifier.model.zero_grad()
    _cupy(run).get_default_memory_pool().free_all_blocks()  # now that nothing holds any
    return fits


def _cupy(run: Run) -> Any:
    return array_module(next(run.classifier.model.parameters()).data)


def _try_step(run: Run, count: int) -> None:
    """Compute gradients beside all other memory of a run."""
    xp, model, pixels = _cupy(run), run.classifier.model, run.settings.input_size
    transform = run.augment(pixels) if run.augment else run.train_data.transform
    images = xp.zeros((count, pixels, pixels, model.variant.in_channels), "float32")
    labels = xp.zeros(count, "int64")
    sent = count * math.prod(transform.shape) * transform.dtype.itemsize
    others = [xp.empty_like(p.data) for p in model.parameters()]  # the velocities
    others += [xp.empty_like(images) for _ in range(OTHERS)]
    others += [xp.empty(sent, "uint8") for _ in range(PLACES)]
    with random.keys_from(itertools.repeat(0)):
        _, loss = logits_and_loss(
            set_training(model), Batch(xp.moveaxis(images, -1, 1), labels, labels)
        )
    loss.backward()
