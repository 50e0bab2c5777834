"""Memorisation of a few images, to try where nothing is learned."""

from __future__ import annotations

import numpy as np

from tinyalex.cli.look import of_all_classes
from tinyalex.data import Batch, Loader
from tinyalex.progress import say, warn
from tinyalex.schedule import Plateau
from tinyalex.text import counted
from tinyalex.training.run import Run
from tinyalex.training.step import train_step
from tinyalex.training.transfer import set_training

ENOUGH = 0.1
"""A loss at which the images count as learned: their classes have 90 % on average."""
MOST_STEPS = 500
STEPS_PER_LINE = 25
PATIENCE, FALL = 100, 0.001
"""Steps without a loss below the least one by this share of it, after which it is on a plateau.

At rates that memorise in 500 steps the loss falls by more than 0.1 % in any hundred.
"""


def overfit(run: Run, count: int) -> str:
    """Train on one batch of `count` images' central crops, at full rate.

    The images are spread evenly over the classes. Returns nothing once the loss is below 0.1, and
    a sentence with advice where it is not within 500 steps, or does not fall any more. Raises
    DataError for an image that cannot be read, ValueError for more images than there are,
    DivergedError from `train_step`. `run` should have no dropout, and not be used afterwards.
    """
    batch = chosen_images(run, count)
    say(
        f"memorising {counted(count, 'image')}, with neither augmentation, soft labels nor "
        f"dropout, until the loss is below {ENOUGH}"
    )
    model = set_training(run.classifier.model)
    plateau = Plateau(run.optimizer, patience=PATIENCE, threshold=FALL)
    for step in range(1, MOST_STEPS + 1):
        result = train_step(model, run.optimizer, batch)
        plateau.after_epoch(result.loss)
        done, stuck = result.loss < ENOUGH, plateau.reductions > 0
        if done or stuck or step == 1 or step % STEPS_PER_LINE == 0:
            say(f"step {step}/{MOST_STEPS}  loss {result.loss:.3f}  top-1 {result.top1:.1%}")
        if done:
            say("learned: data, labels, network and recipe work together")
            return ""
        if stuck:
            return advice(run, f"the loss has not fallen by {FALL:.1%} in {PATIENCE} steps")
    return advice(run, f"the loss did not fall below {ENOUGH} in {MOST_STEPS} steps")


def chosen_images(run: Run, count: int) -> Batch:
    """Return `count` training images of all classes, transformed as in evaluation."""
    dataset, transform = run.train_data.dataset, run.classifier.transform
    if count > len(dataset):
        raise ValueError(f"--overfit must be at most {len(dataset)}, the training images there are")
    loader = Loader(dataset, count, transform)  # which takes the next one for an unreadable one
    batch = loader.batch_of(np.sort(of_all_classes(dataset.labels, count)))
    for name, reason in loader.bad:
        warn(f"left out: {name}: {reason}")
    return batch


def advice(run: Run, symptom: str) -> str:
    """Return a symptom with possible faults of a run that memorises nothing."""
    settings = run.settings
    fit = "--initial-weights data, " if settings.initial_weights != "data" else ""
    return (
        f"{symptom}: try {fit}another --lr (now {settings.lr:g}; half, double), fewer images, and "
        "look for images that are in two classes: docs/no-learning.md shows each"
    )
