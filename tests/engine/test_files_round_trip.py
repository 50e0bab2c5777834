"""Saved files: what goes in comes out, and what cannot is refused."""

import os

import numpy as np
import pytest
from test_files import CHECKPOINT

import tinyalex as ta


@pytest.fixture
def path(tmp_path):
    """A path in an empty folder."""
    return tmp_path / "weights of Alex.ta"


def assert_same(a, b):
    """Compare nested objects, arrays by dtype, shape and bits."""
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
        return
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


OBJECTS = {
    "checkpoint": CHECKPOINT,
    "nothing": None,
    "numbers": [0, -1, 2**80, 0.1, 1e-320, float("inf"), -float("inf"), float("nan"), True],
    "nesting": {"a": [{"b": (1, [2, (3,)], {})}, []], "": ()},
    "bare array": np.arange(3),
    "strings": ["", "\0", "\0array", "a\0b", "\U0001d538", '"\\'],
    "keys": {"a": {"b": np.zeros(1)}, "a.b": np.ones(1), "0": np.full(1, 2), "a.b#1": np.ones(2)},
    "colliding keys": {"x": {"b": np.zeros(1)}, "x.b#2": np.ones(1), "x.b": np.full(1, 2.0)},
    "metadata": {"__metadata__": np.zeros(2), "format": "x"},
    "empty arrays": [np.zeros((0, 3)), np.zeros(()), np.zeros((2, 0, 1), np.int8)],
    "special floats": np.array([np.nan, np.inf, -0.0, 5e-324]),
}


@pytest.mark.parametrize("obj", OBJECTS.values(), ids=OBJECTS)
def test_round_trip(obj, path):
    ta.save(obj, path)
    assert_same(ta.load(path), obj)


@pytest.mark.parametrize(
    "dtype", ["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "f2"]
)
def test_round_trip_of_dtypes(dtype, path):
    array = np.array([[0, 1], [2, 3]]).astype(dtype)
    ta.save(array, path)
    assert_same(ta.load(path), array)


@pytest.mark.parametrize(
    "array",
    [np.arange(6).reshape(2, 3).T, np.arange(9)[::-2], np.broadcast_to(np.float32(3), (2, 3))],
    ids=["transposed", "backwards", "broadcast"],
)
def test_round_trip_of_layouts(array, path):
    ta.save([array], path)
    np.testing.assert_array_equal(ta.load(path)[0], array)


def test_big_endian_arrays_keep_their_values(path):
    ta.save(np.arange(3, dtype=">f8"), path)
    np.testing.assert_array_equal(ta.load(path), [0, 1, 2])


def test_tensors_come_back_as_arrays_that_can_be_written(path):
    ta.save({"w": ta.ones(2, 3, requires_grad=True)}, str(path))
    w = ta.load(str(path))["w"]
    assert isinstance(w, np.ndarray)
    w += 1
    np.testing.assert_array_equal(w, np.full((2, 3), 2))


def test_numpy_numbers_come_back_as_numbers(path):
    ta.save([np.float32(0.5), np.int64(3), np.bool_(True)], path)
    assert ta.load(path) == [0.5, 3, True]


@pytest.mark.parametrize(
    "bad",
    [object(), {1: 2}, {1, 2}, b"x", np.array([object()]), np.array(["a"]), 1j, lambda: 0],
    ids=lambda bad: type(bad).__name__,
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(bad, path):
    ta.save("old", path)
    with pytest.raises(TypeError, match=r"a\.1"):
        ta.save({"a": [0, bad]}, path)
    assert ta.load(path) == "old"
    assert os.listdir(path.parent) == [path.name]
