"""Files that are whole or absent, and that cannot run code: `save` and `load`.

A saved object is one safetensors file: the arrays as tensors, the structure around them (dicts,
lists, numbers, strings) as JSON in the header, and a SHA-256 digest over both, because the format
itself has no checksum. https://github.com/huggingface/safetensors describes the container.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinyalex.backends.devices import move, on_gpu
from tinyalex.tensor import Tensor, as_array

FORMAT = "tinyalex-1"
_ARRAY = (
    "\0array"  # marks a place in the JSON where an array belongs; no key of a caller's begins so
)
_FLOAT = "\0float"  # NaN and the infinities, for which JSON has no spelling
_TUPLE = "\0tuple"


class FileError(ValueError):
    """A file that cannot be used: the message names it, says why, and what to do."""


def write_atomically(
    path: str | os.PathLike[str],
    write: Callable[[Any], object],
    keep: str | os.PathLike[str] | None = None,
    overwrite: bool = True,
) -> None:
    """Call ``write(file)`` on a temporary neighbour of ``path``, then rename it into place.

    The name ``path`` shows the old content or the whole new one, never a part; the content is on
    the disk (fsync) before the name is, and the name before this returns. On any error before the
    rename the temporary file is removed, the old content stays and the error is raised. With
    ``keep``, a path in the same folder, the old content is then found there. Without ``overwrite``,
    whatever has the name keeps it, and FileExistsError is raised.
    """
    target = Path(path)
    temporary = target.with_name(f"{_temporary_prefix(target)}{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and target.exists():
            _move_aside(target, Path(keep))
        if overwrite:
            os.replace(temporary, target)
        else:
            _name_anew(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)  # a full disk does not say where
        raise
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, and needs no fsync
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:  # some network file systems cannot; the files themselves are safe
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(folder)


def _temporary_prefix(path: Path) -> str:
    """Return how the names of temporary neighbours begin: with room for the rest in 255 bytes."""
    return f".{os.fsencode(path.name)[:200].decode(errors='ignore')}."


def _name_anew(path: Path, target: Path) -> None:
    """Rename a file to ``target``; FileExistsError if something is called so."""
    try:
        os.link(path, target)
    except OSError as error:  # the name is taken, or links are not known here: then look first
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(path, target)
    else:
        os.unlink(path)


def _move_aside(path: Path, other: Path) -> None:
    """Let ``other`` name the file ``path``, which keeps its own name where links are known."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:  # then for an instant the file has the other name alone
        os.replace(path, other)


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Remove what a process killed inside ``write_atomically(path, ...)`` left beside ``path``."""
    path = Path(path)
    for leftover in path.parent.glob(f"{glob.escape(_temporary_prefix(path))}*.tmp"):
        leftover.unlink(missing_ok=True)


def save(
    obj: Any, path: str | os.PathLike[str], keep: str | os.PathLike[str] | None = None
) -> None:
    """Write ``obj`` to ``path``, whole or not at all; ``keep`` is where the old content goes.

    ``obj`` is built of dicts with string keys, lists, tuples, NumPy arrays, Tensors (saved as
    arrays), int, float, str, bool and None. Raises TypeError for anything else, before a byte is
    written; OSError when the file cannot be written, and then what was there before stays.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    structure = json.dumps(_strip(obj, arrays, "object"), allow_nan=False)
    metadata = {"format": FORMAT, "structure": structure, "sha256": _digest(structure, arrays)}
    header = _header(arrays, metadata)

    def write(file: BinaryIO) -> None:  # array by array: a checkpoint need not fit in memory twice
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8).data)

    write_atomically(path, write, keep)


def load(path: str | os.PathLike[str]) -> Any:
    """Return the object that `save` wrote.

    Raises FileError for a file that is not one of ours, is cut short or has changed by as little as
    a bit; FileNotFoundError and other OSErrors stay themselves.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    content = Path(path).read_bytes()  # read, not mapped: truncating a mapped file kills its reader
    try:
        arrays = from_bytes(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        if metadata["format"] != FORMAT:
            raise FileError(f"{path} has format {metadata['format']!r}, expected {FORMAT!r}")
        structure = metadata["structure"]
        if metadata["sha256"] != _digest(structure, arrays):
            raise FileError(f"{path} is damaged: its content does not match its SHA-256 digest")
        return _fill(json.loads(structure), arrays)
    except FileError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(
            f"{path} is damaged or was not written by tinyalex.save ({reason})"
        ) from error


_KINDS = {"b": "BOOL", "i": "I", "u": "U", "f": "F"}


def _header(arrays: dict[str, np.ndarray[Any, Any]], metadata: dict[str, str]) -> bytes:
    """Return the JSON in front of the arrays: where each lies, its dtype and its shape."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        kind = _KINDS[array.dtype.kind]
        begin, end = end, end + array.nbytes
        entries[name] = {
            "dtype": kind if kind == "BOOL" else f"{kind}{8 * array.itemsize}",
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)  # the format aligns the first array to 8 bytes


def _digest(structure: str, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256(structure.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.flags.c_contiguous else array.tobytes())
    return digest.hexdigest()


def _strip(value: Any, arrays: dict[str, np.ndarray[Any, Any]], place: str) -> Any:
    """Move the arrays of ``value`` into ``arrays``, under their place, and return the JSON rest."""
    if isinstance(value, (Tensor, np.ndarray)) or on_gpu(value):
        value = move(as_array(value), "cpu")
        if value.dtype.kind not in _KINDS or value.dtype.itemsize > 8:
            raise TypeError(f"cannot save {place}: an array of dtype {value.dtype}")
        name = place
        while name in arrays:  # {"a.b": ..., "a": {"b": ...}} has one place twice
            name += "#"
        native = value.dtype.newbyteorder("=")
        arrays[name] = np.asarray(value, dtype=native, order="C")
        return {_ARRAY: name}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, (list, tuple)):
        items = [_strip(item, arrays, f"{place}.{i}") for i, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key.startswith("\0"):
                raise TypeError(f"cannot save {place}: keys must be plain strings, got {key!r}")
        return {key: _strip(item, arrays, f"{place}.{key}") for key, item in value.items()}
    raise TypeError(
        f"cannot save {place}: expected dicts, lists, arrays, numbers, strings or None, "
        f"got {type(value).__name__}"
    )


def _fill(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return [_fill(item, arrays) for item in value]
    if isinstance(value, dict):
        if _ARRAY in value:
            return arrays[value[_ARRAY]]
        if _FLOAT in value:
            return float(value[_FLOAT])
        if _TUPLE in value:
            return tuple(_fill(item, arrays) for item in value[_TUPLE])
        return {key: _fill(item, arrays) for key, item in value.items()}
    return value
