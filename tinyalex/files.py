"""Files that are whole or absent and cannot run code: `save`, `load`.

A saved object is one safetensors file: the arrays as tensors, the structure around them (dicts,
lists, numbers, strings) as JSON in the header, and a SHA-256 digest over both, because the format
itself has no checksum. https://github.com/huggingface/safetensors describes the container.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from tinyalex.backends.devices import move, on_gpu
from tinyalex.folders import open_regular, write_atomically
from tinyalex.tensor import Tensor, as_array
from tinyalex.text import printable

FORMAT = "tinyalex-1"

_ARRAY = (
    "\0array"  # marks a place in the JSON where an array belongs; no key of a caller's begins so
)

_FLOAT = "\0float"  # NaN and the infinities, for which JSON has no spelling

_TUPLE = "\0tuple"


class FileError(ValueError):
    """Unusable file; the message names it and says what to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        # `naming` changes the message, and a subclass's __init__ may want more than that.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class DamagedError(FileError):
    """Damaged file, of which another copy may be whole."""


DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
    struct.error,
)
"""Errors that readers meet in values which are not what their place in a file promises."""


@contextmanager
def refusing_damage(told: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what spoilt values raise into DamagedError, with the reason."""
    try:
        yield
    except FileError:
        raise
    except DAMAGE + more as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedError(f"{told} ({reason})") from error


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Begin a FileError's message with the place that it is about."""
    try:
        yield
    except FileError as error:
        error.args = (f"{place}: {error}",)
        raise


def save(
    obj: Any, path: str | os.PathLike[str], keep: str | os.PathLike[str] | None = None
) -> None:
    """Write `obj` to `path` atomically; old content goes to `keep`.

    ``obj`` is built of dicts with string keys, lists, tuples, NumPy arrays, Tensors (saved as
    arrays), int, float, str, bool and None. Raises TypeError for anything else, before a byte is
    written; OSError when the file cannot be written, and then what was there before stays.
    """
    write_atomically(path, writer_of(obj), keep)


def writer_of(obj: Any) -> Callable[[BinaryIO], None]:
    """Return a function that writes `obj` to a file, as `save`."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    structure = json.dumps(_strip(obj, arrays, "object"), allow_nan=False)
    metadata = {"format": FORMAT, "structure": structure, "sha256": _digest(structure, arrays)}
    header = header_of(arrays, metadata)
    if len(header) > LONGEST_HEADER:
        raise ValueError(f"cannot save: besides arrays there are {len(header):,} bytes of JSON")

    def write(file: BinaryIO) -> None:  # array by array: a checkpoint need not fit in memory twice
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8).data)

    return write


def load(path: str | os.PathLike[str], check: Callable[[Any], None] | None = None) -> Any:
    """Return the object that `save` wrote.

    `check(obj)` is called before an array is read, with the object as it will be, but for arrays of
    the right dtypes and shapes that have no values and take no memory; ValueError refuses it.
    Raises FileError for a file that is not one of ours, is cut short or has changed by as little as
    a bit; FileNotFoundError and other OSErrors stay themselves.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    spoilt = f"{printable(path)} is damaged or was not written by tinyalex.save"
    with open_regular(path) as file:
        with refusing_damage(spoilt):
            size = os.fstat(file.fileno()).st_size
            metadata, structure, outlines = _read_header(file, size)
            if metadata["format"] != FORMAT:
                raise FileError(
                    f"{printable(path)} has format {metadata['format']!r}, expected {FORMAT!r}"
                )
            outline = _fill(structure, outlines)
        if check is not None:
            try:
                check(outline)
            except FileError:
                raise
            except ValueError as error:
                raise FileError(f"{printable(path)} cannot be used: {error}") from error
        file.seek(0)  # read, not mapped: truncating a mapped file kills its reader
        content = file.read(size) or b""
    with refusing_damage(spoilt, SafetensorError):
        arrays = from_bytes(content)
        if metadata["sha256"] != _digest(metadata["structure"], arrays):
            raise DamagedError(
                f"{printable(path)} is damaged: its content does not match its SHA-256 digest"
            )
        return _fill(structure, arrays)


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file, perhaps damaged, begins as those of `save`."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8) or b"", "little")
        if file.read(1) != b"{":
            return False
        return json.dumps(FORMAT).encode() in (file.read(min(length, LONGEST_HEADER)) or b"")


def _read_header(
    file: BinaryIO, size: int
) -> tuple[dict[str, str], Any, dict[str, np.ndarray[Any, Any]]]:
    """Return notes, structure and array outlines, which must fill the file."""
    length = int.from_bytes(file.read(8) or b"", "little")
    if not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise ValueError(f"a file of {size} bytes cannot have a header of {length}")
    text = file.read(length) or b""
    entries = json.loads(text)
    # Also what changes nothing but blanks is damage. Old files are from safetensors, without any.
    dense = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
    if text.rstrip(b" ") not in (json.dumps(entries).encode(), dense.encode()):
        raise ValueError("its header is not written as a header is")
    metadata = entries.pop("__metadata__")
    end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    if 8 + length + end != size:
        raise ValueError(f"it has {size} bytes, its header is about {8 + length + end}")
    outlines = {
        name: np.broadcast_to(np.zeros((), _DTYPES[entry["dtype"]]), entry["shape"])
        for name, entry in entries.items()
    }
    return metadata, json.loads(metadata["structure"]), outlines


_KINDS = {"b": "BOOL", "i": "I", "u": "U", "f": "F"}

_DTYPES = {"BOOL": "?"} | {
    f"{_KINDS[kind]}{8 * size}": f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)
}

LONGEST_HEADER = 100_000_000
"""Bytes of a header that safetensors reads."""


def header_of(arrays: dict[str, np.ndarray[Any, Any]], metadata: dict[str, str]) -> bytes:
    """Return the JSON header: place, dtype and shape of each array."""
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
    """Move the arrays of `value` into `arrays`; return the JSON rest."""
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
