"""Convolutions by every rung of the ladder below the tensor cores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import oracles
from helpers import assert_close, normal

from simt.exercises import BFLOAT16, exercise, to_device, to_host
from tinyalex.backends.cuda import bias_grad
from tinyalex.backends.cuda.conv import im2col, naive, tiled
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.geometry import ConvOptions
from tinyalex.backends.layout import as_nchw, channels_last

NO_PADDING = (0, 0), (0, 0)
EVEN = (1, 1), (1, 1)
UNEVEN = (2, 0), (1, 3)


class Problem(NamedTuple):
    """Images [N, C, *size], weights [K, C/groups, *taps], and how they are convolved."""

    N: int
    C: int
    size: tuple[int, int]
    K: int
    taps: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = NO_PADDING
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weight_shape(self):
        return (self.K, self.C // self.groups, *self.taps)

    @property
    def options(self):
        return ConvOptions(self.stride, self.padding, self.dilation, self.groups)

    @property
    def shape(self):
        return ConvShape.of((self.N, self.C, *self.size), self.weight_shape, self.options)


# One element at a time: nothing is divisible by four.
ODD = (
    Problem(3, 3, (7, 5), 5, (3, 2), stride=(2, 1), padding=UNEVEN, dilation=(1, 2)),
    Problem(2, 6, (5, 4), 4, (3, 3), padding=EVEN, groups=2),
    Problem(1, 4, (6, 4), 4, (2, 3), stride=(3, 2), padding=EVEN, dilation=(2, 1), groups=4),
)
# Four at a time, each with an edge in another place: several tiles of pixels, of filters, of
# channels (and with them of taps), or a window that jumps.
FOURS = (
    Problem(3, 8, (7, 5), 12, (3, 2), stride=(2, 1), padding=UNEVEN, dilation=(1, 2)),
    Problem(1, 8, (13, 11), 16, (1, 3), padding=EVEN, groups=2),
    Problem(2, 4, (3, 3), 132, (2, 2)),
    Problem(2, 132, (3, 3), 4, (2, 2)),
)
PROBLEMS = ODD + FOURS
NO_IMAGES = (
    Problem(0, 3, (7, 5), 5, (3, 2), padding=UNEVEN),
    Problem(0, 8, (5, 5), 8, (3, 3), groups=2),
)


def arrays(rng, problem, dtype=np.float32):
    """Draw x, weight, bias and the gradient of y: NCHW and OIHW, on the host."""
    shape = problem.shape
    shapes = (
        (shape.N, shape.C, shape.H, shape.W),
        problem.weight_shape,
        (shape.K,),
        (shape.N, shape.K, shape.Ho, shape.Wo),
    )
    return [normal(rng, each, dtype) for each in shapes]


def check_forward(rng, forward, problem, dtype=np.float32, with_bias=True, relu=False):
    """Hold a rung's y against the oracle."""
    x, weight, bias, _ = arrays(rng, problem, dtype)
    bias = bias if with_bias else None
    device_bias = to_device(bias) if with_bias else None
    more = {"relu": True} if relu else {}
    y = forward(memory(x), memory(weight), device_bias, problem.shape, **more)
    expected = oracles.conv2d(x, weight, bias, *problem.options)
    check(y, np.maximum(expected, 0) if relu else expected, problem)


def check_input_grad(rng, input_grad, problem, dtype=np.float32):
    """Hold a rung's dx against the oracle."""
    x, weight, _, grad = arrays(rng, problem, dtype)
    expected = oracles.conv2d_input_grad(grad, weight, x.shape, *problem.options)
    check(input_grad(memory(grad), memory(weight), problem.shape), expected, problem)


def check_weight_grad(rng, weight_grad, problem, dtype=np.float32):
    """Hold a rung's dweight against the oracle."""
    x, weight, _, grad = arrays(rng, problem, dtype)
    expected = oracles.conv2d_weight_grad(grad, x, weight.shape, *problem.options)
    check(weight_grad(memory(grad), memory(x), problem.shape), expected, problem)


def memory(array):
    """Return NCHW or OIHW as the rungs want it: on the device, channels last."""
    return channels_last(to_device(array))


