"""Variables in MATLAB's files of version 5, which save writes unless told otherwise.

An element is a tag (type and length) and as many bytes, an array a row of elements: its class, its
shape, its name, its values ("MAT-File Format", MathWorks). SciPy reads these files as well, but a
damaged one can end the process there. Here every length is held against what holds it; objects and
functions are skipped, and nothing of a file is ever run.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, BinaryIO, NoReturn

import numpy as np

from tinyalex.files import DamagedError, FileError

HEADER = 128
DTYPES = {
    **{1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"},
    **{12: "<i8", 13: "<u8", 16: "u1", 17: "<u2", 18: "<u4"},
}
"""Types of numbers and characters."""

MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, TEXT, NUMBERS, OPAQUE = 1, 2, 4, range(6, 16), 17
"""Classes of arrays."""

COMPLEX = 0x800
MOST_ARRAYS = 100_000
DEEPEST = 12
LONGEST_TEXT = 10_000
BLOCK, PACKED = 2**20, 2**14
"""Numbers, and packed bytes, that are read at once."""

Value = Any
"""Float32 array, text, list of a cell's values, dict of a struct's (list of several); or None."""


def read_variables(file: BinaryIO, size: int) -> dict[str, Value]:
    """Return the variables of a file by name; raise FileError for others."""
    head = file.read(HEADER)
    if head.startswith(b"MATLAB 7.3"):
        raise FileError("it is of MATLAB's version 7.3, which is HDF5: save it with '-v7'")
    if len(head) < HEADER or head[124:128] != b"\0\1IM":
        raise FileError("it is no little-endian MATLAB file of version 5")
    source = _Source(file, size - HEADER)
    most = 4 * size + 2**26
    reader = _Reader(most)
    variables: dict[str, Value] = {}
    while source.left:
        kind, length = source.tag()
        if kind == COMPRESSED:
            inner = _Inflated(source.part(length), most)
            variables.update([reader.variable(inner, *inner.tag())])
            source.skip(length)
        else:
            variables.update([reader.variable(source, kind, length)])
    return variables


class _Source:
    """Rest of a file, or of a part of it."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self.file, self.left = file, left
        self.end = file.tell() + left

    def read(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self.left:
            _damaged()
        self.left -= count
        raw = self.file.read(count)
        if len(raw) != count:
            _damaged()
        return raw

    def skip(self, count: int) -> None:
        """Leave bytes out."""
        if count > self.left:
            _damaged()
        self.left -= count
        self.file.seek(self.end - self.left)

    def part(self, count: int) -> _Source:
        """Return the next bytes as a source of their own."""
        if count > self.left:
            _damaged()
        return _Source(self.file, count)

    def tag(self) -> tuple[int, int]:
        """Return the type and length of the next large element."""
        raw = np.frombuffer(self.read(8), "<u4")
        return int(raw[0]), int(raw[1])

    def small(self) -> tuple[str, bytes]:
        """Return the dtype and the bytes of the next short element."""
        kind, length, inside = self.numbers()
        raw = inside if inside is not None else self.read(_whole(length, LONGEST_TEXT))
        if inside is None:
            self.padding(length)
        return DTYPES[kind], raw

    def numbers(self) -> tuple[int, int, bytes | None]:
        """Return type, length and perhaps the bytes of the next element."""
        raw = self.read(8)
        kind, length = (int(x) for x in np.frombuffer(raw, "<u4"))
        inside = None
        if kind >> 16:
            kind, length = kind & 0xFFFF, kind >> 16
            inside = raw[4 : 4 + _whole(length, 4)]
        if kind not in DTYPES or length % np.dtype(DTYPES[kind]).itemsize:
            _damaged()
        return kind, length, inside

    def padding(self, length: int) -> None:
        """Leave out what fills an element up to a multiple of 8 bytes."""
        self.skip(min(-length % 8, self.left))


class _Inflated(_Source):
    """Compressed part of a file, unpacked while it is read."""

    def __init__(self, packed: _Source, most: int) -> None:
        self.packed, self.left = packed, most
        self.unpacker = zlib.decompressobj()
        self.ready = b""

    def read(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self.left:
            raise FileError("it is packed more densely than weights can be")
        self.left -= count
        parts = [self.ready[:count]]
        self.ready = self.ready[count:]
        missing = count - len(parts[0])
        try:
            while missing:
                raw = self.unpacker.unconsumed_tail
                raw = raw or self.packed.read(min(PACKED, self.packed.left))
                got = self.unpacker.decompress(raw, max(missing, 4096))
                if not got and (self.unpacker.eof or not (raw or self.packed.left)):
                    _damaged()
                parts.append(got[:missing])
                self.ready = got[missing:]
                missing -= len(parts[-1])
        except zlib.error as error:
            raise DamagedError("its compressed part is damaged") from error
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Leave bytes out."""
        for start in range(0, count, BLOCK):
            self.read(min(BLOCK, count - start))


class _Reader:
    """Arrays of a file, counted."""

    def __init__(self, most: int) -> None:
        self.arrays, self.bytes = MOST_ARRAYS, most

    def variable(self, source: _Source, kind: int, length: int) -> tuple[str, Value]:
        """Return the name and the value of an array behind its tag."""
        if kind != MATRIX:
            _damaged()
        return self.array(source, length, 0)

    def array(self, source: _Source, length: int, depth: int) -> tuple[str, Value]:
        """Return the name and the value of an array of `length` bytes."""
        self.arrays -= 1
        if self.arrays < 0 or depth > DEEPEST:
            raise FileError(f"it has more than {MOST_ARRAYS:,} arrays, or too deep ones")
        if length == 0:
            return "", np.empty(0, np.float32)
        end = _end(source, length)
        _, raw = source.small()
        flags = int(np.frombuffer(raw[:4], "<u4")[0]) if len(raw) == 8 else 0
        kind = flags & 0xFF
        name = ""
        value: Value = None
        if kind not in (0, OPAQUE):
            dtype, raw = source.small()
            shape = tuple(int(size) for size in np.frombuffer(raw, dtype))
            if not 2 <= len(shape) <= 8 or min(shape) < 0:
                _damaged()
            name = source.small()[1].decode("latin-1")
            count = math.prod(shape)
            if flags & COMPLEX:
                value = None
            elif kind == TEXT:
                value = self._text(source)
            elif kind in NUMBERS:
                value = self._numbers(source, shape)
            elif kind == CELL:
                value = [self._element(source, depth) for _ in range(self._count(count))]
            elif kind == STRUCT:
                value = self._struct(source, count, depth)
        rest = source.left - end
        if rest < 0:
            _damaged()
        source.skip(rest)
        return name, value

    def _element(self, source: _Source, depth: int) -> Value:
        kind, length = source.tag()
        if kind != MATRIX:
            _damaged()
        return self.array(source, length, depth + 1)[1]

    def _struct(self, source: _Source, count: int, depth: int) -> Value:
        width = int(np.frombuffer(source.small()[1][:4], "<i4")[0])
        raw = source.small()[1]
        if not 0 < width <= 64 or len(raw) % width:
            _damaged()
        names = [
            raw[start : start + width].split(b"\0")[0].decode("latin-1")
            for start in range(0, len(raw), width)
        ]
        self._count(count * max(1, len(names)))
        found = [
            {name: self._element(source, depth) for name in names}
            for _ in range(count if names else 1)  # without names, there are no bytes
        ]
        return found[0] if len(found) == 1 else found

    def _count(self, count: int) -> int:
        """Return a number of elements that a file may have."""
        return _whole(count, self.arrays)

    def _text(self, source: _Source) -> str:
        dtype, raw = source.small()
        encoding = {"u1": "utf-8", "<u2": "utf-16-le", "<u4": "utf-32-le"}.get(dtype, "latin-1")
        return raw.decode(encoding, "replace")

    def _numbers(self, source: _Source, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of numbers as float32, first axis fastest."""
        kind, length, inside = source.numbers()
        dtype = np.dtype(DTYPES[kind])
        if length != math.prod(shape) * dtype.itemsize or (inside is None and length > source.left):
            _damaged()
        self.bytes -= 4 * math.prod(shape)
        if self.bytes < 0:
            raise FileError("it is packed more densely than weights can be")
        numbers = np.empty(length // dtype.itemsize, np.float32)
        if inside is not None:
            numbers[:] = np.frombuffer(inside, dtype)
        else:
            for start in range(0, len(numbers), BLOCK):
                piece = numbers[start : start + BLOCK]
                with np.errstate(over="ignore"):  # what is too large is refused as not finite
                    piece[:] = np.frombuffer(source.read(len(piece) * dtype.itemsize), dtype)
            source.padding(length)
        return numbers.reshape(shape, order="F")


def _end(source: _Source, length: int) -> int:
    """Return the bytes that are left of a source behind so many."""
    if length > source.left:
        _damaged()
    return source.left - length


def _whole(number: int, most: int) -> int:
    if not 0 <= number <= most:
        _damaged()
    return number


def _damaged() -> NoReturn:
    raise DamagedError("its arrays are damaged")
