"""Linear layers: on tensor cores where they can, else by cuBLAS."""

from __future__ import annotations

import numpy as np
import oracles
from helpers import assert_close, normal

from simt.exercises import exercise, to_device, to_host
from tinyalex.backends.cuda import linear

# images, inputs, outputs: the last three are not for tensor cores
SIZES = ((9, 12, 20), (131, 8, 4), (11, 4, 132), (13, 7, 5), (1, 12, 8), (0, 8, 4))


def check(rng, dtype, size, tolerance=None):
    """Hold the three functions against the oracles."""
    N, inputs, outputs = size
    shapes = (N, inputs), (outputs, inputs), (outputs,), (N, outputs)
    x, weight, bias, grad = (normal(rng, shape, dtype) for shape in shapes)
    on_device = [to_device(array) for array in (x, weight, bias, grad)]
    for actual, expected in (
        (linear.linear(*on_device[:3]), oracles.linear(x, weight, bias)),
        (linear.linear(*on_device[:2], None), oracles.linear(x, weight, None)),
        (linear.linear_input_grad(on_device[3], on_device[1]), grad.astype(float) @ weight),
        (linear.linear_weight_grad(on_device[3], on_device[0]), grad.astype(float).T @ x),
    ):
        assert_close(to_host(actual), expected, tolerance, str(size))


@exercise("conv_forward_tensor.cu", "conv_input_grad_tensor.cu", "conv_weight_grad_tensor.cu")
def all_sizes(rng):
    for size in SIZES:
        check(rng, np.float32, size)
        check(rng, np.float64, size)
