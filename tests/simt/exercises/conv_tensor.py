"""Convolution on tensor cores: every pass, precision, tile layout and edge.

The inputs are normal numbers; the truth is `reference` in float64, which the tests hold against
loops written out (a loop in Python over as many products as fill several tiles takes too long).
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from simt import build
from simt.exercises import exercise, to_device, to_host
from tinyalex.backends import reference
from tinyalex.backends.cuda.conv import products
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import MMA_SYNC, TILES, Cut
from tinyalex.backends.geometry import ConvOptions

# Norm of the error over norm of the result. Rounding a factor to 10 bits (TF32) errs by at most
# 2^-11: 2.9e-4 in products of normal numbers; cutting the bits off would give 8e-4. To 7 bits
# (bf16), 8 times as much. Three products of TF32 numbers leave 2^-20 of each product, and float32
# sums round: 5e-7; it would be more than 1e-6 if the tensor cores summed up all by themselves.
TOLERANCE = {"highest": 1e-6, "high": 4e-4, "medium": 3.2e-3}
FORWARD = ("conv_mma.cu",)
GRADIENTS = ("conv_mma.cu", "split_sum.cu")


class Sizes(NamedTuple):
    """What a convolution is made of; ``x`` is NCHW and ``weight`` OIHW."""

    x: tuple
    weight: tuple
    stride: tuple = (1, 1)
    padding: tuple = ((0, 0), (0, 0))
    dilation: tuple = (1, 1)
    groups: int = 1


SQUARES = (64, 64), (128, 128)
# Tiles have 64 to 192 rows and columns, a k-tile is 32 long.
TWO_GROUPS = Sizes((2, 8, 9, 7), (72, 4, 5, 3), padding=((1, 2), (2, 0)), groups=2)
LIKE_CONV1 = Sizes((1, 4, 23, 19), (4, 4, 11, 11), stride=(4, 4), padding=((2, 1), (2, 2)))
DILATED = Sizes((1, 12, 13, 8), (8, 12, 3, 2), dilation=(2, 3), padding=((2, 2), (0, 3)))
UNEQUAL_STRIDES = Sizes((3, 8, 7, 11), (24, 4, 3, 3), stride=(2, 3), groups=2)
LARGE = Sizes((1, 132, 12, 11), (132, 132, 1, 1))  # in each pass 4 large tiles, 5 k-tiles
LINEAR = Sizes((67, 300, 1, 1), (72, 300, 1, 1))  # 4 small tiles, 10 k-tiles
SMALL = Sizes((1, 4, 6, 5), (8, 4, 3, 3))
ODD = Sizes((1, 4, 3, 5), (67, 4, 1, 1))
FEW_TILES = Sizes((33, 520, 1, 1), (24, 520, 1, 1))  # a small tile, 17 k-tiles
LONG = Sizes((33, 1024, 1, 1), (24, 1024, 1, 1))


class Case:
    """A convolution's inputs, and its three passes held against float64."""

    def __init__(self, rng, sizes):
        self.options = ConvOptions(sizes.stride, sizes.padding, sizes.dilation, sizes.groups)
        self.shape = ConvShape.of(sizes.x, sizes.weight, self.options)
        self.x, self.weight = normal(rng, *sizes.x), normal(rng, *sizes.weight)
        self.bias = normal(rng, self.shape.K)
        self.grad = normal(rng, self.shape.N, self.shape.K, self.shape.Ho, self.shape.Wo)

    def forward(self, precision, bias=None, relu=False, **cut):
        return products.forward(
            nhwc(self.x),
            nhwc(self.weight),
            None if bias is None else to_device(bias),
            self.shape,
            relu,
            MMA_SYNC[precision],
            Cut(**cut),
        )

    def expected(self, bias, relu):
        y = reference.conv2d(double(self.x), double(self.weight), bias, self.options)
        return reference.relu(y) if relu else y

    def check_forward(self, precision, bias=None, relu=False, **cut):
        y = self.forward(precision, bias, relu=relu, **cut)
        close(y, self.expected(bias, relu), TOLERANCE[precision])

    def check_input_grad(self, precision, **cut):
        dx = products.input_grad(
            nhwc(self.grad), nhwc(self.weight), self.shape, MMA_SYNC[precision], Cut(**cut)
        )
        expected = reference.conv2d_input_grad(
            double(self.grad), double(self.weight), self.x.shape, self.options
        )
        close(dx, expected, TOLERANCE[precision])

    def check_weight_grad(self, precision, **cut):
        dweight = products.weight_grad(
            nhwc(self.grad), nhwc(self.x), self.shape, MMA_SYNC[precision], Cut(**cut)
        )
        expected = reference.conv2d_weight_grad(
            double(self.grad), double(self.x), self.weight.shape, self.options
        )
        close(dweight, expected, TOLERANCE[precision])


