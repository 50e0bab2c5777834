"""Run exercises in a process of their own: ``python tests/simt/run.py --mode thread``.

The exit status is 0 if every exercise passes. At the first that fails it is 1, and its name the
first line that is printed; a sanitizer that has something to report ends the process by itself.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = map(str, (tests / "support", tests, tests.parent))

from simt import build, compiler
from tinyalex.threads import available_cores

REPORTED = 66  # exit status of a process in which a sanitizer had something to report
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join(map(str, (TESTS, TESTS / "support", TESTS.parent)))


@cache
def _library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@cache
def _fixed_addresses() -> tuple[str, ...]:
    """Return a prefix to a command: ThreadSanitizer wants addresses where they always are.

    Some containers do not allow it; then the process may fail to start, now and then.
    """
    command = ("setarch", "--addr-no-randomize")
    allowed = shutil.which("setarch") and subprocess.run([*command, "true"]).returncode == 0
    return command if allowed else ()


def python(mode: str, *arguments: str, timeout: float = 600, **more: str) -> tuple[int, str]:
    """Run Python so that it can load builds of this mode; return its exit status and its output.

    ``more`` goes into its environment.
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": PATHS, **more}
    command = _fixed_addresses() if mode == "thread" else ()
    if mode in LIBRARIES:  # the interpreter itself was built without
        environment["LD_PRELOAD"] = _library(LIBRARIES[mode])
        stop = f"halt_on_error=1:exitcode={REPORTED}"
        environment["ASAN_OPTIONS"] = f"detect_leaks=0:{stop}"
        environment["UBSAN_OPTIONS"] = f"print_stacktrace=1:{stop}"
        # No second of sleep at the end of each process, for threads that still run: fibers do not.
        environment["TSAN_OPTIONS"] = f"{stop}:atexit_sleep_ms=0"
    result = subprocess.run(
        [*command, sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return result.returncode, result.stdout


def prepare(mode: str) -> None:
    """Compile what the exercises launch, several at once: a process that runs them is ready."""
    from simt.exercises import launched
    from tinyalex.backends.cuda import launch

    def compile_one(module):
        file, instances = module
        compiler.compile_module(launch.read_source(file), mode, instances=instances)

    with build.using(mode=mode):
        modules = {(file, (name,) if "<" in name else ()) for file, name in launched()}
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(compile_one, sorted(modules)))


def run(mode: str, *options: str, **more: str) -> tuple[int, str]:
    """Run this file: exit status and output."""
    return python(mode, __file__, "--mode", mode, *options, **more)


def exercise_all(schedules, files, skip=None) -> None:
    """Run the exercises of `files` (all if none is named) under each schedule.

    Those whose kernels copy asynchronously run twice, with lazy and with eager copies. The first
    that fails without barrier `skip`, if there is one, ends it: it must pass with all barriers.
    """
    from simt.exercises import all_exercises
    from tinyalex.backends.cuda import launch

    for schedule, exercise in itertools.product(schedules, all_exercises()):
        if files and not set(files) & set(exercise.files):
            continue
        asynchronous = any("cp_async" in launch.read_source(file) for file in exercise.files)
        for copies in build.COPIES if asynchronous else ("lazy",):
            how = f"{exercise.name.rpartition('exercises.')[2]}, {schedule}, {copies} copies"
            with build.using(schedule=schedule, copies=copies):
                missed = skip is not None and fails_without(skip, exercise)
                try:
                    if missed or skip is None:
                        exercise.run(np.random.default_rng(2012))
                except Exception:
                    print(how, flush=True)
                    raise
            if missed:
                print(f"{skip} is missed by {how}", flush=True)
                return


def fails_without(barrier, exercise) -> bool:
    """Run the exercise without a barrier, in a process that may crash, or never end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    signal.alarm(60)
    os.environ["SIMT_SKIP"] = barrier
    try:
        exercise.run(np.random.default_rng(2012))
    except Exception:
        os._exit(1)
    os._exit(0)


def main() -> int:
    """Run what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=tuple(compiler.MODES), default="plain")
    parser.add_argument("--schedule", choices=build.SCHEDULES, action="append")
    parser.add_argument("--file", action="append", help="only the exercises of this file")
    parser.add_argument("--skip", action="append", help="NUMBER:FILES, by mutations.py")
    options = parser.parse_args()
    from simt import standin
    from simt.exercises import all_exercises

    standin.install()
    known = {file for exercise in all_exercises() for file in exercise.files}
    if unknown := set(options.file or ()) - known:
        parser.error(f"no exercise of {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    with build.using(mode=options.mode):
        try:
            for skip in options.skip or ():
                number, _, files = skip.partition(":")
                exercise_all(build.SCHEDULES, files.split(","), number)
            if not options.skip:
                exercise_all(options.schedule or build.SCHEDULES, options.file)
        except Exception:
            traceback.print_exc(limit=-3)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
