"""Arrays of numbers in .npy files, and in archives of them."""

from __future__ import annotations

import math
import tokenize
from typing import BinaryIO

import numpy as np

from tinyalex.files import DamagedError, FileError, refusing_damage
from tinyalex.interop.stored import MOST_AXES, Stored, row_major

LONGEST_HEADER = 10_000
"""Bytes of a header that NumPy reads without being asked twice."""


def read_npy(file: BinaryIO, size: int, most: int) -> np.ndarray:
    """Return the array of a .npy file of at most `most` numbers."""
    found = stored_array(file, 0, size)
    if math.prod(found.shape) > most:
        raise FileError(f"its array of shape {list(found.shape)} is too large")
    return found.read()


def stored_array(file: BinaryIO, position: int, size: int) -> Stored:
    """Return the array of a .npy file that begins at a position."""
    file.seek(position)
    shape, fortran, dtype = read_header(file)
    begin = file.tell()
    if dtype.kind not in "fiu" or len(shape) > MOST_AXES:
        raise FileError(f"its array of {dtype} has no numbers")
    if begin + math.prod(shape) * dtype.itemsize != position + size:
        raise DamagedError(f"its array of shape {list(shape)} does not fill it")
    strides = row_major(shape[::-1])[::-1] if fortran else row_major(shape)
    order = ">" if dtype.byteorder == ">" else "<"
    return Stored(file, begin, dtype.name, shape, strides, order)


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order and dtype of the array in a .npy file."""
    more = SyntaxError, MemoryError, tokenize.TokenError
    with refusing_damage("its header is none of a .npy file", *more):
        major, _ = np.lib.format.read_magic(file)
        parse = {
            1: np.lib.format.read_array_header_1_0,
            2: np.lib.format.read_array_header_2_0,
        }[major]
        return parse(file, max_header_size=LONGEST_HEADER)
