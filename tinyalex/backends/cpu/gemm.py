"""Matrix product on parts of matrices, from inside a compiled kernel.

``np.dot`` inside Numba wants whole contiguous matrices and cannot add to its result. BLAS itself
takes a distance between rows for each matrix, so a group's channels or a block of pixels are just
a pointer into the full array: nothing is copied out or back. Numba calls BLAS through a symbol of
its own, ``numba_xxgemm``; it is not a public interface, therefore this file is the only one that
knows it, and `np.dot` stands in where a future Numba lacks it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import _helperlib, types
from numba.core.typing.templates import signature

from tinyalex.backends.cpu.runtime import kernel

HAS_STRIDED_BLAS = "xxgemm" in getattr(_helperlib, "c_helpers", {})


@kernel
def _row_stride(matrix):
    # An array with a single row may carry any stride; BLAS wants at least the length of a row.
    return max(matrix.strides[0] // matrix.itemsize, matrix.shape[1], 1)


if HAS_STRIDED_BLAS:
    _xxgemm: Any = types.ExternalFunction(
        "numba_xxgemm",
        signature(  # result; the letter of the type ("s" or "d"), then Fortran's arguments
            types.int32, types.int8, types.int8, types.int8, types.intp, types.intp, types.intp,
            types.voidptr, types.voidptr, types.intp, types.voidptr, types.intp,
            types.voidptr, types.voidptr, types.intp,
        ),
    )  # fmt: skip

    @kernel
    def gemm(a, b, c, transpose_a, transpose_b, accumulate):
        """``c = op(a) @ op(b)``, or ``c += ...`` if ``accumulate``; single-threaded.

        2-D arrays of one dtype whose rows are contiguous; the rows may lie apart.
        """
        letter = np.int8(ord("s")) if c.itemsize == 4 else np.int8(ord("d"))
        flag_a = np.int8(ord("t")) if transpose_a else np.int8(ord("n"))
        flag_b = np.int8(ord("t")) if transpose_b else np.int8(ord("n"))
        depth = a.shape[0] if transpose_a else a.shape[1]
        alpha = np.ones(1, c.dtype)
        beta = np.full(1, 1 if accumulate else 0, c.dtype)
        # Fortran stores by columns and so sees every matrix transposed: c.T = op(b).T @ op(a).T.
        _xxgemm(
            letter, flag_b, flag_a, c.shape[1], c.shape[0], depth,
            alpha.ctypes, b.ctypes, _row_stride(b), a.ctypes, _row_stride(a),
            beta.ctypes, c.ctypes, _row_stride(c),
        )  # fmt: skip

else:

    @kernel
    def gemm(a, b, c, transpose_a, transpose_b, accumulate):
        """``c = op(a) @ op(b)``, or ``c += ...`` if ``accumulate``, by way of copies."""
        left = np.ascontiguousarray(a.T) if transpose_a else np.ascontiguousarray(a)
        right = np.ascontiguousarray(b.T) if transpose_b else np.ascontiguousarray(b)
        product = np.dot(left, right)
        if accumulate:
            c += product
        else:
            c[:] = product
