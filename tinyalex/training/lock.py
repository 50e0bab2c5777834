"""One run at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes that ask for the same out of it.

    The lock goes with the process, however that ends; the empty file `run.lock` stays. Systems
    and file systems that know no such locks do without. Raises ValueError while another process
    holds the lock, OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is at work in {folder}: wait for it, or give another folder"
            ) from None
        except (ImportError, OSError):  # not POSIX, or a file system without locks
            pass
        yield
