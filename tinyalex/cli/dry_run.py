"""Dry run: each action of a run, once."""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tinyalex import random
from tinyalex.data import Batch
from tinyalex.folders import nearest_folder
from tinyalex.grad_mode import no_grad
from tinyalex.progress import duration, one_sentence, say, unwritable
from tinyalex.text import counted, printable
from tinyalex.training.checkpoint import Checkpoints, load_checkpoint
from tinyalex.training.divergence import DivergedError
from tinyalex.training.evaluation import logits_and_loss
from tinyalex.training.gpu_memory import check_memory
from tinyalex.training.run import Run
from tinyalex.training.step import train_step
from tinyalex.training.transfer import set_training, split_frozen

T = TypeVar("T")


def dry_run(run: Run, out: Path) -> None:
    """Try reading, training, validation and a checkpoint; leave no file.

    The steps are those that the run would take next. The checkpoint goes where it would write, to
    a temporary folder in `out` or in the nearest folder above it that exists. Raises what the run
    would raise. `run` has learned a little afterwards and should not be used.
    """
    check_memory(run)
    model, state, steps_per_epoch = run.classifier.model, run.state, len(run.train_data)
    later = (run.batches(epoch) for epoch in itertools.count(state.epoch + 1))
    now = run.batches(state.epoch, state.batch % steps_per_epoch)
    batches = itertools.chain(now, itertools.chain.from_iterable(later))
    first, second = next(batches), next(batches)
    workers = run.settings.workers  # each makes a batch of its own, while the network computes
    skip(batches, workers - 2)  # the first of each include the start of its process
    _, seconds = timed(skip, batches, workers)
    loading = seconds / workers
    say(
        f"ok  {counted(len(first), 'training image')} read, "
        f"values from {float(first.images.min()):.1f} to {float(first.images.max()):.1f}"
    )
    set_training(model)
    for number, batch in enumerate((first, second)):
        run.schedule.before_step(state.step + number)
        random.start_step(state.step + number)
        result, step_seconds = timed(train_step, model, run.optimizer, batch)
        say(
            f"ok  step {number + 1} in {step_seconds:.1f} s: loss {result.loss:.3f} (guess: "
            f"{run.chance:.3f}), lr {run.optimizer.param_groups[0]['lr']:.2g}"
        )
    most = 0 if run.settings.mixup else run.settings.image_cache * 1_000_000
    split = split_frozen(model, run.train_data, most)
    if (
        split is not None and run.ranks.alone
    ):  # as training will, where features of frozen layers are kept
        random.start_step(state.step + 2)
        features, features_seconds = timed(split.below, second.images)
        kept = replace(second, images=features.transpose(0, 3, 1, 2))
        _, kept_seconds = timed(train_step, split.rest, run.optimizer, kept)

    held_out = next(run.val_data.epoch(0))
    model.eval()
    with no_grad():
        (_, loss), validation_seconds = timed(logits_and_loss, model, held_out)
    if not math.isfinite(loss.item()):
        raise DivergedError(f"the validation loss is {loss.item()}")
    say(f"ok  {counted(len(held_out), 'validation image')} evaluated: loss {loss.item():.3f}")

    place = nearest_folder(out)
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=place) as temporary:
        checkpoints = Checkpoints(temporary)
        try:
            checkpoints.prepare(run)
            checkpoints.save(run)
        except OSError as error:
            why = one_sentence(error).replace(temporary, str(out))
            raise OSError(unwritable(out, why)) from error
        size = checkpoints.last.stat().st_size
        written = load_checkpoint(checkpoints.last)
    found = written.get("learning", written["classifier"]["weights"])
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, found[name], err_msg=f"{name} came back changed")
    run.set_state(written)
    where = printable(place)
    say(f"ok  trial checkpoint of {size / 1e6:.0f} MB written to {where}, read back and removed")
    bad = run.train_data.bad + run.val_data.bad
    for path, reason in bad:
        say(f"left out: {printable(path)}: {reason}")

    size_at, steps = run.settings.size_at, (len(run.train_data), len(run.val_data))
    pixels = [size_at(epoch) ** 2 for epoch in range(state.epoch, run.settings.epochs)]
    growth = statistics.mean(pixels) / pixels[0] if pixels else 1
    epoch = steps[0] * max(step_seconds * growth, loading)
    epoch += steps[1] * max(validation_seconds, loading)
    left = epoch * (run.total_steps - state.step) / steps[0]
    if split is not None:
        until = min(run.settings.unfreeze_after or run.settings.epochs, run.settings.epochs)
        left -= (until - state.epoch) * (epoch - sum(steps) * kept_seconds)
        left += sum(steps) * max(features_seconds, loading)
    rest = "resuming it to the end" if state.step else "training"
    but = f" but for {len(bad)} of the images looked at, which cannot be read" if bad else ""
    say(f"all is well{but}; {rest} would take about {duration(left)}")


def skip(batches: Iterator[Batch], count: int) -> None:
    """Load so many batches."""
    for _ in range(count):
        next(batches)


def timed(work: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """Return the result of some work, and the seconds that it took."""
    started = time.perf_counter()
    return work(*arguments), time.perf_counter() - started
