"""Random calls of every op against float64, plain loops and PyTorch.

In a test run the examples are few and always the same; ``pytest tests/engine/test_random.py
--hypothesis-profile=campaign`` searches for minutes. An example that fails prints the code of it.
"""

import importlib.util

import numpy as np
import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from random_problems import FAMILIES, cotangent, run, run_torch
from test_arguments import LAYERS, TABLE, call, layer_arguments, layer_call, leaves

import tinyalex as ta
from tinyalex.backends import cpu

HAS_TORCH = importlib.util.find_spec("torch") is not None
NAMES = sorted(FAMILIES)


def assert_within(actual, expected, bound, dtype, what):
    """Fail unless each element is within its bound, except where terms of it may overflow."""
    limits = np.finfo(dtype)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    assert actual.dtype == dtype, f"{what}: {actual.dtype}"
    bound = np.broadcast_to(bound, expected.shape)
    judged = np.isfinite(bound) & (bound < limits.eps * limits.max)  # no term overflows
    difference = np.abs(actual.astype(np.float64) - expected)[judged]
    excess = difference - bound[judged]
    if not (excess <= 0).all():  # so that NaN fails
        worst = np.argmax(np.nan_to_num(excess, nan=np.inf))
        raise AssertionError(
            f"{what}: {actual[judged][worst]!r} and not {expected[judged][worst]!r}, off by "
            f"{difference[worst]:.3g} where {bound[judged][worst]:.3g} is allowed"
        )


def check(problem):
    """Compare a problem on both backends with float64, and that with loops and PyTorch."""
    made = [array.make() for array in problem.arrays]
    exact = [np.array(a, np.float64, order="C") for a in made]
    dtype = made[0].dtype

    def gradient(y):
        return cotangent(y, problem.seed)

    y, grads = run(problem.call, exact, lambda y: gradient(y).astype(dtype), "reference")
    g = gradient(y.astype(dtype)).astype(np.float64)
    y, grads = run(problem.call, exact, lambda _: g, "reference")
    for kind, eps in ((dtype, np.finfo(dtype).eps), (np.dtype(np.float64), np.finfo(float).eps)):
        bounds = bounds_of(problem, exact, g, eps, np.finfo(kind).smallest_subnormal)
        if kind == dtype:
            for backend in ("cpu", "reference"):
                results = [run(problem.call, [a.make() for a in problem.arrays], gradient, backend)]
                results.append(run(problem.call, made, gradient, backend))
                for array, before in zip(made, exact, strict=True):
                    np.testing.assert_array_equal(array, before, err_msg="an input was written")
                compare(results[0], (y, grads), bounds, dtype, backend)
                assert_same_bits(*results)
        if kind == np.float64 and problem.oracle is not None:
            loops = problem.oracle(*exact, g)
            compare((y, grads), loops, bounds, kind, "float64 beside plain loops")
        if kind == np.float64 and HAS_TORCH and problem.torch != "":
            theirs = run_torch(problem.torch or problem.call, exact, lambda _: g)
            compare((y, grads), theirs, bounds, kind, "float64 beside PyTorch")


def bounds_of(problem, exact, g, eps, smallest):
    """Return the errors that rounding may leave in the output and in each gradient."""
    if problem.errors is not None:
        with np.errstate(all="ignore"):
            y, grads = problem.errors(*exact, g)
        terms = 64
    else:
        sizes = problem.sizes or problem.call
        y, grads = run(sizes, [np.abs(a) for a in exact], lambda _: np.abs(g), "reference")
        y, grads = np.abs(y), [np.abs(grad) for grad in grads]
        terms = problem.terms + 4
        y, grads = terms * y, [terms * grad for grad in grads]
    below = terms * smallest * max(1, *(float(np.abs(a).max(initial=0)) for a in (*exact, g)))
    return eps * y + below, [eps * grad + below for grad in grads]


def compare(actual, expected, bounds, dtype, where):
    """Compare an output and its gradients."""
    assert_within(actual[0], expected[0], bounds[0], dtype, f"{where}: output")
    for i, results in enumerate(zip(actual[1], expected[1], bounds[1], strict=True)):
        assert results[0] is not None, f"{where}: no gradient of x{i}"
        assert_within(*results, dtype, f"{where}: gradient of x{i}")


def assert_same_bits(first, second):
    """Fail unless two runs agree bit for bit."""
    for a, b in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        assert a.tobytes() == b.tobytes(), "two runs give different bits"


@pytest.mark.filterwarnings("ignore")  # overflow at the magnitudes drawn, PyTorch's advice
@pytest.mark.parametrize("family", NAMES)
@given(data=st.data())
def test_values_and_gradients(family, data):
    problem = data.draw(FAMILIES[family]())
    note(f"Code of the example:{problem!r}")
    check(problem)


WRONG = [
    ("unary", "relu"),
    ("unary", "relu_input_grad"),
    ("product", "linear"),
    ("product", "linear_weight_grad"),
    ("convolution", "conv2d"),
    ("convolution", "conv2d_input_grad"),
    ("convolution", "conv2d_weight_grad"),
    ("convolution", "conv2d_bias_grad"),
    ("pooling", "max_pool2d_input_grad"),
    ("dropout", "dropout"),
    ("normalization", "local_response_norm"),
    ("normalization", "local_response_norm_input_grad"),
    ("normalization_within", "within_channel_response_norm_input_grad"),
    ("fused", "conv2d_relu"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "kernel"), WRONG)
