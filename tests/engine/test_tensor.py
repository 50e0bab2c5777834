"""Tensor as an array: operators, indexing, reductions, shapes, dtypes, random state."""

import json
import operator

import numpy as np
import pytest
from helpers import normal

import tinyalex as ta


@pytest.fixture
def a(rng):
    """A tensor of shape (2, 3, 4)."""
    return ta.Tensor(normal(rng, (2, 3, 4)))


# --- making tensors ------------------------------------------------------------------------------


def test_dtypes_of_new_tensors():
    assert ta.tensor(1.5).dtype == np.float32
    assert ta.tensor([1, 2]).dtype == np.int64
    assert ta.tensor([True]).dtype == bool
    assert ta.tensor([1, 2], dtype=np.float64).dtype == np.float64
    assert ta.Tensor(np.zeros(2)).dtype == np.float64
    assert ta.zeros(2).dtype == ta.ones(2).dtype == ta.rand(2).dtype == np.float32


def test_makers():
    np.testing.assert_array_equal(ta.zeros(2, 3).data, np.zeros((2, 3)))
    np.testing.assert_array_equal(ta.ones((2, 3)).data, np.ones((2, 3)))
    np.testing.assert_array_equal(ta.full((2,), 7.5).data, [7.5, 7.5])
    np.testing.assert_array_equal(ta.arange(2, 8, 3).data, [2, 5])
    assert ta.randn(1000).data.std() == pytest.approx(1, abs=0.1)
    assert 0 <= ta.rand(1000).data.min() < ta.rand(1000).data.max() < 1


def test_tensor_copies_and_wrapping_does_not():
    array = np.zeros(3)
    copy, wrapped = ta.tensor(array), ta.Tensor(array)
    array[0] = 1
    assert copy.data[0] == 0
    assert wrapped.data[0] == 1


@pytest.mark.parametrize(
    "bad", [np.array(["a"]), np.array([1j]), np.array([None]), np.float16(1), np.ones(2, ">f4")]
)
def test_unusable_dtypes_are_named(bad):
    with pytest.raises(TypeError, match=str(np.asarray(bad).dtype).replace("<", ".")):
        ta.Tensor(bad)


def test_attributes(a):
    assert (a.shape, a.ndim, a.size, a.device, len(a)) == ((2, 3, 4), 3, 24, "cpu", 2)
    assert a.is_leaf
    assert not a.requires_grad
    assert a.grad is None
    with pytest.raises(TypeError):
        len(ta.tensor(1.0))


# --- operators -----------------------------------------------------------------------------------

BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.pow,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.eq,
    operator.ne,
]


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), (3, 1), (5, 1, 1, 1), ()], ids=str)
def test_binary_operators_broadcast(op, shape, rng):
    x, y = rng.uniform(0.5, 2, (2, 3, 4)), rng.uniform(0.5, 2, shape)
    for left, right in ((x, y), (y, x)):
        result = op(ta.Tensor(left), ta.Tensor(right))
        np.testing.assert_array_equal(result.data, op(left, right))
        assert result.shape == op(left, right).shape


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
@pytest.mark.parametrize("number", [2, 0.5, np.float64(3.0), np.int64(2)], ids=repr)
def test_numbers_on_either_side(op, number):
    x = np.array([0.5, 1, 2], np.float32)
    for result, expected in (
        (op(ta.Tensor(x), number), op(x, np.float32(number))),
        (op(number, ta.Tensor(x)), op(np.float32(number), x)),
    ):
        assert isinstance(result, ta.Tensor)
        np.testing.assert_array_equal(result.data, expected)


@pytest.mark.parametrize("number", [2, 0.1, np.float64(3.0)], ids=repr)
def test_float32_stays_float32_next_to_numbers(number):
    x = ta.ones(3)
    for y in (x + number, number - x, x * number, number / x, x**number, number**x, -x, abs(x)):
        assert y.dtype == np.float32


def test_integers_meet_floats():
    n = ta.tensor([1, 2, 3])
    assert (n + 1).dtype == np.int64
    assert (n * 0.5).dtype == np.float32
    assert (n / 2).dtype == np.float32, "true division of integers makes torch's default float"
    np.testing.assert_array_equal((n / 2).data, [0.5, 1, 1.5])
    assert (n + ta.ones(3)).dtype == np.float32, "an int64 tensor must not widen float32"
    assert (ta.ones(3) + ta.ones(3, dtype=np.float64)).dtype == np.float64


