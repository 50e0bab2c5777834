"""Kernels of every backend against oracles.py, at awkward shapes."""

import inspect
from dataclasses import dataclass
from itertools import product

import numpy as np
import oracles
import pytest
from helpers import LAYOUTS, assert_close, distinct, normal, run_python, spread, tied

import tinyalex as ta
from tinyalex.backends import KERNELS, cpu, reference
from tinyalex.backends.geometry import ConvOptions, NormOptions, PoolOptions, SGDOptions


@dataclass(frozen=True)
class Case:
    """One call of a kernel: random arrays of these shapes (None stays None), then the options."""

    kernel: str
    shapes: tuple
    options: tuple
    draw: object = normal

    def arguments(self, rng, dtype, layout="contiguous"):
        """Draw the arguments; a max-pool's gradient also needs the winning taps."""
        lay = LAYOUTS[layout]
        arrays = [None if s is None else lay(self.draw(rng, s, dtype)) for s in self.shapes]
        if self.kernel == "max_pool2d_input_grad":
            input_shape, window = self.options
            output_size = arrays[0].shape[2:]
            taps = oracles.max_pool2d(tied(rng, input_shape), *window, output_size)[1]
            taps = taps.astype(np.min_scalar_type(np.prod(window.kernel_size) - 1))
            arrays.append(taps if layout == "broadcast" else lay(taps))
        return *arrays, *self.options

    def __str__(self):
        """Name the test."""
        return f"{self.kernel}-{self.shapes[0]}-{tuple(spread(self.options))}".replace(" ", "")


