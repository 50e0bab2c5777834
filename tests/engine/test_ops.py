"""Public functions (tinyalex.functional) against oracles.py, in every form of call."""

import numpy as np
import oracles
import pytest
from helpers import LAYOUTS, assert_close, distinct, normal, tied

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn
from tinyalex.models import VARIANTS
from tinyalex.models.spec import LRN


def conv(x, w, b=None, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    return oracles.conv2d(x, w, b, stride, padding, dilation, groups)


def max_pool(x, window, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    size = pooled(x, window, stride, padding, dilation, ceil_mode)
    return oracles.max_pool2d(x, window, stride, padding, dilation, size)[0]


def avg_pool(x, window, stride, padding=(0, 0), ceil_mode=False, **options):
    size = pooled(x, window, stride, padding, (1, 1), ceil_mode)
    return oracles.avg_pool2d(x, window, stride, padding, size, **options)


def pooled(x, window, stride, padding, dilation, ceil_mode):
    return tuple(
        oracles.pool_output_size(
            x.shape[2 + i], window[i], stride[i], padding[i], dilation[i], ceil_mode
        )
        for i in range(2)
    )


def case(name, shapes, call, expected, draw=normal):
    """One line of the table: what a user writes, and the loops it should equal."""
    return pytest.param(shapes, call, expected, draw, id=name)


X, W, B = (2, 4, 7, 9), (6, 4, 3, 2), (6,)

CASES = [
    # conv2d: every way to write its arguments
    case("conv2d", [X, W, B], lambda x, w, b: F.conv2d(x, w, b), conv),
    case("conv2d no bias", [X, W], lambda x, w: F.conv2d(x, w), conv),
    case(
        "conv2d numbers",
        [X, W],
        lambda x, w: F.conv2d(x, w, stride=2, padding=1, dilation=2),
        lambda x, w: conv(x, w, None, (2, 2), ((1, 1), (1, 1)), (2, 2)),
    ),
    case(
        "conv2d pairs",
        [X, (6, 2, 3, 2), B],
        lambda x, w, b: F.conv2d(x, w, b, (2, 1), (0, 2), (1, 3), 2),
        lambda x, w, b: conv(x, w, b, (2, 1), ((0, 0), (2, 2)), (1, 3), 2),
    ),
    case(
        "conv2d valid",
        [X, W],
        lambda x, w: F.conv2d(x, w, stride=2, padding="valid"),
        lambda x, w: conv(x, w, None, (2, 2)),
    ),
    case(
        "conv2d same",
        [X, W, B],
        lambda x, w, b: F.conv2d(x, w, b, padding="same"),
        lambda x, w, b: conv(x, w, b, padding=((1, 1), (0, 1))),
    ),
    case(
        "conv2d same dilated",
        [X, (6, 4, 2, 4)],
        lambda x, w: F.conv2d(x, w, padding="same", dilation=(3, 1)),
        lambda x, w: conv(x, w, padding=((1, 2), (1, 2)), dilation=(3, 1)),
    ),
    case(
        "conv2d one image",
        [X[1:], W, B],
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        lambda x, w, b: conv(x[None], w, b, padding=((1, 1), (1, 1)))[0],
    ),
    case("conv2d empty batch", [(0, 4, 7, 9), W, B], lambda x, w, b: F.conv2d(x, w, b), conv),
    # max_pool2d
    case(
        "max_pool2d default stride",
        [X],
        lambda x: F.max_pool2d(x, 2),
        lambda x: max_pool(x, (2, 2), (2, 2)),
        tied,
    ),
    case(
        "max_pool2d overlapping",
        [X],
        lambda x: F.max_pool2d(x, 3, 2),
        lambda x: max_pool(x, (3, 3), (2, 2)),
    ),
    case(
        "max_pool2d all options",
        [X],
        lambda x: F.max_pool2d(x, (2, 3), (2, 3), (1, 0), (2, 1), True),
        lambda x: max_pool(x, (2, 3), (2, 3), (1, 0), (2, 1), True),
        tied,
    ),
    case(
        "max_pool2d one image",
        [X[1:]],
        lambda x: F.max_pool2d(x, 3, padding=1),
        lambda x: max_pool(x[None], (3, 3), (3, 3), (1, 1))[0],
    ),
    # avg_pool2d
    case(
        "avg_pool2d",
        [X],
        lambda x: F.avg_pool2d(x, (3, 2)),
        lambda x: avg_pool(x, (3, 2), (3, 2)),
    ),
    case(
        "avg_pool2d counts padding",
        [X],
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        lambda x: avg_pool(x, (3, 3), (2, 2), (1, 1)),
    ),
    case(
        "avg_pool2d without padding",
        [X],
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        lambda x: avg_pool(x, (3, 3), (2, 2), (1, 1), count_include_pad=False),
    ),
    case(
        "avg_pool2d ceil_mode",
        [(2, 4, 7, 10)],
        lambda x: F.avg_pool2d(x, (2, 4), 3, (1, 2), ceil_mode=True),
        lambda x: avg_pool(x, (2, 4), (3, 3), (1, 2), ceil_mode=True),
    ),
    case(
        "avg_pool2d ceil_mode without padding",
        [(1, 2, 8, 6)],
        lambda x: F.avg_pool2d(x, 3, 4, 1, True, False),
        lambda x: avg_pool(x, (3, 3), (4, 4), (1, 1), True, count_include_pad=False),
    ),
    case(
        "avg_pool2d divisor_override",
        [X],
        lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
        lambda x: avg_pool(x, (3, 3), (2, 2), (1, 1), divisor_override=5),
    ),
    case(
        "avg_pool2d one image",
        [X[1:]],
        lambda x: F.avg_pool2d(x, 3),
        lambda x: avg_pool(x[None], (3, 3), (3, 3))[0],
    ),
    # adaptive_avg_pool2d
    *(
        case(
            f"adaptive_avg_pool2d {size}",
            [X],
            lambda x, size=size: F.adaptive_avg_pool2d(x, size),
            lambda x, pair=pair: oracles.adaptive_avg_pool2d(x, pair),
        )
        for size, pair in [
            (6, (6, 6)),
            (1, (1, 1)),
            ((7, 9), (7, 9)),
            ((3, 4), (3, 4)),
            ((10, 13), (10, 13)),
            ((None, 2), (7, 2)),
        ]
    ),
    case(
        "adaptive_avg_pool2d one image",
        [X[1:]],
        lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: oracles.adaptive_avg_pool2d(x[None], (2, 2))[0],
    ),
    # normalisation
    case(
        "local_response_norm defaults",
        [X],
        lambda x: F.local_response_norm(x, 5),
        lambda x: oracles.local_response_norm(x, 5, 1e-4, 0.75, 1.0),
    ),
    case(
        "local_response_norm",
        [X],
        lambda x: F.local_response_norm(x, 3, 1.2, 0.6, 2.0),
        lambda x: oracles.local_response_norm(x, 3, 1.2, 0.6, 2.0),
    ),
    case(
        "local_response_norm even, two towers",
        [X],
        lambda x: F.local_response_norm(x, 4, alpha=1.1, k=0.5, groups=2),
        lambda x: oracles.local_response_norm(x, 4, 1.1, 0.75, 0.5, 2),
    ),
    case(
        "local_response_norm sequences",
        [(2, 5, 6)],
        lambda x: F.local_response_norm(x, 3, 0.9),
        lambda x: oracles.local_response_norm(x[..., None], 3, 0.9, 0.75, 1.0)[..., 0],
    ),
    *(
        case(
            f"within_channel_response_norm {size}",
            [X],
            lambda x, size=size: F.within_channel_response_norm(x, size, 1.3, 0.75, 1.5),
            lambda x, size=size: oracles.within_channel_response_norm(x, size, 1.3, 0.75, 1.5),
        )
        for size in (1, 3, 5, 11)
    ),
    # the rest
    case("relu", [X], lambda x: F.relu(x), oracles.relu),
    case("relu number", [()], lambda x: F.relu(x), oracles.relu),
    case("dropout at rest", [X], lambda x: F.dropout(x, 0.7, training=False), lambda x: x),
    case("dropout of nothing", [X], lambda x: F.dropout(x, 0.0), lambda x: x),
    case("dropout of all", [X], lambda x: F.dropout(x, 1.0), np.zeros_like),
    case("linear", [(3, 5), (4, 5), (4,)], lambda x, w, b: F.linear(x, w, b), oracles.linear),
    case(
        "linear more axes",
        [(2, 3, 5), (4, 5)],
        lambda x, w: F.linear(x, w),
        lambda x, w: oracles.linear(x.reshape(6, 5), w, None).reshape(2, 3, 4),
    ),
    case(
        "linear one row",
        [(5,), (4, 5), (4,)],
        lambda x, w, b: F.linear(x, w, b),
        lambda x, w, b: oracles.linear(x[None], w, b)[0],
    ),
    *(
        case(
            f"pad {widths}",
            [(2, 3, 4, 5)],
            lambda x, widths=widths: F.pad(x, widths, value=1.5),
            lambda x, widths=widths: oracles.pad(x, widths, value=1.5),
        )
        for widths in [(1, 2), (1, 0, 2, 3), (0, 1, 2, 0, 3, 1, 1, 1), (-1, 2, 1, -2), (-2, -1)]
    ),
    *(
        case(
            f"{name} dim={dim}",
            [(2, 3, 4)],
            lambda x, name=name, dim=dim: getattr(F, name)(x, dim=dim),
            lambda x, name=name, dim=dim: getattr(oracles, name)(x, dim),
        )
        for name in ("softmax", "log_softmax")
        for dim in (0, 1, -1)
    ),
]


@pytest.mark.parametrize(("shapes", "call", "expected", "draw"), CASES)
def test_values(backend, shapes, call, expected, draw, rng, dtype):
    arrays = [draw(rng, shape, dtype) for shape in shapes]
    y = call(*map(ta.Tensor, arrays))
    assert y.dtype == dtype
    assert_close(y.data, expected(*arrays), what=f"{backend} {dtype}")


@pytest.mark.parametrize("layout", ["channels-last", "sliced", "read-only"])
@pytest.mark.parametrize(("shapes", "call", "expected", "draw"), CASES)
def test_any_memory_layout(shapes, call, expected, draw, layout, rng):
    arrays = [LAYOUTS[layout](draw(rng, shape)) for shape in shapes]
    assert_close(call(*map(ta.Tensor, arrays)).data, expected(*arrays))


# --- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize(("channel", "taps"), [(0, 3), (1, 4), (2, 5), (3, 5), (5, 4), (6, 3)])
def test_local_response_norm_of_a_constant(backend, channel, taps):
    """Constant image a: ``a / (k + alpha / n * taps * a ** 2) ** beta``, 3 taps at the edge."""
    a, n, alpha, beta, k = 3.0, 5, 1.5, 0.75, 2.0
    y = F.local_response_norm(ta.Tensor(np.full((1, 7, 2, 2), a)), n, alpha, beta, k)
    np.testing.assert_allclose(y.data[0, channel], a / (k + alpha / n * taps * a**2) ** beta)


def test_local_response_norm_of_the_paper():
    """The paper sums with alpha 1e-4; here alpha is divided by n = 5, so it is written 5e-4."""
    a = np.linspace(10, 200, 8)[None, :, None, None]
    squares = np.array([sum(a[0, max(0, i - 2) : i + 3, 0, 0] ** 2) for i in range(8)])
    y = F.local_response_norm(ta.Tensor(a), 5, alpha=5e-4, beta=0.75, k=2.0)
    np.testing.assert_allclose(y.data[0, :, 0, 0], a[0, :, 0, 0] / (2 + 1e-4 * squares) ** 0.75)


@pytest.mark.parametrize(
    ("variant", "denominators"),
    [
        # k + alpha * taps * a ** 2 for the whole sum, 5 taps inside and 3 or 4 at the edge
        ("paper", {0: 2 + 3e-4 * 1e4, 1: 2 + 4e-4 * 1e4, 47: 2 + 5e-4 * 1e4, 95: 2 + 3e-4 * 1e4}),
        # alpha / 5, and each tower of 48 has edges of its own
        ("source2012", {0: 2 + 0.6e-4 * 1e4, 20: 2 + 1e-4 * 1e4, 47: 2 + 0.6e-4 * 1e4}),
        ("caffe", {0: 1 + 0.6e-4 * 1e4, 47: 1 + 1e-4 * 1e4, 95: 1 + 0.6e-4 * 1e4}),
    ],
)
def test_response_norm_of_a_variant_in_closed_form(backend, variant, denominators):
    """Of 96 channels that are 100 everywhere: ``100 / denominator ** 0.75``."""
    norm = next(layer for layer in VARIANTS[variant].features if isinstance(layer, LRN))
    layer = nn.LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k, norm.groups)
    y = layer(ta.Tensor(np.full((1, 96, 1, 1), 100.0))).data.ravel()
    for channel, denominator in denominators.items():
        assert y[channel] == pytest.approx(100 / denominator**0.75, rel=1e-12), channel


@pytest.mark.parametrize(
    ("size", "padding", "expected"), [(224, 2, 55), (227, 0, 55), (224, 1, 54)]
)
def test_first_layer_sizes(size, padding, expected):
    x, w = ta.zeros((1, 1, size, size)), ta.zeros((1, 1, 11, 11))
    assert F.conv2d(x, w, stride=4, padding=padding).shape == (1, 1, expected, expected)


# --- dropout -------------------------------------------------------------------------------------


def test_dropout_follows_the_seed(backend):
    x = ta.Tensor(np.ones((50, 50)))
    ta.manual_seed(1)
    first, second = F.dropout(x, 0.5).data, F.dropout(x, 0.5).data
    assert not np.array_equal(first, second)
    ta.manual_seed(1)
    np.testing.assert_array_equal(F.dropout(x, 0.5).data, first)
    ta.manual_seed(2)
    assert not np.array_equal(F.dropout(x, 0.5).data, first)
    assert set(np.unique(first)) == {0, 2}


def test_dropout_sends_gradients_where_it_let_values_through(backend):
    x = ta.Tensor(np.ones((40, 40)), requires_grad=True)
    y = F.dropout(x, 0.4)
    y.backward(np.ones((40, 40)))
    np.testing.assert_array_equal(x.grad, y.data)


def test_distinct_draws_are_distinct(rng):
    """The tests of max-pool and ReLU rest on this helper."""
    values = np.sort(distinct(rng, (4, 5)).ravel())
    assert np.diff(values).min() > 0.009
    assert np.abs(values).min() > 0.004


@pytest.mark.parametrize("shape", [(0, 3, 0), (2, 3, 0), (0, 3, 2, 2), (0, 3, 2), (2, 0, 3)])
def test_local_response_norm_of_nothing(backend, shape):
    x = ta.zeros(shape, requires_grad=True)
    y = F.local_response_norm(x, 5)
    y.backward(y.data)
    assert y.shape == x.grad.shape == shape


def test_gradient_of_a_bias_without_outputs(backend):
    leaves = [ta.zeros(shape, requires_grad=True) for shape in ((2, 3), (0, 3), (0,))]
    F.linear(*leaves).sum().backward()
    assert [leaf.grad.shape for leaf in leaves] == [(2, 3), (0, 3), (0,)]