def precisions(tile):
    """Return the precisions in which a tile is exercised in the present mode of the shim.

    Sanitizers and traces look at addresses, which are those of one precision; a build takes long.
    """
    values = build.settings.mode in ("plain", "quick")
    return tuple(TOLERANCE) if values or tile in SQUARES else ("high",)


def instances_left_out():
    """Return the names of the instances that no exercise launches in the present mode."""
    return {
        kernels.instance(which, tile)
        for precision, kernels in MMA_SYNC.items()
        for which, tiles in kernels.tiles.items()
        for tile in tiles
        if precision not in precisions(tile)
    }


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def double(array):
    return array.astype(np.float64)


def nhwc(array):
    return to_device(np.ascontiguousarray(array.transpose(0, 2, 3, 1)))


def close(result, expected, tolerance):
    """Assert that the error is small as a whole, and nowhere out of the ordinary."""
    error = to_host(result).transpose(0, 3, 1, 2) - expected
    allowed = tolerance * np.sqrt(np.mean(expected**2))
    assert np.sqrt(np.mean(error**2)) <= allowed
    assert np.abs(error).max() <= 8 * allowed


@exercise(*FORWARD)
def forward_in_every_precision(rng):
    case = Case(rng, TWO_GROUPS)
    for precision, tile in product(TOLERANCE, SQUARES):
        case.check_forward(precision, case.bias, relu=True, tile=tile, splits=1)


@exercise(*FORWARD)
def forward_of_all_geometries(rng):
    for sizes in (LIKE_CONV1, DILATED, UNEQUAL_STRIDES):
        case = Case(rng, sizes)
        case.check_forward("high", case.bias, tile=(64, 64), splits=1)


@exercise(*FORWARD)
def forward_of_large_tiles(rng):
    case = Case(rng, LARGE)
    case.check_forward("high", case.bias, relu=True, tile=(128, 128), splits=1)
    case.check_forward("medium", tile=(128, 128), splits=2)
    case.check_forward("high", tile=(128, 96), splits=1)
    case.check_forward("high", tile=(128, 192), splits=1)


@exercise(*FORWARD)
def forward_in_parts(rng):
    case = Case(rng, LINEAR)
    case.check_forward("highest", case.bias, tile=(64, 64), splits=3)  # k-tiles: 4, 4, 2
    case.check_forward("high", case.bias, relu=True, tile=(64, 64), splits=10)
    case = Case(rng, FEW_TILES)
    case.check_forward("medium", case.bias, relu=True)


@exercise(*FORWARD)
def forward_of_a_long_sum(rng):
    # 128 times eight k's: tensor cores alone, which round towards zero, would err by 9e-6.
    Case(rng, LONG).check_forward("highest", tile=(64, 64), splits=1)


@exercise(*FORWARD)
def forward_with_an_odd_number_of_filters(rng):
    case = Case(rng, ODD)
    case.check_forward("highest", case.bias, tile=(64, 64))
    case.check_forward("highest", case.bias, tile=(128, 128))


