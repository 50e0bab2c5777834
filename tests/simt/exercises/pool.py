"""Max-pooling and its gradient, every version, against the loops of `oracles`."""

from functools import partial

import numpy as np
import oracles
from helpers import assert_close, normal, tied

from simt.exercises import BFLOAT16, assert_same, exercise, to_device, to_host
from tinyalex.backends import reference
from tinyalex.backends.cuda import pool
from tinyalex.backends.geometry import PoolOptions, pool_output_size

FLOAT, DOUBLE = np.float32, np.float64

CHOSEN = pool.max_pool2d, pool.max_pool2d_input_grad
NAIVE, QUADS = ([partial(each, quads=quads) for each in CHOSEN] for quads in (False, True))


def check(rng, versions, x, kernel_size, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    """Compare both directions on ``x``, the gradient at the taps that the oracle chose."""
    forward, input_grad = versions
    window = PoolOptions(kernel_size, stride, padding, dilation)
    size = pool_output_size(x.shape[2:], window, ceil_mode)
    y, taps = forward(to_device(x), window, size)
    expected, winners = oracles.max_pool2d(x, *window, size)
    assert_same(y, expected)
    np.testing.assert_array_equal(to_host(taps), winners)
    assert y.dtype == x.dtype
    assert taps.dtype == np.min_scalar_type(kernel_size[0] * kernel_size[1] - 1)

    grad = normal(rng, expected.shape, x.dtype)
    dx = input_grad(to_device(grad), taps, x.shape, window)
    assert_close(to_host(dx), oracles.max_pool2d_input_grad(grad, winners, x.shape, *window))
    assert dx.dtype == x.dtype


@exercise("max_pool.cu")
def windows_that_overlap(rng):
    for versions, channels, dtype in (
        (NAIVE, 7, FLOAT),
        (NAIVE, 3, DOUBLE),
        (NAIVE, 5, BFLOAT16),
        (QUADS, 12, FLOAT),
        (QUADS, 12, BFLOAT16),
    ):
        check(rng, versions, normal(rng, (2, channels, 11, 7), dtype), (3, 3), (2, 2))


@exercise("max_pool.cu")
def windows_apart_and_one_by_one(rng):
    for versions in NAIVE, QUADS:
        check(rng, versions, normal(rng, (1, 4, 7, 11), FLOAT), (2, 1), (3, 4))
        check(rng, versions, normal(rng, (1, 4, 5, 3), FLOAT), (1, 1), (1, 1))


@exercise("max_pool.cu")
def padding_and_windows_cut_at_the_end(rng):
    for versions in NAIVE, QUADS:
        for stride in ((2, 3), (1, 2)):
            x = -1 - np.abs(normal(rng, (2, 8, 7, 5), FLOAT))  # all below the padding's zero
            check(rng, versions, x, (3, 5), stride, padding=(1, 2), ceil_mode=True)


@exercise("max_pool.cu")
def dilated_windows(rng):
    for forward in NAIVE[0], QUADS[0]:  # the gradient is version 1's
        versions = forward, pool.max_pool2d_input_grad
        x = normal(rng, (1, 4, 10, 13), FLOAT)
        check(rng, versions, x, (3, 2), (2, 1), padding=(1, 1), dilation=(2, 3), ceil_mode=True)


@exercise("max_pool.cu")
def windows_that_see_only_padding(rng):
    x = normal(rng, (1, 4, 1, 5), FLOAT)
    # In each column of windows there are taps at rows -1 and 1.
    window = PoolOptions((2, 3), (1, 2), (1, 1), (2, 1))
    expected = reference.max_pool2d(x, window, (1, 3))
    for forward in NAIVE[0], QUADS[0]:
        for result, wanted in zip(forward(to_device(x), window, (1, 3)), expected, strict=True):
            np.testing.assert_array_equal(to_host(result), wanted)


@exercise("max_pool.cu")
def ties_infinities_and_nan(rng):
    for versions, dtype in ((NAIVE, DOUBLE), (NAIVE, BFLOAT16), (QUADS, FLOAT), (QUADS, BFLOAT16)):
        x = tied(rng, (2, 4, 9, 9), dtype)
        x[0, 0] = -np.inf
        x[rng.random(x.shape) < 0.05] = -np.inf
        x[rng.random(x.shape) < 0.05] = np.nan
        check(rng, versions, x, (3, 3), (2, 2), padding=(1, 1))


@exercise("max_pool.cu")
def more_channels_and_pixels_than_a_block_has_threads(rng):
    check(rng, QUADS, normal(rng, (1, 1028, 3, 2), FLOAT), (2, 2), (1, 1))
    check(rng, QUADS, normal(rng, (1, 4, 1, 521), FLOAT), (1, 3), (1, 1))


@exercise("max_pool.cu")
def windows_of_more_than_256_taps(rng):
    for dtype in FLOAT, DOUBLE, BFLOAT16:
        x = normal(rng, (1, 4, 19, 18), dtype)
        x[:, :, -2:, -2:] += 9  # so that the last taps win
        check(rng, CHOSEN, x, (17, 16), (1, 2), padding=(0, 1))


@exercise("max_pool.cu")
def the_version_that_is_chosen(rng):
    for channels, dtype in ((4, FLOAT), (5, FLOAT), (4, DOUBLE), (4, BFLOAT16), (5, BFLOAT16)):
        check(rng, CHOSEN, normal(rng, (1, channels, 5, 6), dtype), (3, 2), (2, 2))


@exercise("max_pool.cu")
def no_images(rng):
    for versions in NAIVE, QUADS:
        check(rng, versions, normal(rng, (0, 4, 5, 5), FLOAT), (3, 3), (2, 2))
