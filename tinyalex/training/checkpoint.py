"""Checkpoints of a run: `last` to resume, `previous` as its backup, `best`.

Each is one file that `tinyalex.save` writes whole or not at all, so a run can be killed at any
moment. `best` holds the classifier of the epoch with the highest validation accuracy, `last` the
whole state of the run, and `previous` what `last` was before. A new `last` is complete on the disk
before the old one becomes `previous`: from the first checkpoint on, there is always one to
resume.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinyalex.files import FileError, is_saved, load, save, writer_of
from tinyalex.folders import Folder, FolderLock
from tinyalex.interop import load_weights
from tinyalex.schema import check
from tinyalex.text import printable
from tinyalex.training.classifier import Classifier, check_state
from tinyalex.training.divergence import NOT_FINITE, not_finite
from tinyalex.training.metrics import METRICS
from tinyalex.training.run import CONTENT, Run, State
from tinyalex.training.settings import Settings

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
KIND = "tinyalex checkpoint 1"


class Checkpoints:
    """The checkpoints in one folder, written often enough and not too often.

    `last` is due `seconds` after the one before and at the end of every epoch, but never so soon
    that writing takes more than `share` of the time. A new best network waits in memory until
    then, and is written first: a run that is killed in between replays from `last` and finds the
    same best again. What lay in the folder when this was made is remembered, and what was loaded
    and saved.
    """

    def __init__(
        self, folder: str | os.PathLike[str], seconds: float = 120.0, share: float = 0.02
    ) -> None:
        self.folder = Path(folder)
        self.lock: FolderLock | None = None
        """Lock that keeps the folder ours, once it is taken."""
        self.seconds = seconds
        self.share = share
        self._best: dict[str, Any] | None = None
        self._best_so_far: State | None = None  # of the network kept or, once read, on the disk
        self._cost = 0.0
        self.seconds_to_save = 0.0
        """Seconds that the next `save` will take, judging by the one before."""
        self._written = time.monotonic()
        self._found = self.found()
        self._fallen_back = False
        self._kept: tuple[Any, Any] | None = None  # settings and state in `last`

    @property
    def last(self) -> Path:
        """The checkpoint to resume."""
        return self.folder / LAST

    @property
    def previous(self) -> Path:
        """The checkpoint before the last."""
        return self.folder / PREVIOUS

    @property
    def best(self) -> Path:
        """The best classifier so far."""
        return self.folder / BEST

    @property
    def absolute(self) -> Path:
        """Absolute path of the folder, even if the current one is gone."""
        return self.lock.folder.absolute if self.lock else Path(os.path.abspath(self.folder))

    def here(self) -> Path:
        """Return the folder's path as of now: it may be renamed meanwhile.

        Raises FolderLostError where it is gone, or another process is at work in it.
        """
        if self.lock is not None:
            self.folder = self.lock.where()
        return self.folder

    def move(self, lock: FolderLock) -> None:
        """Continue in another folder, which is new and ours."""
        self.folder, self.lock, self._kept = lock.folder.path, lock, None

    def prepare(self, run: Run, say: Callable[[str], None] = print) -> None:
        """Prepare the folder for a new or resumed run.

        Raises ValueError where another process has written there meanwhile, OSError where there is
        no room. A `last` that could not be read goes aside, and `previous` takes its place. `say`
        is told what the file system does not know.
        """
        if self.found() != self._found:
            raise ValueError(
                f"another process has trained in {printable(self.folder)} meanwhile: start once "
                "more"
            )
        files = (self.last, self.previous, self.best)
        weights = sum(p.data.nbytes for p in run.classifier.model.parameters())
        # Weights and velocity, and beside averaged weights those that learn.
        sets = 2 if run.average is None else 3
        self.seconds_to_save = sets * weights / 50e6  # a slow disk, until we know
        # They are in `last`, `previous` and what will replace them, weights alone in `best`.
        needed = (3 * sets + 1) * weights - sum(
            path.stat().st_size for path in files if path.exists()
        )
        free = _free(self.folder)
        if free is None:
            say(
                f"warning: {printable(self.folder)} does not say how much room there is: it may "
                "not suffice"
            )
        elif free < needed:
            raise OSError(
                f"{printable(self.folder)} has {free / 1e6:,.0f} MB free, the checkpoints need "
                f"{needed / 1e6:,.0f} MB: make room, or choose another folder with --out"
            )
        if self._kept and self._kept[0].get("data") != run.settings.data:
            self._tell_best(run.settings.data)
        with self._opened() as folder:
            if self._fallen_back:
                if folder.status(LAST) is not None:
                    folder.put_aside(LAST)
                folder.rename(PREVIOUS, LAST)
            if not folder.sync():
                say(
                    f"warning: {printable(self.folder)} is on a file system that does not know "
                    "fsync for folders: after a power failure, a checkpoint may be missing"
                )

    def _tell_best(self, data: str | None) -> None:
        """Let the best network know where the images are now."""
        with suppress(FileNotFoundError, FileError):
            content = load_checkpoint(self.best)
            settings = settings_in(content, self.best)
            self._write(BEST, {**content, "settings": {**asdict(settings), "data": data}})
            self._found = self.found()

    def exist(self) -> bool:
        """Tell whether there is a run to resume."""
        return self.last.exists() or self.previous.exists()

    def found(self) -> tuple[tuple[str, int, int], ...]:
        """Return name, time and size of a run's files, to notice changes."""
        found = []
        for path in (self.last, self.previous, self.best, self.folder / METRICS):
            with suppress(OSError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode) and status.st_size:
                    found.append((path.name, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def load(self, say: Callable[[str], None] = print) -> tuple[dict[str, Any], Path]:
        """Return content and path of `last`, or of `previous` if unreadable.

        In that case `say` is told why. Raises FileNotFoundError where there are no checkpoints,
        FileError where none can be read.
        """
        try:
            content, path = load_checkpoint(self.last), self.last
        except (FileNotFoundError, FileError) as error:
            if not self.previous.exists():
                raise
            path = self.previous
            try:
                content = load_checkpoint(path)
                step = state_in(content, path).step
            except FileError as second:
                raise FileError(f"{error}; and {second}") from second
            say(f"warning: {error}; resuming from {printable(path)}, of step {step}")
            self._fallen_back = True
        self._kept = content.get("settings"), content.get("state")
        return content, path

    def up_to_date(self, run: Run) -> bool:
        """Tell whether `last` already has this state."""
        there = (self.here() / LAST).exists()
        return there and self._kept == (asdict(run.settings), asdict(run.state))

    @property
    def step(self) -> int:
        """Step of `last`, 0 before it is known."""
        return self._kept[1]["step"] if self._kept else 0

    def keep_best(self, run: Run) -> bool:
        """Keep the network as the best, unless the stored one is better.

        It can be: of epochs after `last`, which a resumed run may repeat at another rate. Returns
        whether the network was kept.
        """
        if self._best_so_far is None:
            try:
                self._best_so_far = state_in(load_checkpoint(self.best), self.best)
            except (FileNotFoundError, FileError):
                self._best_so_far = State()
        mine, its = run.state, self._best_so_far
        if mine.is_best(its.best_top1, its.best_loss):
            return False
        self._best, self._best_so_far = run.get_result(), replace(mine)
        return True

    def due(self, epoch_ends: bool = False) -> bool:
        """Tell whether it is time to save."""
        elapsed = time.monotonic() - self._written
        return elapsed >= max(0 if epoch_ends else self.seconds, self._cost / self.share)

    def save(self, run: Run) -> None:
        """Write what is new.

        Raises FloatingPointError, and writes nothing, if a weight is not finite; OSError if the
        disk refuses, and the files from before stay.
        """
        started = time.monotonic()
        try:
            state = run.get_state()
            arrays = {label: array for label, _, array in run.arrays_in(state)}
            if wrong := not_finite(arrays):
                raise FloatingPointError(f"{wrong} {NOT_FINITE}")
            self.save_best()
            self._write(LAST, state, keep=PREVIOUS)
            self._kept = state["settings"], state["state"]
        finally:  # a failure costs time as well: it is not tried again at every step
            self._written = time.monotonic()
            self._cost = self.seconds_to_save = self._written - started

    def save_best(self) -> None:
        """Write the best network if it is new and finite.

        Raises OSError as `save` does.
        """
        if self._best is not None and not not_finite(self._best["classifier"]["weights"]):
            self._write(BEST, self._best)
            self._best = None

    def put_best_aside(self) -> None:
        """Rename what is called `best` and is none, if possible."""
        with suppress(OSError), self._opened() as folder:
            folder.put_aside(BEST)

    def _write(self, name: str, content: dict[str, Any], keep: str | None = None) -> None:
        with self._opened() as folder:
            folder.write(name, writer_of({"kind": KIND, **content}), keep)

    def _opened(self) -> AbstractContextManager[Folder]:
        """Return the folder to write in, which is ours at this moment."""
        folder = self.here()
        return Folder(folder) if self.lock is None else nullcontext(self.lock.folder)


def _free(folder: Path) -> int | None:
    """Return the free bytes, or None if unknown.

    Some mounts say 0, whatever they have.

    A disk that is really full refuses the first checkpoint, before training.
    """
    try:
        return shutil.disk_usage(folder).free or None
    except OSError:
        return None


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint: "classifier" and, of a run, "settings", "state" and more.

    Raises FileNotFoundError, or FileError for what is not a checkpoint or cannot be read, with one
    sentence.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no checkpoint {printable(path)}")

    def look(content: Any) -> None:
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise FileError(
                f"{printable(path)} is not a checkpoint of this version of tinyalex ({KIND!r})"
            )
        check(content, CONTENT)
        check_state(content["classifier"])
        velocities = content.get("optimizer", {}).get("velocity", ())
        learning = content.get("learning", {}).values()
        most = sum(w.nbytes for w in content["classifier"]["weights"].values())
        for what, arrays in {"velocities": velocities, "learning weights": learning}.items():
            if sum(array.nbytes for array in arrays if array is not None) > most:
                raise FileError(
                    f"{printable(path)} cannot be used: its {what} are larger than its weights"
                )

    try:
        content: dict[str, Any] = load(path, look)
    except OSError as error:
        raise FileError(f"{printable(path)} cannot be read ({error.strerror or error})") from error
    return content


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Return `path`, or the best or last checkpoint of a run's folder.

    Raises FileNotFoundError for a folder that has none, and where nothing is called so.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(
            f"there is no {printable(path)}: give a file of weights, or the folder of a run"
        )
    if not path.is_dir():
        return path
    for name in (BEST, LAST, PREVIOUS):
        if (path / name).exists():
            return path / name
    raise FileNotFoundError(
        f"{printable(path)} is not the folder of a run: there is no checkpoint in it"
    )


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file is for `load_checkpoint` to read, or to refuse."""
    with suppress(OSError):
        return is_saved(path)
    return True


def load_classifier(
    path: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    variant: str | None = None,
    mean: str | os.PathLike[str] | None = None,
) -> Classifier:
    """Read a classifier from a run, a checkpoint or a weight file.

    `variant` and `mean` are for weight files, as `load_weights` takes them, and `classes` names
    their outputs. Raises FileNotFoundError, or FileError for a file that is damaged or holds
    something else.
    """
    path = checkpoint_path(path)
    if is_checkpoint(path):
        return classifier_in(load_checkpoint(path), path)
    return Classifier.from_weights(load_weights(path, variant, mean), classes)


def save_classifier(classifier: Classifier, folder: str | os.PathLike[str]) -> Path:
    """Write a classifier as `best` of a new folder.

    Returns the path of the file. Commands take the folder as a run, but it cannot be resumed.
    Raises OSError where the disk refuses or `folder` is there.
    """
    path = Path(folder) / BEST
    path.parent.mkdir()
    try:
        save({"kind": KIND, "classifier": classifier.get_state()}, path)
    except BaseException:
        path.parent.rmdir()
        raise
    return path


def classifier_in(content: dict[str, Any], path: str | os.PathLike[str]) -> Classifier:
    """Return the classifier in what `load_checkpoint` read from `path`."""
    try:
        return Classifier.from_state(content["classifier"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"the network in {printable(path)} cannot be used: {error}") from error


def settings_in(content: dict[str, Any], path: str | os.PathLike[str]) -> Settings:
    """Return the settings in what `load_checkpoint` read from `path`."""
    try:
        return Settings(**content["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"the settings in {printable(path)} cannot be used: {error}") from error


def state_in(content: dict[str, Any], path: str | os.PathLike[str]) -> State:
    """Return where the run was, from what `load_checkpoint` read from `path`."""
    try:
        return State.from_dict(content["state"])
    except (KeyError, ValueError) as error:
        raise FileError(f"the state in {printable(path)} cannot be used: {error}") from error
