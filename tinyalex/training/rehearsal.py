"""A dress rehearsal: everything that a run does, once, before hours go into it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinyalex.autograd import no_grad
from tinyalex.training.checkpoint import Checkpoints, load_checkpoint
from tinyalex.training.divergence import DivergedError
from tinyalex.training.evaluation import judge
from tinyalex.training.loop import train_step
from tinyalex.training.progress import duration
from tinyalex.training.run import Run


def rehearse(run: Run, out: Path, say: Callable[[str], None] = print) -> None:
    """Read a batch, take two steps, validate a batch, write and read a checkpoint; leave no file.

    The checkpoint goes where the run would write, to a temporary folder in `out` or in the nearest
    folder above it that exists. Raises what the run would raise. `run` has learned a little
    afterwards and should not be used.
    """
    model = run.classifier.model
    batches = run.train_data.epoch(0)
    first = next(batches)
    say(
        f"ok  {len(first)} training images read, "
        f"values from {first.images.min():.1f} to {first.images.max():.1f}"
    )
    model.train()
    for number, batch in enumerate((first, next(batches, first)), start=1):
        started = time.perf_counter()
        loss = train_step(model, run.optimizer, batch).loss
        step_seconds = time.perf_counter() - started
        say(f"ok  step {number} in {step_seconds:.1f} s: loss {loss:.3f} (guess: {run.chance:.3f})")

    held_out = next(run.val_data.epoch(0))
    model.eval()
    with no_grad():
        loss = judge(model, held_out)[1].item()
    if not math.isfinite(loss):
        raise DivergedError(f"the validation loss is {loss}")
    say(f"ok  {len(held_out)} validation images judged: loss {loss:.3f}")

    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=place) as temporary:
        checkpoints = Checkpoints(temporary)
        checkpoints.prepare(run)
        checkpoints.save(run)
        size = checkpoints.last.stat().st_size
        written = load_checkpoint(checkpoints.last)
    for name, array in model.state_dict().items():
        found = written["classifier"]["weights"][name]
        np.testing.assert_array_equal(array, found, err_msg=f"{name} came back changed")
    run.set_state(written)
    say(f"ok  checkpoint of {size / 1e6:.0f} MB written to {place} and read back")
    say(f"all is well; training would take about {duration(step_seconds * run.total_steps)}")
