"""Linear layers: of few rows, on tensor cores, and by cuBLAS."""

from __future__ import annotations

import numpy as np
import oracles
from helpers import assert_close, normal

from simt.exercises import BFLOAT16, exercise, to_device, to_host
from simt.exercises.conv_chosen import HOPPER, SUMS, check_rounding, no_hopper
from tinyalex.backends.cuda.linear import (
    few_rows,
    linear,
    linear_input_grad,
    linear_relu,
    linear_weight_grad,
)

TENSOR_CORES = ("conv_mma.cu",)
# images, inputs, outputs: the last three are not for tensor cores
SIZES = ((9, 12, 20), (131, 8, 4), (11, 4, 132), (13, 7, 5), (1, 12, 8), (0, 8, 4))
# In bfloat16: as such, and as float32.
IN_BFLOAT16 = ((9, 16, 24), (70, 72, 40), (13, 7, 5), (3, 12, 8), (0, 8, 8))


def problem(rng, dtype, size):
    """Return a function that computes, and what it should."""
    N, inputs, outputs = size
    shapes = (N, inputs), (outputs, inputs), (N, outputs), (outputs,)
    host = [normal(rng, shape, dtype) for shape in shapes]
    host[3] = host[3].astype(np.promote_types(host[3].dtype, np.float32))
    x, weight, grad, bias = (a.astype(np.float64) for a in host)
    expected = (
        oracles.linear(x, weight, bias),
        oracles.linear(x, weight, None),
        np.maximum(oracles.linear(x, weight, bias), 0),
        oracles.linear_input_grad(grad, weight),
        oracles.linear_weight_grad(grad, x),
    )
    x, weight, grad, bias = map(to_device, host)

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


@exercise(*HOPPER)
def linear_in_bfloat16(rng):
    if no_hopper():
        return
    for size in IN_BFLOAT16:
        compute, expected = problem(rng, BFLOAT16, size)
        results = compute()
        assert [a.dtype for a in results] == [BFLOAT16] * 4 + [np.float32]
        for actual, wanted in zip(results, expected, strict=True):
            assert_close(to_host(actual), wanted, SUMS, str(size))


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
