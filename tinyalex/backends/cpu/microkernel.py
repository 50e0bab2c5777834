"""Inner loop of matrix products: a tile of the result in registers.

A library's matrix product first copies both factors into an order of its own. Our factors are
small, many, and made by ourselves: they are made in the right order at once, and nothing is copied
(docs/cpu.md measures what that brings).

For ``c = a @ b`` a tile of 12 rows and 32 columns of c is 24 registers of 16 numbers. Step k loads
32 numbers of row k of b, and twelve times one number of a, which multiplies all 32: 768 products
and additions for 14 loads. The scheme is Goto's (Goto and van de Geijn: Anatomy of High-Performance
Matrix Multiplication, 2008). Compilers do not find it in loops over single numbers; therefore the
tile is written in LLVM's own instructions, which know vectors and run on any processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from numba import types
from numba.extending import intrinsic

from tinyalex.backends.cpu.runtime import kernel
from tinyalex.backends.cpu.vectors import (
    FUSED,
    HAS_AVX512,
    INTEGER,
    LANES,
    VECTOR,
    address,
    constant,
    element,
    load,
    pointer,
    prefetch,
    repeat,
    spread,
    store,
    stream,
)
from tinyalex.backends.types import Array

ROWS = (12, 8, 4) if HAS_AVX512 else (6, 4, 2)  # of the tiles there are
WIDTH = 2 * LANES  # the columns of a panel of b


class View(NamedTuple):
    """A float32 matrix within an array: element (i, j) is at ``start + i * row + j * column``.

    Of a left factor both may be any distance. The right factor and the result have columns that
    lie side by side; the right factor's ``column`` is the distance of panels of `WIDTH` columns.
    """

    array: Array
    start: int
    row: int
    column: int


Cells = list[tuple[int, int]]  # of a tile: its rows and vectors


def _add_products(
    builder: Any, cells: Cells, factors: Sequence[Any], begin: Sequence[Any]
) -> Sequence[Any]:
    """Build the loop that adds products to vectors, ``begin``."""
    a, a_row, a_column, b, b_row, b_panel, depth = factors
    a, b = (pointer(builder, address) for address in (a, b))
    rows, vectors = (last + 1 for last in cells[-1])
    # One pointer for every four rows: a single one would make each load wait for the last.
    starts = [element(builder, a, (i, a_row)) for i in range(0, rows, 4)]

    def step(index: Any, values: Sequence[Any]) -> list[Any]:
        line, columns, sums = values[0], values[1 : 1 + len(starts)], values[1 + len(starts) :]
        right = [load(builder, element(builder, line, (j, LANES))) for j in range(vectors)]
        for j in range(vectors):  # the next panel will be here in time
            prefetch(builder, element(builder, line, (1, b_panel), (j, LANES)))
        numbers = [element(builder, columns[i // 4], (i % 4, a_row)) for i in range(rows)]
        left = [spread(builder, builder.load(place)) for place in numbers]
        products = [builder.fmul(left[i], right[j], flags=FUSED) for i, j in cells]
        totals = [builder.fadd(p, s, flags=FUSED) for p, s in zip(products, sums, strict=True)]
        next_columns = [element(builder, column, (1, a_column)) for column in columns]
        return [element(builder, line, (1, b_row)), *next_columns, *totals]

    return repeat(builder, depth, [b, *starts, *begin], step)[1 + len(starts) :]


def _put(builder: Any, once: Any, totals: Sequence[Any], places: Sequence[Any]) -> None:
    """Store vectors, or ``once``, past the caches."""
    with builder.if_else(once) as (past_the_caches, into_them):
        with past_the_caches:
            for place, total in zip(places, totals, strict=True):
                stream(builder, total, place)
        with into_them:
            for place, total in zip(places, totals, strict=True):
                store(builder, total, place)


def _tile(rows: int, vectors: int) -> Callable[..., None]:
    """Return code for a result tile of ``rows`` rows and ``vectors * LANES`` columns."""
    cells = [(i, j) for i in range(rows) for j in range(vectors)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *ab, c, c_row, depth, accumulate, once = arguments
        c = pointer(builder, c)
        results = [element(builder, c, (i, c_row), (j, LANES)) for i, j in cells]

        # The sums begin with zero, or with what the result holds.
        empty = builder.block
        with builder.if_then(accumulate):
            before = [load(builder, place) for place in results]
            for i, j in cells:  # the tile below is the next
                prefetch(builder, element(builder, c, (rows + i, c_row), (j, LANES)))
            filled = builder.block
        begin = [builder.phi(VECTOR) for _ in cells]
        for phi, value in zip(begin, before, strict=True):
            phi.add_incoming(constant(0.0), empty)
            phi.add_incoming(value, filled)

        _put(builder, once, _add_products(builder, cells, [*ab, depth], begin), results)
        return context.get_dummy_value()

    @intrinsic
    def tile(
        typing: Any, a: Any, a_row: Any, a_column: Any, b: Any, b_row: Any, b_panel: Any, c: Any,
        c_row: Any, depth: Any, accumulate: Any, once: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.intp] * 9, types.boolean, types.boolean), generate

    return tile


def _term(rows: int, vectors: int) -> Callable[..., None]:
    """Return code for a tile of a term of `add_terms`.

    It computes c = sums[-additions] + (... + (sums[-1] + a @ b)), where ``sums`` are tiles of
    `TERM` numbers, counted from their end.
    """
    cells = [(i, j) for i in range(rows) for j in range(vectors)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *ab, c, c_row, depth, sums, additions, once = arguments
        c, sums = (pointer(builder, address) for address in (c, sums))
        results = [element(builder, c, (i, c_row), (j, LANES)) for i, j in cells]
        product = _add_products(builder, cells, [*ab, depth], [constant(0.0)] * len(cells))

        def add(index: Any, values: Sequence[Any]) -> list[Any]:
            place = element(builder, values[0], (1, -TERM))
            before = [load(builder, element(builder, place, (k, LANES))) for k in range(len(cells))]
            return [place, *map(builder.fadd, before, values[1:])]

        alone = builder.block
        with builder.if_then(builder.icmp_signed(">", additions, INTEGER(0))):
            added = repeat(builder, additions, [sums, *product], add)[1:]
            summed = builder.block
        totals = [builder.phi(VECTOR) for _ in cells]
        for phi, *values in zip(totals, product, added, strict=True):
            for value, block in zip(values, (alone, summed), strict=True):
                phi.add_incoming(value, block)
        _put(builder, once, totals, results)
        return context.get_dummy_value()

    @intrinsic
    def term(
        typing: Any, a: Any, a_row: Any, a_column: Any, b: Any, b_row: Any, b_panel: Any, c: Any,
        c_row: Any, depth: Any, sums: Any, additions: Any, once: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.intp] * 11, types.boolean), generate

    return term


_tile_1x1, _tile_1x2 = _tile(ROWS[0], 1), _tile(ROWS[0], 2)
_tile_2x1, _tile_2x2 = _tile(ROWS[1], 1), _tile(ROWS[1], 2)
_tile_3x1, _tile_3x2 = _tile(ROWS[2], 1), _tile(ROWS[2], 2)
_large_term, _small_term = _term(ROWS[0], 2), _term(ROWS[-1], 1)
TERM = ROWS[0] * WIDTH


@kernel
def _rectangle(
    a, a_row, a_column, b, b_row, b_panel, c, c_row, depth, accumulate, once, rows, wide
):
    """Compute the largest tile of at most ``rows`` rows; return its rows.

    With fewer rows than the smallest tile has, it is that one.
    """
    if rows >= ROWS[0]:
        if wide:
            _tile_1x2(a, a_row, a_column, b, b_row, b_panel, c, c_row, depth, accumulate, once)
        else:
            _tile_1x1(a, a_row, a_column, b, b_row, b_panel, c, c_row, depth, accumulate, once)
        return ROWS[0]
    if rows >= ROWS[1]:
        if wide:
            _tile_2x2(a, a_row, a_column, b, b_row, b_panel, c, c_row, depth, accumulate, once)
        else:
            _tile_2x1(a, a_row, a_column, b, b_row, b_panel, c, c_row, depth, accumulate, once)
        return ROWS[1]
    if wide:
        _tile_3x2(a, a_row, a_column, b, b_row, b_panel, c, c_row, depth, accumulate, once)
    else:
        _tile_3x1(a, a_row, a_column, b, b_row, b_panel, c, c_row, depth, accumulate, once)
    return ROWS[2]


@kernel
def multiply(a, b, c, rows, columns, depth, accumulate, once=False):
    """``c = a @ b``, or ``c += a @ b`` if ``accumulate``; three views, ``depth`` at least 1.

    With ``once`` the result is written past the caches (`vectors.stream`). Its rows must begin at
    multiples of a vector, and the task must end with a `vectors.fence`.

    ``columns`` must be a multiple of `LANES`; where ``accumulate`` is set, ``rows`` must be a
    multiple of ``ROWS[-1]``. If rows is not, the last tile reaches back into rows that are done
    already, or, where there are none, beyond the end: a and c need room for ``ROWS[-1]`` rows.
    """
    for first in range(0, columns, WIDTH):
        panel = address(b.array, b.start + first // WIDTH * b.column)
        wide = first + WIDTH <= columns
        i = 0
        while i < rows:
            rest = rows - i
            if rest < ROWS[2]:
                i = max(0, rows - ROWS[2])
            source = address(a.array, a.start + i * a.row)
            target = address(c.array, c.start + i * c.row + first)
            height = _rectangle(
                source, a.row, a.column, panel, b.row, b.column, target, c.row, depth, accumulate,
                once, rest, wide,
            )  # fmt: skip
            i += height


@kernel
def add_terms(a, b, c, rows, columns, ends, additions, sums, once):
    """``c = sum of a[:, i:j] @ b[i:j]`` over neighbours i, j of ``ends``, added in a tree.

    After term k, the last ``additions[k]`` of the sums that are still apart are added to it, one to
    the next; ``sums`` has room for `TERM` numbers of each that is. ``rows`` must be a multiple of
    ``ROWS[-1]``; for ``columns`` and ``once`` see `multiply`.
    """
    for first in range(0, columns, WIDTH):
        i = 0
        while i < rows:
            large = rows - i >= ROWS[0] and first + WIDTH <= columns
            width = WIDTH if large else LANES
            for column in range(first, min(columns, first + WIDTH), width):
                panel = b.start + first // WIDTH * b.column + column - first
                result = address(c.array, c.start + i * c.row + column)
                apart = 0
                for k in range(additions.size):
                    begin, depth = ends[k], ends[k + 1] - ends[k]
                    source = address(a.array, a.start + i * a.row + begin * a.column)
                    right = address(b.array, panel + begin * b.row)
                    last = k + 1 == additions.size
                    before = address(sums, apart * TERM)
                    apart -= additions[k]
                    target = result if last else address(sums, apart * TERM)
                    distance = c.row if last else width
                    if large:
                        _large_term(
                            source, a.row, a.column, right, b.row, b.column, target, distance,
                            depth, before, additions[k], last and once,
                        )  # fmt: skip
                    else:
                        _small_term(
                            source, a.row, a.column, right, b.row, b.column, target, distance,
                            depth, before, additions[k], last and once,
                        )  # fmt: skip
                    apart += 1
            i += ROWS[0] if large else ROWS[-1]
