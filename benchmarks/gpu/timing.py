"""Turns of the contestants, timed by CUDA's events and the wall clock.

Both are kept: where they differ from the other contestants' in another way than the events do,
Python could not queue the work as fast as the GPU did it.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gpu.contestants import Contestant
from shared.report import Ratio
from tinyalex.backends.gpu import cupy


@dataclass
class Protocol:
    """Lengths of measurement: ``windows`` per turn, each of at least ``window`` seconds."""

    rounds: int = 5
    windows: int = 3
    window: float = 0.05
    warm_up: int = 10  # steps before anything is timed, and one more before each turn
    most_steps: int = 5000  # in a window
    calls: int = 20  # of a single pass of a layer, in a turn


Turn = dict[str, list[float]]  # "device" and "wall": seconds a step, one number for each window


def steps_for(contestant: Contestant, protocol: Protocol) -> int:
    """Warm a contestant up and return how many steps fill a window."""
    for _ in range(protocol.warm_up):
        contestant.step()
    seconds, _ = window(contestant, 3)
    wanted = math.ceil(protocol.window / max(seconds, 1e-6))
    return min(max(wanted, 1), protocol.most_steps)


def window(contestant: Contestant, steps: int) -> tuple[float, float]:
    """Return the seconds per step, by the device's and the host's clock."""
    xp = cupy()
    start, end = xp.cuda.Event(), xp.cuda.Event()
    began = time.perf_counter()
    start.record(contestant.stream)
    for _ in range(steps):
        contestant.step()
    end.record(contestant.stream)
    end.synchronize()
    wall = time.perf_counter() - began
    return xp.cuda.get_elapsed_time(start, end) / 1e3 / steps, wall / steps


def turn(contestant: Contestant, steps: int, protocol: Protocol) -> Turn:
    """Measure one turn of a contestant, after one step to wake up."""
    window(contestant, 1)
    times = [window(contestant, steps) for _ in range(protocol.windows)]
    return {"device": [t[0] for t in times], "wall": [t[1] for t in times]}


def take_turns(contestants: Sequence[Contestant], protocol: Protocol) -> Iterator[dict[str, Turn]]:
    """Yield rounds of turns: A B C, A B C, ..."""
    steps = {c.name: steps_for(c, protocol) for c in contestants}
    for _ in range(protocol.rounds):
        yield {c.name: turn(c, steps[c.name], protocol) for c in contestants}


@contextmanager
def until(end: float) -> Iterator[None]:
    """Raise TimeoutError at ``end`` (`time.monotonic`) in whatever runs inside."""

    def stop(*_: Any) -> None:
        raise TimeoutError("not finished when the time was up")

    if math.isinf(end):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    # Once more each second: a compiler may take the first for a failure that it can do without.
    timer = signal.setitimer(signal.ITIMER_REAL, max(end - time.monotonic(), 1e-3), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Times:
    """Median, least and largest of the medians of all rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, turns: Sequence[Turn], clock: str = "device") -> Times:
        """Summarise all turns of a contestant, in seconds."""
        rounds = [statistics.median(t[clock]) for t in turns]
        return cls(statistics.median(rounds), min(rounds), max(rounds))


def compare(theirs: Sequence[Turn], ours: Sequence[Turn]) -> Ratio:
    """Return their time relative to ours; "equal" if some rounds disagree."""
    return Ratio.of(
        *([[statistics.median(t["device"])] for t in turns] for turns in (theirs, ours))
    )
