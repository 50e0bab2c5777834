"""Faults in earnest: the counts that take too long for the tests, and their table in docs/trust.md.

    python tests/faults.py            # some minutes; ends with 1 if anything did not hold
    python tests/faults.py --quick    # a tenth of everything, and no table

What is done here in numbers is done once or a few times by the tests, which hold every change.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from commands import (
    ROOT,
    draw_photos,
    result,
    run_and_save_always,
    tiny_settings,
    tiny_variant,
    trainer,
)

import tinyalex as ta
from tinyalex.files import FileError, load, save
from tinyalex.models import VARIANTS
from tinyalex.training import Checkpoints, new_run

PAGE = ROOT / "docs" / "trust.md"
RUN = ("--variant", "tiny", "--threads", 1)
EPOCHS = 3
LAST, PREVIOUS = "last.safetensors", "previous.safetensors"

processes = multiprocessing.get_context("forkserver")


class Row(NamedTuple):
    """A line of the table."""

    fault: str
    result: str
    held: bool


# --- saving


def save_for_ever(folder: Path) -> None:
    """Save 5 MB again and again, each time with a higher number."""
    step = load(folder / LAST)["step"] if (folder / LAST).exists() else 0
    while True:
        step += 1
        content = {"step": step, "weights": np.full(1_200_000, step, np.float32)}
        save(content, folder / LAST, keep=folder / PREVIOUS)


def savez_for_ever(folder: Path) -> None:
    """Do the same as people do it without thinking: overwrite the file."""
    while True:
        np.savez(folder / "last.npz", step=1, weights=np.full(1_200_000, 1, np.float32))


def kill_amid(target: Callable[[Path], None], folder: Path, seconds: float) -> None:
    """Start `target` and kill it, so many seconds after it has written something."""
    process = processes.Process(target=target, args=(folder,))
    process.start()
    while not any(folder.iterdir()):
        time.sleep(0.001)
    time.sleep(0.02 + seconds)
    process.kill()
    process.join()


def kills_while_saving(count: int) -> Row:
    """Kill a process that saves; what it leaves must be whole, and no older than before."""
    rng, lost, amid, newest = np.random.default_rng(0), 0, 0, 0
    with temporary_folder() as folder:
        for number in range(count):
            kill_amid(save_for_ever, folder, rng.uniform(0, 0.06))
            amid += any(folder.glob(".*.tmp"))
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink()
            try:
                content = load(folder / LAST)
                whole = bool((content["weights"] == content["step"]).all())
                lost += not (whole and content["step"] >= newest)
                newest = content["step"]
                if (folder / PREVIOUS).exists():
                    lost += load(folder / PREVIOUS)["step"] not in (newest, newest - 1)
            except (OSError, FileError):
                lost += 1
            progress(number, count)
    said = f"{count} kills, {amid} of them while a file was half written: {lost} checkpoints lost"
    return Row("`SIGKILL` at any moment while a checkpoint is saved", said, lost == 0 and amid > 0)


def kills_of_savez(count: int) -> Row:
    """Show that the test above can fail."""
    rng, corrupt = np.random.default_rng(0), 0
    for number in range(count):
        with temporary_folder() as folder:
            kill_amid(savez_for_ever, folder, rng.uniform(0, 0.06))
            try:
                with np.load(folder / "last.npz") as content:
                    corrupt += not (content["weights"] == 1).all()
            except Exception:  # zipfile, zlib and NumPy have many ways to say it
                corrupt += 1
        progress(number, count)
    said = f"{count} kills: {corrupt} files lost ({corrupt / count:.0%})"
    return Row("the same with `np.savez`, to see that the test can fail", said, corrupt > count / 5)


def full_disks(count: int) -> Row:
    """Let the disk be full at byte k of a checkpoint, for k from its first to its last."""
    kept = 0
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with temporary_folder() as folder:
        path = folder / LAST
        save({"weights": np.zeros(100_000)}, path)
        before, size = path.read_bytes(), path.stat().st_size
        for number, room in enumerate(np.linspace(0, size - 1, count).astype(int).tolist()):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                save({"weights": np.ones(100_000)}, path, keep=folder / PREVIOUS)
            except OSError:
                kept += path.read_bytes() == before and os.listdir(folder) == [LAST]
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            progress(number, count)
    said = f"{kept} of {count} times the old file was untouched and nothing else left"
    return Row("disk full at a byte of the new checkpoint", said, kept == count)


def changed_bytes(count: int) -> Row:
    """Change one byte of a checkpoint at a time."""
    rng, refused = np.random.default_rng(0), 0
    with temporary_folder() as folder, tiny_variant():
        Checkpoints(folder).save(new_run(tiny_settings(draw_photos(folder / "photos"))))
        good = (folder / LAST).read_bytes()
        for number, place in enumerate(rng.choice(len(good), count, replace=False).tolist()):
            bad = bytearray(good)
            bad[place] ^= int(rng.integers(1, 256))
            (folder / LAST).write_bytes(bad)
            try:
                load(folder / LAST)
            except FileError:
                refused += 1
            progress(number, count)
    said = f"{refused} of {count} positions noticed and refused"
    return Row("a single byte of a checkpoint changed", said, refused == count)


# --- whole runs


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
        """Begin the run in `out`, or go on with it."""
        begin = (*RUN, "--data", self.photos, "--out", out)
        arguments = ("--resume", out) if Checkpoints(out).exist() else begin
        process = processes.Process(
            target=run_and_save_always, args=("train_alexnet", arguments, self.errors)
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
            if process.exitcode != 0 or load(out / LAST)["state"]["epoch"] < EPOCHS:
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
    for signum, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 0)):
        for _ in range(count):
            code, equal = runs.interrupted(signum)
            right += code == expected and equal
            progress(total, 3 * count)
            total += 1
    said = f"{right} of {total} exit with 130, 143 and 0, and end as if undisturbed once resumed"
    return Row("`SIGINT`, `SIGTERM` and `SIGUSR1` at random times", said, right == total)


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


# --- what the tests count


def counted(fault: str, *arguments: str, least: int) -> Row:
    """Run some of the tests; all must pass, and there must be so many at least."""
    passed, failed = run_tests(ROOT, *arguments)
    return Row(fault, f"{passed} of {passed + failed}", passed >= least and not failed)


def run_tests(root: Path, *arguments: str) -> tuple[int, int]:
    """Run tests of the checkout in `root`; return how many passed, and how many did not."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest {' '.join(arguments)} did not run:\n{done.stdout}{done.stderr}")
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed)", done.stdout[-300:])}
    return counts.get("passed", 0), counts.get("failed", 0)


