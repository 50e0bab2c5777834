"""Convolution by Hopper's own instructions: every pass, dtype, layout and edge.

The truth is `reference` in float64, of the factors as the tensor cores read them: rounded to
bfloat16, or floats without their lower 13 bits. What is left are sums in float32, each cut off by
an instruction at most 2^-23, and a result in bfloat16, which rounds by 2^-8.
"""

from functools import wraps

import numpy as np

from simt import build
from simt.exercises import exercise, to_device, to_host
from simt.exercises.conv_tensor import Case, Sizes, double
from tinyalex.backends import reference
from tinyalex.backends.bfloat16 import bfloat16
from tinyalex.backends.cuda.conv import products
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import INSTANCES, WGMMA, Cut
from tinyalex.backends.geometry import ConvOptions

FILES = ("conv_wgmma.cu", "transpose_filters.cu", "split_sum.cu")
SUMS = 3e-5  # of the norm: the longest here is of 75 instructions
# Tiles have up to 256 rows and columns, a k-tile is 64 long (32 of floats), the ring has 4 stages.
TWO_GROUPS = Sizes((3, 16, 11, 10), (80, 8, 5, 3), padding=((1, 2), (2, 0)), groups=2)
STRIDES = Sizes((2, 8, 15, 13), (24, 8, 3, 2), (2, 3), ((2, 1), (0, 3)), dilation=(2, 3))
WIDE = Sizes((1, 136, 12, 11), (136, 136, 3, 1))  # several tiles, and rounds of the ring
IMAGES = Sizes((2, 4, 43, 39), (96, 4, 11, 11), stride=(4, 4), padding=((2, 1), (2, 2)))
LINEAR = Sizes((67, 600, 1, 1), (72, 600, 1, 1))
MIDDLE = Sizes((1, 24, 18, 16), (136, 24, 3, 1))  # more than 256 rows, 128 columns
SMALL = Sizes((1, 8, 6, 5), (8, 8, 3, 3))
# What sanitizers, traces and mutations see: tiles with addresses of their own, and those to which
# `conv_chosen` comes.
SEEN = {
    "conv_forward<WarpgroupTile<bfloat16, 128, 128>>",
    "conv_forward<WarpgroupTile<bfloat16, 256, 96, 4>>",
    "conv_forward<WarpgroupTile<float, 192, 256>>",
    "conv_input_grad<WarpgroupTile<bfloat16, 128, 128>>",
    "conv_input_grad<WarpgroupTile<float, 256, 96>>",
    "conv_weight_grad<WarpgroupTile<bfloat16, 128, 256>>",
    "conv_weight_grad<WarpgroupTile<bfloat16, 128, 256, 8, 4>>",
}


def instances_left_out():
    """Return the names of the instances that no exercise launches in the present mode."""
    every = {name for (file, _), names in INSTANCES.items() for name in names if file == FILES[0]}
    return set() if build.settings.mode == "plain" else every - SEEN


class Passes(Case):
    """A convolution of numbers as the tensor cores read them, and its three passes."""

    def __init__(self, rng, sizes, kind="bfloat16"):
        super().__init__(rng, sizes)
        self.kind = kind
        self.x, self.weight, self.grad = map(self.read, (self.x, self.weight, self.grad))

    def read(self, array):
        if self.kind == "float32":
            return (array.view(np.uint32) & 0xFFFFE000).view(np.float32)
        return array.astype(bfloat16()).astype(np.float32)

    def device(self, array):
        lines = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        return to_device(lines if self.kind == "float32" else lines.astype(bfloat16()))

    def close(self, result, expected):
        error = np.abs(to_host(result).astype(np.float64).transpose(0, 3, 1, 2) - expected)
        rounding = 2.0**-8 if result.dtype == bfloat16() else 0
        allowed = SUMS * np.sqrt(np.mean(expected**2))
        assert (error <= rounding * np.abs(expected) + 8 * allowed).all()
        assert np.sqrt(np.mean(error**2)) <= rounding * np.abs(expected).max() + allowed

    def kernels(self):
        return products.wgmma(self.shape, self.device(self.x).dtype)

    def left_out(self, which, tile):
        return self.kernels().instance(which, tile) in instances_left_out()

    def check_forward(self, tile, splits=1, bias=None, relu=False):
        if not self.left_out("forward", tile):
            on_device = None if bias is None else to_device(bias)
            arrays = self.device(self.x), self.device(self.weight)
            y = products.forward(
                *arrays, on_device, self.shape, relu, self.kernels(), Cut(tile, splits)
            )
            self.close(y, self.expected(bias, relu))

    def check_input_grad(self, tile, splits=1):
        if not self.left_out("input_grad", tile):
            arrays = self.device(self.grad), self.device(self.weight)
            dx = products.input_grad(*arrays, self.shape, self.kernels(), Cut(tile, splits))
            factors = double(self.grad), double(self.weight)
            self.close(dx, reference.conv2d_input_grad(*factors, self.x.shape, self.options))

    def check_weight_grad(self, tile, splits=1):
        if not self.left_out("weight_grad", tile):
            arrays = self.device(self.grad), self.device(self.x)
            dweight = products.weight_grad(*arrays, self.shape, self.kernels(), Cut(tile, splits))
            assert dweight.dtype == np.float32
            factors = double(self.grad), double(self.x)
            self.close(
                dweight, reference.conv2d_weight_grad(*factors, self.weight.shape, self.options)
            )


