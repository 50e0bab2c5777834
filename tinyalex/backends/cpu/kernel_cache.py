"""Numba's cache of compiled kernels, each file checked before it is read.

Numba keeps machine code beside the source, in ``__pycache__``; where that cannot be written, in the
user's cache (``~/.cache/numba``), or in ``NUMBA_CACHE_DIR``. It unpickles what it finds there: a
file cut by a full disk fails every process from then on, and one by another user may do anything.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

from tinyalex.backends.cpu.compiling import say_once

SEAL = hashlib.sha256().digest_size
AGAIN, ALWAYS = "kernels are compiled again", "every process compiles them"


class KernelCache(FunctionCache):
    """Numba's cache of one function; an unusable file is never an error.

    A file counts if it is this user's, root's or of the owner of the source, and whole; another is
    removed, and the kernel compiled again. Where none can be written, every process compiles.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        name = f"sealed-{self._impl.filename_base}"  # not the names of Numba's own files
        stamp = self._impl.locator.get_source_stamp()
        files = self._cache_file = _SealedFile(self.cache_path, name, stamp)
        files.owners = {0, os.stat(inspect.getfile(function)).st_uid, getattr(os, "geteuid", int)()}

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a kernel from the disk, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # whole, but not for the libraries that are here now
            say_once(f"a kernel in {self.cache_path} is of no use here ({error})", AGAIN)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a kernel, if the disk takes it."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            reason = error.strerror or error
            say_once(f"kernels cannot be kept in {self.cache_path} ({reason})", ALWAYS)


class _SealedFile(IndexDataCacheFile):
    """Files that end with the SHA-256 of all before.

    Each kernel is kept together with what it is for: two processes that compile different ones at
    the same time may give them the same name, and one that is killed may leave an index beside the
    kernel of another source.
    """

    owners: set[int]

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, self._source_stamp, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        return found[2] if found and found[:2] == (key, self._source_stamp) else None

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(path) as file:
            file.write(content.getvalue() + hashlib.sha256(content.getbuffer()).digest())

    def _load_index(self) -> dict[Any, str]:
        if not self._may_be_read(self._index_path):
            return {}
        try:
            return super()._load_index()
        except Exception:  # whole, but it names types of another version, which are gone
            return {}

    def _load_data(self, name: str) -> Any:
        path = self._data_path(name)
        if not self._may_be_read(path):
            raise FileNotFoundError(path)
        return super()._load_data(name)

    def _may_be_read(self, path: str) -> bool:
        """Return whether a file is sound or missing; remove it if spoilt."""
        try:
            kept = os.stat(path)
            if not stat.S_ISREG(kept.st_mode):
                reason = "is not a regular file"
            elif kept.st_uid not in self.owners:
                reason = "belongs to another user"
            else:
                with open(path, "rb") as file:
                    content = file.read()
                if content[-SEAL:] == hashlib.sha256(content[:-SEAL]).digest():
                    return True
                reason = "is damaged"
        except FileNotFoundError:
            return True
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        with suppress(OSError):
            os.unlink(path)
        say_once(f"{path} {reason}", AGAIN)
        return False
