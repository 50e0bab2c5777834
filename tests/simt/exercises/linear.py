"""Linear layers: of few rows, on tensor cores, and by cuBLAS."""

from __future__ import annotations

import numpy as np
import oracles
from helpers import assert_close, normal

from simt.exercises import exercise, to_device, to_host
from simt.exercises.conv_chosen import check_rounding
from tinyalex.backends.cuda.linear import (
    few_rows,
    linear,
    linear_input_grad,
    linear_relu,
    linear_weight_grad,
)

TENSOR_CORES = "conv_forward_tensor.cu", "conv_input_grad_tensor.cu", "conv_weight_grad_tensor.cu"
# images, inputs, outputs: the last three are not for tensor cores
SIZES = ((9, 12, 20), (131, 8, 4), (11, 4, 132), (13, 7, 5), (1, 12, 8), (0, 8, 4))


def problem(rng, dtype, size):
    """Return a function that computes, and what it should."""
    N, inputs, outputs = size
    shapes = (N, inputs), (outputs, inputs), (outputs,), (N, outputs)
    host = x, weight, bias, grad = [normal(rng, shape, dtype) for shape in shapes]
    expected = (
        oracles.linear(x, weight, bias),
        oracles.linear(x, weight, None),
        np.maximum(oracles.linear(x, weight, bias), 0),
        oracles.linear_input_grad(grad, weight),
        oracles.linear_weight_grad(grad, x),
    )
    x, weight, bias, grad = map(to_device, host)

    def compute():
        return (
            linear(x, weight, bias),
            linear(x, weight, None),
            linear_relu(x, weight, bias),
            linear_input_grad(grad, weight),
            linear_weight_grad(grad, x),
        )

    return compute, expected


@exercise(*TENSOR_CORES)
def all_sizes(rng):
    for size in SIZES:
        for dtype in (np.float32, np.float64):
            compute, expected = problem(rng, dtype, size)
            for actual, wanted in zip(compute(), expected, strict=True):
                assert_close(to_host(actual), wanted, what=str(size))


@exercise(*TENSOR_CORES)
def linear_as_exact_as_asked_for(rng):
    check_rounding(*problem(rng, np.float32, (9, 12, 20)))


@exercise("few_rows.cu")
def few_rows_of_all_sizes(rng):
    # One warp and several blocks; lines that end in a first, a middle and a last step of a lane.
    for size in ((1, 4, 1), (8, 508, 19), (3, 1028, 34), (1, 512, 16)):
        for dtype in (np.float32, np.float64):
            N, inputs, outputs = size
            shapes = (N, inputs), (outputs, inputs), (outputs,)
            host = x, weight, bias = [normal(rng, shape, dtype) for shape in shapes]
            x[-1, -1] = np.nan if N > 1 else x[-1, -1]
            wanted = oracles.linear(x, weight, bias)
            x, weight, bias = map(to_device, host)
            for relu, expected in ((False, wanted), (True, np.maximum(wanted, 0))):
                assert_close(to_host(few_rows(x, weight, bias, relu)), expected, what=str(size))
                found = few_rows(x, weight, bias, relu)
                assert (
                    to_host(found).tobytes() == to_host(few_rows(x, weight, bias, relu)).tobytes()
                )
            # Of one row by itself the bits are those beside others.
            alone = to_host(few_rows(x[:1], weight, None))
            assert np.array_equal(alone, to_host(few_rows(x, weight, None))[:1])
