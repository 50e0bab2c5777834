"""Worker processes that die, raise or stop before their batch."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
from faults_row import Row, progress
from helpers import finished
from trouble import Trouble

from tinyalex.data import EvalTransform, Loader

TROUBLE = {
    "kill": "was ended by SIGKILL",
    "leave": "ended with exit code 7",
    "fail": "the disk is gone",
    "stop": "not read within 8 s",
}
"""What happens in the process, and what the error or, for "stop", the list of images must say."""

LIMIT = 15.0
"""Seconds within which the error or the next batch must come."""


def troubled_loaders(count: int) -> Row:
    """Let loading processes die or raise, which is an error, and stop, which costs an image."""
    rng, right, longest = np.random.default_rng(0), 0, {}
    # A stopped process is only known by its silence, which takes a while.
    tries = [what for what in TROUBLE for _ in range(count if what != "stop" else -(-count // 3))]
    for number, what in enumerate(tries):
        try:
            said, seconds = finished(until_end, what, int(rng.integers(20, 60)), seconds=60)
        except AssertionError as error:
            said, seconds = str(error), float("inf")
        right += TROUBLE[what] in said and seconds < LIMIT and not multiprocessing.active_children()
        longest[what] = max(seconds, longest.get(what, 0))
        progress(number, len(tries))
    stopped = longest.pop("stop")
    return Row(
        "a process that loads images killed, ended, raising, stopped",
        f"{right} of {len(tries)} times an error that says so, or an image named and a process "
        f"replaced where it was stopped; no hang, no process left; after "
        f"{max(longest.values()):.2f} s at most, {stopped:.1f} s where it was stopped",
        right == len(tries),
    )


def until_end(what: str, at: int) -> tuple[str, float]:
    """Return what a loader says of trouble at an image, and the longest wait for a batch."""
    # Only one batch in work: the wait for it begins before the trouble does.
    loader = Loader(
        Trouble(what, at), 10, EvalTransform(10), shuffle=False, prefetch=1, processes=True
    )
    batches, longest, said = loader.epoch(0), 0.0, ""
    next(batches)  # with the start of the processes
    while not said:
        began = time.monotonic()
        try:
            if next(batches, None) is None:
                said = f"no error, but {loader.bad}"
        except Exception as error:
            said = str(error)
        longest = max(longest, time.monotonic() - began)
    loader.close()
    return said, longest
