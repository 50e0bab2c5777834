"""Winograd's convolution: matrices, edges of tiles, and when it is chosen."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from convolution import assert_chosen, assert_right, expected, padded, problem, run
from helpers import LAYOUTS, assert_close

import tinyalex.threads
from tinyalex.backends.cpu.conv import choose, im2col, winograd
from tinyalex.backends.cpu.conv import winograd_transforms as transforms
from tinyalex.backends.cpu.conv.winograd_tiles import lay_out
from tinyalex.backends.cpu.vectors import FAR, LANES
from tinyalex.backends.geometry import ConvOptions

TAPS = sorted(transforms.PAIRS)


# --- transforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", TAPS)
def test_matrices_give_a_convolution(taps):
    """For all unit vectors d and w, in exact arithmetic: y[i] = sum over j of d[i + j] w[j]."""
    exact = np.vectorize(lambda value: Fraction(value).limit_denominator(10**6), otypes=[object])
    B, A, G = (exact(matrix) for matrix in transforms.matrices(taps))
    for a, b in product(range(len(B)), range(taps)):
        y = A @ (G[:, b] * B[:, a])
        assert list(y) == [int(a == i + b) for i in range(transforms.TILE)]


@pytest.mark.parametrize("taps", TAPS)
def test_transforms_are_the_matrices(taps):
    B, A, G = (matrix.astype(np.float32) for matrix in transforms.matrices(taps))
    for matrix, transform in (
        (B, transforms.input_transform),
        (A, transforms.output_transform),
        (A.T, transforms.gradient_transform),
        (G, transforms.weight_transform),
        (G.T, transforms.weight_gradient_transform),
    ):
        rows, columns = matrix.shape
        unit = np.zeros((columns, 2 * LANES), np.float32)
        unit[:, :columns] = np.eye(columns)
        result = np.full((rows + 1, 3 * LANES), np.nan, np.float32)
        transform(len(B), unit, 0, 2 * LANES, result, LANES, 3 * LANES, 2 * LANES)
        # One column after the other of the matrix, and nothing written beside it.
        np.testing.assert_array_equal(result[:rows, LANES : LANES + columns], matrix)
        assert not result[:rows, LANES + columns :].any()
        assert np.isnan(result[:rows, :LANES]).all()
        assert np.isnan(result[rows]).all()


# --- convolution ----------------------------------------------------------------------------------

CASES = {
    # N, C, (H, W), K, padding, groups
    "13x13": (1, 16, (13, 13), 16, padded(1), 1),
    "four 13x13 on a canvas": (4, 3, (13, 13), 5, padded(1), 1),
    "canvas with an empty place": (7, 3, (13, 13), 5, padded(1), 1),
    "two across": (3, 2, (8, 6), 3, padded(0), 1),
    "27x27": (2, 5, (27, 27), 7, padded(2), 1),
    "17 channels": (2, 17, (5, 7), 19, padded(0), 1),
    "groups": (3, 6, (6, 9), 10, padded(1), 2),
    "a group per channel": (2, 4, (6, 6), 8, padded(1), 4),
    "34 and 38 channels in two groups": (2, 34, (5, 7), 38, padded(1), 2),
    "more than a panel in three groups": (1, 9, (5, 6), 3 * (2 * LANES + 3), padded(1), 3),
    "one output": (3, 4, (5, 5), 6, padded(0), 1),
    "asymmetric": (2, 3, (6, 9), 4, padded(2, 0, 1, 3), 1),
    "full": (2, 3, (4, 5), 4, padded(4), 1),
    "more than full": (2, 3, (3, 4), 4, padded(7, 5, 6, 8), 1),
    "one pixel": (5, 3, (1, 1), 4, padded(5), 1),
    "no image": (0, 3, (6, 6), 4, padded(1), 1),
}


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_reference(rng, case, taps):
    N, C, size, K, padding, groups = case
    assert_right(rng, winograd, *problem(rng, N, C, size, K, taps, padding, groups))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
def test_accepts_any_memory_layout(rng, layout):
    *arrays, geometry = problem(rng, 3, 6, (6, 9), 10, 3, padded(1), 2)
    arrays = map(LAYOUTS[layout], arrays)
    assert_right(rng, winograd, *arrays, geometry, layout=LAYOUTS[layout])


def test_sum_and_gradient_of_the_bias(rng):
    """The bias is added once per output, and its gradient has no rounding of tiles in it."""
    x, weight, bias, grad, geometry = problem(rng, 5, 19, (9, 10), 21, 3, padded(1))
    y = winograd.forward(x, 0 * weight, bias, geometry)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], y.shape))
    dbias = winograd.weight_and_bias_grad(grad, x, weight.shape, geometry)[1]
    assert_close(dbias, grad.sum((0, 2, 3), np.float64), 1e-6)


@pytest.mark.parametrize("tiles", [1, 5, 14])
@pytest.mark.parametrize("taps", TAPS)
def test_does_not_depend_on_where_tasks_begin(rng, monkeypatch, tiles, taps):
    arguments = problem(rng, 5, 4, (13, 14), 6, taps, padded(1), 2)
    monkeypatch.setattr(winograd, "TILES", tiles)
    actual = run(winograd, *arguments)
    for name, result in expected(*arguments).items():
        assert_close(actual[name], result, what=name)


def test_fewer_partial_sums_than_threads(rng, monkeypatch):
    arguments = problem(rng, 2, 4, (9, 9), 6, 3, padded(1))
    monkeypatch.setattr(winograd, "PARTIAL_BYTES", 1)
    assert_close(run(winograd, *arguments)["dweight"], expected(*arguments)["dweight"])


@pytest.mark.parametrize("taps", TAPS)
def test_rounding_errors_stay_small_at_the_depth_of_alexnet(rng, taps):
    """Also a measure of the points: +-1 and +-2 for 3 taps would miss this bound."""
    C, size = {3: (256, (13, 13)), 5: (48, (27, 27))}[taps]
    arguments = problem(rng, 2, C, size, 32, taps, padded(taps // 2))
    actual = run(winograd, *arguments)
    for name, result in expected(*arguments).items():
        assert_close(actual[name], result, {3: 4e-6, 5: 1e-5}[taps], what=name)


def test_same_bits_every_time(rng):
    arguments = problem(rng, 9, 16, (13, 13), 16, 3, padded(1))
    first = run(winograd, *arguments)
    for _ in range(5):
        for name, again in run(winograd, *arguments).items():
            np.testing.assert_array_equal(again, first[name], err_msg=name)


def test_the_number_of_images_on_a_canvas():
    assert lay_out(32, (13, 13), 3)[:2] == (2, 2)
    assert lay_out(32, (27, 27), 5)[:2] == (1, 1)
    assert lay_out(1, (13, 13), 3)[:2] == (1, 1)


# --- the choice -----------------------------------------------------------------------------------


def chosen(C=64, K=64, taps=(3, 3), groups=1, batch=8, size=13, stride=1, dilation=1, dtype="f4"):
    """Return the algorithm for one convolution."""
    return choose.algorithm(
        choose.Problem(
            (batch, K, size, size),
            (K, C // groups, *taps),
            ConvOptions((stride, stride), dilation=(dilation, dilation), groups=groups),
            np.dtype(dtype),
        )
    )


def test_winograd_is_chosen_where_it_pays():
    assert chosen() is winograd
    assert chosen(taps=(5, 5), groups=2) is winograd
    for other in (
        {"dtype": "f8"},
        {"taps": (3, 5)},
        {"taps": (1, 1)},
        {"taps": (11, 11)},
        {"stride": 2},
        {"dilation": 2},
        {"C": 3},
        {"K": 8},
        {"groups": 16},
        {"size": 3},
        {"batch": 0},
    ):
        assert chosen(**other) is im2col, other


def test_all_three_directions_use_the_algorithm_chosen(rng):
    assert_chosen(winograd, *problem(rng, 5, 16, (13, 13), 16, 3, padded(1)))


def test_memory_does_not_grow_with_the_batch(rng, monkeypatch):
    """The workspace is one block of tiles for each thread."""
    sizes = []
    allocate = winograd.workspace

    def workspace(elements, dtype):
        sizes.append(elements * dtype.itemsize * tinyalex.threads.get_num_threads())
        return allocate(elements, dtype)

    monkeypatch.setattr(winograd, "workspace", workspace)
    for images in (64, 128):
        run(winograd, *problem(rng, images, 16, (13, 13), 16, 3, padded(1)))
    assert sizes[3:] == sizes[:3]


@pytest.mark.parametrize("taps", TAPS)
def test_outputs_that_are_written_past_the_caches(rng, taps):
    """Outputs and weights larger than FAR take other stores than small ones; NaN stays NaN."""
    x, weight, bias, _, geometry = problem(rng, 6, 16, (47, 46), 64, taps, padded(1))
    results = [
        winograd.forward(x, weight, bias, geometry, rectify=rectify) for rectify in (False, True)
    ]
    assert results[0].size > FAR
    plain = im2col.forward(x, weight, bias, geometry)
    assert_close(results[0], plain, 1e-5)
    np.testing.assert_array_equal(results[1], np.maximum(results[0], 0))
    x[2, 3, 4, 5] = np.nan
    spoilt = winograd.forward(x, weight, bias, geometry, rectify=True)
    plain[np.isnan(im2col.forward(x, weight, bias, geometry))] = np.nan
    assert np.isnan(spoilt[np.isnan(plain)]).all()
