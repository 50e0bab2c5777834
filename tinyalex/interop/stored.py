"""Arrays that still lie in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from tinyalex.files import DamagedError, FileError

PIECE = 2**20
"""Numbers that are read and converted at a time."""

MOST_AXES = 16
"""Axes of an array in a file."""

FLOATS = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}
"""Dtypes that weights may have, and how they are read."""


@dataclass(frozen=True)
class Stored:
    """Array in a file, read when it is needed.

    `position` is the first number's place in bytes, `strides` count numbers. Whoever makes one has
    made sure that all of it lies in the file.
    """

    file: BinaryIO
    position: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    byte_order: str = "<"

    def read(self) -> np.ndarray:
        """Return the array as float32; raise FileError for numbers that are none."""
        if self.dtype not in FLOATS:
            raise FileError(f"its dtype {self.dtype} is not one of {', '.join(FLOATS)}")
        # From the widest step to the narrowest, an array without gaps is one run of numbers.
        order = sorted(range(len(self.shape)), key=lambda i: (-self.strides[i], self.shape[i] == 1))
        dense = tuple(self.shape[i] for i in order)
        if _same(dense, tuple(self.strides[i] for i in order)):
            numbers = self._run(math.prod(dense)).reshape(dense)
            return numbers.transpose(np.argsort(order)) if order else numbers
        numbers = self._run(extent(self.shape, self.strides))
        steps = [step * numbers.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, steps).copy()

    def _run(self, count: int) -> np.ndarray:
        """Return so many numbers from the file."""
        kind = np.dtype(self.byte_order + FLOATS[self.dtype])
        numbers = np.empty(count, np.float32)
        self.file.seek(self.position)
        if kind == numbers.dtype:
            if self.file.readinto(numbers.view(np.uint8).data) != numbers.nbytes:  # type: ignore[attr-defined]
                raise DamagedError("it ends in the middle of an array")
            return numbers
        for start in range(0, count, PIECE):
            piece = numbers[start : start + PIECE]
            raw = self.file.read(kind.itemsize * len(piece))
            if len(raw) != kind.itemsize * len(piece):
                raise DamagedError("it ends in the middle of an array")
            values = np.frombuffer(raw, kind)
            if self.dtype == "bfloat16":  # the upper half of a float32
                piece.view(np.uint32)[:] = values.astype(np.uint32) << 16
            else:
                with np.errstate(over="ignore"):  # what is too large is refused as not finite
                    piece[:] = values
        return numbers


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of an array without gaps, in numbers."""
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many numbers lie between an array's first and its end."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))


def _same(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether these are the strides of an array without gaps."""
    pairs = zip(shape, strides, row_major(shape), strict=True)
    return 0 in shape or all(size == 1 or step == dense for size, step, dense in pairs)
