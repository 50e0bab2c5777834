"""Strided convolution by blocks: all edges, and when it is chosen."""

import numpy as np
import pytest
from convolution import assert_chosen, assert_right, expected, padded, problem
from helpers import LAYOUTS, assert_close

from tinyalex.backends.cpu.conv import choose, im2col, strided
from tinyalex.backends.geometry import ConvOptions, conv_output_size
from tinyalex.models import VARIANTS, spec

CASES = {
    # N, C, (H, W), K, taps, padding, stride
    "conv1": (2, 3, (47, 51), 20, 11, padded(2), 4),
    "conv1 of 2012": (1, 3, (44, 44), 16, 11, padded(0, 3), 4),
    "5 at 2": (2, 4, (12, 15), 6, 5, padded(2), 2),
    "6 at 2": (2, 4, (13, 12), 6, 6, padded(1), 2),
    "9 at 2": (1, 3, (21, 16), 5, 9, padded(3), 2),
    "7 at 3": (2, 3, (19, 17), 7, 7, padded(2), 3),
    "8 at 3": (3, 3, (15, 22), 7, 8, padded(1), 3),
    "9 at 3": (2, 3, (20, 20), 7, 9, padded(4), 3),
    "13 at 3": (1, 2, (23, 25), 3, 13, padded(4), 3),
    "12 at 4": (2, 3, (30, 33), 5, 12, padded(3), 4),
    "19 at 4": (1, 2, (37, 32), 3, 19, padded(5), 4),
    "4 channels": (2, 4, (23, 26), 16, 11, padded(1), 4),
    "16 channels": (2, 16, (14, 11), 33, 5, padded(1), 2),
    "one channel": (3, 1, (17, 17), 1, 11, padded(2), 4),
    "asymmetric": (2, 3, (18, 21), 6, 5, padded(3, 0, 1, 4), 2),
    "asymmetric, 4": (2, 3, (22, 19), 6, 11, padded(0, 5, 7, 1), 4),
    "more padding than the kernel": (2, 3, (3, 2), 4, 5, padded(6, 7, 8, 5), 2),
    "one output": (3, 3, (11, 14), 5, 11, padded(0), 4),
    "unseen rows and columns": (2, 3, (14, 13), 5, 11, padded(0), 4),
    "one image": (1, 3, (23, 23), 8, 11, padded(2), 4),
    "five images": (5, 3, (9, 11), 8, 5, padded(1), 2),
    "no image": (0, 3, (15, 15), 8, 11, padded(2), 4),
}
SMALL = CASES["asymmetric"]


def draw(rng, case):
    """Return arrays and geometry of one line of the table."""
    *sizes, stride = case
    return problem(rng, *sizes, stride=stride)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_reference(rng, case):
    assert_right(rng, strided, *draw(rng, case))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
def test_accepts_any_memory_layout(rng, layout):
    *arrays, geometry = draw(rng, SMALL)
    arrays = map(LAYOUTS[layout], arrays)
    assert_right(rng, strided, *arrays, geometry, layout=LAYOUTS[layout])


def test_does_without_a_bias(rng):
    x, weight, bias, grad, geometry = draw(rng, SMALL)
    y = strided.forward(x, weight, None, geometry)
    assert_close(y, expected(x, weight, 0 * bias, grad, geometry)["y"])


def test_a_nan_reaches_all_windows_that_see_it(rng):
    x, weight, bias, _, geometry = draw(rng, SMALL)
    x[0, 1, 7, 8] = np.nan
    y = strided.forward(x, weight, bias, geometry, rectify=True)
    sees = np.isnan(expected(x, weight, bias, y, geometry)["y"])
    assert sees.any()
    assert np.isnan(y[sees]).all(), "a ReLU must let NaN pass"
    assert not np.isnan(y[1]).any(), "and no other image sees it"


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_chosen_for_the_first_layer_of_every_variant(name):
    """``d2l`` has gray images, whose 16 pixels of a block are just enough channels."""
    variant = VARIANTS[name]
    first = next(layer for layer in variant.features if isinstance(layer, spec.Conv))
    size, taps, stride = (variant.input_size,) * 2, (first.kernel,) * 2, (first.stride,) * 2
    options = ConvOptions(stride, padded(first.padding))
    size = conv_output_size(size, taps, options)
    weight_shape = first.channels, variant.in_channels, *taps
    for batch, chosen in ((0, im2col), (1, strided), (128, strided)):
        shape = batch, first.channels, *size
        layer = choose.Problem(shape, weight_shape, options, np.dtype(np.float32))
        assert choose.algorithm(layer) is chosen


FOUR_APART = ConvOptions((4, 4))
CONV1 = choose.Problem((8, 96, 55, 55), (96, 3, 11, 11), FOUR_APART, np.dtype(np.float32))


def test_chosen_where_blocks_make_a_convolution_for_winograd():
    for change in ({}, {"weight_shape": (96, 3, 17, 17)}):
        assert choose.algorithm(CONV1._replace(**change)) is strided, change
    for change in (
        {"dtype": np.dtype(np.float64)},
        {"options": FOUR_APART._replace(dilation=(2, 2))},
        {"options": FOUR_APART._replace(groups=3), "weight_shape": (96, 1, 11, 11)},
        {"options": ConvOptions((4, 3))},
        {"options": ConvOptions((3, 4))},
        {"options": ConvOptions((2, 2))},  # 6 x 6 blocks
        {"options": ConvOptions()},
        {"weight_shape": (96, 3, 8, 8)},  # 2 x 2 blocks
        {"weight_shape": (96, 3, 11, 10)},
        {"weight_shape": (8, 3, 11, 11)},  # too few outputs
        {"output_shape": (1, 96, 9, 9)},  # too few pixels
    ):
        assert choose.algorithm(CONV1._replace(**change)) is im2col, change


def test_all_directions_use_it(rng):
    assert_chosen(strided, *problem(rng, 3, 3, (67, 67), 16, 11, padded(2), stride=4))
