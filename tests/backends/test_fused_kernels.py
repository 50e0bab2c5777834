"""Fused kernels against the two kernels that they replace."""

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from convolution import padded, problem
from helpers import LAYOUTS, assert_close, normal, tied

from tinyalex.backends import FUSED_KERNELS, GPU_KERNELS, KERNELS, cpu, cuda, reference
from tinyalex.backends.cpu.conv import choose, im2col, strided, winograd
from tinyalex.backends.cpu.lrn_pool import ROWS
from tinyalex.backends.geometry import NormOptions, PoolOptions, pool_output_size

BOTH = pytest.mark.parametrize("separate", [reference, cpu], ids=["reference", "cpu"])


def test_all_fused_kernels_are_there_and_tested():
    tested = {"conv2d_relu", "norm_max_pool2d"}
    on_gpus = {"norm_max_pool2d_relu_bias_grad", "linear_relu"}
    gradients = {"conv2d_relu_grads", "norm_max_pool2d_input_grad"}
    assert set(FUSED_KERNELS) == tested | gradients | on_gpus
    for name in (*FUSED_KERNELS, *KERNELS):
        assert hasattr(cpu, name) == (name not in on_gpus)
        assert hasattr(reference, name) == (name in KERNELS)
        assert hasattr(cuda, name)
    assert set(cuda.__all__) == {*KERNELS, *FUSED_KERNELS, *GPU_KERNELS}


# --- local response normalisation and max-pooling -------------------------------------------------


class NormPool(NamedTuple):
    """The options of a normalisation and of the pooling after it; alpha is large to be seen."""

    shape: tuple
    size: int = 5
    alpha: float = 0.9
    beta: float = 0.75
    k: float = 2.0
    groups: int = 1
    window: tuple = (3, 3)
    stride: tuple = (2, 2)
    padding: tuple = (0, 0)
    ceil_mode: bool = False

    @property
    def norm(self):
        """The options of the normalisation alone."""
        return NormOptions(self.size, self.alpha, self.beta, self.k, self.groups)

    @property
    def pool(self):
        """The options of the pooling alone, without dilation."""
        return PoolOptions(self.window, self.stride, self.padding)

    @property
    def output_size(self):
        """The number of windows along both axes."""
        return pool_output_size(self.shape[2:], self.pool, self.ceil_mode)


NORM_POOLS = {
    "conv1 of the paper": NormPool((2, 16, 13, 13)),
    "its own numbers": NormPool((2, 16, 13, 13), alpha=5e-4),
    "17 channels": NormPool((2, 17, 9, 11)),
    "even size": NormPool((1, 6, 7, 9), size=4),
    "size 1": NormPool((1, 6, 7, 9), size=1),
    "size 2": NormPool((1, 6, 7, 9), size=2),
    "wider than the channels": NormPool((1, 3, 7, 9), size=12),
    "one channel": NormPool((2, 1, 7, 8)),
    "another power": NormPool((1, 6, 7, 7), beta=0.5, k=1.0),
    "alpha 1.1": NormPool((1, 6, 7, 7), alpha=1.1, beta=1.25),
    "two groups": NormPool((2, 10, 8, 7), size=3, groups=2),
    "even size in three groups": NormPool((2, 12, 7, 7), size=4, groups=3),
    "a group per channel": NormPool((1, 4, 7, 7), groups=4),
    "padding": NormPool((2, 5, 8, 9), padding=(1, 1)),
    "padding on one axis": NormPool((2, 5, 8, 9), window=(2, 5), stride=(1, 2), padding=(0, 2)),
    "ceil_mode": NormPool((2, 5, 8, 10), ceil_mode=True),
    "ceil_mode and padding": NormPool(
        (2, 5, 6, 7), window=(3, 2), stride=(2, 3), padding=(1, 1), ceil_mode=True
    ),
    "ceil_mode and far apart": NormPool(
        (1, 5, 5, 5), window=(2, 2), stride=(4, 4), padding=(1, 1), ceil_mode=True
    ),
    "stride 1": NormPool((2, 5, 7, 6), stride=(1, 1)),
    "stride 3": NormPool((2, 5, 11, 10), stride=(3, 3)),
    "rows between the windows": NormPool((2, 5, 20, 10), window=(2, 2), stride=(5, 3)),
    "one pixel": NormPool((2, 5, 4, 7), window=(1, 1), stride=(1, 1)),
    "one pixel of many": NormPool((2, 5, 7, 9), window=(1, 1), stride=(3, 2)),
    "one window": NormPool((2, 5, 6, 4), window=(6, 4)),
    "more rows than a task has": NormPool((2, 3, 4 * ROWS + 5, 7)),
    "more rows and padding": NormPool((1, 3, 4 * ROWS, 7), padding=(1, 1)),
    "as many rows as two tasks have": NormPool(
        (2, 3, 2 * ROWS + 4, 7), size=3, window=(5, 1), stride=(1, 1)
    ),
    "no image": NormPool((0, 5, 7, 7)),
}
TYPICAL = NORM_POOLS["padding"]


