"""Bank conflicts and memory sectors of every kernel, per source line.

Run ``python tests/simt/traces.py`` to see the table.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = map(str, (tests / "support", tests, tests.parent))

from simt import build

ROW = np.dtype([(name, np.uint64) for name in ("offset", "shared", "requests", "moved", "least")])
MOST_ROWS = 65536
OWN = "/tests/simt/"  # frames of the shim's own headers


class Line(NamedTuple):
    """The traffic of one line of source in one kernel.

    ``moved`` counts rounds of the banks (shared) or sectors of 32 bytes (global), and ``least`` how
    few they could have been.
    """

    kernel: str
    space: str
    place: str  # file:line, and if it was inlined, < file:line of the call
    requests: int
    moved: int
    least: int

    @property
    def ratio(self) -> float:
        """How many times more than needed: 1 is ideal."""
        return self.moved / max(1, self.least)


class Tracer:
    """Counts what kernels move: ``with build.using(mode="trace", observer=tracer): ...``."""

    def __init__(self):
        self.rows: Counter[tuple[str, str, int, bool, str]] = Counter()

    def __call__(self, kernel: build.Kernel) -> None:
        """Take what the launch of `kernel` has counted."""
        library = kernel.module.library()
        rows = np.zeros(MOST_ROWS, ROW)
        count = library.simt_trace(ctypes.c_void_p(rows.ctypes.data), MOST_ROWS)
        assert count < MOST_ROWS, f"{kernel.name} has too many instructions to count"
        for offset, shared, *counts in rows[:count].tolist():
            key = (kernel.name, library._name, offset, bool(shared))
            for what, number in zip(("requests", "moved", "least"), counts, strict=True):
                self.rows[(*key, what)] += number

    def lines(self) -> list[Line]:
        """Return the traffic of each line, the worst first."""
        libraries = {library for _, library, *_ in self.rows}
        places = {
            library: _places(library, {row[2] for row in self.rows if row[1] == library})
            for library in libraries
        }
        totals: dict[tuple[str, str, str], Counter] = {}
        for (kernel, library, offset, shared, what), number in self.rows.items():
            key = kernel, "shared" if shared else "global", places[library][offset]
            totals.setdefault(key, Counter())[what] += number
        lines = [Line(*key, c["requests"], c["moved"], c["least"]) for key, c in totals.items()]
        return sorted(lines, key=lambda line: (-line.ratio, line))


def _places(library: str, offsets: set[int]) -> dict[int, str]:
    """Return where in the source the instructions lie, innermost first, without the shim's part."""
    # The call of the hook is before the address to which it returns.
    addresses = [hex(offset - 1) for offset in offsets]
    command = ["addr2line", "--inlines", "--addresses", f"--exe={library}", *addresses]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    frames: dict[int, list[str]] = {}
    for text in answer.splitlines():
        if text.startswith("0x"):
            current = frames.setdefault(int(text, 16) + 1, [])
        elif OWN not in text and not text.startswith("??"):
            current.append(text.split("/")[-1].split(" ")[0])
    return {offset: " < ".join(names) for offset, names in frames.items()}


def by_kernel(lines: list[Line]) -> dict[tuple[str, str], Line]:
    """Add the lines of each kernel up; the place is that of its worst line."""
    sums: dict[tuple[str, str], Line] = {}
    for line in lines:
        before = sums.get((line.kernel, line.space), line._replace(requests=0, moved=0, least=0))
        sums[line.kernel, line.space] = before._replace(
            requests=before.requests + line.requests,
            moved=before.moved + line.moved,
            least=before.least + line.least,
        )
    return sums


def trace_exercises() -> Tracer:
    """Run all exercises once and return what they moved."""
    from simt.exercises import all_exercises

    tracer = Tracer()
    # Copies land where they are asked for, so that the line is the right one.
    with build.using(mode="trace", copies="eager", observer=tracer):
        for exercise in all_exercises():
            exercise.run(np.random.default_rng(2012))
    return tracer


def main() -> None:
    """Print the table of all lines that move more than they need to."""
    from simt import standin

    standin.install()
    lines = trace_exercises().lines()
    print(
        f"{'kernel':36} {'memory':7} {'requests':>8} {'moved':>8} {'least':>8} {'ratio':>6}  place"
    )
    for line in [*by_kernel(lines).values(), *(line for line in lines if line.ratio > 1.05)]:
        numbers = f"{line.requests:8} {line.moved:8} {line.least:8} {line.ratio:6.2f}"
        print(f"{line.kernel:36} {line.space:7} {numbers}  {line.place}")


if __name__ == "__main__":
    main()
