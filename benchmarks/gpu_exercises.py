"""Every exercise of the kernels once on the GPU, under compute-sanitizer.

    compute-sanitizer --tool racecheck python benchmarks/gpu_exercises.py [WORD ...]

Words choose the exercises with one of them in their names. Exits with 1 if any fails.
"""

from __future__ import annotations

import sys
import traceback

import numpy as np

from shared.report import ROOT


def main(words: list[str]) -> int:
    """Run them and return how many failed."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/support")]
    from simt.exercises import all_exercises

    failed = 0
    for exercise in all_exercises():
        if words and not any(word in exercise.name for word in words):
            continue
        try:
            exercise.run(np.random.default_rng(2012))
        except Exception:
            failed += 1
            print(f"{exercise.name}: FAILED\n{traceback.format_exc()}", flush=True)
        else:
            print(f"{exercise.name}: passed", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
