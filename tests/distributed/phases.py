"""`tinyalex train` with code that ranks run in a phase.

``python phases.py PHASE RANK CODE ARGUMENTS``; -1 are all ranks.
"""

import os
import signal  # noqa: F401
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import commands
import numpy as np  # noqa: F401

from tinyalex.cli import train
from tinyalex.distributed.launch import launched
from tinyalex.training import Checkpoints, Trainer, build
from tinyalex.training.sharded_step import ShardedSteps

PHASES = {
    "set-up": (build, "measure"),
    "training": (ShardedSteps, "take"),
    "validation": (Trainer, "_evaluate"),
    "checkpoint": (Checkpoints, "save"),
    "final test": (train, "finish"),
}
"""The function that each phase begins with; the last two are rank 0's alone."""


def work(seconds):
    """Compute for a while, half of the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(100_000))
        time.sleep(0.002)


def do_in(phase, code):
    """Run code in a phase: at its second call, if it has two."""
    owner, name = PHASES[phase]
    function, calls = getattr(owner, name), 1 if phase in ("set-up", "final test") else 2

    def changed(*args, **options):
        nonlocal calls
        calls -= 1
        if not calls:
            os.write(1, b"ready\n")
            exec(code, {**globals(), "args": args})
        return function(*args, **options)

    setattr(owner, name, changed)


if __name__ == "__main__":
    phase, rank, code, *arguments = sys.argv[1:]
    place = launched()
    if int(rank) in (-1, place.rank if place else 0):
        do_in(phase, code)
    commands.run_and_save_always("train", arguments)
