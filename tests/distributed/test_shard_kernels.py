"""Kernels of the CPU that compute several shards at once."""

from types import SimpleNamespace

import numpy as np
import pytest

from tinyalex.backends import cpu
from tinyalex.backends.geometry import ConvOptions, conv_output_size
from tinyalex.backends.sharded import ShardedKernels
from tinyalex.backends.shards import Part, spans_of_ranks, tree_of_ranks

ONE_BY_ONE = SimpleNamespace(**{**vars(cpu), "SHARD_KERNELS": {}})


@np.errstate(all="ignore")
def on_ranks(ranks, call, sizes, sums, kernels=cpu):
    """Return results of ``call(kernels, rows)`` on so many ranks, joined; ``sums`` are added."""
    spans = spans_of_ranks(len(sizes), ranks)
    parts = [Part(sizes, span) for span in spans]
    results = [call(ShardedKernels(kernels, part), part.rows) for part in parts]

    def total(tree, terms):
        return terms[tree] if isinstance(tree, int) else sum(total(side, terms) for side in tree)

    return [
        total(tree_of_ranks(spans), terms) if is_sum else np.concatenate(terms)
        for is_sum, terms in zip(sums, zip(*results, strict=True), strict=True)
    ]


def assert_bits_are_those_of_shards(call, sizes, sums, alone=True):
    """Hold several ranks to one, and, if ``alone``, one to its shards one by one."""
    expected = on_ranks(1, call, sizes, sums)
    others = [on_ranks(ranks, call, sizes, sums) for ranks in (2, 3, 5)]
    if alone:
        others.append(on_ranks(1, call, sizes, sums, ONE_BY_ONE))
    for other in others:
        for a, b in zip(expected, other, strict=True):
            np.testing.assert_array_equal(a, b)


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


# Equal shards and others; of one row, which is a case of its own, all of them and some.
SIZES = (4,) * 8, (19, 18, 18, 18, 18), (70, 70, 69), (2, 2, 1), (1,) * 5, (1, 1, 0, 0)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(20, 48), (60, 96), (13, 7)])
def test_linear_layers(outputs, inputs, sizes):
    x, grad = normal(sum(sizes), inputs), normal(sum(sizes), outputs)
    weight, bias = normal(outputs, inputs), normal(outputs)

    def call(kernels, rows):
        return (
            kernels.linear(x[rows], weight, bias),
            kernels.linear_input_grad(grad[rows], weight),
            kernels.linear_weight_grad(grad[rows], x[rows]),
        )

    mixed = max(sizes) > 1 == min(sizes)  # a row by itself would go the way of single rows
    assert_bits_are_those_of_shards(call, sizes, (False, False, True), alone=not mixed)


def options(stride, padding, groups=1):
    return ConvOptions((stride,) * 2, ((padding,) * 2,) * 2, (1, 1), groups)


CONVOLUTIONS = {
    "3x3 in groups": ((32, 13, 13), (48, 16, 3, 3), options(1, 1, 2)),
    "5x5": ((16, 14, 15), (16, 16, 5, 5), options(1, 2)),
    "11x11 at stride 4": ((3, 51, 47), (16, 3, 11, 11), options(4, 2)),
    "few pixels": ((16, 4, 4), (16, 16, 3, 3), options(1, 1)),
    "few channels": ((8, 13, 13), (8, 8, 3, 3), options(1, 1)),
}


@pytest.mark.parametrize("sizes", [(4,) * 5, (8, 8), (7,) * 3, (3, 3, 2)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, sizes):
    image, shape, options = CONVOLUTIONS[name]
    count = sum(sizes)
    x, weight, bias = normal(count, *image), normal(*shape), normal(shape[0])
    y = normal(count, shape[0], *conv_output_size(image[1:], shape[2:], options))
    # Images that Winograd's algorithm cannot compute are computed again.
    x[[1, 2, 6], 0, 2, 3] = np.inf
    y[[0, 1, 5], 1, 2, 2] = 3e38

    def call(kernels, rows):
        n = rows.stop - rows.start
        shapes = (n, *image), shape
        needs = True, True, True
        return (
            kernels.conv2d(x[rows], weight, bias, options),
            kernels.conv2d_relu(x[rows], weight, bias, options),
            kernels.conv2d_input_grad(y[rows], weight, shapes[0], options),
            kernels.conv2d_weight_grad(y[rows], x[rows], shape, options),
            *kernels.conv2d_relu_grads(y[rows], -y[rows], x[rows], weight, needs, shapes, options),
        )

    assert_bits_are_those_of_shards(call, sizes, (False,) * 3 + (True, False, True, True))
