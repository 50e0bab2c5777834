"""Fields of protocol buffers in a file, read without their schema.

A message is a row of fields: a number, one of four kinds, and a whole number, four or eight bytes,
or a length and as many bytes (protobuf.dev/programming-guides/encoding). Nothing is read but what
is asked for, every length is held against what holds it, and the fields of a file are counted, so
that no file can take much memory or time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np

from tinyalex.files import DamagedError, FileError
from tinyalex.text import counted

MOST_FIELDS = 100_000
"""Fields that are looked at in one file; a network's have hundreds."""

BLOCK = 2**20
"""Bytes that are read at once where numbers are not packed."""

NAME = 1 << 3 | 2
"""Tag of a first field with a length: the name of Caffe's network."""

LONGEST_TEXT = 1000
"""Bytes of a name."""


class Span(NamedTuple):
    """Content of a field: a message, text or packed numbers."""

    start: int
    end: int


EMPTY = Span(0, 0)
"""Message without fields."""


class Run(NamedTuple):
    """Numbers of `size` bytes in a file, one every `step` bytes."""

    start: int
    length: int
    size: int
    step: int


Value = int | Span | Run
Fields = dict[int, list[Value]]


class Reader:
    """File with a protocol buffer."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.whole = Span(0, size)
        self._left = MOST_FIELDS

    def fields(self, message: Value) -> Fields:
        """Return the values of a message's fields by number, in order.

        Numbers of four or eight bytes that follow each other are one `Run`. Raises FileError for
        what is no message.
        """
        here, end = _span(message)
        found: Fields = {}
        while here < end:
            self._left -= 1
            if self._left < 0:
                raise FileError(f"it has more than {MOST_FIELDS:,} fields")
            begin = here
            tag, here = self._varint(here, end)
            number, kind = tag >> 3, tag & 7
            value: Value
            if kind == 0:
                value, here = self._varint(here, end)
            elif kind == 2:
                length, here = self._varint(here, end)
                if length > end - here:
                    _damaged(
                        f"a field of {counted(length, 'byte')} lies where {end - here} are left"
                    )
                value, here = Span(here, here + length), here + length
            elif kind in (1, 5):
                value = self._run(begin, here, end, 8 if kind == 1 else 4)
                here = begin + value.length * value.step
            else:
                _damaged(f"a field is of the unknown kind {kind}")
            if not 0 < number < 2**29:
                _damaged(f"a field has the number {number}")
            found.setdefault(number, []).append(value)
        return found

    def text(self, value: Value) -> str:
        """Return a text."""
        start, end = _span(value)
        if end - start > LONGEST_TEXT:
            _damaged("a name is too long")
        return self._read(start, end - start).decode("utf-8", "replace")

    def whole_numbers(self, values: list[Value]) -> list[int]:
        """Return whole numbers, packed or not."""
        numbers: list[int] = []
        for value in values:
            if isinstance(value, int):
                numbers.append(value)
                continue
            here, end = _span(value)
            if end - here > LONGEST_TEXT:
                _damaged("a list of whole numbers is too long")
            while here < end:
                number, here = self._varint(here, end)
                numbers.append(number)
        return numbers

    def floats(self, values: list[Value], size: int, count: int | None = None) -> np.ndarray:
        """Return numbers of 4 or 8 bytes, packed or not, as float32.

        Raises FileError, before anything is read, unless there are `count`.
        """
        runs = [self._packed(value, size) for value in values]
        there = sum(run.length for run in runs)
        if count is not None and there != count:
            _damaged(f"{counted(count, 'number is', 'numbers are')} expected, not {there}")
        numbers = np.empty(there, np.float32)
        done = 0
        for run in runs:
            self._fill(numbers[done : done + run.length], run)
            done += run.length
        return numbers

    def _packed(self, value: Value, size: int) -> Run:
        if isinstance(value, Span):
            length = value.end - value.start
            if length % size:
                _damaged(f"numbers of {counted(size, 'byte')} take {counted(length, 'byte')}")
            return Run(value.start, length // size, size, size)
        if not isinstance(value, Run) or value.size != size:
            _damaged("numbers are not of the expected kind")
        return value

    def _fill(self, numbers: np.ndarray, run: Run) -> None:
        """Read a run into an array of float32."""
        if run.size == run.step == 4 and sys.byteorder == "little":
            self.file.seek(run.start)
            if self.file.readinto(numbers.view(np.uint8).data) != numbers.nbytes:  # type: ignore[attr-defined]
                _damaged("it ends too early")
            return
        each = max(1, BLOCK // run.step)
        for first in range(0, run.length, each):
            some = min(each, run.length - first)
            raw = self._records(run.start + first * run.step, some, run.step)
            with np.errstate(over="ignore"):  # an infinity is found where values are checked
                numbers[first : first + some] = (
                    np.ascontiguousarray(raw[:, -run.size :]).view(f"<f{run.size}").ravel()
                )

    def _records(self, start: int, count: int, step: int) -> np.ndarray:
        return np.frombuffer(self._read(start, count * step), np.uint8).reshape(count, step)

    def _run(self, begin: int, here: int, end: int, size: int) -> Run:
        """Return the numbers that have the field which begins at `begin`."""
        step = here - begin + size
        most = (end - begin) // step
        if most < 1:
            _damaged("a number does not end")
        tag = np.frombuffer(self._read(begin, here - begin), np.uint8)
        count, each = 0, 1
        while count < most:
            some = min(each, most - count)
            raw = self._records(begin + count * step, some, step)
            same = (raw[:, : len(tag)] == tag).all(1)
            if not same.all():
                return Run(begin, count + int(same.argmin()), size, step)
            count += some
            each = max(1, BLOCK // step)
        return Run(begin, count, size, step)

    def _varint(self, here: int, end: int) -> tuple[int, int]:
        """Return a whole number, and the place behind it."""
        number, length = _number(self._read(here, min(10, end - here)), 0)
        if number >= 2**64:
            _damaged("a number does not end, or is too large")
        return number, here + length

    def _read(self, start: int, count: int) -> bytes:
        self.file.seek(start)
        read = self.file.read(count)
        if len(read) != count:
            _damaged("it ends too early")
        return read


def begins(head: bytes, kinds: Mapping[int, int]) -> bool:
    """Tell if a file begins with fields of these numbers and kinds.

    There is no mark. A name in the first field must be printable: a text with an empty line in
    front, which begins like that field, has none.
    """
    here = seen = 0
    while here + 1 < len(head):
        tag, here = _number(head, here)
        if kinds.get(tag >> 3) != tag & 7:
            return False
        value, here = _number(head, here)
        name = head[here : here + value] if tag == NAME else b""
        if tag == NAME and (len(name) < value or not name.decode("latin-1").isprintable()):
            return False
        if tag & 7 == 2:
            here += value
            seen += 1
    return seen > 0


def _number(raw: bytes, here: int) -> tuple[int, int]:
    """Return a number of seven bits per byte, and its end."""
    number = 0
    for place, byte in enumerate(raw[here : here + 10]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, here + place + 1
    return 2**64, len(raw)  # it does not end


def _span(value: Value) -> Span:
    if not isinstance(value, Span):
        _damaged("a field is not of the expected kind")
    return value


def _damaged(reason: str) -> NoReturn:
    raise DamagedError(f"its fields are damaged: {reason}")