def forward(separate, case, x):
    """Return output and winning taps, by two kernels of one backend."""
    y = separate.local_response_norm(x, case.norm)
    return separate.max_pool2d(y, case.pool, case.output_size)


def input_grad(separate, case, grad, taps, x):
    """Return the input gradient, by two kernels of one backend."""
    grad = separate.max_pool2d_input_grad(grad, taps, x.shape, case.pool)
    return separate.local_response_norm_input_grad(grad, x, case.norm)


def check_norm_pool(separate, case, x, grad):
    """Compare both directions, and see that the arguments were left alone."""
    before = x.copy(), grad.copy()
    y, taps = cpu.norm_max_pool2d(x, case.norm, case.pool, case.output_size)
    expected, winners = forward(separate, case, before[0])
    assert y.dtype == x.dtype
    assert taps.dtype == winners.dtype
    assert_close(y, expected, what="y")
    np.testing.assert_array_equal(taps, winners)
    dx = cpu.norm_max_pool2d_input_grad(grad, taps, x, case.norm, case.pool)
    assert dx.dtype == x.dtype
    assert_close(dx, input_grad(separate, case, before[1], winners, before[0]), what="dx")
    for argument, kept in zip((x, grad), before, strict=True):
        np.testing.assert_array_equal(argument, kept)


def draw(rng, case, dtype, draw_images=normal):
    """Return images and an output gradient."""
    return (
        draw_images(rng, case.shape, dtype),
        normal(rng, (*case.shape[:2], *case.output_size), dtype),
    )


@BOTH
@pytest.mark.parametrize("case", NORM_POOLS.values(), ids=NORM_POOLS.keys())
def test_norm_max_pool(rng, dtype, case, separate):
    check_norm_pool(separate, case, *draw(rng, case, dtype))


@BOTH
def test_norm_max_pool_of_more_taps_than_fit_a_byte(rng, separate):
    """In one precision, for each has more kernels to compile then: seconds."""
    case = NormPool((1, 2, 20, 21), window=(17, 16))
    check_norm_pool(separate, case, *draw(rng, case, np.float32))


@BOTH
@pytest.mark.parametrize("name", ["padding", "ceil_mode", "stride 1", "two groups", "size 1"])
def test_norm_max_pool_of_equal_values(rng, dtype, name, separate):
    """Two pixels whose channels are all equal stay equal; the first of them wins."""
    case = NORM_POOLS[name]._replace(alpha=1.0, beta=0.5)
    x, grad = draw(rng, case, dtype, tied)
    x[:, 1:] = -1
    check_norm_pool(separate, case, x, grad)


@BOTH
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
def test_norm_max_pool_accepts_any_memory_layout(rng, layout, separate):
    x, grad = draw(rng, TYPICAL, np.float64)
    check_norm_pool(separate, TYPICAL, LAYOUTS[layout](x), LAYOUTS[layout](grad))


@BOTH
@pytest.mark.parametrize("name", ["padding", "ceil_mode", "stride 1", "two groups"])
def test_norm_max_pool_lets_nan_through(rng, dtype, name, separate):
    """A NaN spoils the neighbour channels of its pixel, and wins all their windows."""
    case = NORM_POOLS[name]
    x, grad = draw(rng, case, dtype)
    x[0, 1, 3, 3] = x[1, 4, 0, 0] = x[1, 3, 0, 1] = np.nan
    y, _ = forward(separate, case, x)
    assert np.isnan(y[0]).any()
    assert not np.isnan(y).all()
    check_norm_pool(separate, case, x, grad)


