"""Dtypes of results, against a table and against torch."""

import itertools
import operator

import numpy as np
import pytest

import tinyalex as ta

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64")
# What two tensors with axes make, and the table's other half is its mirror image.
PAIRS = """
         bool    uint8   int8    int16   int32   int64   float32 float64
bool     bool    uint8   int8    int16   int32   int64   float32 float64
uint8            uint8   int16   int16   int32   int64   float32 float64
int8                     int8    int16   int32   int64   float32 float64
int16                            int16   int32   int64   float32 float64
int32                                    int32   int64   float32 float64
int64                                            int64   float32 float64
float32                                                  float32 float64
float64                                                          float64
"""
TABLE = {
    frozenset((row.split()[0], column)): result
    for row in PAIRS.strip().splitlines()[1:]
    for column, result in zip(DTYPES[-len(row.split()) + 1 :], row.split()[1:], strict=True)
}

COMPARISONS = (
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge
)  # fmt: skip
ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow)
MASKS = (operator.and_, operator.or_, operator.xor)
OPERATORS = (*ARITHMETIC, *COMPARISONS, *MASKS)
UNARY = ("exp", "log", "sqrt", "tanh", "sigmoid", "abs", "__neg__", "__invert__", "sum", "mean")
NUMBERS = (
    True, 2, -1, 300, 0.5, 1e-3,
    np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(2), np.int8(-1), np.uint8(200),
)  # fmt: skip


def values(dtype, rank):
    """Return some of a dtype's values, negative and large ones among them; the last for rank 0."""
    some = {"b": [1, 0, 1], "u": [0, 3, 200], "i": [-1, 0, 3], "f": [-1.5, 0, 2.5]}
    array = np.array(some[np.dtype(dtype).kind]).astype(dtype)
    return array if rank else array[-1:].reshape(())


def outcome(call, *operands):
    """Return the result's dtype, shape and values, or "refused"."""
    try:
        with np.errstate(all="ignore"):  # 0 / 0 is meant
            result = call(*operands)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return "refused"
    data = result.data if isinstance(result, ta.Tensor) else result.numpy()
    return data.dtype, data.shape, data


def assert_alike(mine, his, what):
    """Fail unless both are refused, or agree in dtype, shape and value."""
    assert (mine == "refused") == (his == "refused"), f"{what}: {mine} here, {his} in torch"
    if his != "refused":
        assert mine[:2] == his[:2], what
        # Of float32: exp and the like are rounded differently.
        tolerance = 1e-6 if his[0] == np.float32 else 1e-14
        np.testing.assert_allclose(mine[2], his[2], rtol=tolerance, err_msg=what)


@pytest.fixture
def torch():
    """Return torch, where it is installed."""
    return pytest.importorskip("torch")


@pytest.mark.parametrize("left", DTYPES)
def test_pairs_of_tensors(left):
    for right in DTYPES:
        expected = TABLE[frozenset((left, right))]
        a, b = ta.Tensor(values(left, 1)), ta.Tensor(values(right, 1))
        for result in (a + b, b * a, ta.cat([a, b]), ta.stack([b, a]), ta.where(a == b, a, b)):
            assert result.dtype == expected, (left, right)
        divided = expected if expected.startswith("float") else "float32"  # as exp's
        assert (a[:1] / b[:1].exp()).dtype == divided, (left, right)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (("int8", 1), ("int64", 0), "int8"),
        (("int8", 0), ("int64", 1), "int64"),
        (("int8", 0), ("int64", 0), "int64"),
        (("bool", 1), ("int8", 0), "int8"),
        (("int64", 1), ("float64", 0), "float64"),
        (("float32", 1), ("float64", 0), "float32"),
        (("float32", 0), ("float64", 0), "float64"),
        (("float32", 1), True, "float32"),
        (("int8", 1), 300, "int8"),
        (("int8", 0), 0.5, "float32"),
        (("float64", 0), 0.5, "float64"),
        (("bool", 0), 2, "int64"),
        (("bool", 1), np.float64(0.5), "float32"),
    ],
    ids=str,
)
def test_tensors_with_axes_come_before_those_without_and_before_numbers(left, right, expected):
    a, b = (ta.Tensor(values(*x)) if isinstance(x, tuple) else x for x in (left, right))
    assert (a + b).dtype == (b * a).dtype == expected


def test_each_side_gets_its_gradient_in_its_own_dtype():
    for join in (operator.mul, lambda a, b: ta.cat([a, b]), lambda a, b: ta.where(a > b, a, b)):
        a = ta.Tensor(np.array([3.0, 1.0], np.float32), requires_grad=True)
        b = ta.Tensor(np.array([2.0, 4.0]), requires_grad=True)
        join(a, b).sum().backward()
        assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.__name__)
