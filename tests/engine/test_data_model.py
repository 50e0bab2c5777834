"""Tensors in Python's own functions and statements, as in torch."""

import math
import operator

import numpy as np
import pytest
from helpers import leaf

import tinyalex as ta

NUMBER, ROW, EMPTY = ta.tensor(3.0), ta.tensor([1, 2, 3]), ta.zeros(0, 2)


def outcome(call):
    """Return what a call returns, or the kind of its error."""
    try:
        return call()
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return "an error" if isinstance(error, (RuntimeError, ValueError)) else "TypeError"


CALLS = {
    **{
        f"{function.__name__}({name})": lambda lib, f=function, v=values: f(lib.tensor(v))
        for name, values in {
            "a float": 2.5,
            "an integer": 2,
            "a bool": True,
            "a row": [1, 2],
            "one in a row": [7],
            "nothing": [],
        }.items()
        for function in (len, list, bool, int, float, complex, round, operator.index, sum, iter)
        if function is not iter or name in ("a float", "an integer")
    },
    **{
        f"{element!r} in {values}": lambda lib, e=element, v=values: e in lib.tensor(v)
        for values in ([1, 2], 2.0, [[0.5]])
        for element in (2, 2.0, 0.5, True)
    },
    **{
        f"format with {spec!r}": lambda lib, s=spec: format(lib.tensor(1.5), s)
        for spec in ("", ".3f", "8.1e")
    },
    "format of a row": lambda lib: format(lib.tensor([1.5]), ".3f"),
    "floor": lambda lib: math.floor(lib.tensor(1.5)),
    "divmod": lambda lib: divmod(lib.tensor(3), 2),
    "a list's element": lambda lib: "abcd"[lib.tensor(2)],
    "a range": lambda lib: list(range(lib.tensor(2))),
    "a slice": lambda lib: lib.tensor([1, 2, 3])[lib.tensor(1) :].tolist(),
    "reversed": lambda lib: reversed(lib.tensor([[1], [2]])).tolist(),
    "reversed number": lambda lib: reversed(lib.tensor(2)).tolist(),
    "== None": lambda lib: lib.tensor([1.0]) == None,  # noqa: E711
    "!= None": lambda lib: lib.tensor([1.0]) != None,  # noqa: E711
    "== text": lambda lib: lib.tensor([1.0]) == "x",
    "== list": lambda lib: lib.tensor([1.0]) == [1.0],
    "< None": lambda lib: lib.tensor([1.0]) < None,
    "< list": lambda lib: lib.tensor([1.0]) < [1.0],
    "+ None": lambda lib: lib.tensor([1.0]) + None,
    "+ list": lambda lib: operator.add(lib.tensor([1.0]), [1.0]),
    "text in": lambda lib: outcome(lambda: "x" in lib.tensor([1.0])) in ("an error", "TypeError"),
    "in a list": lambda lib: lib.tensor([1.0]) in [lib.tensor([1.0])],
    "rows in a list": lambda lib: lib.tensor([1, 2]) in [lib.tensor([1, 2])],
    "unpacking": lambda lib: [x.item() for x in [*lib.tensor([1, 2])]],
    "positive": lambda lib: (+lib.tensor([1, 2])).tolist(),
    "tolist": lambda lib: lib.tensor([[1.5, 2.0]]).tolist(),
    "any, all": lambda lib: (lib.tensor([0, 1]).any().item(), lib.tensor([0, 1]).all().item()),
    "any of an axis": lambda lib: lib.tensor([[0, 1], [0, 0]]).any(1, keepdim=True).tolist(),
    "hash": lambda lib: len({lib.tensor(1), lib.tensor(1)}),
}
"""Calls that read the same in both libraries."""


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_python_sees_a_tensor_as_torchs(call):
    torch = pytest.importorskip("torch")
    mine, his = outcome(lambda: call(ta)), outcome(lambda: call(torch))
    if isinstance(his, list):
        mine, his = ([getattr(x, "tolist", lambda x=x: x)() for x in side] for side in (mine, his))
    if isinstance(his, torch.Tensor):
        mine, his = mine.tolist(), his.tolist()
    assert mine == his
    assert type(mine) is type(his)


def test_a_tensor_without_axes_is_no_container():
    for use in (list, iter, sum, sorted, len, enumerate):
        with pytest.raises(TypeError, match="without axes"):
            use(NUMBER)
    assert 3 in NUMBER
    assert sum(ROW).item() == 6
    assert [row.shape for row in ta.zeros(2, 0)] == [(0,), (0,)]
    assert list(EMPTY) == []


def test_the_truth_of_many_is_asked_for_in_words():
    for several in (ROW, EMPTY):
        with pytest.raises(ValueError, match=r"\.any\(\) or \.all\(\)"):
            bool(several)


