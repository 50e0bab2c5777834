"""Kills, full disks and damage while a checkpoint is saved, or afterwards."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from commands import draw_photos, tiny_settings, tiny_variant
from faults_row import Row, processes, progress, temporary_folder

from tinyalex.files import FileError, load, save
from tinyalex.training import Checkpoints, new_run
from tinyalex.training.checkpoint import LAST, PREVIOUS


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
