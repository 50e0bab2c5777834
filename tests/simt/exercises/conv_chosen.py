"""Convolutions in any layout, by the algorithm that the backend chooses."""

from __future__ import annotations

import numpy as np
import oracles
from helpers import assert_close, normal

from simt.exercises import BFLOAT16, exercise, to_device, to_host
from simt.exercises.conv import EVEN, FOURS, NO_IMAGES, ODD, UNEVEN, Problem, arrays, memory
from simt.exercises.conv_wgmma import FILES as HOPPER
from simt.exercises.conv_wgmma import instances_left_out
from tinyalex.backends import precision
from tinyalex.backends.cuda.conv import choose, products
from tinyalex.backends.layout import as_nchw, channels_last, copy_with_room

PHOTOGRAPHS = Problem(2, 3, (9, 8), 8, (5, 4), stride=(4, 3), padding=UNEVEN)
CHOICES = (
    (PHOTOGRAPHS, np.float32),
    (ODD[0], np.float32),
    (ODD[1], np.float32),
    (FOURS[0], np.float32),
    (FOURS[0], np.float64),
    (FOURS[1], np.float32),
    *((problem, dtype) for problem in NO_IMAGES for dtype in (np.float32, np.float64)),
)
EIGHTS = Problem(3, 16, (7, 6), 32, (3, 2), stride=(1, 2), padding=EVEN)
# With FOURS and ODD[0], whose channels and filters are no multiples of eight: as float32.
IN_BFLOAT16 = PHOTOGRAPHS, EIGHTS, EIGHTS._replace(groups=2), FOURS[0], ODD[0], NO_IMAGES[1]
SUMS = 1e-4  # of bfloat16, which the tensor cores add up with some bits less than float32


def no_hopper():
    """Return whether to leave out what any instance of Hopper's kernels may compute."""
    return not products.on_hopper() or bool(instances_left_out())


@exercise("conv_mma.cu", "im2col.cu", "pad_channels.cu")
def chosen_forward(rng):
    for problem, dtype in CHOICES:
        x, weight, bias, _ = arrays(rng, problem, dtype)
        expected = oracles.conv2d(x, weight, bias, *problem.options)
        on_device = to_device(x), as_nchw(memory(weight)), to_device(np.repeat(bias, 2))[::2]
        y = choose.conv2d(*on_device, problem.options)
        assert_close(to_host(y), expected, what=str(problem))
        y = choose.conv2d_relu(*on_device, problem.options)
        assert_close(to_host(y), np.maximum(expected, 0), what=str(problem))


@exercise("conv_mma.cu", "im2col.cu", "bias_grad.cu")
def chosen_gradients(rng):
    for problem, dtype in CHOICES:
        x, weight, _, grad = arrays(rng, problem, dtype)
        y = np.maximum(normal(rng, grad.shape, dtype), 0)
        masked = oracles.relu_input_grad(grad, y)
        inputs = [to_device(array) for array in (grad, y, x, weight)]
        shapes = x.shape, weight.shape
        grads = choose.conv2d_relu_grads(*inputs, (True, True, True), shapes, problem.options)
        check_gradients(grads, masked, x, weight, problem)
        grads = (
            choose.conv2d_input_grad(inputs[0], inputs[3], x.shape, problem.options),
            choose.conv2d_weight_grad(inputs[0], inputs[2], weight.shape, problem.options),
            choose.conv2d_bias_grad(inputs[0]),
        )
        check_gradients(grads, grad, x, weight, problem)


@exercise("conv_mma.cu")
def images_with_room_for_a_fourth_channel(rng):
    """What lies there counts for nothing, and results have the bits of images without it."""
    options = PHOTOGRAPHS.options
    for channels in (3, 1):
        problem = PHOTOGRAPHS._replace(C=channels)
        x, weight, bias, grad = map(to_device, arrays(rng, problem, np.float32))
        for rest in (np.nan, np.inf, 1.0):
            images = copy_with_room(x)
            images.base[..., channels:] = rest
            for part in (slice(None), slice(1, 2)):
                found, expected = (
                    (
                        choose.conv2d_relu(i[part], weight, bias, options),
                        choose.conv2d_weight_grad(grad[part], i[part], weight.shape, options),
                    )
                    for i in (images, x)
                )
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(to_host(one), to_host(other))


