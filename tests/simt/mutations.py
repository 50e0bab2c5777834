"""Skip each barrier of the kernels in turn: do the exercises notice?

Run ``python tests/simt/mutations.py`` to see which exercise misses which barrier. A barrier that
none misses is not needed, or no exercise has the shape that needs it.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = map(str, (tests / "support", tests, tests.parent))

from simt import run
from simt.compiler import without_comments
from tinyalex.backends.cuda import launch

# A barrier, a fence (make_visible and work.begin are some), or a wait for copies (cp_async_wait) or
# products (work.wait) under way: a call that stands alone.
BARRIER = re.compile(
    r"(?<![\w.])(?:__syncthreads|__syncwarp|__threadfence|make_visible|\w+_wait|\w+\.(?:wait|begin))"
    r"(?:\s*<[^;<>]*>)?\s*\([^;()]*\)\s*;"
)


class Barrier(NamedTuple):
    """A barrier in the sources: where its text begins and ends."""

    file: str
    line: int
    text: str
    begin: int
    end: int


class Result(NamedTuple):
    """A barrier, and the exercise that missed it, or None."""

    barrier: Barrier
    missed_by: str | None


def barriers(folder: Path) -> list[Barrier]:
    """Find all barriers of the sources in ``folder``."""
    found = []
    for path in sorted(folder.glob("*.cu*")):
        code = without_comments(path.read_text())
        for match in BARRIER.finditer(code):
            line = 1 + code.count("\n", 0, match.start())
            found.append(Barrier(path.name, line, match.group(), match.start(), match.end()))
    return found


def users(file: str, folder: Path) -> list[str]:
    """Return the .cu files that contain ``file``: itself, or those that include it."""
    included = re.compile(r'^[ \t]*#include "([^"]+)"', re.MULTILINE)

    def contains(name: str) -> bool:
        return name == file or any(map(contains, included.findall((folder / name).read_text())))

    return [path.name for path in sorted(folder.glob("*.cu")) if contains(path.name)]


def switchable(folder: Path, chosen: list[Barrier], target: Path) -> None:
    """Copy the sources so that SIMT_SKIP=i leaves out barrier i: one build serves for all."""
    shutil.copytree(folder, target)
    for number, barrier in reversed(list(enumerate(chosen))):  # from the end of each file
        path = target / barrier.file
        code = path.read_text()
        skipped = f"{{ if (!simt::skipped({number})) {barrier.text} }}"
        path.write_text(code[: barrier.begin] + skipped + code[barrier.end :])


def run_all(folder: Path | None = None, files: Sequence[str] = ()) -> list[Result]:
    """Skip each barrier (of `files`, if some are named) in turn: first by value, then by race."""
    folder = folder or launch.source_folder()
    chosen = [b for b in barriers(folder) if not files or b.file in files]
    skips = [f"--skip={i}:{','.join(users(b.file, folder))}" for i, b in enumerate(chosen)]
    fenced = {b.file for b in chosen if "fence" in b.text}
    missed: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as name:
        switchable(folder, chosen, Path(name, "kernels"))
        # A race shows under any schedule.
        for mode, how, more in (
            ("quick", "values", ()),
            ("thread", "ThreadSanitizer", ("--schedule", "greedy")),
        ):
            left = [skip for number, skip in enumerate(skips) if number not in missed]
            if mode == "quick":  # values cannot show what orders blocks: one runs at a time
                left = [s for s, b in zip(skips, chosen, strict=True) if b.file not in fenced]
            if left:
                status, output = run.run(mode, *more, *left, TINYALEX_KERNELS=f"{name}/kernels")
                if status != 0:
                    raise RuntimeError(f"with all barriers in place: {output}")
                for number, exercise in re.findall(r"^(\d+) is missed by (.*)", output, re.M):
                    missed[int(number)] = f"{how}: {exercise}"
    return [Result(barrier, missed.get(number)) for number, barrier in enumerate(chosen)]


def table(results: list[Result]) -> str:
    """Return the results as a table."""
    rows = [
        f"{f'{barrier.file}:{barrier.line}':32} {barrier.text:28} {missed or 'none'}"
        for barrier, missed in results
    ]
    return "\n".join([f"{'barrier':61} missed by", *rows])


if __name__ == "__main__":
    print(table(run_all(files=sys.argv[1:])))
