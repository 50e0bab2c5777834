"""Copies of images in one folder per class."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyalex.data.dataset import printable
from tinyalex.data.image import FAULTS_OF_THE_MACHINE
from tinyalex.files import FAULTS_OF_THE_DISK, Folder, make_folder

NAME_BYTES = 255
"""The longest name, on most file systems."""

_ENDS = {*FAULTS_OF_THE_DISK, *FAULTS_OF_THE_MACHINE, errno.ENXIO, errno.ENOENT}
"""Reasons that will hold for all other copies, too: a disk that is full, gone or fails."""


class NotCopiedError(OSError):
    """One copy that could not be made, for a reason that need not be in the way of others."""


class SortedCopies:
    """Copies of images in the folders of their classes in `root`.

    Nothing is overwritten, no link is followed below `root`, and a copy is whole or not there.
    Several processes may copy into the same `root`. Raises ValueError for classes that are no names
    of folders, and for a `root` that lies in one of the folders that the images come from; OSError
    where it cannot be made.
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
        self._classes = classes
        self._root = Folder(root)
        if self._lock("LOCK_EX", "LOCK_NB"):  # else there are others, at work on what is unfinished
            self._clean()
        self._lock("LOCK_SH")

    def __enter__(self) -> SortedCopies:
        return self

    def __exit__(self, *raised: object) -> None:
        self._root.close()

    def add(self, label: int, name: str, content: bytes, status: os.stat_result) -> bool:
        """Write an image into the folder of its class; return False where it was there already.

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

    def _lock(self, *kinds: str) -> bool:
        """Lock `root` for this process, however that ends; False where others hold it, or no lock.

        Systems and file systems without such locks (Windows, some networks) do without.
        """
        try:
            import fcntl

            assert self._root.descriptor is not None
            fcntl.flock(self._root.descriptor, sum(getattr(fcntl, kind) for kind in kinds))
        except (ImportError, OSError, AssertionError):
            return False
        return True

    def _clean(self) -> None:
        """Remove what processes that were killed had not finished."""
        for name in self._classes:
            with suppress(OSError):
                status = self._root.status(name)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    with self._root.inside(name) as folder:
                        folder.remove_temporaries()


def _numbered(name: str, number: int) -> str:
    """Return a name with a number in front of its ending, cut between characters to fit."""
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
