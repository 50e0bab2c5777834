"""Inputs: subclasses and look-alikes of arrays become plain, or are refused."""

import array
import collections
import ctypes
import tempfile

import numpy as np
import pytest
from helpers import leaf

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn


class Subclass(np.ndarray):
    """An array that computes something else."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        raise AssertionError("a subclass must not come so far")


class HasArray:
    """An object with ``__array__``, as those of pandas and xarray have it."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asanyarray(self.values, dtype=dtype)


class HasInterface:
    """An object with ``__array_interface__``, as images have it."""

    def __init__(self, values):
        self.values = values
        self.__array_interface__ = values.__array_interface__


def memmap(values):
    """Return the values in a file that is mapped into memory."""
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, values.dtype, "w+", shape=values.shape)
    mapped[...] = values
    return mapped


PLAIN = {
    "subclass": lambda a: a.view(Subclass),
    "masked, nothing masked": np.ma.array,
    "memmap": memmap,
    "recarray without fields": lambda a: a.view(np.recarray),
    "has __array__": HasArray,
    "has __array_interface__": HasInterface,
    "__array__ of a subclass": lambda a: HasArray(a.view(Subclass)),
    "memoryview": memoryview,
}
"""How a plain array can be dressed up."""

MASKED = {
    "an array": lambda a: np.ma.array(a, mask=np.arange(a.size).reshape(a.shape) == 1),
    "no axes": lambda a: np.ma.masked,
    "what __array__ returns": lambda a: HasArray(np.ma.array(a, mask=True)),
    "in a list": lambda a: [np.ma.array(row, mask=True) for row in a],
    "in lists of lists": lambda a: [[np.ma.masked] * a.size],
}
"""How elements can be masked."""

X = np.array([1.0, 2.0, 3.0])


def backward(gradient):
    """Return the gradient of 2 x."""
    x = leaf(*X)
    (x * 2).backward(gradient)
    return x.grad


def loaded(values):
    """Return a layer's bias after loading."""
    layer = nn.Linear(2, 3, dtype=np.float64)
    layer.load_state_dict({"weight": np.zeros((3, 2)), "bias": values})
    return layer.bias


def velocity(values):
    """Return an optimiser's velocity after loading."""
    optimizer = ta.optim.SGD([nn.Parameter(X.copy())], lr=0.1, momentum=0.9)
    state = optimizer.state_dict()
    optimizer.load_state_dict({**state, "velocity": [values]})
    return optimizer.state_dict()["velocity"][0]


PLACES = {
    "Tensor": ta.Tensor,
    "tensor": ta.tensor,
    "tensor of a dtype": lambda v: ta.tensor(v, dtype=np.float64),
    "Parameter": nn.Parameter,
    "gradient": backward,
    "right operand": lambda v: ta.Tensor(X) * v,
    "comparison": lambda v: ta.Tensor(X + 1) > v,
    "index": lambda v: ta.Tensor(np.arange(9.0))[v],
    "part of an index": lambda v: ta.Tensor(np.eye(3))[:, v],
    "load_state_dict": loaded,
    "velocity": velocity,
    "class weights": lambda v: F.cross_entropy(ta.Tensor(np.eye(3)), np.arange(3), v),
    "targets": lambda v: F.cross_entropy(ta.Tensor(X[:, None] * X), v),
}


def values_of(result):
    """Return the array of what a place returned, which must be NumPy's own class."""
    data = result.data if isinstance(result, ta.Tensor) else result
    assert type(data) is np.ndarray
    return data


def argument(place):
    """Return what can stand in a place: numbers, or integers as indices."""
    return np.array([2, 0, 1]) if "index" in place or place == "targets" else X


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dress", PLAIN)
def test_look_alikes_are_their_values(place, dress):
    given = argument(place)
    expected = values_of(PLACES[place](given))
    result = PLACES[place](PLAIN[dress](given))
    np.testing.assert_array_equal(values_of(result), expected)
    assert values_of(result).dtype == expected.dtype


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mask", MASKED)
def test_masked_elements_are_refused_everywhere(place, mask):
    masked = MASKED[mask](argument(place))
    listed = isinstance(masked, list) and place in ("right operand", "comparison")
    with pytest.raises(
        (TypeError, ValueError), match="list|index" if listed else r"\.filled\(value\)"
    ):
        PLACES[place](masked)


def test_conditions_and_files(tmp_path):
    condition, other = np.array([True, False]), ta.zeros(2)
    for dress in PLAIN.values():
        assert ta.where(dress(condition), 1.0, other).tolist() == [1, 0]
    masked = np.ma.array(condition, mask=[True, False])
    with pytest.raises(TypeError, match=r"\.filled\(value\)"):
        ta.where(masked, 1.0, other)
    with pytest.raises(TypeError, match=r"\.filled\(value\)"):
        ta.save({"mask": masked}, tmp_path / "file")
    ta.save({"matrix": np.eye(2).view(np.matrix)}, tmp_path / "file")
    np.testing.assert_array_equal(ta.load(tmp_path / "file")["matrix"], np.eye(2))


def test_a_matrix_multiplies_by_element():
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    matrix, x = values.view(np.matrix), ta.Tensor(values)
    for product in (x * matrix, matrix * x, ta.Tensor(matrix) * x):
        assert product.tolist() == [[1, 4], [9, 16]]


