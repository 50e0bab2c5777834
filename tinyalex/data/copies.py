"""Copies of images in one folder per class."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyalex.data.image import FAULTS_OF_THE_MACHINE
from tinyalex.folders import FAULTS_OF_THE_DISK, Folder, make_folder
from tinyalex.text import printable

NAME_BYTES = 255
"""The longest name, on most file systems."""

INSTANT = 1.0
"""Seconds in which another process that copies has seen whether it is alone."""

_ENDS = {*FAULTS_OF_THE_DISK, *FAULTS_OF_THE_MACHINE, errno.ENXIO, errno.ENOENT}
"""Reasons that will hold for all other copies, too: a disk that is full, gone or fails."""


class NotCopiedError(OSError):
    """Failure of one copy, for a reason that others may not share."""


class SortedCopies:
    """Copies of images in the folders of their classes in `root`.

    Nothing is overwritten, no link is followed below `root`, and a copy is whole or not there.
    Several processes may copy into the same `root`. Raises ValueError for classes that are no names
    of folders, for a `root` that lies in one of the folders that the images come from, and while
    another kind of work is done in it; OSError where it cannot be made.
    """

    def __init__(self, root: Path, classes: Sequence[str], sources: Sequence[str]) -> None:
        for name in classes:  # they come from a file, and must not lead out of `root`
            if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
                raise ValueError(
                    f"images cannot be sorted: the class {name!r} is no name for a folder"
                )
        inside = root.resolve()
        for path in sources:
            if os.path.isdir(path) and inside.is_relative_to(Path(path).resolve()):
                raise ValueError(
                    f"--sort must name a folder that is not in {printable(path)}, got "
                    f"{printable(root)}"
                )
        make_folder(root)
        # In UTF-8, whatever the locale calls file names in.
        self._classes = [os.fsdecode(name.encode("utf-8", "surrogateescape")) for name in classes]
        self._root = Folder(root)
        try:
            self._share()
        except BaseException:
            self._root.close()
            raise

    def __enter__(self) -> SortedCopies:
        return self

    def __exit__(self, *raised: object) -> None:
        self._root.close()

    def add(self, label: int, name: str, content: bytes, status: os.stat_result) -> bool:
        """Write an image into its class's folder; return False if already there.

        Where its name is taken by another image, it gets a number. Times and permissions are those
        in `status`. Raises NotCopiedError where this copy cannot be made, other OSErrors where no
        other one can be made either.
        """

        def write(file: Any) -> None:
            with suppress(OSError, AttributeError):  # not on every system, nor for every owner
                os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode) & 0o777)
            file.write(content)
            file.flush()
            if os.utime in os.supports_fd:
                with suppress(OSError):
                    os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))

        try:
            with self._root.inside(self._classes[label]) as folder:
                for number in itertools.count(1):
                    target = _numbered(name, number)
                    if folder.status(target) is None:
                        with suppress(FileExistsError):  # another process was faster
                            folder.write(target, write, overwrite=False)
                            return True
                    if _has(folder, target, content):
                        return False  # this command was here before, or the image is given twice
        except OSError as error:
            if error.errno in _ENDS or (isinstance(error, PermissionError) and self._locked_out()):
                raise
            raise NotCopiedError(error.errno, error.strerror, error.filename) from error
        raise AssertionError("there are more numbers")

    def _locked_out(self) -> bool:
        """Tell whether nothing can be made in `root` itself."""
        options = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
        return not os.access(self._root.path, os.W_OK | os.X_OK, **options)

    def _share(self) -> None:
        """Lock `root` beside other copiers; remove unfinished files of killed processes.

        That was there before, and others are not at work on it: this process was alone.
        """
        unfinished = {name: self._temporaries(name) for name in self._classes}
        alone = self._root.lock()
        deadline = time.monotonic() + INSTANT
        while self._root.lock(shared=True) is False:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"another process is at work in {printable(self._root.path)}: wait for it, or "
                    "give another folder"
                )
            time.sleep(0.01)
        if alone:
            for name in filter(unfinished.get, unfinished):
                with suppress(OSError), self._root.inside(name) as folder:
                    folder.remove_files(unfinished[name])

    def _temporaries(self, name: str) -> list[str]:
        """List what is unfinished in the folder of a class."""
        with suppress(OSError):
            status = self._root.status(name)
            if status is not None and stat.S_ISDIR(status.st_mode):
                with self._root.inside(name) as folder:
                    return folder.temporaries()
        return []


def _numbered(name: str, number: int) -> str:
    """Return a name with a number before its ending, cut to fit."""
    stem, suffix = os.path.splitext(name)
    suffix = suffix if number == 1 else f"-{number}{suffix}"
    while stem and len(os.fsencode(stem + suffix)) > NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix


def _has(folder: Folder, name: str, content: bytes) -> bool:
    """Tell whether a file has this content."""
    with suppress(OSError):
        status = folder.status(name)
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_size == len(content):
            return folder.read(name) == content
    return False
