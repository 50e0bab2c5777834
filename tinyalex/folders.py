"""Folders that are written to safely: whole files, locks, no links followed."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from tinyalex.text import printable

ASIDE = ".unreadable"
"""Ending of the name that something gets which is in the way and is not ours."""

_TEMPORARY = re.compile(r"(\..*\.)[0-9a-f]{8}\.tmp", re.DOTALL)

_AT_ONCE = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)

_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)

_RELATIVE = os.open in os.supports_dir_fd

_NO_SYNC = frozenset(
    getattr(errno, name, None)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EPERM", "EACCES", "EBADF")
)
"""Reasons of a file system that knows no fsync, of a folder at least; EIO is none of them."""

FAULTS_OF_THE_DISK = frozenset(
    getattr(errno, name, None)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENODEV", "ESTALE", "ENOTCONN", "ESHUTDOWN",
    )
)  # fmt: skip
"""Reasons that have to do with no name: a disk that is full, gone or fails."""


class FolderLostError(OSError):
    """Folder that was removed, or has another one in its place."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, at once.

    Raises OSError for everything else: to open a pipe may be to wait for ever, and a device need
    not end. What is opened is what was looked at.
    """
    return _open_regular(path, "rb")


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and missing parents, durably."""
    path = Path(path)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
    with Folder(path.parent) as above:
        above.sync()