def test_gradients_of_look_alikes_are_those_of_their_values():
    for dress in PLAIN.values():
        x = ta.Tensor(dress(X.copy()), requires_grad=True)
        (x * x).sum().backward()
        np.testing.assert_array_equal(x.grad, 2 * X)
        assert type(x.grad) is np.ndarray


def test_views_are_shared_and_copies_are_not():
    given = X.copy().view(Subclass)
    view, copy = ta.Tensor(given), ta.tensor(given)
    given.view(np.ndarray)[0] = 7
    assert (view.data[0], copy.data[0]) == (7, 1)


SEQUENCES = {
    "floats": ([1.5, 2.0], np.float32),
    "integers": ((1, 2), np.int64),
    "bools": ([True, False], bool),
    "all of them": ([True, 2, 0.5], np.float32),
    "nothing": ([], np.float32),
    "range": (range(3), np.int64),
    "deque": (collections.deque([1.0, 2.0]), np.float32),
    "array.array": (array.array("d", [1.0, 2.0]), np.float32),
    "ctypes": ((ctypes.c_double * 2)(1.0, 2.0), np.float64),
    "bytearray": (bytearray(b"ab"), np.int64),
    "float64 scalars": ([np.float64(0.1), 2.5], np.float64),
    "float32 scalars": ([np.float32(0.1), 2], np.float32),
    "float64 arrays": ([np.ones(2), [1, 2]], np.float64),
    "int8 arrays": ([np.ones(2, np.int8), np.ones(2, np.uint8)], np.int16),
    "tensors": ([ta.ones(2), ta.tensor([1, 2])], np.float32),
    "tensors of no axes": ([ta.tensor(1), ta.tensor(2.0, dtype=np.float64)], np.float64),
    "objects with __array__": ([HasArray([1.0, 2.0])], np.float64),
}
"""Sequences as data, and the dtypes that they make."""


@pytest.mark.parametrize(("given", "dtype"), SEQUENCES.values(), ids=SEQUENCES)
def test_dtypes_of_sequences(given, dtype):
    for made in (ta.Tensor(given), ta.tensor(given)):
        assert made.dtype == dtype
        np.testing.assert_array_equal(made.data, np.asarray(given, dtype))


def test_python_numbers_keep_their_digits():
    assert ta.tensor([0.1], dtype=np.float64).tolist() == [0.1]
    assert ta.tensor(2**53 + 1, dtype=np.int64).item() == 2**53 + 1
    assert backward([0.1, 0.2, 0.3]).tolist() == [0.2, 0.4, 0.6]
    probabilities = [[0.1, 0.2, 0.7]]
    losses = [
        F.cross_entropy(ta.Tensor(X[None]), p) for p in (probabilities, np.array(probabilities))
    ]
    assert losses[0].item() == losses[1].item()


WRONG = {
    "text": ("abc", TypeError, "<U3"),
    "texts": (["1.5"], TypeError, "<U3"),
    "bytes": (b"ab", TypeError, "S2"),
    "None": (None, TypeError, "object"),
    "a list of None": ([None, 1.0], TypeError, "object"),
    "a set": ({1, 2}, TypeError, "object"),
    "a dict": ({1: 2}, TypeError, "object"),
    "a generator": ((i for i in range(3)), TypeError, "object"),
    "complex": ([1j, 2.0], TypeError, "complex128"),
    "half": (np.ones(2, np.float16), TypeError, "float16"),
    "long double": (np.longdouble(1), TypeError, "float128|longdouble|float64"),
    "dates": (np.array(["2026-01-01"], "M8[D]"), TypeError, "datetime64"),
    "fields": (np.zeros(2, [("a", float)]), TypeError, "'a'"),
    "records": (np.rec.array([(1.0,)], dtype=[("a", float)]), TypeError, "'a'"),
    "other byte order": (np.ones(2, ">f4"), TypeError, ">f4"),
    "uneven rows": ([[1, 2], [3]], ValueError, "equal length"),
    "numbers and rows": ([1, [2, 3]], ValueError, "equal length"),
    "a huge integer": (2**63, OverflowError, "int64"),
    "huge integers": ([[1], [2**70]], OverflowError, "int64"),
}
"""What no tensor holds, the error, and what it names."""


@pytest.mark.parametrize(("given", "kind", "named"), WRONG.values(), ids=WRONG)
def test_what_no_tensor_holds(given, kind, named):
    for make in (ta.Tensor, ta.tensor, nn.Parameter):
        with pytest.raises(kind, match=named):
            make(given)


@pytest.mark.parametrize(
    "given", [np.array([1j]), np.array(["1.0"]), [None], np.ones(1, np.float16)]
)
def test_gradients_and_operands_of_such_dtypes(given):
    with pytest.raises(TypeError, match="holds float32, float64, integers or bool"):
        leaf(1.0).backward(given)
    if isinstance(given, np.ndarray):
        for use in (lambda t: t + given, lambda t: given + t, lambda t: t < given):
            with pytest.raises(TypeError, match="holds float32, float64, integers or bool"):
                use(ta.ones(1))


def test_integers_beyond_a_dtype_are_refused():
    with pytest.raises(OverflowError, match="int8"):
        ta.tensor([300], dtype=np.int8)