@exercise(*HOPPER, "pad_channels.cu")
def chosen_in_bfloat16(rng):
    if no_hopper():
        return
    for problem in IN_BFLOAT16:
        x, weight, bias, grad = (a.astype(BFLOAT16) for a in arrays(rng, problem))
        bias = bias.astype(np.float32)
        on_device = to_device(x), as_nchw(memory(weight)), to_device(bias)
        x, weight, grad = (a.astype(np.float64) for a in (x, weight, grad))
        expected = oracles.conv2d(x, weight, bias, *problem.options)
        y = choose.conv2d(*on_device, problem.options)
        rectified = choose.conv2d_relu(*on_device, problem.options)
        assert y.dtype == rectified.dtype == BFLOAT16
        assert_close(to_host(y), expected, SUMS, str(problem))
        assert_close(to_host(rectified), np.maximum(expected, 0), SUMS, str(problem))
        x_, weight_, grad_ = *on_device[:2], to_device(grad.astype(BFLOAT16))
        grads = (
            choose.conv2d_input_grad(grad_, weight_, x.shape, problem.options),
            choose.conv2d_weight_grad(grad_, x_, weight.shape, problem.options),
            choose.conv2d_bias_grad(grad_),
        )
        assert [a.dtype for a in grads] == [BFLOAT16, np.float32, np.float32]
        check_gradients(grads, grad, x, weight, problem, SUMS)


def check_gradients(grads, grad, x, weight, problem, tolerance=None):
    """Compare (dx, dweight, dbias); dweight must lie channels last, as the weights may."""
    assert channels_last(grads[1]).data.ptr == grads[1].data.ptr
    expected = (
        oracles.conv2d_input_grad(grad, weight, x.shape, *problem.options),
        oracles.conv2d_weight_grad(grad, x, weight.shape, *problem.options),
        oracles.conv2d_bias_grad(grad),
    )
    for actual, wanted in zip(grads, expected, strict=True):
        assert_close(to_host(actual), wanted, tolerance, str(problem))


@exercise("bias_grad.cu")
def gradients_that_nobody_wants(rng):
    problem = FOURS[1]
    x, weight, _, grad = map(to_device, arrays(rng, problem))
    shapes = x.shape, weight.shape
    for wanted in range(3):
        needs = tuple(i == wanted for i in range(3))
        arguments = grad, grad, x if needs[1] else None, weight if needs[0] else None
        grads = choose.conv2d_relu_grads(*arguments, needs, shapes, problem.options)
        assert tuple(each is not None for each in grads) == needs


@exercise("conv_mma.cu")
def as_exact_as_asked_for(rng):
    x, weight, _, grad = arrays(rng, PHOTOGRAPHS)
    options = PHOTOGRAPHS.options
    expected = (
        oracles.conv2d(x, weight, None, *options),
        oracles.conv2d_input_grad(grad, weight, x.shape, *options),
        oracles.conv2d_weight_grad(grad, x, weight.shape, *options),
    )
    x, weight, grad = map(to_device, (x, weight, grad))

    def compute():
        return (
            choose.conv2d(x, weight, None, options),
            choose.conv2d_input_grad(grad, weight, x.shape, options),
            choose.conv2d_weight_grad(grad, x, weight.shape, options),
        )

    check_rounding(compute, expected)


def check_rounding(compute, expected):
    """A factor rounds by 2^-11 in TF32, by 2^-8 in bfloat16: that shows who computed."""
    for word, rounding in (("high", 2**-11), ("medium", 2**-8)):
        precision.set_float32_matmul_precision(word)
        try:
            results = compute()
        finally:
            precision.set_float32_matmul_precision("highest")
        for actual, wanted in zip(results, expected, strict=True):
            error = np.abs(to_host(actual) - wanted).max() / np.abs(wanted).max()
            assert rounding / 20 < error < rounding * 2, (word, error)
