"""Run exercises in a process of their own: ``python tests/simt/run.py --mode thread``.

The exit status is 0 if every exercise passes, 1 at the first that does not; a sanitizer that has
something to report ends the process with its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from simt import build, compiler

REPORTED = 66  # exit status of a process in which a sanitizer had something to report
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}


def environment(mode: str) -> dict[str, str]:
    """Return the environment in which a process can load builds of this mode."""
    inherited = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    if mode not in LIBRARIES:
        return inherited
    find = ["g++", f"-print-file-name={LIBRARIES[mode]}"]
    library = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    return {
        **inherited,
        "LD_PRELOAD": library,  # the interpreter itself was built without
        "ASAN_OPTIONS": f"detect_leaks=0:exitcode={REPORTED}",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:exitcode={REPORTED}",
        "TSAN_OPTIONS": f"exitcode={REPORTED}:halt_on_error=1",
    }


def command(mode: str, *more: str) -> list[str]:
    """Return the command that runs exercises; ThreadSanitizer wants addresses where they were."""
    fixed = ["setarch", "--addr-no-randomize"] if mode == "thread" else []
    return [*fixed, sys.executable, str(Path(__file__)), "--mode", mode, *more]


def run(ways, files=(), also=None) -> None:
    """Run the exercises of `files` (all if there are none named) in each of the `ways`."""
    from simt.exercises import all_exercises

    if also:
        __import__(also)
    chosen = [e for e in all_exercises() if not files or set(files) & set(e.files)]
    for (schedule, copies), exercise in itertools.product(ways, chosen):
        with build.using(schedule=schedule, copies=copies):
            try:
                exercise.run(np.random.default_rng(2012))
            except Exception:
                print(f"{exercise.name}, schedule {schedule}, copies {copies}:", flush=True)
                raise


def main() -> int:
    """Run what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=tuple(compiler.MODES), default="plain")
    parser.add_argument("--schedule", choices=build.SCHEDULES, action="append")
    parser.add_argument("--copies", choices=build.COPIES, action="append")
    parser.add_argument("--file", action="append", default=[], help="only exercises of this file")
    options = parser.parse_args()
    from simt import standin

    standin.install()
    ways = itertools.product(options.schedule or build.SCHEDULES, options.copies or build.COPIES)
    with build.using(mode=options.mode):
        try:
            run(ways, options.file)
        except Exception:
            traceback.print_exc(limit=-3)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
