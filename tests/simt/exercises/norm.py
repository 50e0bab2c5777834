"""Response normalisation, alone and with pooling, each version by name, against `oracles`.

alpha is near 1, so that the sums weigh as much as k and an error in them shows.
"""

from functools import partial

import numpy as np
import oracles
from helpers import assert_close, normal, tied

from simt.exercises import BFLOAT16, HALVES, exercise, to_device, to_host
from tinyalex.backends.cuda import lrn, lrn_pool, within_norm
from tinyalex.backends.geometry import NormOptions, PoolOptions, pool_output_size

FLOAT, DOUBLE = np.float32, np.float64
PAPER = 5, 0.9, 0.75, 2.0  # size, alpha, beta, k; only alpha is larger than the paper's
SIZES = ((2, 0.8, 0.75, 1.0), (4, 1.2, 0.5, 0.7), (1, 1.0, 1.3, 1.5), (11, 0.9, 0.75, 2.0))

# --- across channels ------------------------------------------------------------------------------

CHOSEN = lrn.local_response_norm, lrn.local_response_norm_input_grad
NAIVE, QUADS = ([partial(each, quads=quads) for each in CHOSEN] for quads in (False, True))


def check(rng, versions, shape, dtype, numbers, groups):
    """Compare both directions."""
    forward, input_grad = versions
    x, grad = normal(rng, shape, dtype), normal(rng, shape, dtype)
    options = NormOptions(*numbers, groups)
    y = forward(to_device(x), options)
    assert_close(to_host(y), oracles.local_response_norm(x, *options))
    dx = input_grad(to_device(grad), to_device(x), options)
    assert_close(to_host(dx), oracles.local_response_norm_input_grad(grad, x, *options))
    assert y.dtype == dx.dtype == dtype


@exercise("local_response_norm.cu")
def one_value_a_thread(rng):
    for dtype in FLOAT, DOUBLE, BFLOAT16:
        for groups in 1, 2:
            check(rng, NAIVE, (2, 14, 3, 5), dtype, PAPER, groups)


@exercise("local_response_norm.cu")
def windows_of_other_sizes(rng):
    for numbers in SIZES:
        check(rng, NAIVE, (1, 7, 3, 2), DOUBLE, numbers, 1)
        check(rng, QUADS, (1, 24, 3, 2), FLOAT, numbers, 2)


@exercise("local_response_norm.cu")
def four_channels_a_thread(rng):
    for dtype in HALVES:
        for groups in 1, 2:  # several blocks, the last not full
            check(rng, QUADS, (3, 40, 3, 7), dtype, PAPER, groups)
        check(rng, QUADS, (1, 148, 2, 2), dtype, PAPER, 1)  # lines longer than a warp


@exercise("local_response_norm.cu")
def lines_longer_than_a_block(rng):
    check(rng, CHOSEN, (1, 1028, 1, 1), FLOAT, PAPER, 1)
    for dtype in HALVES:
        check(rng, CHOSEN, (1, 1024, 1, 2), dtype, PAPER, 1)


@exercise("local_response_norm.cu")
def infinite_energy_and_nan(rng):
    options = NormOptions(*PAPER)
    for dtype in HALVES:
        x = normal(rng, (1, 16, 1, 3), dtype)
        x[0, 4, 0, 0] = 1e25  # its square is infinite: it and its neighbours become 0
        x[0, 8, 0, 1] = np.nan
        expected = oracles.local_response_norm(x, *options)
        for forward in NAIVE[0], QUADS[0]:
            assert_close(to_host(forward(to_device(x), options)), expected)


@exercise("local_response_norm.cu")
def no_images(rng):
    for versions in NAIVE, QUADS:
        check(rng, versions, (0, 8, 3, 3), FLOAT, PAPER, 1)


# --- across channels, then pooled -----------------------------------------------------------------

CHOSEN_POOL = lrn_pool.norm_max_pool2d, lrn_pool.norm_max_pool2d_input_grad
NAIVE_POOL, QUADS_POOL = (
    [partial(each, quads=quads) for each in CHOSEN_POOL] for quads in (False, True)
)
OVERLAPPING = PoolOptions((3, 3), (2, 2))  # the paper's


def check_pooled(rng, versions, x, numbers, groups, window, ceil_mode=False):
    """Compare both directions, the gradient at the taps of the oracle."""
    forward, input_grad = versions
    norm = NormOptions(*numbers, groups)
    size = pool_output_size(x.shape[2:], window, ceil_mode)
    y, taps = forward(to_device(x), norm, window, size)
    normed = oracles.local_response_norm(x, *norm)
    pooled, winners = oracles.max_pool2d(normed, *window, size)
    assert_close(to_host(y), pooled)
    np.testing.assert_array_equal(to_host(taps), winners)

    grad = normal(rng, pooled.shape, x.dtype)
    dx = input_grad(to_device(grad), taps, to_device(x), norm, window)
    slope = oracles.max_pool2d_input_grad(grad, winners, x.shape, *window)
    expected = oracles.local_response_norm_input_grad(slope, x, *norm)
    assert_close(to_host(dx), expected)
    assert y.dtype == dx.dtype == x.dtype
    assert taps.dtype == np.min_scalar_type(np.prod(window.kernel_size) - 1)
    return grad, taps, expected