def check(actual, expected, problem):
    """Compare what lies on the device, channels last, with NCHW or OIHW on the host."""
    assert actual.flags.c_contiguous
    assert_close(to_host(as_nchw(actual)), expected, what=str(problem))


# --- version 1 ------------------------------------------------------------------------------------


@exercise("conv_forward.cu")
def naive_forward(rng):
    for problem in (*ODD, FOURS[0], *NO_IMAGES):
        check_forward(rng, naive.forward, problem, np.float32)
        check_forward(rng, naive.forward, problem, np.float64, with_bias=False)


@exercise("conv_input_grad.cu")
def naive_input_grad(rng):
    for problem in (*ODD, FOURS[0], *NO_IMAGES):
        check_input_grad(rng, naive.input_grad, problem, np.float32)
        check_input_grad(rng, naive.input_grad, problem, np.float64)


@exercise("conv_weight_grad.cu")
def naive_weight_grad(rng):
    for problem in (*ODD, FOURS[0], *NO_IMAGES):
        check_weight_grad(rng, naive.weight_grad, problem, np.float32)
        check_weight_grad(rng, naive.weight_grad, problem, np.float64)


# --- columns --------------------------------------------------------------------------------------


@exercise("im2col.cu")
def columns(rng):
    for problem in (*ODD, *NO_IMAGES):
        for dtype in (np.float32, np.float64):
            check_forward(rng, im2col.forward, problem, dtype)
            check_input_grad(rng, im2col.input_grad, problem, dtype)
            check_weight_grad(rng, im2col.weight_grad, problem, dtype)


@exercise("im2col.cu")
def columns_of_four_images_at_a_time(rng):
    whole, im2col.ELEMENTS = im2col.ELEMENTS, 1
    try:
        problem = Problem(9, 3, (3, 3), 2, (2, 2))
        check_forward(rng, im2col.forward, problem, with_bias=False)
        check_input_grad(rng, im2col.input_grad, problem)
        check_weight_grad(rng, im2col.weight_grad, problem)
    finally:
        im2col.ELEMENTS = whole


# --- version 2 ------------------------------------------------------------------------------------


@exercise("conv_forward.cu")
def tiled_forward(rng):
    for problem in (*FOURS, NO_IMAGES[1]):
        check_forward(rng, tiled.forward, problem)
    check_forward(rng, tiled.forward, FOURS[0], with_bias=False)
    check_forward(rng, tiled.forward, FOURS[0], relu=True)


@exercise("conv_forward.cu")
def nan_goes_no_further_than_its_windows(rng):
    """Where tiles reach beyond the last term, they must not read the next pixel's or filter's."""
    problem = Problem(2, 4, (5, 4), 4, (3, 3))
    x, weight, _, _ = arrays(rng, problem)
    x[0, 1, 1, 1] = weight[2] = np.nan
    y = tiled.forward(memory(x), memory(weight), None, problem.shape)
    check(y, oracles.conv2d(x, weight, None, *problem.options), problem)


# --- the bias -------------------------------------------------------------------------------------


@exercise("bias_grad.cu")
def bias_gradient(rng):
    for dtype in (np.float32, np.float64, BFLOAT16):
        for shape in ((3, 5, 7, 5), (2, 33, 9, 11), (0, 4, 3, 3)):  # several ranges; two blocks
            grad = normal(rng, shape, dtype)
            dbias = to_host(bias_grad.bias_grad(memory(grad)))
            assert_close(dbias, oracles.conv2d_bias_grad(grad))
            assert dbias.dtype == (np.float64 if dtype == np.float64 else np.float32)


@exercise("bias_grad.cu")
def bias_gradient_behind_a_relu(rng):
    for dtype in (np.float32, np.float64, BFLOAT16):
        for shape in ((3, 5, 7, 5), (2, 33, 9, 11), (0, 4, 3, 3)):
            grad, y = normal(rng, shape, dtype), normal(rng, shape, dtype)
            y[y < -1], y[y > 2] = 0, np.nan
            masked, dbias = bias_grad.relu_bias_grad(memory(grad), memory(y))
            expected = oracles.relu_input_grad(grad, y)
            np.testing.assert_array_equal(to_host(as_nchw(masked)), expected)
            assert_close(to_host(dbias), oracles.conv2d_bias_grad(expected))