GUARDS = (
    ("fsync of the file", "files.py", "            os.fsync(file.fileno())\n", "", "test_files.py",
     "on_the_disk_before"),
    ("fsync of the folder", "files.py", "            os.fsync(folder)\n", "            pass\n",
     "test_files.py", "on_the_disk_before"),
    ("rename into place", "files.py", "        os.replace(temporary, target)\n",
     "        target.write_bytes(Path(temporary).read_bytes())\n", "test_files.py", "replacing"),
    ("the previous checkpoint", "files.py", "            _move_aside(target, Path(keep))\n",
     "            pass\n", "test_checkpoints.py", "last_two"),
    ("digest", "files.py", 'if metadata["sha256"] != _digest(structure, arrays):', "if False:",
     "test_files.py", "changed_byte"),
    ("finite weights in a checkpoint", "training/checkpoint.py", "if wrong := not_finite(arrays):",
     "if wrong := None:", "test_checkpoints.py", "not_finite"),
    ("finite loss", "training/loop.py", "    if not math.isfinite(value):", "    if False:",
     "test_divergence.py", "planted"),
    ("finite gradients", "training/loop.py", "if wrong := not_finite(gradients):",
     "if wrong := None:", "test_divergence.py", "planted"),
    ("state checked before it is used", "training/run.py",
     '        self._check_arrays(state["classifier"]["weights"], state["optimizer"]["velocity"])\n',
     "", "test_checkpoints.py", "does_not_fit"),
    ("metrics on the disk first", "training/loop.py", "            self.metrics.sync()\n", "",
     "test_training.py", "reach_the_disk"),
    ("lock", "training/lock.py", "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
     "            pass\n", "test_train_example.py", "another_process"),
)  # fmt: skip
"""Name, file, text, what takes its place, and the test that must then fail."""