def test_arrays_on_either_side():
    x, y = np.array([1.0, 2.0]), ta.Tensor(np.array([3.0, 4.0]), requires_grad=True)
    for result in (x + y, y + x, x * y, x @ y, x - y):
        assert isinstance(result, ta.Tensor)
        assert result.requires_grad


def test_unusable_operands_are_refused():
    for call in (lambda: ta.ones(2) + "1", lambda: ta.ones(2) * None, lambda: [1, 2] @ ta.ones(2)):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 4), (4, 5)),
        ((4,), (4,)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((2, 3, 4), (4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((2, 3, 4), (4,)),
        ((3,), (2, 3, 4)),
        ((0, 4), (4, 2)),
    ],
    ids=str,
)
def test_matmul(left, right, rng):
    x, y = normal(rng, left), normal(rng, right)
    np.testing.assert_allclose((ta.Tensor(x) @ ta.Tensor(y)).data, x @ y, rtol=1e-13)


@pytest.mark.parametrize(
    ("left", "right"), [((3, 4), (3, 4)), ((), (3,)), ((2, 3, 4), (3, 4, 5))], ids=str
)
def test_matmul_of_shapes_that_do_not_fit(left, right):
    with pytest.raises(ValueError) as caught:
        ta.ones(left) @ ta.ones(right)
    message = str(caught.value).replace(" ", "")
    assert all(str(shape).replace(" ", "") in message for shape in (left, right))


UNARY = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "abs": np.abs, "tanh": np.tanh}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name, rng, dtype):
    x = rng.uniform(0.5, 2, (3, 4)).astype(dtype)
    y = getattr(ta.Tensor(x), name)()
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.data, UNARY[name](x))


def test_sigmoid_does_not_overflow():
    x = np.array([-1e4, -2.0, 0.0, 2.0, 1e4])
    expected = [0, 1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-2)), 1]
    with np.errstate(all="raise"):
        np.testing.assert_allclose(ta.Tensor(x).sigmoid().data, expected, rtol=1e-14)


# --- reductions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("axis", [None, 0, -1, np.int64(1), (0, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_reductions_take_both_spellings(a, name, axis, keep):
    expected = getattr(np, name)(a.data, axis=axis, keepdims=keep)
    reduce = getattr(a, name)
    for result in (reduce(dim=axis, keepdim=keep), reduce(axis=axis, keepdims=keep)):
        assert result.shape == expected.shape
        np.testing.assert_allclose(result.data, expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.int64])
def test_sums_of_integers_count(dtype):
    """(prediction == target).sum() is the usual count of correct answers."""
    total = ta.Tensor(np.ones(300, dtype)).sum()
    assert total.item() == 300
    assert total.dtype == np.int64


def test_argmax(a):
    assert a.argmax().item() == a.data.argmax()
    np.testing.assert_array_equal(a.argmax(1).data, a.data.argmax(1))
    np.testing.assert_array_equal(a.argmax(-1, keepdim=True).data, a.data.argmax(-1, keepdims=True))


@pytest.mark.parametrize("dim", [3, -4, (0, 5)], ids=str)
def test_axes_out_of_range_are_named(a, dim):
    with pytest.raises((ValueError, IndexError), match=r"3|-4|5"):
        a.sum(dim)


def test_reductions_that_make_no_sense(a):
    with pytest.raises(ValueError, match="twice"):
        a.sum((0, -3))
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        ta.zeros(0, 3).max(0)
    with pytest.raises(TypeError, match="int64"):
        ta.tensor([1, 2]).mean()


# --- shape ---------------------------------------------------------------------------------------


