"""Delete each barrier of the kernels in turn: do the exercises notice?

Run ``python tests/simt/mutations.py`` to see which exercise misses which barrier. A barrier that
none misses is not needed, or no exercise has the shape that needs it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = map(str, (tests / "support", tests, tests.parent))

from simt import run
from simt.compiler import without_comments
from tinyalex.backends.cuda import launch

# A barrier, or a wait for copies (cp_async_wait) or products (work.wait) under way: a call that
# stands alone. Where such waits are defined they call names of the shim, which are in a namespace.
BARRIER = re.compile(
    r"(?<![\w:.])(?:__syncthreads|__syncwarp|\w+_wait|\w+\.wait)(?:\s*<[^;<>]*>)?\s*\([^;()]*\)\s*;"
)
AT_ONCE = 2


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


def missed_by(barrier: Barrier, folder: Path) -> str | None:
    """Delete the barrier and say which exercise fails, if any: first by value, then by race."""
    files = [f"--file={file}" for file in users(barrier.file, folder)]
    with tempfile.TemporaryDirectory() as name:
        kernels = Path(name, "kernels")
        shutil.copytree(folder, kernels)
        code = (kernels / barrier.file).read_text()
        without = f"{code[: barrier.begin]};{code[barrier.end :]}"
        (kernels / barrier.file).write_text(without)
        for mode, how in (("quick", "values"), ("thread", "ThreadSanitizer")):
            try:
                status, output = run.run(mode, *files, timeout=200, **_at(kernels))
            except subprocess.TimeoutExpired:
                return f"{how}: it never ends"
            if status == run.REPORTED and mode == "thread":
                return f"{how}: {_race(output)}"
            if status < 0:
                return f"{how}: a crash, signal {-status}"
            if status != 0:
                first = output.partition("\n")[0]
                if "CompileError" in output or "exercises" in first:
                    raise RuntimeError(f"{barrier.file}:{barrier.line} deleted: {output}")
                return f"{how}: {first}"
    return None


def _at(folder: Path) -> dict[str, str]:
    return {"TINYALEX_KERNELS": str(folder)}


def _race(report: str) -> str:
    places = re.findall(r"#0 .*?([\w.]+\.cuh?:\d+)", report)
    return "race of " + " and ".join(places[:2])


def run_all(folder: Path | None = None, files: Sequence[str] = ()) -> list[Result]:
    """Delete each barrier (of `files`, if some are named) in turn."""
    folder = folder or launch.source_folder()
    chosen = [b for b in barriers(folder) if not files or b.file in files]
    used = {user for barrier in chosen for user in users(barrier.file, folder)}
    status, output = run.run("quick", *(f"--file={file}" for file in sorted(used)), **_at(folder))
    if status != 0:
        raise RuntimeError(f"with all barriers in place: {output}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        missed = pool.map(lambda barrier: missed_by(barrier, folder), chosen)
        return [Result(*pair) for pair in zip(chosen, missed, strict=True)]


def table(results: list[Result]) -> str:
    """Return the results as a table."""
    rows = [
        f"{f'{barrier.file}:{barrier.line}':32} {barrier.text:28} {missed or 'none'}"
        for barrier, missed in results
    ]
    return "\n".join([f"{'barrier':61} missed by", *rows])


if __name__ == "__main__":
    print(table(run_all(files=sys.argv[1:])))