def test_a_kernel_that_is_wrong_by_a_few_digits_is_found(family, kernel, monkeypatch):
    @given(problem=FAMILIES[family]())
    @settings(phases=[Phase.generate], database=None, max_examples=400)  # ends with the first
    def search(problem):
        check(problem)

    original = getattr(cpu, kernel)
    monkeypatch.setattr(cpu, kernel, lambda *given: original(*given) * (1 + 1e-5))
    with pytest.raises(AssertionError, match="off by"):
        search()


# --- integers -------------------------------------------------------------------------------------

INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool", "float32", "float64")
INTEGER_CALLS = [
    *(f"x0 {sign} x1" for sign in ("+", "-", "*", "/", "==", "!=", "<", "<=", ">", ">=")),
    *(f"x0 {sign} {number}" for sign in "+-*/<" for number in ("2", "1.5", "True", "-3")),
    *(f"{number} {sign} x0" for sign in "+-*" for number in ("2", "1.5", "True")),
    *("x0 ** 2", "-x0", "abs(x0)", "x0.sum()", "x0.sum(0)", "x0.mean()", "x0.amax()", "x0.amin(0)"),
    *("x0.argmax()", "x0.argmax(1)", "x0.max()", "x0.min()", "x0.exp()", "x0.relu()", "x0.tanh()"),
    *("x0.reshape(6)", "x0[x1 > 0]", "x0[:, 0]", "x0.T", "ta.cat([x0, x1], 1)", "x0 @ x1.T"),
    *("ta.where(x0 > x1, x0, x1)", "ta.stack([x0, x1])", "F.relu(x0)", "F.pad(x0, (1, 0))"),
]


@pytest.mark.skipif(not HAS_TORCH, reason="without PyTorch there is nothing to compare with")
@pytest.mark.filterwarnings("ignore")
@given(
    call=st.sampled_from(INTEGER_CALLS),
    dtypes=st.tuples(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=5 * settings().max_examples)
def test_integers_become_what_they_become_in_pytorch(call, dtypes, seed):
    import torch
    import torch.nn.functional

    rng = np.random.default_rng(seed)
    made = [rng.integers(0, 5, (2, 3)).astype(dtype) for dtype in dtypes]
    ours = {f"x{i}": ta.Tensor(a) for i, a in enumerate(made)}
    theirs = {f"x{i}": torch.tensor(a) for i, a in enumerate(made)}
    try:
        y = eval(call, {"F": ta.functional, "ta": ta, **ours})
        expected = eval(call, {"F": torch.nn.functional, "ta": torch, **theirs}).numpy()
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return  # one of the two has no such thing, and says so
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y.data, expected, rtol=1e-6)


# --- bad arguments --------------------------------------------------------------------------------

ODD = [
    *(None, True, False, -1, 0, 1, 2, 7, 1.5, -0.5, np.nan, np.inf, 10**30, 2**63, -(2**63), 1j),
    *(
        "",
        "same",
        "x",
        b"x",
        [],
        (),
        (1,),
        (1, 2),
        (0, 0),
        (1, 2, 3),
        [2, 2],
        (1.0, 2.0),
        {},
        set(),
    ),
    *(..., slice(None), range(2), object(), len, np.int64(2), np.float32(0.5), np.bool_(True)),
    *(np.array(2), np.array([1, 2]), np.array([], int), np.zeros((2, 3)), np.array(["x"])),
    *(ta.Tensor(2), ta.Tensor([1, 2]), ta.Tensor(True), ta.ones(()), ta.ones(3), ta.ones(2, 3)),
    *(
        ta.ones(0),
        ta.ones(0, 4, 5, 5),
        ta.ones(1, 4, 0, 5),
        ta.ones(1, 4, 5, 5),
        ta.ones(4, 4, 1, 1),
    ),
    *(ta.ones(1, 4, 5, 5, dtype=np.float64), ta.ones(4, 5, 5), ta.ones(1, 1, 1, 1, 1)),
    *(np.array([np.nan] * 3), [ta.ones(2), ta.ones(3)], [ta.ones(2), 1], [[1], [1, 2]]),
]
CALLS = {
    **TABLE,
    **{f"nn.{name}": (layer_call(getattr(ta.nn, name)), layer_arguments(name)) for name in LAYERS},
}
REFUSALS = (TypeError, ValueError, IndexError, OverflowError)
"""The last two for an index out of range and for an integer that no dtype holds."""


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
@settings(max_examples=10 * settings().max_examples)
def test_odd_arguments_are_taken_or_refused(data):
    """Nothing but the errors that the documentation names, whatever is passed."""
    where = data.draw(st.sampled_from(sorted(CALLS)))
    function, arguments = CALLS[where]
    names = data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2))
    given = {name: leaves(value) for name, value in arguments.items()}
    given.update((name, data.draw(st.sampled_from(ODD))) for name in names)
    if not isinstance(given.get("self", ta.ones(1)), ta.Tensor):
        return
    try:
        y = call(function, given)
    except REFUSALS as error:
        assert str(error), "an error without a word"  # noqa: PT017
        return
    if isinstance(y, ta.Tensor) and y.requires_grad:
        y.backward(np.ones(y.shape))
