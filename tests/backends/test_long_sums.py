"""Sums over long axes: as exact as short ones, in every layout."""

import numpy as np
import pytest
from helpers import LAYOUTS

import tinyalex as ta
import tinyalex.functional as F
from tinyalex.backends.numerics import mean, sum_of, total

LONG = 1 << 17  # rows: added one by one in float32, they lose two to three digits
# Of float32. NumPy's own runs of 128 and Numba's of 64 come out within 8; Winograd adds the rows
# of a thread's share, here 64, before all else.
UNITS = 10


@pytest.fixture
def rows(rng):
    """Return positive numbers [LONG, 3]: nothing cancels, so relative errors mean something."""
    return rng.uniform(0.5, 1.5, (LONG, 3)).astype(np.float32)


def assert_exact(actual, expected, units=UNITS):
    actual, expected = np.asarray(actual), np.asarray(expected, np.longdouble)
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    error = np.abs(actual / expected - 1).max() / (np.finfo(np.float32).eps / 2)
    assert error <= units, f"{error:.0f} units in the last place"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("shape", [(LONG, 3), (3, LONG), (LONG // 8, 24), (257, 256)], ids=str)
def test_total_and_mean(rng, shape, axes, layout):
    x = LAYOUTS[layout](rng.uniform(0.5, 1.5, shape).astype(np.float32))
    exact = x.astype(np.longdouble)
    assert_exact(total(x, axes), exact.sum(axes))
    assert_exact(mean(x, axes, keepdims=True), exact.mean(axes, keepdims=True))


def test_float64(rng):
    x = rng.uniform(0.5, 1.5, (LONG, 3))
    error = total(x, (0,)) / x.astype(np.longdouble).sum(0) - 1
    assert np.abs(error).max() <= UNITS / 2 * np.finfo(np.float64).eps


def test_sum_of_arrays(rng):
    x = rng.uniform(0.5, 1.5, (5000, 2)).astype(np.float32)
    assert_exact(sum_of(iter(x)), x.sum(0, dtype=np.longdouble))


def test_on_a_gpu(cuda, rows):
    x = ta.Tensor(rows).to("cuda")
    assert_exact(x.sum(0).cpu().data, rows.sum(0, dtype=np.longdouble))
    assert_exact(x.T.mean(1).cpu().data, rows.mean(0, dtype=np.longdouble))
    y = F.linear(ta.zeros(LONG, 2).to("cuda"), ta.zeros(3, 2).to("cuda"), leaf := gpu_leaf(3))
    y.backward(x)
    assert_exact(ta.Tensor(leaf.grad).cpu().data, rows.sum(0, dtype=np.longdouble))


def gpu_leaf(*shape):
    return ta.tensor(np.ones(shape, np.float32), device="cuda", requires_grad=True)


def gradient(rows, op, *shape):
    """Return the gradient of a leaf of this shape, where ``rows`` is the gradient of op(leaf)."""
    leaf = ta.ones(*shape, requires_grad=True)
    y = op(leaf)
    y.backward(rows.reshape(y.shape))
    return leaf.grad


def image(rows):
    """Return an image, [1, channels, 256, ...] and channels last, with rows as pixels."""
    return rows.reshape(1, 256, LONG // 256, -1).transpose(0, 3, 1, 2)


# What sums the rows, and how. Each returns the three sums, some of them several times.
SUMS = {
    "sum": lambda rows: ta.Tensor(rows).sum(0).data,
    "mean": lambda rows: ta.Tensor(rows).mean(0).data * np.float32(LONG),
    "add": lambda rows: gradient(rows, lambda b: ta.zeros(LONG, 3) + b, 3),
    "mul": lambda rows: gradient(rows, lambda b: b * ta.ones(LONG, 3), 1, 3)[0],
    "where": lambda rows: gradient(
        rows, lambda b: ta.where(np.ones((LONG, 3), bool), b, ta.zeros(1)), 3
    ),
    "matmul of a stack": lambda rows: gradient(rows, lambda b: ta.ones(LONG, 1, 1) @ b, 1, 3)[0],
    "index": lambda rows: gradient(rows, lambda x: x[np.zeros(LONG, np.int64)], 1, 3)[0],
    "linear": lambda rows: gradient(
        rows, lambda b: F.linear(ta.zeros(LONG, 2), ta.zeros(3, 2), b), 3
    ),
    "matmul": lambda rows: (ta.ones(1, LONG) @ rows).data[0],
    "matmul, vectors": lambda rows: [(ta.ones(LONG) @ column).item() for column in rows.T.copy()],
    "matmul, gradients": lambda rows: [
        gradient(rows, lambda b: ta.ones(LONG, 1) @ b, 1, 3)[0],
        gradient(rows.T, lambda a: a @ ta.ones(1, LONG), 3, 1)[:, 0],
    ],
    "linear, outputs": lambda rows: [
        *F.linear(ta.ones(2, LONG), ta.Tensor(rows.T)).data,  # BLAS
        *F.linear(ta.ones(2, LONG), ta.Tensor(np.tile(rows, 8).T)).data[:, :3],
        *F.linear(ta.ones(1, LONG), ta.Tensor(rows.T)).data,
    ],
    "linear, gradients": lambda rows: [
        gradient(rows.T, lambda x: F.linear(x, ta.ones(LONG, 1)), 3, 1)[:, 0],
        gradient(np.tile(rows, 8).T, lambda x: F.linear(x, ta.ones(LONG, 16)), 24, 16)[:3, 0],
        gradient(rows, lambda weight: F.linear(ta.ones(LONG, 1), weight), 3, 1)[:, 0],
        gradient(np.tile(rows, 8), lambda weight: F.linear(ta.ones(LONG, 16), weight), 24, 16)[
            :3, 0
        ],
    ],
    "conv2d": lambda rows: gradient(
        image(rows),
        lambda b: F.conv2d(ta.zeros(1, 2, 256, LONG // 256), ta.zeros(3, 2, 1, 1), b),
        3,
    ),
    "conv2d, Winograd": lambda rows: gradient(
        image(np.tile(rows, (1, 6))),
        lambda b: F.conv2d_relu(
            ta.zeros(1, 16, 258, LONG // 256 + 2), ta.zeros(18, 16, 3, 3, requires_grad=True), b
        ),
        18,
    )[:3],
    "softmax": lambda rows: rows[0] / F.softmax(ta.Tensor(rows).log(), 0).data[0],
    "softmax, backward": lambda rows: (
        -gradient(rows * (np.arange(LONG) > 0)[:, None], lambda x: F.softmax(x, 0), LONG, 3)[0]
        * np.float32(LONG) ** 2
        + rows[0]
    ),
    "avg_pool2d": lambda rows: (
        F.avg_pool2d(ta.Tensor(image(rows)), (256, LONG // 256)).data.ravel() * np.float32(LONG)
    ),
    "adaptive_avg_pool2d": lambda rows: (
        F.adaptive_avg_pool2d(ta.Tensor(image(rows)), 1).data.ravel() * np.float32(LONG)
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_every_sum(backend, rows, name):
    actual = np.float32(SUMS[name](rows))
    assert_exact(actual, np.broadcast_to(rows.sum(0, dtype=np.longdouble), actual.shape))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy(backend, rng, reduction):
    """Equal logits lose ln 2 per row; with weights, that many times."""
    target, weight = rng.integers(0, 2, LONG), np.float32([0.3, 1.7])
    logits = ta.zeros(LONG, 2, requires_grad=True)
    loss = F.cross_entropy(logits, target, ta.Tensor(weight), reduction=reduction)
    exact = np.log(np.longdouble(2)) * (1 if reduction == "mean" else weight[target].sum(dtype="g"))
    assert_exact(loss.data, exact)


# Winograd's transforms add and subtract what is larger than the result.
@pytest.mark.parametrize(
    ("taps", "units"), [(1, UNITS), (3, 2 * UNITS)], ids=["im2col", "Winograd"]
)
def test_weight_gradient_of_a_large_image(rng, taps, units):
    size, channels = 1024, 16
    x, grad = (
        rng.uniform(0.5, 1.5, (1, channels, size + edge, size + edge)).astype(np.float32)
        for edge in (taps - 1, 0)
    )
    weight = ta.ones(channels, channels, taps, taps, requires_grad=True)
    F.conv2d(ta.Tensor(x), weight).backward(grad)
    seen = x[0, :, :size, :size].reshape(channels, -1).astype(np.float64)
    exact = grad.reshape(channels, -1).astype(np.float64) @ seen.T
    assert_exact(weight.grad[:, :, 0, 0], exact, units)