def test_shapes(a):
    x = a.data
    for result, expected in (
        (a.reshape(6, 4), x.reshape(6, 4)),
        (a.reshape((4, -1)), x.reshape(4, -1)),
        (a.flatten(), x.reshape(-1)),
        (a.flatten(1), x.reshape(2, 12)),
        (a.flatten(0, 1), x.reshape(6, 4)),
        (a.flatten(-2, -1), x.reshape(2, 12)),
        (a.transpose(0, -1), x.swapaxes(0, -1)),
        (a.permute(2, 0, 1), x.transpose(2, 0, 1)),
        (a.permute((-1, 1, 0)), x.transpose(2, 1, 0)),
        (a.T, x.T),
        (a.unsqueeze(-1), x[..., None]),
        (a.unsqueeze(1).squeeze(1), x),
        (ta.cat([a, a * 2], dim=1), np.concatenate([x, x * 2], 1)),
        (ta.cat([a, a * 2], dim=-1), np.concatenate([x, x * 2], -1)),
        (ta.stack([a, a * 2]), np.stack([x, x * 2])),
        (ta.stack([a, a * 2], dim=-1), np.stack([x, x * 2], -1)),
        (ta.tensor(3.0).flatten(), np.array([3.0])),
        (ta.tensor(3.0).reshape(1, 1), np.array([[3.0]])),
    ):
        assert result.shape == expected.shape
        np.testing.assert_array_equal(result.data, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda a: a.reshape(5, 5),
        lambda a: a.reshape(-1, -1),
        lambda a: a.flatten(2, 1),
        lambda a: a.permute(0, 1),
        lambda a: a.permute(0, 0, 1),
        lambda a: a.transpose(0, 3),
        lambda a: ta.cat([]),
        lambda a: ta.cat([ta.tensor(1.0), ta.tensor(2.0)]),
        lambda a: ta.cat([a, a[:, :2]], dim=0),
        lambda a: ta.stack([a, a[:1]]),
    ],
)
def test_shapes_that_do_not_fit(a, call):
    with pytest.raises(ValueError):
        call(a)


def test_cat_and_where_want_tensors(a):
    for call in (lambda: ta.cat([a.data, a.data]), lambda: ta.where(a > 0, None, a)):
        with pytest.raises(TypeError, match=r"ndarray|NoneType"):
            call()


