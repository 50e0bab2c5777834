"""Whole runs of the training command: killed, asked to stop, resumed, repeated."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from commands import (
    draw_photos,
    result,
    run_and_save_always,
    tiny_settings,
    tiny_variant,
    trainer,
)
from faults_row import Row, processes, progress, temporary_folder

import tinyalex as ta
from tinyalex.files import load
from tinyalex.models import VARIANTS
from tinyalex.training import Checkpoints, new_run

RUN = ("--variant", "tiny", "--threads", 1)
EPOCHS = 3
SIGNALS = (
    (signal.SIGINT, 130),
    (signal.SIGTERM, 143),
    (signal.SIGHUP, 129),
    (signal.SIGUSR1, 0),
)


class Runs:
    """Whole runs of the training command, in processes of their own, and what they should yield."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = draw_photos(folder / "photos")
        self.errors = folder / "errors"
        self.rng = np.random.default_rng(0)
        self.number = 0
        for name in ("first", "expected"):  # what is imported late takes its time once
            began = time.monotonic()
            self.go(folder / name).join()
            self.seconds = time.monotonic() - began
        self.expected = result(folder / "expected")

    def go(self, out: Path) -> multiprocessing.process.BaseProcess:
        """Begin the run in `out`, or resume it."""
        begin = (*RUN, "--data", self.photos, "--out", out)
        arguments = ("--resume", out) if Checkpoints(out).exist() else begin
        process = processes.Process(
            target=run_and_save_always, args=("train", arguments, self.errors)
        )
        process.start()
        return process

    def interrupted(self, signum: int) -> tuple[int | None, bool]:
        """Send a signal at a random time; return the exit code, and if all ended as expected."""
        while True:
            out = self.folder / f"run{self.number}"
            self.number += 1
            process = self.go(out)
            while not Checkpoints(out).previous.exists() and process.is_alive():
                time.sleep(0.001)
            time.sleep(self.rng.uniform(0, 0.7 * self.seconds))
            if process.is_alive():
                os.kill(process.pid or 0, signum)
            process.join()
            if process.exitcode != 0 or load(Checkpoints(out).last)["state"]["epoch"] < EPOCHS:
                break  # else it was over before the signal came
        code = process.exitcode
        again = self.go(out)
        again.join()
        equal = again.exitcode == 0 and result(out) == self.expected
        shutil.rmtree(out)
        return code, equal


def cuts(count: int, runs: Runs) -> Row:
    """Kill whole runs, resume them, compare every bit."""
    equal = 0
    for number in range(count):
        equal += runs.interrupted(signal.SIGKILL)[1]
        progress(number, count)
    said = f"{equal} of {count} end with the weights, velocities and metrics of an undisturbed run"
    return Row("runs that are killed and resumed", said, equal == count)


def signals(count: int, runs: Runs) -> Row:
    """Send each polite signal, look at the exit code, resume, compare every bit."""
    right, total = 0, 0
    for signum, expected in SIGNALS:
        for _ in range(count):
            code, equal = runs.interrupted(signum)
            right += code == expected and equal
            progress(total, len(SIGNALS) * count)
            total += 1
    said = (
        f"{right} of {total} exit with 130, 143, 129 and 0, and end as if undisturbed once resumed"
    )
    return Row("`SIGINT`, `SIGTERM`, `SIGHUP` and `SIGUSR1` at random times", said, right == total)


def two_equal_runs() -> Row:
    """Train a network of eight layers twice on the fast kernels."""
    with temporary_folder() as folder, tiny_variant(), ta.use_backend("cpu"):
        VARIANTS["eight"] = VARIANTS["paper"].thinner(8, 67)
        photos = draw_photos(folder / "photos")
        found = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            settings = tiny_settings(photos, variant="eight", input_size=67)
            trainer(new_run(settings), folder / name).train()
            found.append(result(folder / name))
        del VARIANTS["eight"]
    same = found[0] == found[1]
    said = "equal SHA-256 of all weights and velocities" if same else "different weights"
    return Row("the same run twice", said, same)
