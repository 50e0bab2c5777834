"""Every function at both ends of its range, and of nothing."""

import inspect

import numpy as np
import pytest
from helpers import normal

import tinyalex as ta
import tinyalex.functional as F

FLOATS = (np.float32, np.float64)


def quiet(function):
    return np.errstate(all="ignore")(function)


# --- functions of one number, against numbers of 80 bits ------------------------------------------


def stable_sigmoid(x):
    return np.where(x < 0, np.exp(-abs(x)), 1) / (1 + np.exp(-abs(x)))


def sech2(x):
    return 4 * stable_sigmoid(2 * x) * stable_sigmoid(-2 * x)


# The function, and from NumPy's numbers: its values, its slopes.
ELEMENTWISE = {
    "exp": (lambda x: x.exp(), np.exp, np.exp),
    "log": (lambda x: x.log(), np.log, lambda x: 1 / x),
    "sqrt": (lambda x: x.sqrt(), np.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "tanh": (lambda x: x.tanh(), np.tanh, sech2),
    "sigmoid": (
        lambda x: x.sigmoid(),
        stable_sigmoid,
        lambda x: stable_sigmoid(x) * stable_sigmoid(-x),
    ),
    "relu": (F.relu, lambda x: np.where(x <= 0, 0, x), lambda x: np.where(x <= 0, 0, 1)),
    "abs": (abs, abs, np.sign),
    "neg": (lambda x: -x, lambda x: -x, lambda x: -np.ones_like(x)),
    "square": (lambda x: x**2, lambda x: x**2, lambda x: 2 * x),
    "root": (lambda x: x**0.5, lambda x: x**0.5, lambda x: 0.5 * x**-0.5),
    "reciprocal": (lambda x: 1 / x, lambda x: 1 / x, lambda x: -1 / x / x),
    "third": (lambda x: x / 3, lambda x: x / 3, lambda x: np.full_like(x, 1 / np.longdouble(3))),
    "2 ** x": (lambda x: 2.0**x, lambda x: 2**x, lambda x: 2**x * np.log(np.longdouble(2))),
}


def ends(dtype):
    """Return numbers from both ends of a dtype's range, and what lies beyond."""
    limits = np.finfo(dtype)
    size = [0, limits.smallest_subnormal, limits.tiny / 4, limits.tiny, 1e-20, 0.5, 1, 20, 90, 1e19]
    size = np.array([*size, limits.max / 4, limits.max, np.inf], dtype)
    return np.concatenate([size, -size, np.array([np.nan], dtype)])


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("dtype", FLOATS)
@quiet
def test_functions_of_one_number(backend, dtype, name):
    function, exact, slope = ELEMENTWISE[name]
    x = ta.Tensor(ends(dtype), requires_grad=True)
    y = function(x)
    y.backward(np.ones(y.shape, dtype))
    wide = x.data.astype(np.longdouble)
    for actual, expected in ((y.data, exact(wide)), (x.grad, slope(wide))):
        assert actual.dtype == dtype
        expected = expected.astype(dtype)
        # The 0 of a subnormal's square is one thing, of a number of 80 bits another: 4 of the last
        # place, and of subnormal numbers as many of the smallest.
        allowed = 4 * np.maximum(np.spacing(abs(expected)), np.finfo(dtype).smallest_subnormal)
        near = (actual == expected) | (abs(actual - expected) <= allowed)
        near |= np.isnan(expected) & np.isnan(actual)
        assert near.all(), [*zip(x.data[~near], actual[~near], expected[~near], strict=True)]


# --- functions of images and rows: float32 against float64 ----------------------------------------

IMAGES, ROWS = (2, 4, 6, 6), (3, 7)
WEIGHT, BIAS, MATRIX = (4, 4, 3, 3), (4,), (5, 7)
NORM, WINDOW = (3, 1e-4, 0.75, 1.0, 1), (2, None, 0, False)
TARGET = np.array([0, 6, 2])


def seeded_dropout(x):
    ta.manual_seed(3)
    return F.dropout(x, 0.5)


# Every public function: the shapes that it takes, the first scaled to an end of the range.
FUNCTIONS = {
    "conv2d": ([IMAGES, WEIGHT, BIAS], F.conv2d),
    "conv2d_relu": ([IMAGES, WEIGHT, BIAS], F.conv2d_relu),
    "conv2d_relu_norm_max_pool2d": (
        [IMAGES, WEIGHT, BIAS],
        # With beta 0.75, the gradient between its layers would be below float32 at the upper end.
        lambda x, w, b: F.conv2d_relu_norm_max_pool2d(
            x, w, b, (1, 0, 1, 1), (3, 1e-4, 0.25, 1.0, 1), WINDOW
        ),
    ),
    "max_pool2d": ([IMAGES], lambda x: F.max_pool2d(x, 3, 2)),
    "avg_pool2d": ([IMAGES], lambda x: F.avg_pool2d(x, 3, 1, 1)),
    "adaptive_avg_pool2d": ([IMAGES], lambda x: F.adaptive_avg_pool2d(x, (1, 4))),
    "local_response_norm": ([IMAGES], lambda x: F.local_response_norm(x, *NORM)),
    "local_response_norm_max_pool2d": (
        [IMAGES],
        lambda x: F.local_response_norm_max_pool2d(x, *NORM, 3, 2),
    ),
    "within_channel_response_norm": ([IMAGES], lambda x: F.within_channel_response_norm(x, 3)),
    "relu": ([IMAGES], F.relu),
    "dropout": ([IMAGES], seeded_dropout),
    "linear": ([ROWS, MATRIX, (5,)], F.linear),
    "linear_relu": ([ROWS, MATRIX, (5,)], F.linear_relu),
    "pad": ([ROWS], lambda x: F.pad(x, (1, 2), value=3)),
    "softmax": ([ROWS], lambda x: F.softmax(x, 1)),
    "log_softmax": ([ROWS], lambda x: F.log_softmax(x, 1)),
    "cross_entropy": ([ROWS], lambda x: F.cross_entropy(x, TARGET, label_smoothing=0.1)),
    "sum": ([ROWS], lambda x: x.sum(0)),
    "mean": ([ROWS], lambda x: x.mean(0)),
    "max": ([ROWS], lambda x: x.amax(1)),
    "matmul": ([ROWS, (7, 2)], lambda x, w: x @ w),
    "index": ([ROWS], lambda x: x[[0, 2, 2]]),
}
SCALES = {"largest": 3e36, "large": 2e19, "one": 1.0, "small": 1e-20, "smallest": 1e-37}


def test_every_public_function_has_a_row():
    public = {
        name
        for name, value in vars(F).items()
        if inspect.isfunction(value) and value.__module__ == F.__name__ and name[0] != "_"
    }
    assert public <= set(FUNCTIONS)


def values_and_gradients(call, arrays):
    tensors = [ta.Tensor(array, requires_grad=True) for array in arrays]
    y = call(*tensors)
    slope = np.random.default_rng(7).standard_normal(y.shape)
    y.backward(slope.astype(y.dtype))
    return [y.data, *(t.grad for t in tensors)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FUNCTIONS)
@quiet
def test_float32_at_both_ends(backend, rng, name, scale):
    shapes, call = FUNCTIONS[name]
    arrays = [normal(rng, shape, np.float32) for shape in shapes]
    arrays[0] *= np.float32(SCALES[scale])
    actual = values_and_gradients(call, arrays)
    with ta.use_backend("reference"):
        expected = values_and_gradients(call, [array.astype(np.float64) for array in arrays])
    for got, wanted in zip(actual, expected, strict=True):
        rounded = wanted.astype(np.float32)
        assert np.array_equal(np.isinf(got), np.isinf(rounded))
        assert not np.isnan(got).any()
        finite = np.isfinite(rounded)
        size = np.maximum(abs(rounded[finite]).max(initial=0), np.finfo(np.float32).tiny)
        error = abs(got.astype(np.float64) - wanted)[finite].max(initial=0)
        assert error <= 2e-5 * size  # Winograd's and LRN's; no cancellation is larger here


# What f(2 ** j x) is, as a power of 2, times f(x).
DEGREES = {
    "conv2d": 1,
    "max_pool2d": 1,
    "avg_pool2d": 1,
    "adaptive_avg_pool2d": 1,
    "relu": 1,
    "dropout": 1,
    "linear": 1,
    "sum": 1,
    "mean": 1,
    "max": 1,
    "matmul": 1,
}


@pytest.mark.parametrize("power", [-1018, -600, 600, 1018])
@pytest.mark.parametrize("name", DEGREES)
def test_float64_at_both_ends(backend, rng, name, power):
    """What is linear in x is exactly so for powers of 2."""
    shapes, call = FUNCTIONS[name]
    x, *others = (normal(rng, shape) for shape in shapes)
    others = [np.zeros_like(a) if a.ndim == 1 else a / 64 for a in others]
    x = np.where(abs(x) < 1, x + np.sign(x), x)  # no subnormal numbers, which have fewer digits
    middle = call(ta.Tensor(x), *map(ta.Tensor, others)).data
    end = call(ta.Tensor(np.ldexp(x, power)), *map(ta.Tensor, others)).data
    np.testing.assert_allclose(np.ldexp(end, -power), middle, rtol=1e-13, atol=1e-14)


NORMS = {
    "across channels": lambda x, k: F.local_response_norm(x, 3, 1e-4, 0.75, k),
    "with pooling": lambda x, k: F.local_response_norm_max_pool2d(x, 3, 1e-4, 0.75, k, 1, 3),
    "within each": lambda x, k: F.within_channel_response_norm(x, 3, 1e-4, 0.75, k),
}


@pytest.mark.parametrize("power", [-960, -300, 300, 960])
@pytest.mark.parametrize("name", NORMS)
def test_normalisation_of_float64_at_both_ends(backend, rng, name, power):
    """Without k, y has the scale of x ** (1 - 2 beta), and dx that of x ** (-2 beta)."""

    def results(x, k):
        y, dx = values_and_gradients(lambda x: NORMS[name](x, k), [x])
        return y, dx

    x = normal(rng, IMAGES)
    (y, dx), (end, slope) = results(x, 0.0), results(np.ldexp(x, power), 0.0)
    np.testing.assert_allclose(np.ldexp(end, power // 2), y, rtol=1e-12)
    if abs(power) < 600:  # else the slope itself is out of range
        np.testing.assert_allclose(np.ldexp(slope, 3 * power // 2), dx, rtol=1e-9, atol=1e-12)
    if power > 0:  # k is nothing beside such numbers
        np.testing.assert_allclose(results(np.ldexp(x, power), 1.0)[0], end, rtol=1e-12)


# --- what no number is ----------------------------------------------------------------------------

X, M = float("inf"), float("-inf")


@pytest.mark.parametrize("dtype", FLOATS)
def test_infinite_logits(backend, dtype):
    """A logit of -inf has no probability and no gradient; +inf, or nothing else, leaves NaN."""
    logits = np.array([[M, 0, 0], [M, M, M], [X, 0, 0]], dtype)
    p = F.softmax(ta.Tensor(logits), 1).data
    assert p[0].tolist() == [0, 0.5, 0.5]
    assert np.isnan(p[1:]).all()
    x = ta.Tensor(logits[:1], requires_grad=True)
    loss = F.cross_entropy(x, np.array([1]))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert x.grad.tolist() == [[0, -0.5, 0.5]]
    assert F.cross_entropy(ta.Tensor(logits[:1]), np.array([0])).item() == X


def test_windows_of_nothing_but_minus_infinity(backend, dtype):
    x = ta.Tensor(np.full((1, 2, 4, 4), M, dtype), requires_grad=True)
    y = F.max_pool2d(x, 2, padding=1)
    y.backward(np.ones(y.shape, dtype))
    assert (y.data == M).all()
    assert x.grad.sum() == y.size


def test_dropout_multiplies_with_its_mask(backend, dtype):
    """As in torch: 0 times infinity is NaN, also where all is dropped."""
    x = ta.Tensor(np.array([X, np.nan] * 50, dtype))
    assert np.isnan(F.dropout(x, 1.0).data).all()
    half = F.dropout(x, 0.5).data[::2]
    assert set(half[~np.isnan(half)]) == {X}
    assert 0 < np.isnan(half).sum() < 50
    assert F.dropout(x, 0.0) is x


@pytest.mark.parametrize("name", NORMS)
def test_an_infinity_stays_where_it_is(backend, dtype, name):
    x = np.ones((1, 8, 9, 9), dtype)
    x[0, 0, 0, 0] = X
    y = NORMS[name](ta.Tensor(x), 1.0).data
    assert np.isnan(y[0, 0, 0, 0])
    assert np.isnan(y).sum() == 1
    assert np.isfinite(y[:, 4:]).all()


# --- nothing at all -------------------------------------------------------------------------------

EMPTY = {
    "conv2d, no image": ([(0, 4, 6, 6), WEIGHT, BIAS], F.conv2d, (0, 4, 4, 4)),
    "conv2d, no channel": ([(2, 0, 6, 6), (4, 0, 3, 3), BIAS], F.conv2d, (2, 4, 4, 4)),
    "conv2d_relu, no channel": ([(2, 0, 6, 6), (4, 0, 3, 3), BIAS], F.conv2d_relu, (2, 4, 4, 4)),
    "max_pool2d": ([(0, 4, 6, 6)], lambda x: F.max_pool2d(x, 2), (0, 4, 3, 3)),
    "avg_pool2d": ([(0, 4, 6, 6)], lambda x: F.avg_pool2d(x, 2), (0, 4, 3, 3)),
    "adaptive_avg_pool2d": ([(2, 0, 6, 6)], lambda x: F.adaptive_avg_pool2d(x, 2), (2, 0, 2, 2)),
    "lrn, no image": ([(0, 4, 6, 6)], lambda x: F.local_response_norm(x, 3), (0, 4, 6, 6)),
    "lrn, no channel": ([(2, 0, 6, 6)], lambda x: F.local_response_norm(x, 3), (2, 0, 6, 6)),
    "lrn, no pixel": ([(2, 4, 0, 6)], lambda x: F.local_response_norm(x, 3), (2, 4, 0, 6)),
    "within, no image": (
        [(0, 4, 6, 6)], lambda x: F.within_channel_response_norm(x, 3), (0, 4, 6, 6),
    ),
    "within, no pixel": (
        [(2, 4, 0, 6)], lambda x: F.within_channel_response_norm(x, 3), (2, 4, 0, 6),
    ),
    "linear, no row": ([(0, 7), MATRIX, (5,)], F.linear, (0, 5)),
    "linear, no input": ([(3, 0), (5, 0), (5,)], F.linear, (3, 5)),
    "linear, one row, no input": ([(1, 0), (5, 0), (5,)], F.linear, (1, 5)),
    "linear, no output": ([(3, 7), (0, 7), (0,)], F.linear, (3, 0)),
    "linear, nothing": ([(0, 0), (0, 0), (0,)], F.linear, (0, 0)),
    "relu": ([(0, 3)], F.relu, (0, 3)),
    "dropout": ([(0, 3)], lambda x: F.dropout(x, 0.5), (0, 3)),
    "pad": ([(0, 3)], lambda x: F.pad(x, (0, 0, 1, 1)), (2, 3)),
    "softmax, no row": ([(0, 3)], lambda x: F.softmax(x, 1), (0, 3)),
    "softmax, no column": ([(3, 0)], lambda x: F.softmax(x, 1), (3, 0)),
    "log_softmax": ([(3, 0)], lambda x: F.log_softmax(x, 1), (3, 0)),
    "cross_entropy": (
        [(0, 3)], lambda x: F.cross_entropy(x, np.zeros(0, int), reduction="sum"), (),
    ),
    "sum": ([(0, 3)], lambda x: x.sum(0), (3,)),
    "mean": ([(3, 0)], lambda x: x.mean(0), (0,)),
    "max": ([(0, 3)], lambda x: x.amax(1), (0,)),
    "matmul": ([(2, 0), (0, 3)], lambda a, b: a @ b, (2, 3)),
    "add": ([(0, 3), (3,)], lambda a, b: a + b, (0, 3)),
    "index": ([(4, 3)], lambda x: x[np.zeros(0, int)], (0, 3)),
    "cat": ([(0, 3), (2, 3)], lambda a, b: ta.cat([a, b]), (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_empty_axes(backend, dtype, name):
    """Shapes as in torch, and sums of nothing are 0."""
    shapes, call, expected = EMPTY[name]
    tensors = [ta.Tensor(np.ones(shape, dtype), requires_grad=True) for shape in shapes]
    y = call(*tensors)
    assert y.shape == expected
    y.backward(np.ones(y.shape, dtype))
    for tensor in tensors:
        assert tensor.grad is None or tensor.grad.shape == tensor.shape
        assert tensor.grad is None or np.isfinite(tensor.grad).all()
    assert np.isfinite(y.data).all()


def test_the_mean_of_nothing(backend, dtype):
    x = ta.Tensor(np.ones((0, 3), dtype))
    assert np.isnan(x.mean().data)
    assert np.isnan(x.mean(0).data).all()
    assert np.isnan(F.cross_entropy(x, np.zeros(0, int)).data)