def nearest_folder(path: Path) -> Path:
    """Return `path`, or the folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def new_folder(path: str | os.PathLike[str]) -> Path:
    """Make and return a new folder, numbered if the name is taken."""
    path, number = Path(path), 1
    make_folder(path.parent)
    folder = path
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
            folder = path.with_name(f"{path.name}-{number}")
    with Folder(path.parent) as above:
        above.sync()
    return folder


class Folder:
    """Folder to write in, the same one even if renamed.

    The path may be a link; none below it is followed, and nothing that others put there is
    written to or removed. `identity`, of another Folder, raises FolderLostError where the path
    leads to something else. Systems that cannot open a folder (Windows) look at paths instead.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: tuple[int, int] | None = None,
        descriptor: int | None = None,
    ) -> None:
        if descriptor is None and _RELATIVE:
            descriptor = _open_folder(path)
        self.path, self.descriptor = Path(path), descriptor
        self.absolute = Path(os.path.abspath(path))  # "." answers for a folder that is gone
        status = os.stat(path if descriptor is None else descriptor)
        self.identity = (status.st_dev, status.st_ino)
        if identity not in (None, self.identity):
            self.close()
            raise FolderLostError(f"{printable(path)} is no longer the folder that it was")

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def where(self) -> Path:
        """Return the folder's path as of now; FolderLostError if unknown."""
        paths = [self.absolute]
        with suppress(OSError):  # Linux knows what it is called after a `mv`
            paths.append(Path(os.readlink(f"/proc/self/fd/{self.descriptor}")))
        for path in paths:
            with suppress(OSError):
                status = os.stat(path)
                if (status.st_dev, status.st_ino) == self.identity:
                    if path != self.absolute:
                        self.path = self.absolute = path
                    return self.path
        raise FolderLostError(f"{printable(self.absolute)} is gone, or another folder has its name")

    def inside(self, path: str | os.PathLike[str]) -> Folder:
        """Open a folder below, made if missing; links are refused."""
        own = None if self.descriptor is None else os.dup(self.descriptor)
        here = Folder(self.path, descriptor=own)
        for name in Path(path).parts:
            with here:
                here = here._open_inside(name)
        return here

    def _open_inside(self, name: str) -> Folder:
        try:
            os.mkdir(self._at(name), dir_fd=self.descriptor)
            self.sync()
        except FileExistsError:
            status = self.status(name)
            if status is not None and not stat.S_ISDIR(status.st_mode):
                reason = "not a folder (links are not followed here)"
                raise NotADirectoryError(errno.ENOTDIR, reason, str(self.path / name)) from None
        descriptor = None
        if self.descriptor is not None:
            descriptor = _open_folder(name, self.descriptor)
        return Folder(self.path / name, descriptor=descriptor)

    def lock(self, shared: bool = False) -> bool | None:
        """Lock the folder until closed; return False if another process has it.

        None on systems and file systems without such locks (Windows, some networks).
        """
        return None if self.descriptor is None else _lock(self.descriptor, shared)

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of a name or link; None for nothing."""
        try:
            return os.stat(self._at(name), dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_file(self, name: str) -> bool:
        """Tell whether a name is a regular file's, and no link."""
        status = self.status(name)
        return status is not None and stat.S_ISREG(status.st_mode)

    def open(self, name: str, flags: int = 0) -> BinaryIO:
        """Open a regular file to read and write; `flags` as in os.open."""
        return _open_regular(self._at(name), "r+b", flags | _NO_LINK, self.descriptor)

    def read(self, name: str) -> bytes:
        """Return the content of a regular file, not of a link."""
        with _open_regular(self._at(name), "rb", _NO_LINK, self.descriptor) as file:
            return file.read()

    def open_own(self, name: str) -> BinaryIO:
        """Open a file that is ours alone, a new one if needed.

        What is no regular file goes aside. A file that has other names too (hard links) is copied,
        and the copy takes its place here.
        """
        status = self.status(name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            self.put_aside(name)
        elif status is not None and status.st_nlink > 1:
            with self.open(name) as file:
                self.write(name, lambda copy: _pour(file, copy))
        return self.open(name, os.O_CREAT)

    def put_aside(self, name: str) -> None:
        """Give something another name, which ends in `ASIDE` and is free."""
        other, number = f"{name}{ASIDE}", 1
        while self.status(other) is not None:
            number += 1
            other = f"{name}{ASIDE}-{number}"
        self.rename(name, other)

    def write(
        self,
        name: str,
        write: Callable[[Any], object],
        keep: str | None = None,
        overwrite: bool = True,
    ) -> None:
        """Write a file whole or not at all, as `write_atomically` explains."""
        temporary = f"{_temporary_prefix(name)}{os.urandom(4).hex()}.tmp"
        try:
            with open(temporary, "xb", opener=self._opener) as file:
                write(file)
                file.flush()
                sync(file.fileno())
            if overwrite:
                self._make_way(name, keep)
                self.rename(temporary, name)
            else:
                self._name_anew(temporary, name)
        except BaseException as error:
            with suppress(OSError):
                self.remove(temporary)
            own = (None, *map(self._at, (temporary, name)))
            if isinstance(error, OSError) and error.filename in own:
                error.filename, error.filename2 = str(self.path / name), None
            raise
        self.sync()  # only now is the new name on the disk

    def temporaries(self, *names: str) -> list[str]:
        """List what killed processes left of `write(name, ...)` for these names.

        Without names, of all files; nothing of a folder that cannot be listed.
        """
        prefixes, found = tuple(map(_temporary_prefix, names)), []
        with suppress(OSError):
            for name in os.listdir(self.path if self.descriptor is None else self.descriptor):
                temporary = _TEMPORARY.fullmatch(name)
                if temporary and (not names or temporary[1] in prefixes):
                    found.append(name)
        return found

    def remove_temporaries(self, *names: str) -> None:
        """Remove the files that `temporaries` lists."""
        self.remove_files(self.temporaries(*names))

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove the regular files among these, if possible."""
        for name in names:
            with suppress(OSError):
                if self.is_file(name):
                    self.remove(name)

    def sync(self) -> bool:
        """Fsync the folder's names; return False where that is unsupported."""
        return self.descriptor is None or sync(self.descriptor)

    def _at(self, name: str) -> str:
        return str(self.path / name) if self.descriptor is None else name

    def _opener(self, name: str, flags: int) -> int:
        return os.open(self._at(name), flags | _NO_LINK, 0o666, dir_fd=self.descriptor)

    def rename(self, name: str, other: str) -> None:
        """Give a file another name; what had that name is gone."""
        folder = self.descriptor
        os.replace(self._at(name), self._at(other), src_dir_fd=folder, dst_dir_fd=folder)

    def _link(self, name: str, other: str) -> None:
        folder = self.descriptor
        os.link(self._at(name), self._at(other), src_dir_fd=folder, dst_dir_fd=folder)

    def remove(self, name: str) -> None:
        """Remove a file, if it is still there."""
        with suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self.descriptor)

    def _make_way(self, name: str, keep: str | None) -> None:
        """Rename the file `name` to `keep`; put anything else aside."""
        status = self.status(name)
        if status is None:
            return
        if not stat.S_ISREG(status.st_mode):
            self.put_aside(name)
        elif keep is not None:
            if self.is_file(keep):
                self.remove(keep)
            elif self.status(keep) is not None:
                self.put_aside(keep)
            try:
                self._link(name, keep)
            except OSError:  # no links here: then for an instant the file has the other name alone
                self.rename(name, keep)

    def _name_anew(self, name: str, target: str) -> None:
        """Rename a file to `target`; FileExistsError if something is called so."""
        try:
            self._link(name, target)
        except OSError as error:  # the name is taken, or links are not known here: then look first
            if self.status(target) is not None:
                path = str(self.path / target)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
            self.rename(name, target)
        else:
            self.remove(name)