def removed_guards() -> Row:
    """Take each guard out of a copy of the code; its test must fail there, and pass before."""
    noticed = []
    with temporary_folder() as folder:
        for name in ("tinyalex", "tests", "examples", "kernels"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", folder)
        for number, (name, file, text, instead, test, word) in enumerate(GUARDS):
            path = folder / "tinyalex" / file
            good = path.read_text()
            if good.count(text) != 1:
                raise RuntimeError(f"{file} has no guard {text!r}: mend the table in {__file__}")
            arguments = (f"tests/{test}", "-k", word)
            path.write_text(good.replace(text, instead))
            if run_tests(folder, *arguments)[1]:
                noticed.append(name)
            path.write_text(good)
            progress(number, len(GUARDS))
    said = f"{len(noticed)} of {len(GUARDS)} noticed by a test: {', '.join(noticed)}"
    return Row("a guard taken out of the code", said, len(noticed) == len(GUARDS))


def bare_import() -> Row:
    """Import the package where nothing optional is there and CuPy is broken."""
    with temporary_folder() as folder:
        for name in ("cupy", "tqdm", "matplotlib", "tensorboardX"):
            (folder / f"{name}.py").write_text("raise ImportError('broken')")
        code = "import time, numpy; t = time.perf_counter(); import tinyalex, tinyalex.training; "
        code += "print(time.perf_counter() - t)"
        path = os.pathsep.join([str(folder), str(ROOT), *sys.path])
        command = [sys.executable, "-c", code]
        times = [
            float(subprocess.check_output(command, env={**os.environ, "PYTHONPATH": path}))
            for _ in range(5)
        ]
    seconds = statistics.median(times)
    said = f"works, {seconds:.2f} s beyond NumPy with the trainer"
    return Row("`import tinyalex` with broken optional packages", said, seconds < 0.5)


# --- the table


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder, and remove it."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        yield Path(name)


def progress(number: int, count: int) -> None:
    """Show that there is progress, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{number + 1}/{count} ", end="", file=sys.stderr, flush=True)


def all_rows(scale: float) -> Iterator[Row]:
    """Try everything, in the order of the table."""
    yield kills_while_saving(round(200 * scale))
    yield kills_of_savez(round(200 * scale))
    with temporary_folder() as folder:
        runs = Runs(folder)
        yield cuts(round(30 * scale), runs)
        yield signals(round(20 * scale), runs)
    yield full_disks(round(50 * scale))
    yield changed_bytes(round(2000 * scale))
    yield counted("a NaN planted in each of the 8 layers, forward and backward: layer named",
                "tests/test_divergence.py", "-k", "planted", least=16)  # fmt: skip
    yield two_equal_runs()
    refusals = "(cannot_be or found_out_before or refusals) and not by_heart"
    yield counted("mistakes in arguments, data, disk: one sentence, exit code 2, before training",
                "tests/test_train_example.py", "-k", refusals, least=15)  # fmt: skip
    yield bare_import()
    yield removed_guards()


def main() -> int:
    """Read the command line, try everything, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, no table")
    quick = parser.parse_args().quick
    processes.set_forkserver_preload(["__main__", "tinyalex.training.options", "matplotlib.figure"])
    began, rows = time.monotonic(), []
    for row in all_rows(0.1 if quick else 1.0):
        rows.append(row)
        verdict = "held  " if row.held else "BROKEN"
        print(
            f"\r{time.monotonic() - began:4.0f} s  {verdict}  {row.fault}: {row.result}", flush=True
        )
    minutes = (time.monotonic() - began) / 60
    if not quick:
        report = load_report()
        lines = ["| fault | what happened | held |", "|---|---|---|"]
        lines += [f"| {r.fault} | {r.result} | {'yes' if r.held else '**no**'} |" for r in rows]
        lines += ["", f"{report.one_line(report.machine())}; {minutes:.1f} minutes."]
        report.replace_table(PAGE, "faults", "\n".join(lines))
    return 0 if all(row.held for row in rows) else 1


def load_report():
    """Import benchmarks/report.py, which belongs to no package."""
    path = ROOT / "benchmarks" / "report.py"
    description = importlib.util.spec_from_file_location("report", path)
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