def test_operators_promote_as_torchs(op, torch):
    for left, right in itertools.product(itertools.product(DTYPES, (0, 1)), repeat=2):
        arrays = values(*left), values(*right)
        mine = outcome(op, *map(ta.Tensor, arrays))
        his = outcome(op, *(torch.tensor(array) for array in arrays))
        assert_alike(mine, his, f"{left} {op.__name__} {right}")


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.__name__)
def test_numbers_promote_as_torchs(op, number, torch):
    plain = number.item() if isinstance(number, np.generic) else number
    for dtype, rank in itertools.product(DTYPES, (0, 1)):
        array = values(dtype, rank)
        for mine, his in (
            ((ta.Tensor(array), number), (torch.tensor(array), plain)),
            ((number, ta.Tensor(array)), (plain, torch.tensor(array))),
        ):
            if dtype == "bool" and (op, plain) == (operator.pow, True):
                continue  # torch lets mask ** True pass, but neither mask ** mask nor True ** mask
            what = f"{dtype} of rank {rank} {op.__name__} {number!r}"
            assert_alike(outcome(op, *mine), outcome(op, *his), what)


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.__name__)
def test_arrays_count_as_tensors_and_without_axes_as_numbers(op):
    for left, right in itertools.product(itertools.product(DTYPES, (0, 1)), repeat=2):
        x, y = values(*left), values(*right)
        what = f"{left} {op.__name__} {right}"
        expected = outcome(op, ta.Tensor(x), ta.Tensor(y) if y.ndim else y.item())
        assert_alike(outcome(op, ta.Tensor(x), y), expected, what)
        expected = outcome(op, ta.Tensor(x) if x.ndim else x.item(), ta.Tensor(y))
        assert_alike(outcome(op, x, ta.Tensor(y)), expected, what)


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_tensor_as_torchs(name, torch):
    for dtype, rank in itertools.product(DTYPES, (0, 1)):
        array = values(dtype, rank)
        call = operator.methodcaller(name)
        mine, his = outcome(call, ta.Tensor(array)), outcome(call, torch.tensor(array))
        assert_alike(mine, his, f"{name} of {dtype} of rank {rank}")


def test_cat_stack_and_where_promote_as_torchs(torch):
    for left, right in itertools.product(itertools.product(DTYPES, (0, 1)), repeat=2):
        arrays = values(*left), values(*right)
        mine, his = [*map(ta.Tensor, arrays)], [torch.tensor(array) for array in arrays]
        for name in ("cat", "stack"):
            if left[1] == right[1]:
                results = outcome(getattr(ta, name), mine), outcome(getattr(torch, name), his)
                assert_alike(*results, f"{name} of {left}, {right}")
        results = (
            outcome(library.where, library.tensor([True, False, True]), *operands)
            for library, operands in ((ta, mine), (torch, his))
        )
        assert_alike(*results, f"where of {left}, {right}")


@pytest.mark.parametrize("other", [True, 2, 0.5, 300], ids=repr)
def test_where_takes_numbers_as_torchs(other, torch):
    mask = [True, False, True]
    for number in (False, 7, 1.5):
        results = (outcome(lib.where, lib.tensor(mask), number, other) for lib in (ta, torch))
        assert_alike(*results, f"where of {number}, {other}")
    for dtype, rank in itertools.product(DTYPES, (0, 1)):
        array = values(dtype, rank)
        results = (
            outcome(lib.where, lib.tensor(mask), lib.tensor(array), other) for lib in (ta, torch)
        )
        assert_alike(*results, f"where of {dtype} of rank {rank}, {other}")


@pytest.mark.parametrize("dtype", DTYPES[1:6])
def test_integers_wrap_around(dtype):
    info = np.iinfo(dtype)
    least, most = (ta.Tensor(np.array([n], dtype)) for n in (info.min, info.max))
    assert (most + 1).item() == (most - -1).item() == info.min
    assert (least - 1).item() == (least + -1).item() == info.max
    assert (least * -1).item() == (-least).item() == abs(least).item() == info.min
    assert least.min().item() == least.amin(0).item() == least.min(0).values.item() == info.min
    with pytest.raises(OverflowError, match="int64"):
        least + 2**64


@pytest.mark.parametrize("power", [-1, np.int64(-2)])
def test_integers_to_negative_powers(power):
    with pytest.raises(ValueError, match=r"-\d is no integer.*float32"):
        ta.tensor([1, 2]) ** power
    result = ta.tensor([0, 1, -1, 2]) ** ta.tensor([power])
    assert result.tolist() == [0, 1, power % 2 * -2 + 1, 0]


def test_full_has_the_dtype_of_its_number():
    for number, dtype in ((True, bool), (1, np.int64), (np.float64(1.5), np.float32)):
        assert ta.full((2,), number).dtype == dtype
    assert ta.full((2,), 0.1, dtype=np.float64).tolist() == [0.1, 0.1]
    for wrong in ([1, 2], np.ones(2), "1", None):
        with pytest.raises(TypeError):
            ta.full((2,), wrong)
