"""One run at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tinyalex.files import Folder, FolderLostError, make_folder

NAME = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Make `folder` and keep other processes that ask for the same out of it.

    The lock goes with the process, however that ends; the empty file `run.lock` stays. Systems
    and file systems that know no such locks do without. Raises ValueError while another process
    holds the lock, OSError where the folder cannot be made.
    """
    make_folder(folder)
    with Folder(folder) as opened:
        lock = Lock(opened)
        try:
            if not lock.take():
                raise ValueError(
                    f"another process is at work in {folder}: wait for it, or give another folder"
                )
            yield lock
        finally:
            lock.release()


class Lock:
    """A lock on a folder itself, and on the file `run.lock` in it where that can be had.

    The folder cannot be exchanged under the lock, as the file can; but network file systems lock
    files alone.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._lost = False  # once, and for good: what another process wrote meanwhile is its own

    def take(self) -> bool:
        """Return whether the lock is ours now, or was before."""
        descriptor = self.folder.descriptor
        if self._lost or (descriptor is not None and not _take(descriptor)):
            return False
        there = self.folder.status(NAME)
        if self._file is not None and there is not None:
            mine = os.fstat(self._file.fileno())
            if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                return True
        self.release()
        with suppress(OSError):  # something else is called so: then the folder's own lock must do
            self._file = self.folder.open(NAME, os.O_CREAT)
            self._lost = self._lost or not _take(self._file.fileno())
        return not self._lost

    def release(self) -> None:
        """Let go of the file; the folder's own lock goes with the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def where(self) -> Path:
        """Return where the folder is now, to write there.

        Raises FolderLostError where it is gone, or another process has taken the lock meanwhile.
        """
        path = self.folder.where()
        if not self.take():
            raise FolderLostError(f"another process is at work in {path} since its lock was gone")
        return path


def _take(descriptor: int) -> bool:
    """Lock an open file or folder; return False where another process has it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # not POSIX, or a file system without such locks
        pass
    return True