@exercise(*FORWARD)
def nan_stays_visible_where_it_belongs(rng):
    case = Case(rng, Sizes((2, 4, 6, 5), (8, 4, 3, 3), padding=((1, 1), (1, 1))))
    case.x.view(np.uint32)[1, 2, 4, 1] = 0x7FFFFFFF  # the NaN that GPUs make
    case.weight.view(np.uint32)[5, 1, 0, 2] = 0xFFC00000
    expected = np.isnan(case.expected(case.bias, relu=True))
    for precision in TOLERANCE:
        for splits in (1, 2):
            y = case.forward(precision, case.bias, relu=True, splits=splits)
            np.testing.assert_array_equal(np.isnan(to_host(y)), expected.transpose(0, 2, 3, 1))


@exercise(*FORWARD)
def two_tf32_numbers_hold_any_float(rng):
    """Each pixel meets one filter of ones: the largest float stays, what is not finite shows."""
    case = Case(rng, Sizes((1, 4, 2, 2), (4, 4, 1, 1)))
    case.x[...], case.weight[...] = 0, 1
    case.x.view(np.uint32)[0, 0] = [[0x7F7FFFFF, 0xFF7FFFFF], [0x7F800000, 0x7F800001]]
    pixels = to_host(case.forward("highest"))[0, ..., 0]
    np.testing.assert_allclose(pixels[0], case.x[0, 0, 0], rtol=2**-20)
    assert np.isnan(pixels[1]).all()  # infinity, and a NaN of one low bit


@exercise(*GRADIENTS)
def input_grad_in_every_precision(rng):
    case = Case(rng, TWO_GROUPS)
    for precision, tile in product(TOLERANCE, SQUARES):
        case.check_input_grad(precision, tile=tile, splits=2)


@exercise(*GRADIENTS)
def input_grad_of_all_geometries(rng):
    for sizes in (LIKE_CONV1, DILATED, UNEQUAL_STRIDES):
        Case(rng, sizes).check_input_grad("high", tile=(64, 64), splits=1)


@exercise(*GRADIENTS)
def input_grad_of_large_tiles(rng):
    for tile in TILES["input_grad"][:-1]:
        Case(rng, LARGE).check_input_grad("high", tile=tile, splits=1)
    Case(rng, FEW_TILES).check_input_grad("highest")


@exercise(*GRADIENTS)
def weight_grad_in_every_precision(rng):
    case = Case(rng, TWO_GROUPS)
    for precision, tile in product(TOLERANCE, SQUARES):
        case.check_weight_grad(precision, tile=tile, splits=2)


@exercise(*GRADIENTS)
def weight_grad_of_all_geometries(rng):
    for sizes in (LIKE_CONV1, DILATED, UNEQUAL_STRIDES):
        Case(rng, sizes).check_weight_grad("high", tile=(64, 64), splits=1)


@exercise(*GRADIENTS)
def weight_grad_of_large_tiles(rng):
    for tile in TILES["weight_grad"][:-1]:
        Case(rng, LARGE).check_weight_grad("high", tile=tile, splits=3)  # k-tiles: 2, 2, 1
    Case(rng, FEW_TILES).check_weight_grad("highest")


@exercise(*GRADIENTS)
def every_instance(rng):
    case = Case(rng, SMALL)
    checks = case.check_forward, case.check_input_grad, case.check_weight_grad
    for tiles, check in zip(TILES.values(), checks, strict=True):
        for tile in set(tiles) - set(SQUARES):
            for precision in precisions(tile):
                check(precision, tile=tile, splits=1)


@exercise(*GRADIENTS)
def the_same_bits_twice(rng):
    case = Case(rng, LARGE)
    arrays = nhwc(case.grad), nhwc(case.x)
    results = [
        products.weight_grad(*arrays, case.shape, MMA_SYNC["high"], Cut(splits=4)) for _ in range(2)
    ]
    assert to_host(results[0]).tobytes() == to_host(results[1]).tobytes()


@exercise(*GRADIENTS)
def empty_batches(rng):
    case = Case(rng, Sizes((0, 4, 3, 3), (8, 4, 2, 2)))
    for precision in TOLERANCE:
        assert case.forward(precision, case.bias).shape == (0, 2, 2, 8)
        dweight = products.weight_grad(
            nhwc(case.grad), nhwc(case.x), case.shape, MMA_SYNC[precision]
        )
        np.testing.assert_array_equal(to_host(dweight), np.zeros((8, 2, 2, 4)))
