"""Tiles of matrix products: all numbers of rows and panels, nothing beyond.

The factors are small integers, so that float32 is exact and one wrong term shows.
"""

import platform
from pathlib import Path

import numba
import numpy as np
import pytest
from helpers import run_python
from llvmlite import binding

from tinyalex.backends import memory
from tinyalex.backends.cpu.microkernel import LANES, ROWS, WIDTH, View, multiply
from tinyalex.backends.cpu.vectors import fence

DEPTHS = (1, 2, 3, 50)
SOME_ROWS = range(1, 2 * ROWS[0] + ROWS[1] + ROWS[2] + 2)  # all pairs of tiles, and every rest
GAP = 3  # numbers around each matrix that must not be used


@numba.njit
def call(a, b, c, rows, columns, depth, accumulate, once=False):
    """Call the microkernel as kernels do, from compiled code."""
    multiply(a, b, c, rows, columns, depth, accumulate, once)
    fence()


def framed(matrix, frame=np.nan):
    """Return a copy of ``matrix`` with a frame around it: NaN spoils every sum that it enters."""
    whole = np.full([n + 2 * GAP for n in matrix.shape], frame, np.float32)
    inside(whole)[...] = matrix
    return whole


def inside(whole):
    """Return the part of a `framed` matrix that is the matrix."""
    return whole[GAP:-GAP, GAP:-GAP]


def view(whole, distance_of_columns=1, transposed=False):
    """Return the View of what `framed` returned; ``transposed``, that of its transpose."""
    length = whole.shape[1]
    steps = (1, length) if transposed else (length, distance_of_columns)
    return View(whole, GAP * length + GAP, *steps)


def in_panels(matrix):
    """Return a right factor as panels [columns / WIDTH, depth, WIDTH], and their View."""
    depth, columns = matrix.shape
    panels = np.full((-(-columns // WIDTH), depth, WIDTH), np.nan, np.float32)
    for column in range(columns):
        panels[column // WIDTH, :, column % WIDTH] = matrix[:, column]
    return View(panels, 0, WIDTH, depth * WIDTH)


def result(matrix):
    """Return a matrix to be overwritten in a frame that is not: NaN in it would show."""
    return framed(matrix, 12345)


RIGHT = {"panels": in_panels, "unpacked": lambda matrix: view(framed(matrix), WIDTH)}


def left(matrix, transposed):
    """Return the View of a left factor, with room for the rows of a whole tile."""
    missing = max(0, ROWS[-1] - len(matrix))
    matrix = np.pad(matrix, ((0, missing), (0, 0)), constant_values=np.nan)
    return view(framed(matrix.T if transposed else matrix), transposed=transposed)


def integers(rng, *shape):
    """Draw small integers."""
    return rng.integers(-9, 10, shape).astype(np.float64)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT.keys())
@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("depth", DEPTHS)
def test_product(rng, depth, vectors, right, transposed):
    """What the result held does not matter, and what lies beyond its rows is left alone."""
    columns = vectors * LANES
    for rows in SOME_ROWS:
        a, b = integers(rng, rows, depth), integers(rng, depth, columns)
        c = result(np.full((max(rows, ROWS[-1]), columns), np.nan))
        call(left(a, transposed), right(b), view(c), rows, columns, depth, False)
        expected = result(inside(c))  # fewer rows than a tile has: the rest of it may be anything
        inside(expected)[:rows] = a @ b
        np.testing.assert_array_equal(c, expected, f"{rows} rows")


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT.keys())
@pytest.mark.parametrize("vectors", [1, 2, 5])
@pytest.mark.parametrize("depth", DEPTHS)
def test_sum_of_products(rng, depth, vectors, right, transposed):
    columns = vectors * LANES
    for rows in SOME_ROWS[ROWS[-1] - 1 :: ROWS[-1]]:
        a, b = integers(rng, rows, depth), integers(rng, depth, columns)
        before = integers(rng, rows, columns)
        c = result(before)
        call(left(a, transposed), right(b), view(c), rows, columns, depth, True)
        np.testing.assert_array_equal(c, result(before + a @ b), f"{rows} rows")


@pytest.mark.parametrize("vectors", [1, 2, 5])
@pytest.mark.parametrize("rows", [ROWS[-1], ROWS[0] + 1, 2 * ROWS[0] + ROWS[1]])
def test_product_past_the_caches(rng, rows, vectors):
    """Stores that need whole vectors: the result, and nothing beside it."""
    a, b = integers(rng, rows, 7), integers(rng, 7, vectors * LANES)
    c = memory.empty((rows + 2, (vectors + 2) * LANES), np.float32)
    c[...] = np.nan
    expected = c.copy()
    expected[1:-1, LANES:-LANES] = a @ b
    target = View(c, c.shape[1] + LANES, c.shape[1], 1)
    call(left(a, False), in_panels(b), target, rows, vectors * LANES, 7, False, True)
    np.testing.assert_array_equal(c, expected)


def test_no_rows_and_no_columns(rng):
    a, b = integers(rng, 4, 5), integers(rng, 5, WIDTH)
    for rows, columns in ((0, WIDTH), (4, 0)):
        c = result(np.ones((4, WIDTH)))
        call(left(a, False), in_panels(b), view(c), rows, columns, 5, False)
        np.testing.assert_array_equal(c, result(np.ones((4, WIDTH))))


def test_nan_and_infinity_stay_in_their_rows_and_columns(rng):
    a, b = integers(rng, ROWS[0], 7), integers(rng, 7, WIDTH)
    a[2, 3], b[4, 5] = np.nan, np.inf
    c = result(np.zeros((ROWS[0], WIDTH)))
    call(left(a, False), in_panels(b), view(c), ROWS[0], WIDTH, 7, False)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(inside(c), a @ b)


OTHER_TILE = """
import sys
import numpy as np
sys.path.insert(0, {support!r})
from convolution import expected, padded, problem, run
from helpers import assert_close
from tinyalex.backends.cpu import linear_weight_grad, microkernel
from tinyalex.backends.cpu.conv import winograd
from tinyalex.backends.cpu.vectors import FAR
assert (microkernel.LANES, microkernel.ROWS) == (8, (6, 4, 2))
arguments = problem(np.random.default_rng(1), 5, 19, (9, 13), 35, 3, padded(1))
y = winograd.forward(*arguments[:3], arguments[4])
assert_close(y, expected(*arguments)["y"])
x, grad = (np.random.default_rng(2).standard_normal((9, n), np.float32) for n in (376, 1400))
assert_close(linear_weight_grad(grad, x), grad.T @ x)
arguments = problem(np.random.default_rng(3), 2, 17, (92, 93), 35, 5, padded(1))
y = winograd.forward(*arguments[:3], arguments[4])
assert_close(y, expected(*arguments)["y"])
assert min(y.size, 376 * 1400) > FAR
print("agrees")
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not binding.get_host_cpu_features()["avx2"],
    reason="needs AVX2",
)
def test_tile_of_a_processor_with_avx2(tmp_path):
    """The one tile of most computers, on those that have AVX-512, too."""
    written = run_python(
        OTHER_TILE.format(support=str(Path(__file__).parents[1] / "support")),
        NUMBA_CPU_NAME="haswell",
        NUMBA_CPU_FEATURES="+avx,+avx2,+fma,+sse4.2,+bmi,+bmi2",
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert written.endswith("agrees\n")