INDICES = [
    0,
    -1,
    slice(None, None, -1),
    (slice(None), 1),
    (..., slice(1, 4, 2)),
    (0, 1, 2),
    None,
    (slice(None), None, [2, 0]),
    [1, 0, 1],
    np.array([[0, 1], [1, 1]]),
    ([0, 1, 1], slice(None), [3, 3, 0]),
    np.arange(24).reshape(2, 3, 4) % 5 == 0,
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_is_numpys(a, index):
    np.testing.assert_array_equal(a[index].data, a.data[index])


def test_indexing_with_tensors(a):
    np.testing.assert_array_equal(a[ta.tensor([1, 0])].data, a.data[[1, 0]])
    np.testing.assert_array_equal(a[:, ta.tensor([2, 0])].data, a.data[:, [2, 0]])
    np.testing.assert_array_equal(a[a > 0].data, a.data[a.data > 0])
    with pytest.raises(IndexError):
        a[2]


def test_iteration_ends(a):
    rows = list(a)
    assert len(rows) == 2
    np.testing.assert_array_equal(rows[1].data, a.data[1])


# --- conversions ---------------------------------------------------------------------------------


def test_item_and_numbers():
    assert ta.tensor([[2.5]]).item() == 2.5
    assert isinstance(ta.tensor(2.5).item(), float)
    assert float(ta.tensor(2.5)) == 2.5
    assert bool(ta.tensor([1]))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        ta.ones(2).item()
    with pytest.raises(ValueError):
        bool(ta.ones(2))


def test_numpy_and_back(a):
    assert a.numpy() is a.data
    np.testing.assert_array_equal(np.asarray(a), a.data)
    np.testing.assert_array_equal(np.exp(np.asarray(a)), np.exp(a.data))
    with pytest.raises(RuntimeError, match="detach"):
        ta.ones(2, requires_grad=True).numpy()


def test_to():
    x = ta.Tensor(np.array([1.5, 2.5]), requires_grad=True)
    assert x.to("cpu") is x
    assert x.to(np.float64) is x
    assert x.to(np.int64).data.tolist() == [1, 2]
    assert not x.to(np.int64).requires_grad
    x.to(np.float32).backward(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(x.grad, [1, 2])
    assert x.grad.dtype == np.float64
    with pytest.raises(ValueError, match="tpu"):
        x.to("tpu")


def test_repr_says_what_it_is():
    assert repr(ta.tensor([1.0, 2.0])) == "tensor([1., 2.])"
    assert "float64" in repr(ta.Tensor(np.zeros(1)))
    leaf = ta.tensor([1.0], requires_grad=True)
    assert "requires_grad=True" in repr(leaf)
    assert "Mul" in repr(leaf * 2)


def test_tensors_are_hashable_by_identity():
    x, y = ta.ones(1), ta.ones(1)
    assert len({x, y, x}) == 2


# --- random state --------------------------------------------------------------------------------


def draws():
    """Draw one of everything that the library draws."""
    keep = ta.functional.dropout(ta.ones(64), 0.5).data
    return ta.randn(5).data.tobytes() + ta.rand(5).data.tobytes() + keep.tobytes()


def test_seed_decides_everything():
    ta.manual_seed(7)
    first, second = draws(), draws()
    ta.manual_seed(7)
    assert (draws(), draws()) == (first, second)
    ta.manual_seed(8)
    assert draws() not in (first, second)


def test_random_state_survives_json():
    ta.manual_seed(7)
    draws()
    state = json.loads(json.dumps(ta.random.get_state()))
    first, second = draws(), draws()
    ta.manual_seed(99)
    ta.random.set_state(state)
    assert (draws(), draws()) == (first, second)


def test_state_is_a_snapshot():
    ta.manual_seed(7)
    state = ta.random.get_state()
    first = draws()
    draws()
    ta.random.set_state(state)
    assert draws() == first


def test_dropout_of_a_step_does_not_depend_on_what_was_drawn_before():
    def masks(step, count=2):
        ta.random.start_step(step)
        return [ta.functional.dropout(ta.ones(64), 0.5).data.tobytes() for _ in range(count)]

    ta.manual_seed(7)
    first, second = masks(0), masks(1)
    assert len({*first, *second}) == 4
    draws()
    assert masks(1) == second
    assert masks(0, count=1) == first[:1]
    ta.manual_seed(8)
    assert not set(masks(0)) & {*first, *second}


def test_a_state_within_a_step_goes_on_there():
    ta.manual_seed(7)
    ta.random.start_step(3)
    draws()
    state = json.loads(json.dumps(ta.random.get_state()))
    expected = draws()
    ta.random.start_step(4)
    ta.random.set_state(state)
    assert draws() == expected


def test_a_state_from_before_steps_were_counted_is_one_without_a_step():
    ta.manual_seed(7)
    state = ta.random.get_state()
    del state["step"]
    expected = draws()
    ta.random.start_step(4)
    ta.random.set_state(state)
    assert draws() == expected


@pytest.mark.parametrize("step", [-1, 1.5, "7", None, True])
def test_bad_step_is_named(step):
    with pytest.raises(ValueError, match=f"the step must be an integer >= 0, got {step!r}"):
        ta.random.start_step(step)


@pytest.mark.parametrize("state", [None, {}, {"generator": 1}, {"seed": 1, "draws": 2}], ids=str)
def test_bad_state_changes_nothing(state):
    ta.manual_seed(7)
    expected = draws()
    ta.manual_seed(7)
    with pytest.raises((ValueError, TypeError)):
        ta.random.set_state(state)
    assert draws() == expected


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None, True])
def test_bad_seed_is_named(seed):
    with pytest.raises((ValueError, TypeError), match=str(seed)):
        ta.manual_seed(seed)


def test_keys_are_64_bit_and_differ():
    ta.manual_seed(0)
    keys = {ta.random.next_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(isinstance(key, int) and 0 <= key < 2**64 for key in keys)
    assert max(keys) > 2**62


def test_bool_and_integer_tensors_beside_numbers():
    mask = ta.tensor([1.0, -1.0]) > 0
    for result, expected in ((mask + 1, [2, 1]), (mask * 3, [3, 0])):
        assert result.dtype == np.int64
        assert result.data.tolist() == expected
    assert (mask * 0.5).dtype == np.float32
    assert (ta.tensor([1, 2]) + True).dtype == np.int64