def test_numbers_that_float32_cannot_hold_are_infinite_without_a_warning():
    assert (ta.ones(1) * 1e300).tolist() == [math.inf]
    assert (ta.ones(1) < -1e300).tolist() == [False]
    assert (ta.ones(1) < ta.tensor(1e300, dtype=np.float64)).tolist() == [True]
    ta.tensor([math.nan]).to(np.int64)


# --- extremes -------------------------------------------------------------------------------------

TIED = [[2.0, 5.0, 5.0], [-1.0, -1.0, 0.0]]
WITH_NAN = [[2.0, math.nan, math.nan], [math.inf, 1.0, -math.inf]]


@pytest.mark.parametrize("values", [TIED, WITH_NAN], ids=["ties", "NaN"])
@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("keepdim", [False, True])
def test_extremes_along_an_axis_as_torchs(values, name, dim, keepdim):
    torch = pytest.importorskip("torch")
    mine = ta.tensor(values, dtype=np.float64, requires_grad=True)
    his = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    for call in (name, f"a{name}"):
        results = [getattr(x, call)(dim, keepdim) for x in (mine, his)]
        if call == name:
            assert [*results[0]] == [results[0].values, results[0].indices]
            np.testing.assert_array_equal(results[0].indices.data, results[1].indices.numpy())
            results = [result.values for result in results]
            indices = [getattr(x, f"arg{name}")(dim, keepdim).tolist() for x in (mine, his)]
            assert indices[0] == indices[1]
        np.testing.assert_array_equal(results[0].data, results[1].detach().numpy())
        mine.grad = his.grad = None
        results[0].backward(np.arange(1.0, results[0].size + 1).reshape(results[0].shape))
        results[1].backward(torch.arange(1.0, results[0].size + 1).reshape(results[0].shape))
        np.testing.assert_array_equal(mine.grad, his.grad.numpy())


@pytest.mark.parametrize("values", [TIED, WITH_NAN, 3.0], ids=["ties", "NaN", "a number"])
@pytest.mark.parametrize("name", ["max", "min", "amax", "amin"])
def test_extremes_of_all_as_torchs(values, name):
    torch = pytest.importorskip("torch")
    mine = ta.tensor(values, dtype=np.float64, requires_grad=True)
    his = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y, z = getattr(mine, name)(), getattr(his, name)()
    np.testing.assert_array_equal(y.data, z.detach().numpy())
    y.backward()
    z.backward()
    np.testing.assert_array_equal(mine.grad, his.grad.numpy())


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_indices_of_extremes_as_torchs(name):
    torch = pytest.importorskip("torch")
    for values in (TIED, WITH_NAN):
        mine, his = getattr(ta.tensor(values), name), getattr(torch.tensor(values), name)
        assert mine().item() == his().item()
        for options in ({"dim": 1}, {"dim": 0, "keepdim": True}, {"keepdim": True}):
            assert mine(**options).tolist() == his(**options).tolist()
            assert mine(**options).dtype == np.int64


@pytest.mark.parametrize(
    "values",
    [np.uint8([0, 1, 2]), np.int8([-128, 5]), [True, False], [2**63 - 1, -(2**63)], [-1.5, 2]],
    ids=str,
)
def test_minima_of_every_dtype(values):
    x = ta.Tensor(values)
    expected = min(x.tolist())
    for least in (x.min(), x.amin(), x.min(0).values, x.min(axis=0), x[x.argmin()]):
        assert (least.item(), least.dtype) == (expected, x.dtype)


def test_extremes_in_numpys_spelling_are_values():
    x = ta.tensor(TIED)
    assert x.max(axis=1).tolist() == [5, 0]
    assert x.min(axis=(0, 1), keepdims=True).tolist() == [[-1]]
    assert x.argmax(axis=0, keepdims=True).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dim", [(0, 1), ROW, 1.0, True, "0"], ids=repr)
def test_what_is_no_single_axis(dim):
    with pytest.raises(TypeError, match=r"one axis.*amax\(dim\).*where\(a > b, a, b\)"):
        ta.tensor(TIED).max(dim)


def test_extremes_of_nothing_are_refused():
    for call in ("max", "min", "amax", "argmax", "argmin"):
        with pytest.raises(ValueError, match=r"empty axis: shape \(0, 2\)"):
            getattr(EMPTY, call)()
        with pytest.raises(ValueError, match=r"empty axis: shape \(0, 2\)"):
            getattr(EMPTY, call)(0)
        assert call in ("amax", "argmax", "argmin") or EMPTY.max(1).values.shape == (0,)


def test_the_pair_can_be_unpacked():
    values, indices = leaf(1.0, 3.0, 2.0).max(0)
    assert (values.item(), indices.item()) == (3, 1)
    assert values.requires_grad
    assert not indices.requires_grad