def write_atomically(
    path: str | os.PathLike[str],
    write: Callable[[Any], object],
    keep: str | os.PathLike[str] | None = None,
    overwrite: bool = True,
) -> None:
    """Call `write(file)` on a temporary file, then rename it to `path`.

    The name ``path`` shows the old content or the whole new one, never a part; the content is on
    the disk (fsync) before the name is, and the name before this returns. On any error before the
    rename the temporary file is removed, the old content stays and the error is raised. With
    ``keep``, a path in the same folder, the old content is then found there. Without ``overwrite``,
    whatever has the name keeps it, and FileExistsError is raised. With it, what has the name and is
    no regular file (a link, a folder, a pipe) is not ours and goes aside: `Folder.put_aside`.
    """
    path = Path(path)
    with Folder(path.parent) as folder:
        folder.write(path.name, write, None if keep is None else Path(keep).name, overwrite)


def _open_regular(
    path: str | os.PathLike[str], mode: str, flags: int = 0, folder: int | None = None
) -> BinaryIO:
    def opener(path: str, own: int) -> int:
        descriptor = os.open(path, own | flags | _AT_ONCE, 0o666, dir_fd=folder)
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISREG(kind):
            return descriptor
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file", str(path))

    return cast(BinaryIO, open(path, mode, opener=opener))


def _open_folder(path: str | os.PathLike[str], within: int | None = None) -> int:
    flags = _FOLDER | (_NO_LINK if within is not None else 0)
    try:
        return os.open(path, flags, dir_fd=within)
    except PermissionError:  # one that may be written to, but not listed
        return os.open(path, flags | getattr(os, "O_PATH", 0), dir_fd=within)


def sync(descriptor: int) -> bool:
    """Fsync an open file or folder; return False where that is unsupported.

    Raises OSError where the disk fails.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        return False
    return True


def _temporary_prefix(name: str) -> str:
    """Return the prefix of temporary names, short enough for 255 bytes."""
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return f".{name}."


def _pour(source: BinaryIO, target: BinaryIO) -> None:
    while piece := source.read(2**20):
        target.write(piece)


NAME = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[FolderLock]:
    """Make `folder` and lock it against other processes.

    The lock goes with the process, however that ends; the empty file `run.lock` stays. Systems
    and file systems that know no such locks do without. Raises ValueError while another process
    holds the lock, OSError where the folder cannot be made.
    """
    make_folder(folder)
    with Folder(folder) as opened:
        lock = FolderLock(opened)
        try:
            if not lock.take():
                raise ValueError(
                    f"another process is at work in {printable(folder)}: wait for it, or give "
                    "another folder"
                )
            yield lock
        finally:
            lock.release()


class FolderLock:
    """Lock on a folder, and on its file `run.lock` where possible.

    The folder cannot be exchanged under the lock, as the file can; but network file systems lock
    files alone.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._lost = False  # once, and for good: what another process wrote meanwhile is its own

    def take(self) -> bool:
        """Return whether the lock is ours now, or was before."""
        if self._lost or self.folder.lock() is False:
            return False
        there = self.folder.status(NAME)
        if self._file is not None and there is not None:
            mine = os.fstat(self._file.fileno())
            if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                return True
        self.release()
        with suppress(OSError):  # something else is called so: then the folder's own lock must do
            self._file = self.folder.open(NAME, os.O_CREAT)
            self._lost = self._lost or _lock(self._file.fileno()) is False
        return not self._lost

    def release(self) -> None:
        """Release the file; the folder's lock ends with the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def where(self) -> Path:
        """Return where the folder is now, to write there.

        Raises FolderLostError where it is gone, or another process has taken the lock meanwhile.
        """
        path = self.folder.where()
        if not self.take():
            raise FolderLostError(
                f"another process is at work in {printable(path)} since its lock was gone"
            )
        return path


def _lock(descriptor: int, shared: bool = False) -> bool | None:
    """Lock an open file or folder, as `Folder.lock` does."""
    try:
        import fcntl

        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # not POSIX, or a file system without such locks
        return None
    return True