# --- convolution and ReLU -------------------------------------------------------------------------

CONVOLUTIONS = {
    # the algorithm, and N, C, (H, W), K, taps, padding, groups, stride
    "winograd, 3 taps": (winograd, (5, 16, (13, 13), 19, 3, padded(1), 1, 1)),
    "winograd, 5 taps": (winograd, (2, 32, (21, 23), 38, 5, padded(2), 2, 1)),
    "strided": (strided, (3, 3, (67, 67), 17, 11, padded(2), 1, 4)),
    "im2col": (im2col, (2, 5, (8, 9), 7, 3, padded(1, 0, 2, 1), 1, 2)),
    "im2col in groups": (im2col, (3, 6, (7, 9), 8, 5, padded(2), 2, 1)),
    "no image": (im2col, (0, 3, (7, 7), 4, 3, padded(1), 1, 1)),
}
EACH_CONVOLUTION = pytest.mark.parametrize(
    ("algorithm", "sizes"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys()
)
NEEDS = [needs for needs in product((True, False), repeat=3) if any(needs)]


def convolution(rng, algorithm, sizes, dtype):
    """Draw a problem for this algorithm, in float64 if it can."""
    arguments = problem(rng, *sizes, dtype=dtype)
    x, weight, _, grad, options = arguments
    layer = choose.Problem(grad.shape, weight.shape, options, x.dtype)
    assert choose.algorithm(layer) is (algorithm if dtype == np.float32 else im2col)
    return arguments


@BOTH
@EACH_CONVOLUTION
def test_conv2d_relu(rng, dtype, algorithm, sizes, separate):
    x, weight, bias, _, geometry = convolution(rng, algorithm, sizes, dtype)
    for some_bias in (bias, None):
        y = cpu.conv2d_relu(x, weight, some_bias, geometry)
        assert y.dtype == dtype
        assert_close(y, separate.relu(separate.conv2d(x, weight, some_bias, geometry)))
        assert y.size == 0 or 0 < np.mean(y == 0) < 1


@BOTH
@EACH_CONVOLUTION
@pytest.mark.parametrize("needs", NEEDS, ids=str)
def test_conv2d_relu_grads(rng, dtype, algorithm, sizes, needs, separate):
    """What is not needed is not computed, and what it would take is not there."""
    x, weight, bias, grad, geometry = convolution(rng, algorithm, sizes, dtype)
    y = cpu.conv2d_relu(x, weight, bias, geometry)
    need_x, need_weight, _ = needs
    grads = cpu.conv2d_relu_grads(
        grad,
        y,
        x if need_weight else None,
        weight if need_x else None,
        needs,
        (x.shape, weight.shape),
        geometry,
    )
    grad = separate.relu_input_grad(grad, y)
    expected = (
        separate.conv2d_input_grad(grad, weight, x.shape, geometry),
        separate.conv2d_weight_grad(grad, x, weight.shape, geometry),
        separate.conv2d_bias_grad(grad),
    )
    for name, need, actual, result in zip(
        ("dx", "dweight", "dbias"), needs, grads, expected, strict=True
    ):
        if need:
            assert actual.dtype == dtype
            assert_close(actual, result, what=name)
        else:
            assert actual is None


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@EACH_CONVOLUTION
def test_conv2d_relu_accepts_any_memory_layout(rng, algorithm, sizes, layout):
    *arrays, geometry = convolution(rng, algorithm, sizes, np.dtype(np.float32))
    x, weight, bias, grad = map(LAYOUTS[layout], arrays)
    y = LAYOUTS[layout](cpu.conv2d_relu(x, weight, bias, geometry))
    shapes = x.shape, weight.shape
    grads = cpu.conv2d_relu_grads(grad, y, x, weight, (True,) * 3, shapes, geometry)
    grad = reference.relu_input_grad(grad, y)
    if layout != "broadcast":  # of y, one column only would be left
        assert_close(y, reference.relu(reference.conv2d(x, weight, bias, geometry)))
    assert_close(grads[0], reference.conv2d_input_grad(grad, weight, x.shape, geometry))
    assert_close(grads[1], reference.conv2d_weight_grad(grad, x, weight.shape, geometry))
    assert_close(grads[2], reference.conv2d_bias_grad(grad))
