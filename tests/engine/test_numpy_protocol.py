"""NumPy's functions on tensors: no gradient is lost in silence."""

import operator

import numpy as np
import pytest
from helpers import leaf

import tinyalex as ta

CALLS = {
    "a ufunc": lambda t: np.exp(t),
    "a ufunc of two": lambda t: np.maximum(t, 1.0),
    "a ufunc's method": lambda t: np.add.reduce(t),
    "sum": lambda t: np.sum(t),
    "mean of an axis": lambda t: np.mean(t, axis=0),
    "max": lambda t: np.max(t),
    "argmax": lambda t: np.argmax(t),
    "concatenate": lambda t: np.concatenate([t, t]),
    "stack": lambda t: np.stack((t, t)),
    "where": lambda t: np.where([True, False, True], t, 0.0),
    "reshape": lambda t: np.reshape(t, (3, 1)),
    "transpose": lambda t: np.transpose(t),
    "dot": lambda t: np.dot(t, t),
    "clip": lambda t: np.clip(t, 1, 2),
    "einsum": lambda t: np.einsum("i,i", t, t),
    "a keyword": lambda t: np.sum(a=t),
    "norm": lambda t: np.linalg.norm(t),
    "a comparison": lambda t: np.allclose(t, t),
    "asarray": lambda t: np.asarray(t),
    "array": lambda t: np.array(t, np.float32),
    "array of a list": lambda t: np.array([t, t]),
    "assignment": lambda t: operator.setitem(np.zeros(3), slice(None), t),
    "numpy": lambda t: t.numpy(),
    "a tensor of a list": lambda t: ta.Tensor([t, t]).data,
    "a copy of a list": lambda t: ta.tensor([list(t)]).data,
    "a mean of elements": lambda t: np.mean(list(t)),
    "in place": lambda t: operator.isub(np.zeros(3), t),
    "in place, with out": lambda t: np.add(t, 1, out=np.zeros(3)),
    "remainder": lambda t: np.arange(3.0) // t,
}
"""Calls that take a tensor and return what has no graph."""

X = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_numpy_takes_tensors_without_gradients(call):
    result, expected = call(ta.Tensor(X.copy())), call_of_array(call)
    assert type(result) is type(expected) or expected is None
    if expected is not None:
        np.testing.assert_array_equal(result, expected)


def call_of_array(call):
    """Return what the same call returns for an array, None where an array cannot be called so."""
    try:
        return call(X.copy())
    except AttributeError:  # .numpy()
        return None


REFUSAL = r"NumPy.*ta\.stack.*\.detach\(\).*\.item\(\)"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_numpy_refuses_tensors_with_gradients(call):
    for tensor in (leaf(*X), leaf(*X) * 2):
        with pytest.raises(RuntimeError, match=REFUSAL):
            call(tensor)


@pytest.mark.parametrize("name", ["a ufunc", "concatenate", "asarray", "numpy", "in place"])
def test_what_requires_a_gradient_does_so_under_no_grad_too(name):
    x = leaf(*X)
    with ta.no_grad(), pytest.raises(RuntimeError, match=REFUSAL):
        CALLS[name](x)


OPERATORS = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
]


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.__name__)
def test_an_array_on_the_left_is_the_tensors_business(op):
    for x in (ta.Tensor(X), leaf(*X)):
        for left in (X + 1, np.float64(2), np.array(2.0), (X + 1).view(np.matrix)[0, :].A1):
            if op is operator.matmul and np.ndim(left) == 0:
                continue
            result, expected = op(left, x), op(ta.Tensor(left), x)
            assert isinstance(result, ta.Tensor)
            np.testing.assert_array_equal(result.data, expected.data)
            assert result.requires_grad == (x.requires_grad and op in OPERATORS[:6])


def test_in_place_operators_of_arrays_change_the_array():
    array = X.copy()
    same = array
    array -= ta.Tensor(X)
    assert array is same
    assert same.tolist() == [0, 0, 0]


def test_numpy_does_not_write_into_tensors():
    with pytest.raises(TypeError, match=r"\.data"):
        np.exp(X, out=ta.zeros(3))


def test_questions_about_the_shape_cost_no_gradient():
    x = leaf(*X).reshape(1, 3)
    assert (np.shape(x), np.ndim(x), np.size(x), np.size(x, 1)) == ((1, 3), 2, 3, 3)


def test_numbers_are_a_way_out_that_is_asked_for():
    x = leaf(1.5)[0] * 2
    assert float(x) == x.item() == x.tolist() == 3
    assert (int(x), complex(x), f"{x:.2f}", bool(x)) == (3, 3 + 0j, "3.00", True)
    assert leaf(*X).tolist() == [1, 2, 3]


def test_a_masked_array_beside_a_tensor_is_refused_or_stays_masked():
    masked = np.ma.array(X, mask=[True, False, False])
    with pytest.raises(TypeError, match=r"\.filled\(value\)"):
        ta.Tensor(X) * masked
    with pytest.raises((TypeError, RuntimeError)):
        masked * leaf(*X)
    result = masked * ta.Tensor(X)
    assert result.mask.tolist() == [True, False, False]
