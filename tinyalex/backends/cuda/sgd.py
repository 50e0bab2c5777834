"""Stochastic gradient descent: all parameters of a network in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.geometry import SGDOptions
from tinyalex.backends.gpu import contiguous, cupy
from tinyalex.backends.types import Array

BLOCK = 256  # threads
CHUNK = 16 * BLOCK  # elements of a block, as in kernels/sgd.cu


class Piece(NamedTuple):
    """The arguments of `sgd_step`: one parameter and how to update it."""

    param: Array
    grad: Array
    velocity: Array | None
    options: SGDOptions


@cache
def _row_type(real: Any) -> np.dtype[Any]:
    """Return the record that is ``struct Piece`` in kernels/sgd.cu."""
    pointers = [(name, np.uint64) for name in ("param", "grad", "velocity")]
    rates = [(name, real) for name in ("lr", "momentum", "share", "decay")]
    numbers = [(name, np.int32) for name in ("count", "first_block", "nesterov", "paper")]
    return np.dtype([*pointers, *rates, *numbers], align=True)


class StepTable:
    """Table in device memory of the update of parameters of one dtype.

    `launch` reads the table when it runs. Recorded into a CUDA graph, it takes new learning rates
    (and everything else but the number and the sizes of the parameters) from the next `fill`::

        table = StepTable([Piece(*update) for update in optimizer.updates()])
        ...                                                                  # record table.launch()
        table.fill([Piece(*update) for update in optimizer.updates()])       # before every replay

    While recording and replaying, gradients must be dense arrays in the order of their parameters:
    those that lie otherwise are copied by `fill`, not by the graph.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.dtype = pieces[0].param.dtype
        self.sizes = [piece.param.size for piece in pieces]
        row = _row_type(self.dtype)
        self._table = cupy().empty(len(pieces) * row.itemsize // 8, np.uint64)
        self._kept: list[Array] = []  # what the table's pointers point to
        self._copied: list[tuple[Array, Array]] = []
        self.fill(pieces)

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Describe the update anew; ValueError for other sizes or dtypes."""
        if [piece.param.size for piece in pieces] != self.sizes or any(
            array is not None and array.dtype != self.dtype
            for piece in pieces
            for array in piece[:3]
        ):
            raise ValueError(
                f"the table was made for {self.dtype} parameters of {self.sizes} elements"
            )
        self._kept, self._copied = [], []
        self._blocks = 0
        rows = []
        for piece in pieces:
            rows.append(self._row(piece))
            self._blocks += -(-piece.param.size // CHUNK)
        table = np.array(rows, _row_type(self.dtype)).view(np.uint64)
        self._table[...] = cupy().asarray(table)  # .set() would wait

    def _row(self, piece: Piece) -> tuple[float, ...]:
        """Return what `_row_type` has room for, in its order."""
        order = _memory_order(piece.param)
        pointers = [self._pointer(piece, name, order) for name in ("param", "grad", "velocity")]
        lr, momentum, dampening, weight_decay, nesterov, form = piece.options
        plain = piece.velocity is None
        rates = lr, *((0, 1) if plain else (momentum, 1 - dampening)), weight_decay
        forms = nesterov and not plain, form == "paper"
        return (*pointers, *rates, piece.param.size, self._blocks, *forms)

    def _pointer(self, piece: Piece, name: str, order: tuple[int, ...]) -> int:
        if (array := getattr(piece, name)) is None:
            return 0
        array = array.transpose(order)
        dense = contiguous(array)
        self._kept.append(dense)
        if name != "grad" and dense.data.ptr != array.data.ptr:
            self._copied.append((array, dense))
        return int(dense.data.ptr)

    def launch(self, halted: Array | None = None) -> None:
        """Update all parameters and velocities in place.

        Not where `halted`, int32 on the device, begins with anything but 0 when the kernel runs.
        """
        entry = f"sgd_steps<{type_name(self.dtype)}>"
        launch("sgd.cu", entry, (self._blocks,), (BLOCK,), (self._table, len(self.sizes), halted))
        for array, dense in self._copied:  # those with gaps between their elements
            array[...] = dense


def sgd_steps(updates: Sequence[tuple[Any, ...]]) -> None:
    """Run `sgd_step` for each of these argument tuples: one launch per dtype."""
    pieces = [Piece(*update) for update in updates]
    for dtype in {piece.param.dtype: None for piece in pieces}:
        StepTable([piece for piece in pieces if piece.param.dtype == dtype]).launch()


def sgd_step(param: Array, grad: Array, velocity: Array | None, options: SGDOptions) -> None:
    """Update ``param`` w and ``velocity`` v in place by the gradient g.

    form "torch":  ``g += decay w;  v = momentum v + (1 - dampening) g;  w -= lr v``, or with
    nesterov ``w -= lr (g + momentum v)``.
    form "paper" (section 5):  ``v = momentum v - decay lr w - lr g;  w += v``.
    """
    sgd_steps([(param, grad, velocity, options)])


def _memory_order(array: Array) -> tuple[int, ...]:
    """Return the axes in memory order: as they are, or channels last."""
    if array.ndim == 4 and not array.flags.c_contiguous:
        return 0, 2, 3, 1
    return tuple(range(array.ndim))
