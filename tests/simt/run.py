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
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = map(str, (tests / "support", tests, tests.parent))

from simt import build, compiler
from simt.exercises import Exercise, all_exercises, launched
from tinyalex.backends.cuda import launch
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

    def compile_one(module):
        file, instances = module
        compiler.compile_module(launch.read_source(file), mode, instances=instances)

    with build.using(mode=mode):
        modules = {(file, launch.instances(file, name)) for file, name in launched()}
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(compile_one, sorted(modules)))


def run(mode: str, *options: str, **more: str) -> tuple[int, str]:
    """Run this file: exit status and output."""
    return python(mode, __file__, "--mode", mode, *options, **more)


class Way(NamedTuple):
    """An exercise, and the settings under which it runs."""

    name: str
    exercise: Exercise
    schedule: str
    copies: str

    def run(self) -> None:
        """Run it here."""
        with build.using(schedule=self.schedule, copies=self.copies):
            self.exercise.run(np.random.default_rng(2012))

    def fails(self, **environment: str) -> bool:
        """Run it in a process that may crash, or never end; SIMT_SKIP names a barrier to skip."""
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1] != 0
        signal.alarm(60)
        os.environ |= environment
        try:
            self.run()
        except Exception:
            os._exit(1)
        os._exit(0)


def ways(schedules: Sequence[str], files: Collection[str]) -> Iterator[Way]:
    """Yield the exercises of `files` (all if none is named) under each schedule.

    Those of few kernels come first. Those whose kernels copy asynchronously come twice, with lazy
    and with eager copies.
    """
    exercises = sorted(all_exercises(), key=lambda exercise: len(exercise.files))
    for schedule, exercise in itertools.product(schedules, exercises):
        if files and not set(files) & set(exercise.files):
            continue
        asynchronous = any("cp_async" in launch.read_source(file) for file in exercise.files)
        for copies in build.COPIES if asynchronous else ("lazy",):
            name = f"{exercise.name.rpartition('exercises.')[2]}, {schedule}, {copies} copies"
            yield Way(name, exercise, schedule, copies)


def run_all(schedules: Sequence[str], files: Collection[str]) -> None:
    """Run the exercises of `files`; print the name of one that fails."""
    for way in ways(schedules, files):
        try:
            way.run()
        except Exception:
            print(way.name, flush=True)
            raise


def skip_all(schedules: Sequence[str], skips: Sequence[str]) -> None:
    """Leave out each barrier in turn, and print which exercise misses it; first, what missed one.

    Every exercise runs in a process of its own, forked from this one, which runs none: in a fork of
    a process that had threads (here, fibers) ThreadSanitizer takes all for races.
    """
    best = ""
    for skip in skips:
        number, _, files = skip.partition(":")
        order = sorted(ways(schedules, files.split(",")), key=lambda way: way.name != best)
        for way in order:
            if way.fails(SIMT_SKIP=number):
                if way.fails():
                    raise RuntimeError(f"{way.name} fails with all barriers")
                best = way.name
                print(f"{number} is missed by {best}", flush=True)
                break


def main() -> int:
    """Run what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=tuple(compiler.MODES), default="plain")
    parser.add_argument("--schedule", choices=build.SCHEDULES, action="append")
    parser.add_argument("--file", action="append", help="only the exercises of this file")
    parser.add_argument("--skip", action="append", help="NUMBER:FILES, by mutations.py")
    options = parser.parse_args()
    from simt import standin

    standin.install()
    known = {file for exercise in all_exercises() for file in exercise.files}
    if unknown := set(options.file or ()) - known:
        parser.error(f"no exercise of {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    with build.using(mode=options.mode):
        schedules = options.schedule or build.SCHEDULES
        try:
            if options.skip:
                skip_all(schedules, options.skip)
            else:
                run_all(schedules, options.file or ())
        except Exception:
            traceback.print_exc(limit=-3)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