@exercise("norm_pool.cu")
def pooled_one_value_a_thread(rng):
    for dtype in FLOAT, DOUBLE, BFLOAT16:
        for groups in 1, 2:
            x = normal(rng, (2, 10, 7, 5), dtype)
            check_pooled(rng, NAIVE_POOL, x, PAPER, groups, OVERLAPPING)


@exercise("norm_pool.cu")
def pooled_four_channels_a_thread(rng):
    for groups, dtype in ((1, FLOAT), (2, FLOAT), (2, BFLOAT16)):
        x = normal(rng, (2, 64, 7, 9), dtype)
        check_pooled(rng, QUADS_POOL, x, PAPER, groups, OVERLAPPING)


@exercise("norm_pool.cu")
def pooled_in_slices_of_channels(rng):
    # 37 quads: four slices and most of a fifth, and in the gradient more than a warp per pixel.
    check_pooled(rng, QUADS_POOL, normal(rng, (1, 148, 5, 11), FLOAT), PAPER, 1, OVERLAPPING)


@exercise("norm_pool.cu")
def pooled_in_tiles(rng):
    # 14 x 32 windows, three tiles each way, the last ones not full.
    check_pooled(rng, QUADS_POOL, normal(rng, (1, 4, 29, 65), FLOAT), PAPER, 1, OVERLAPPING)


@exercise("norm_pool.cu")
def pooled_with_padding_and_windows_cut_at_the_end(rng):
    for versions, channels in ((NAIVE_POOL, 3), (QUADS_POOL, 8)):
        x = -1 - np.abs(normal(rng, (1, channels, 8, 10), FLOAT))
        window = PoolOptions((3, 5), (2, 3), (1, 2))
        check_pooled(rng, versions, x, PAPER, 1, window, ceil_mode=True)


@exercise("norm_pool.cu")
def pooled_with_other_windows(rng):
    for numbers, window in zip(
        SIZES,
        (
            PoolOptions((2, 1), (3, 2)),  # gaps between the windows
            PoolOptions((1, 1), (1, 1)),
            PoolOptions((5, 3), (1, 2), (2, 1)),
            PoolOptions((2, 2), (2, 2), (1, 0)),
        ),
        strict=True,
    ):
        check_pooled(rng, NAIVE_POOL, normal(rng, (1, 6, 7, 8), DOUBLE), numbers, 2, window)
        check_pooled(rng, QUADS_POOL, normal(rng, (1, 16, 7, 8), FLOAT), numbers, 2, window)


@exercise("norm_pool.cu", "local_response_norm.cu", "max_pool.cu")
def pooled_with_large_windows(rng):
    x = normal(rng, (1, 4, 18, 17), FLOAT)
    check_pooled(rng, QUADS_POOL, x, PAPER, 1, PoolOptions((16, 16), (1, 1)))
    check_pooled(rng, CHOSEN_POOL, x, PAPER, 1, PoolOptions((17, 17), (1, 1)))
    x = normal(rng, (1, 128, 12, 11), FLOAT)  # one window's pixels are too many for all channels
    check_pooled(rng, QUADS_POOL, x, PAPER, 1, PoolOptions((12, 11), (1, 1)))
    x = normal(rng, (1, 4, 3, 43), FLOAT)  # more columns under a window than threads walk down
    check_pooled(rng, QUADS_POOL, x, PAPER, 1, PoolOptions((2, 37), (1, 3)))


@exercise("norm_pool.cu")
def pooled_ties_and_nan(rng):
    for versions, dtype in ((NAIVE_POOL, DOUBLE), (QUADS_POOL, FLOAT), (QUADS_POOL, BFLOAT16)):
        x = np.repeat(tied(rng, (1, 1, 9, 9), dtype), 8, axis=1)  # equal pixels, equal results
        x[0, 5, 2, 2] = np.nan
        x[0, 3, 7, 8] = np.nan
        check_pooled(rng, versions, x, PAPER, 1, OVERLAPPING)


@exercise("norm_pool.cu")
def pooled_with_no_images(rng):
    for versions in NAIVE_POOL, QUADS_POOL:
        check_pooled(rng, versions, normal(rng, (0, 8, 5, 5), FLOAT), PAPER, 1, OVERLAPPING)
    grad, x = (to_device(np.zeros(shape, FLOAT)) for shape in ((0, 8, 2, 2), (0, 8, 5, 5)))
    taps = to_device(np.zeros(grad.shape, np.uint8))
    options = NormOptions(*PAPER), OVERLAPPING
    dx, bias_grad = lrn_pool.norm_max_pool2d_relu_bias_grad(grad, taps, x, *options)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(to_host(bias_grad), np.zeros(8))


# --- and the gradient of the ReLU and the bias before it ------------------------------------------