def conv(x, weight, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    """Return the four kernels of one convolution."""
    size = [
        oracles.conv_output_size(x[2 + i], weight[2 + i], stride[i], sum(padding[i]), dilation[i])
        for i in range(2)
    ]
    y, bias = (x[0], weight[0], *size), weight[:1]
    options = ConvOptions(stride, padding, dilation, groups)
    return [
        Case("conv2d", (x, weight, bias), (options,)),
        Case("conv2d_input_grad", (y, weight), (x, options)),
        Case("conv2d_weight_grad", (y, x), (weight, options)),
        Case("conv2d_bias_grad", (y,), ()),
    ]


def max_pool(x, window, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    """Return calls of max-pooling: distinct values, ties, and the gradient."""
    size = tuple(
        oracles.pool_output_size(x[2 + i], window[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in range(2)
    )
    options = PoolOptions(window, stride, padding, dilation)
    return [
        Case("max_pool2d", (x,), (options, size), distinct),
        Case("max_pool2d", (x,), (options, size), tied),
        Case("max_pool2d_input_grad", ((*x[:2], *size),), (x, options)),
    ]


def lrn(x, size, alpha=0.9, beta=0.75, k=1.0, groups=1):
    """Return forward and gradient; alpha is large, for with 1e-4 no error would show."""
    options = NormOptions(size, alpha, beta, k, groups)
    return [
        Case("local_response_norm", (x,), (options,)),
        Case("local_response_norm_input_grad", (x, x), (options,)),
    ]


def within(x, size, alpha=0.9, beta=0.75, k=1.0):
    """Return forward and gradient of the normalisation within each channel."""
    options = NormOptions(size, alpha, beta, k)
    return [
        Case("within_channel_response_norm", (x,), (options,)),
        Case("within_channel_response_norm_input_grad", (x, x), (options,)),
    ]


def linear(batch, inputs, outputs):
    """Return the three kernels of one linear layer."""
    x, weight, y = (batch, inputs), (outputs, inputs), (batch, outputs)
    return [
        Case("linear", (x, weight, (outputs,)), ()),
        Case("linear", (x, weight, None), ()),
        Case("linear_input_grad", (y, weight), ()),
        Case("linear_weight_grad", (y, x), ()),
    ]


def elementwise(shape):
    """Return ReLU and dropout on any shape."""
    keys = 0, 1234567890123456789, 2**64 - 1
    return [
        Case("relu", (shape,), ()),
        Case("relu_input_grad", (shape, shape), ()),
        *(Case("dropout", (shape,), (p, key)) for p, key in product((0.0, 0.3, 1.0), keys)),
    ]


TYPICAL = [
    *conv((2, 4, 7, 6), (6, 2, 3, 3), (2, 1), ((1, 1), (1, 1)), groups=2),
    *max_pool((2, 3, 7, 8), (3, 3), (2, 2), padding=(1, 1)),
    *lrn((2, 5, 3, 4), 5),
    *within((2, 3, 5, 4), 3),
    *linear(3, 7, 5),
    *elementwise((2, 3, 4, 5)),
]

CASES = [
    *TYPICAL,
    # convolution: the layers of AlexNet in small
    *conv((2, 3, 23, 27), (4, 3, 11, 11), (4, 4), ((2, 2), (2, 2))),
    *conv((2, 3, 20, 20), (4, 3, 11, 11), (4, 4), ((0, 3), (0, 3))),  # 2012: rounds up
    *conv((2, 4, 7, 9), (6, 2, 5, 5), padding=((2, 2), (2, 2)), groups=2),
    *conv((3, 5, 7, 11), (7, 5, 3, 3), padding=((1, 1), (1, 1))),
    # and what AlexNet has not
    *conv((1, 1, 1, 1), (1, 1, 1, 1)),
    *conv((0, 4, 7, 7), (6, 2, 3, 3), groups=2),
    *conv((0, 3, 5, 5), (2, 3, 3, 3), (2, 2), ((1, 1), (1, 1))),
    *conv((1, 1, 13, 11), (1, 1, 3, 5)),
    *conv((2, 3, 5, 7), (5, 3, 1, 1)),
    *conv((2, 3, 7, 8), (5, 3, 1, 1), (2, 3)),
    *conv((2, 3, 5, 4), (5, 3, 5, 4)),
    *conv((2, 6, 7, 5), (6, 1, 3, 3), padding=((1, 1), (1, 1)), groups=6),
    *conv((1, 3, 7, 5), (9, 1, 3, 2), groups=3),
    *conv((2, 2, 9, 10), (3, 2, 3, 3), (2, 3), ((1, 0), (2, 3)), (2, 1)),
    *conv((1, 2, 11, 13), (2, 1, 3, 2), (1, 2), ((3, 1), (0, 4)), (3, 2), 2),
    *conv((2, 2, 3, 3), (3, 2, 2, 2), padding=((4, 4), (5, 5))),
    *conv((1, 2, 8, 8), (2, 2, 2, 2), (5, 3)),
    # pooling
    *max_pool((2, 3, 13, 13), (3, 3), (2, 2)),
    *max_pool((1, 1, 7, 5), (2, 3), (3, 1)),
    *max_pool((2, 2, 8, 9), (3, 3), (2, 2), ceil_mode=True),
    *max_pool((2, 2, 6, 7), (3, 2), (2, 3), (1, 1), ceil_mode=True),
    *max_pool((1, 2, 5, 5), (2, 2), (4, 4), (1, 1), ceil_mode=True),
    *max_pool((1, 2, 9, 10), (3, 2), (2, 1), (1, 0), (2, 3)),
    *max_pool((1, 2, 11, 9), (3, 3), (2, 3), (1, 1), (2, 2), ceil_mode=True),
    *max_pool((2, 3, 4, 5), (4, 5), (1, 1)),
    *max_pool((2, 3, 4, 5), (1, 1), (1, 1)),
    *max_pool((1, 1, 5, 5), (1, 1), (3, 2)),
    *max_pool((0, 3, 5, 5), (3, 3), (2, 2)),
    # local response normalisation
    *(c for n in (1, 2, 3, 4, 5, 7, 12) for c in lrn((1, 6, 2, 3), n, alpha=1.1)),
    *lrn((2, 6, 3, 2), 5, groups=2),
    *lrn((2, 6, 3, 2), 4, groups=3, beta=0.5, k=2.0),
    *lrn((1, 1, 3, 2), 5, k=0.5),
    *lrn((0, 4, 3, 3), 5),
    *lrn((1, 5, 2, 2), 5, alpha=5e-4, k=2.0),
    *(c for size in (1, 3, 5, 9) for c in within((2, 3, 4, 6), size, alpha=1.1)),
    *within((1, 1, 7, 3), 5, beta=0.5, k=2.0),
    *within((1, 2, 1, 1), 3),
    *within((0, 2, 3, 3), 3),
    # the rest
    *linear(1, 1, 1),
    *linear(1, 13, 7),
    *linear(0, 5, 3),
    *elementwise((7,)),
    *elementwise((0, 3)),
    *elementwise(()),
]


def results(value):
    """Return the arrays of a kernel's result as a tuple."""
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_agrees_with_oracle(kernels, case, rng, dtype):
    args = case.arguments(rng, dtype)
    check(kernels, case, args)


@pytest.mark.parametrize("case", max_pool((1, 1, 20, 21), (17, 16), (2, 2)), ids=str)
def test_taps_that_do_not_fit_a_byte(kernels, case, rng):
    """In one precision, for each has more kernels to compile then: seconds."""
    check(kernels, case, case.arguments(rng, np.dtype(np.float32)))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("case", TYPICAL, ids=str)
def test_kernel_accepts_any_memory_layout(kernels, case, layout, rng):
    check(kernels, case, case.arguments(rng, np.dtype(np.float64), layout))


def check(kernels, case, args):
    """Compare a call with its oracle, its arguments left unchanged."""
    before = [np.array(a) if isinstance(a, np.ndarray) else a for a in args]
    actual = results(getattr(kernels, case.kernel)(*args))
    wanted = results(getattr(oracles, case.kernel)(*spread(before)))
    for expected, got in zip(wanted, actual, strict=True):
        if expected.dtype.kind == "i":  # taps
            np.testing.assert_array_equal(got, expected)
        else:
            assert got.dtype == args[0].dtype
            assert_close(got, expected)
    for a, b in zip(spread(args), spread(before), strict=True):
        np.testing.assert_array_equal(a, b, err_msg="the kernel changed its argument")


@pytest.mark.parametrize("case", TYPICAL, ids=str)
def test_same_bits_every_time(kernels, case, rng, dtype):
    args = case.arguments(rng, dtype)
    first, second = (results(getattr(kernels, case.kernel)(*args)) for _ in range(2))
    assert [a.tobytes() for a in first] == [b.tobytes() for b in second]


@pytest.mark.parametrize("name", KERNELS)
def test_backends_have_the_same_kernels(name):
    text, fast = (inspect.signature(getattr(module, name)) for module in (reference, cpu))
    assert list(text.parameters) == list(fast.parameters)
    defaults = [[p.default for p in s.parameters.values()] for s in (text, fast)]
    assert defaults[0] == defaults[1]


def test_every_kernel_is_tested():
    assert {case.kernel for case in CASES} | {"sgd_step", "all_finite"} == set(KERNELS)


# --- what no random array would show -------------------------------------------------------------


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize(
    ("array", "finite"),
    [
        (np.zeros(0, np.float32), True),
        (np.full((2, 3), 3e38, np.float32), True),  # the sum of squares overflows
        (np.ones((4, 3, 2), np.float32)[:, ::2].T, True),
        (np.array([1, np.nan], np.float32), False),
        (np.array([[1.0], [-np.inf]]), False),
        (np.append(np.zeros(150_000, np.float32), np.float32(np.nan)), False),
        (np.append(np.float32(np.inf), np.zeros(150_000, np.float32)), False),
    ],
)
def test_what_is_finite(kernels, array, finite):
    assert kernels.all_finite(array) is finite


def test_max_pool_propagates_nan(kernels, dtype):
    x = np.arange(36, dtype=dtype).reshape(1, 1, 6, 6)
    x[0, 0, 2, 3] = np.nan
    args = PoolOptions((3, 3), (2, 2), (1, 1)), (3, 3)
    y, taps = kernels.max_pool2d(x, *args)
    expected, expected_taps = oracles.max_pool2d(x, *spread(args))
    assert np.isnan(expected).sum() == 2
    assert_close(y, expected)
    np.testing.assert_array_equal(taps, expected_taps)


def test_max_pool_of_minus_infinity_picks_a_real_pixel(kernels, dtype):
    x = np.full((1, 1, 4, 4), -np.inf, dtype)
    window = PoolOptions((3, 3), (2, 2), (1, 1))
    y, taps = kernels.max_pool2d(x, window, (2, 2))
    np.testing.assert_array_equal(y, np.full((1, 1, 2, 2), -np.inf))
    np.testing.assert_array_equal(taps, oracles.max_pool2d(x, *window, (2, 2))[1])
    dx = kernels.max_pool2d_input_grad(np.ones_like(y), taps, x.shape, window)
    assert dx.sum() == 4, "the gradient of a window fell into the padding"


def test_max_pool_taps_are_small(kernels):
    for window, dtype in (((3, 3), np.uint8), ((16, 16), np.uint8), ((17, 16), np.uint16)):
        x = np.zeros((1, 1, 17, 17), np.float32)
        size = 18 - window[0], 18 - window[1]
        options = PoolOptions(window, (1, 1))
        assert kernels.max_pool2d(x, options, size)[1].dtype == dtype


def test_relu_at_the_edges(kernels, dtype):
    x = np.array([np.nan, -np.inf, -1, -0.0, 0, 1, np.inf], dtype)
    y = kernels.relu(x)
    np.testing.assert_array_equal(y, np.array([np.nan, 0, 0, 0, 0, 1, np.inf]))
    dx = kernels.relu_input_grad(np.arange(1, 8, dtype=dtype), y)
    np.testing.assert_array_equal(dx, [1, 0, 0, 0, 0, 6, 7])


def test_local_response_norm_forgets_a_spike(kernels):
    """A running sum would carry the rounding error of 1e8 along to every later channel."""
    x = np.ones((1, 12, 1, 1), np.float32)
    x[0, 2] = 1e4
    y = kernels.local_response_norm(x, NormOptions(3, 3.0, 1.0, 0.0))
    np.testing.assert_allclose(y[0, 4:11, 0, 0], 1 / 3, rtol=1e-6)


def test_within_channel_response_norm_forgets_a_spike(kernels):
    x = np.ones((1, 1, 1, 12), np.float32)
    x[..., 2] = 1e4
    y = kernels.within_channel_response_norm(x, NormOptions(3, 9.0, 1.0, 0.0))
    np.testing.assert_allclose(y[0, 0, 0, 4:11], 1 / 3, rtol=1e-6)


def test_conv2d_propagates_nan(kernels, dtype):
    x = np.ones((1, 2, 5, 5), dtype)
    x[0, 0, 2, 2] = np.nan
    y = kernels.conv2d(x, np.ones((4, 1, 3, 3), dtype), None, ConvOptions(groups=2))
    assert np.isnan(y[0, :2]).all()
    assert not np.isnan(y[0, 2:]).any()


def test_conv2d_without_bias(kernels, rng, dtype):
    x, weight = normal(rng, (2, 3, 5, 5), dtype), normal(rng, (4, 3, 3, 3), dtype)
    options = ConvOptions()
    assert_close(
        kernels.conv2d(x, weight, None, options), oracles.conv2d(x, weight, None, *options)
    )


# --- dropout -------------------------------------------------------------------------------------


def test_dropout_draws_the_same_bits_in_every_backend(rng, dtype):
    x = normal(rng, (33, 5, 7), dtype)
    assert reference.dropout(x, 0.37, 99).tobytes() == cpu.dropout(x, 0.37, 99).tobytes()


def test_dropout_counts_in_index_order_whatever_the_layout(kernels):
    x = np.ones((2, 3, 4, 5))
    expected = oracles.dropout(x, 0.5, 7)
    for layout in LAYOUTS.values():
        np.testing.assert_array_equal(kernels.dropout(layout(x), 0.5, 7), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(kernels, p):
    y = kernels.dropout(np.ones(100_000), p, 31337)
    dropped = np.mean(y == 0)
    assert abs(dropped - p) < 4 * np.sqrt(p * (1 - p) / y.size)  # four standard deviations
    assert abs(y.mean() - 1) < 4 * np.sqrt(p / (1 - p) / y.size)
    neighbours = np.corrcoef(y[:-1], y[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(y.size)


# --- SGD -----------------------------------------------------------------------------------------

SGD_OPTIONS = [
    # momentum, dampening, weight_decay, nesterov, form
    (0.0, 0.0, 0.0, False, "torch"),
    (0.0, 0.0, 0.1, False, "torch"),
    (0.9, 0.0, 0.01, False, "torch"),
    (0.9, 0.3, 0.01, False, "torch"),
    (0.9, 0.0, 0.01, True, "torch"),
    (0.0, 0.0, 0.1, False, "paper"),
    (0.9, 0.0, 0.01, False, "paper"),
]


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 5, 5), (7,), (), (0, 3)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_sgd_step(kernels, options, shape, layout, rng, dtype):
    lay = LAYOUTS[layout]
    param, grad, velocity = (normal(rng, shape, dtype) for _ in range(3))
    velocity = velocity if options[0] else None
    expected = oracles.sgd_step(param, grad, velocity, 0.1, *options)
    kept = grad.copy()
    grad = lay(grad)
    assert kernels.sgd_step(param, grad, velocity, SGDOptions(0.1, *options)) is None
    assert_close(param, expected[0])
    if velocity is not None:
        assert_close(velocity, expected[1])
    np.testing.assert_array_equal(grad, kept)


def test_sgd_by_hand(kernels):
    """The first two steps of the paper's rule with w = 1, g = 0.5, worked out on paper."""
    w, v, g = np.array([1.0]), np.array([0.0]), np.array([0.5])
    options = SGDOptions(0.1, 0.9, 0.0, 0.01, False, "paper")
    for expected_v, expected_w in ((-0.051, 0.949), (-0.096849, 0.852151)):
        kernels.sgd_step(w, g, v, options)
        np.testing.assert_allclose([v[0], w[0]], [expected_v, expected_w], rtol=1e-12)


# --- choosing a backend --------------------------------------------------------------------------


def test_use_backend_nests_and_restores():
    outside = ta.backends.current_backend()
    with ta.use_backend("reference"):
        with ta.use_backend("cpu"):
            assert ta.backends.of(np.zeros(1)) is cpu
        assert ta.backends.of(np.zeros(1)) is reference
    assert ta.backends.current_backend() == outside


def test_blocks_of_use_backend_may_overlap_and_share_an_object():
    outside = ta.backends.current_backend()
    first, second = ta.use_backend("reference"), ta.use_backend("cpu")
    for _ in range(2):
        first.__enter__()
        assert ta.backends.current_backend() == "reference"
        second.__enter__()
        first.__exit__(None, None, None)
        assert ta.backends.current_backend() == "cpu"
        with first, first:
            assert ta.backends.current_backend() == "reference"
        second.__exit__(None, None, None)
        assert ta.backends.current_backend() == outside


def test_a_choice_for_good_outlives_the_block_that_it_is_made_in():
    code = """
import tinyalex as ta
with ta.use_backend("cpu"):
    ta.use_backend("reference")
assert ta.backends.current_backend() == "reference"
"""
    run_python(code)


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="tpu"):
        ta.use_backend("tpu")


@pytest.mark.parametrize("name", ["cuda", "nonsense"])
def test_the_environment_chooses_among_backends_of_the_cpu(name):
    """An array of NumPy's never reaches kernels for a GPU."""
    code = f"""
import tinyalex as ta
try:
    ta.ones(2).relu()
except ValueError as error:
    assert str(error) == (
        "the environment variable TINYALEX_BACKEND must be one of cpu, reference; got '{name}'"
    ), error
else:
    raise SystemExit("not refused")
"""
    run_python(code, TINYALEX_BACKEND=name)