def on_hopper(function):
    """Register an exercise that only Hopper and bfloat16 can run."""

    @exercise(*FILES)
    @wraps(function)
    def run(rng):
        if products.on_hopper() and bfloat16():
            function(rng)

    return run


@on_hopper
def wgmma_forward(rng):
    case = Passes(rng, TWO_GROUPS)
    case.check_forward((128, 128), 1, case.bias, relu=True)
    case = Passes(rng, TWO_GROUPS, "float32")
    case.check_forward((192, 256), 2, case.bias)
    Passes(rng, STRIDES).check_forward((128, 128), 1)
    Passes(rng, WIDE).check_forward((128, 128), 1)
    case = Passes(rng, LINEAR)
    case.check_forward((128, 128), 2, case.bias, relu=True)


@on_hopper
def wgmma_input_grad(rng):
    Passes(rng, TWO_GROUPS).check_input_grad((128, 128), 2)
    Passes(rng, TWO_GROUPS, "float32").check_input_grad((256, 96), 1)
    Passes(rng, STRIDES).check_input_grad((128, 128), 1)
    Passes(rng, WIDE).check_input_grad((128, 128), 1)


@on_hopper
def wgmma_weight_grad(rng):
    for sizes, splits in ((TWO_GROUPS, 1), (STRIDES, 1), (WIDE, 2)):
        Passes(rng, sizes).check_weight_grad((128, 256), splits)


@on_hopper
def wgmma_images(rng):
    case = Passes(rng, IMAGES)
    case.check_forward((256, 96), 1, case.bias, relu=True)
    case.check_weight_grad((128, 256), 2)
    if build.settings.mode != "trace":  # the twin of a copy reads six bytes in three accesses
        room = case.device(case.x)
        room[..., 3] = np.nan
        case.x[:, 3] = 0
        shape = case.shape._replace(filled=3)
        y = products.forward(room, case.device(case.weight), None, shape)
        case.close(y, case.expected(None, relu=False))


@exercise("transpose_filters.cu")
def filters_innermost(rng):
    options = ConvOptions(groups=2)
    shape = ConvShape.of((1, 80, 5, 5), (140, 40, 2, 3), options)  # several squares, none whole
    weight = rng.standard_normal((140, 2, 3, 40), np.float32)
    for dtype in filter(None, (np.dtype(np.float32), bfloat16())):
        found = to_host(products.transposed(to_device(weight.astype(dtype)), shape))
        expected = weight.astype(dtype).reshape(2, 70, 2, 3, 40).transpose(0, 4, 2, 3, 1)
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


@on_hopper
def every_wgmma_instance(rng):
    for kind, kernels in WGMMA.items():
        case = Passes(rng, MIDDLE, kind)
        for which, tiles in kernels.tiles.items():
            for tile in tiles:
                getattr(case, f"check_{which}")(tile)


@on_hopper
def nan_stays_visible_through_wgmma(rng):
    case = Passes(rng, SMALL)
    case.x[0, 3, 4, 1], case.weight[5, 1, 0, 2] = np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        expected = case.expected(case.bias, relu=True)
        y = products.forward(
            case.device(case.x),
            case.device(case.weight),
            to_device(case.bias),
            case.shape,
            True,
            case.kernels(),
            Cut((128, 128), 1),
        )
    np.testing.assert_array_equal(
        np.isnan(to_host(y).astype(np.float32)), np.isnan(expected).transpose(0, 2, 3, 1)
    )


@on_hopper
def wgmma_twice_and_of_nothing(rng):
    case = Passes(rng, WIDE)
    arrays = (
        case.device(case.grad),
        case.device(case.x),
        case.shape,
        case.kernels(),
        Cut((128, 256)),
    )
    results = [to_host(products.weight_grad(*arrays)) for _ in range(2)]
    assert results[0].tobytes() == results[1].tobytes()
    empty = Passes(rng, Sizes((0, 8, 3, 3), (8, 8, 2, 2)))
    y = products.forward(empty.device(empty.x), empty.device(empty.weight), None, empty.shape)
    assert y.shape == (0, 2, 2, 8)
    dweight = products.weight_grad(empty.device(empty.grad), empty.device(empty.x), empty.shape)
    np.testing.assert_array_equal(to_host(dweight), np.zeros((8, 2, 2, 8)))