def check_relu_bias_grad(rng, x, groups, window):
    """Compare what goes below the ReLU whose output ``x`` is, and do it twice."""
    grad, taps, dx = check_pooled(rng, CHOSEN_POOL, x, PAPER, groups, window)
    arguments = to_device(grad), taps, to_device(x), NormOptions(*PAPER, groups), window
    below, bias_grad = map(to_host, lrn_pool.norm_max_pool2d_relu_bias_grad(*arguments))
    expected = oracles.relu_input_grad(dx, x)
    assert_close(below, expected)
    by_fours = x.shape[1] // groups % 4 == 0  # else a second pass sums what the first has stored
    summed = expected if by_fours else below.astype(DOUBLE)
    assert_close(bias_grad, summed.sum(axis=(0, 2, 3)))
    assert bias_grad.dtype == (DOUBLE if x.dtype == DOUBLE else FLOAT)
    again = lrn_pool.norm_max_pool2d_relu_bias_grad(*arguments)[1]
    np.testing.assert_array_equal(bias_grad, to_host(again))  # the same bits


@exercise("norm_pool.cu")
def relu_and_bias_before_it(rng):
    floats = (72, FLOAT), (148, FLOAT), (6, FLOAT), (8, DOUBLE)
    for channels, dtype in (*floats, (72, BFLOAT16), (6, BFLOAT16)):
        x = np.maximum(normal(rng, (2, channels, 5, 7), dtype), 0)
        check_relu_bias_grad(rng, x, 1 + (channels < 100), OVERLAPPING)


@exercise("norm_pool.cu")
def bias_of_many_rows(rng):
    for channels, dtype in ((4, FLOAT), (3, DOUBLE)):  # more rows than one launch adds up
        x = np.maximum(normal(rng, (3, channels, 87, 1), dtype), 0)
        check_relu_bias_grad(rng, x, 1, PoolOptions((3, 1), (2, 1)))


@exercise("norm_pool.cu")
def nan_goes_through_the_relu(rng):
    for channels, dtype in ((3, FLOAT), (8, FLOAT), (8, BFLOAT16)):
        x = np.maximum(normal(rng, (1, channels, 5, 5), dtype), 0)
        x[0, 1, 2, 2] = np.nan
        check_relu_bias_grad(rng, x, 1, OVERLAPPING)


@exercise("norm_pool.cu", "local_response_norm.cu", "max_pool.cu")
def relu_below_large_windows(rng):
    x = np.maximum(normal(rng, (1, 4, 18, 17), FLOAT), 0)
    check_relu_bias_grad(rng, x, 1, PoolOptions((17, 17), (1, 1)))


# --- within each channel --------------------------------------------------------------------------

WITHIN_CHOSEN = (
    within_norm.within_channel_response_norm,
    within_norm.within_channel_response_norm_input_grad,
)
WITHIN_NAIVE = [partial(each, quads=False) for each in WITHIN_CHOSEN]


def check_within(rng, versions, shape, dtype, numbers):
    """Compare both directions."""
    forward, input_grad = versions
    x, grad = normal(rng, shape, dtype), normal(rng, shape, dtype)
    options = NormOptions(*numbers)
    y = forward(to_device(x), options)
    assert_close(to_host(y), oracles.within_channel_response_norm(x, *numbers))
    dx = input_grad(to_device(grad), to_device(x), options)
    assert_close(to_host(dx), oracles.within_channel_response_norm_input_grad(grad, x, *numbers))
    assert y.dtype == dx.dtype == dtype


@exercise("within_channel_norm.cu")
def within_channels(rng):
    for numbers in ((3, 0.9, 0.75, 1.0), (5, 1.1, 0.6, 2.0), (1, 1.0, 0.75, 1.5)):
        check_within(rng, WITHIN_NAIVE, (2, 3, 7, 5), FLOAT, numbers)
        check_within(rng, WITHIN_NAIVE, (1, 3, 4, 7), DOUBLE, numbers)
        check_within(rng, WITHIN_CHOSEN, (1, 8, 5, 7), FLOAT, numbers)


@exercise("within_channel_norm.cu")
def within_channels_larger_than_the_image(rng):
    for channels in 3, 4:
        check_within(rng, WITHIN_CHOSEN, (1, channels, 2, 3), FLOAT, (7, 0.9, 0.75, 1.0))


@exercise("within_channel_norm.cu")
def within_more_channels_and_pixels_than_a_block_has_threads(rng):
    check_within(rng, WITHIN_CHOSEN, (1, 1028, 1, 2), FLOAT, (3, 0.9, 0.75, 1.0))
    check_within(rng, WITHIN_CHOSEN, (1, 4, 1, 521), FLOAT, (3, 0.9, 0.75, 1.0))


@exercise("within_channel_norm.cu")
def within_channels_of_no_images(rng):
    for channels in 3, 4:
        for empty in (0, channels, 3, 3), (1, channels, 0, 3), (1, channels, 3, 0):
            check_within(rng, WITHIN_CHOSEN, empty, FLOAT, (3, 0.9, 0.75, 1.0))
