"""Everything that needs a GPU, in half an hour, least known first.

    python benchmarks/gpu_first_run.py FOLDER [--minutes 28] [--from quick]

Each part has a process and a share of the time of its own, and may fail without stopping the rest.
FOLDER gets a log of each, the results (gpu-*.json), the golden fragments and a summary. Afterwards,
on any machine, from the project's folder:

    cp FOLDER/golden/*.npz tests/golden/ && cp FOLDER/gpu-*.json benchmarks/results/
    python benchmarks/bench_gpu.py --table-only && python benchmarks/kernel_ladder.py --table
    python -m pytest tests/cuda/test_golden.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable


@dataclass(frozen=True)
class Part:
    """One command: name, words, minutes that it may take, program needed."""

    name: str
    command: tuple[str, ...]
    minutes: float
    needs: str = PYTHON


def parts(folder: Path) -> list[Part]:
    """Return all parts in their order."""
    bench = (PYTHON, "benchmarks/bench_gpu.py", "--results", str(folder))
    ladder = (PYTHON, "benchmarks/kernel_ladder.py")
    exercises = (PYTHON, "benchmarks/gpu_exercises.py")
    return [
        Part("machine", ("nvidia-smi", "-q"), 0.5, "nvidia-smi"),
        Part("tests", (PYTHON, "-m", "pytest", "-m", "gpu", "--timeout", "120"), 3),
        Part("golden", (PYTHON, "-m", "simt.fragments", str(folder / "golden")), 1),
        *(
            Part(
                tool,
                ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *exercises),
                1.5,
                "compute-sanitizer",
            )
            for tool in ("memcheck", "racecheck", "synccheck")
        ),
        Part("profile", (*bench, "--profile", "--minutes", "2"), 2.5),
        Part("quick", (*bench, "--quick", "--no-layers", "--minutes", "8"), 9),
        Part("layers", (*bench, "--quick", "--layers-only", "--minutes", "3.5"), 4),
        Part("ladder", (*ladder, "--measure", "--results", str(folder)), 1.5),
        Part("full", bench, 600),
    ]


def run(part: Part, folder: Path, seconds: float) -> str:
    """Run a part for at most ``seconds`` and return its end."""
    if not shutil.which(part.needs):
        return f"left out: there is no {part.needs}"
    path = os.pathsep.join(
        filter(None, [str(ROOT), "tests", "tests/support", os.environ.get("PYTHONPATH")])
    )
    began = time.monotonic()
    with open(folder / f"{part.name}.log", "w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                part.command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            )
            end = "done" if done.returncode == 0 else f"FAILED ({done.returncode})"
        except subprocess.TimeoutExpired:
            end = "stopped: its time was up"
        except OSError as error:
            end = f"FAILED: {error}"
    return f"{end} after {time.monotonic() - began:.0f} s, see {part.name}.log"


def main(words: list[str] | None = None) -> None:
    """Run all parts, or some, until the time is up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=28, help="for everything together")
    parser.add_argument("--from", dest="first", help="leave out the parts before this one")
    parser.add_argument("--to", dest="last", help="and those after this one")
    arguments = parser.parse_args(words)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = parts(folder)
    names = [part.name for part in chosen]
    for name in (arguments.first, arguments.last):
        if name and name not in names:
            parser.error(f"no part {name!r}; there are {', '.join(names)}")
    first = names.index(arguments.first) if arguments.first else 0
    last = names.index(arguments.last) + 1 if arguments.last else None
    until = time.monotonic() + arguments.minutes * 60
    for part in chosen[first:last]:
        left = until - time.monotonic()
        end = run(part, folder, min(left, part.minutes * 60)) if left > 0 else "no time left"
        line = f"{part.name}: {end}"
        print(line, flush=True)
        with open(folder / "summary.txt", "a", encoding="utf-8") as summary:
            summary.write(line + "\n")


if __name__ == "__main__":
    main()
