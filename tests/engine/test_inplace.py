"""In-place operators and assignment, as in torch, inside and outside graphs."""

import itertools
import operator

import numpy as np
import pytest
from helpers import assert_close

import tinyalex as ta
from tinyalex import nn

OPERATORS = {
    "+=": operator.iadd,
    "-=": operator.isub,
    "*=": operator.imul,
    "/=": operator.itruediv,
    "**=": operator.ipow,
}
A = np.array([[1.5, 2.0, 3.0], [0.5, 4.0, 2.5]])
B = np.array([2.0, 0.5, 3.0])


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("update", OPERATORS.values(), ids=OPERATORS.keys())
@pytest.mark.parametrize("need", [*itertools.product([True, False], repeat=2)], ids=str)
def test_gradients_through_operators_in_place(torch, update, need):
    found = []
    for library, leaf, number in (
        (ta, lambda a, need: ta.Tensor(a.copy(), need), lambda x: x.detach().numpy()),
        (torch, lambda a, need: torch.tensor(a, requires_grad=need), lambda x: x.detach().numpy()),
    ):
        a, b = leaf(A, need[0]), leaf(B, need[1])
        y = a * 1
        address = y.data.__array_interface__["data"] if library is ta else y.data_ptr()
        z = update(y, b)
        assert z is y
        assert address == (y.data.__array_interface__["data"] if library is ta else y.data_ptr())
        found.append([number(y)])
        if any(need):
            (y * y).sum().backward()
            found[-1] += [None if x.grad is None else np.asarray(x.grad) for x in (a, b)]
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs)


INDICES = {
    "row": 1,
    "element": (0, 2),
    "slice": (slice(None), slice(0, 3, 2)),
    "ellipsis": ...,
    "array": ([0, 1], [2, 0]),
    "mask": [True, False],
}
VALUES = {
    "number": lambda x: x[0, 0],
    "broadcast": lambda x: x[0, :1],
    "axis of length 1 in front": lambda x: x[:1, :1],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("need", [(True, True), (True, False), (False, True)], ids=str)
def test_gradients_through_assignment_to_elements(torch, index, value, need):
    found = []
    for leaf in (
        lambda a, need: ta.Tensor(a.copy(), need),
        lambda a, need: torch.tensor(a, requires_grad=need),
    ):
        a, b = leaf(A, need[0]), leaf(-A, need[1])
        y = a * 3
        y[index] = value(b * 2)
        (y * y).sum().backward()
        found.append([y.detach().numpy(), *(x.grad for x in (a, b))])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, np.asarray(theirs))


PARTS = {
    "0": lambda library: 0,
    "-1": lambda library: np.int64(-1),
    "tensor(1)": lambda library: library.tensor(1),
    "[1, 0]": lambda library: [1, 0],
    "mask": lambda library: library.tensor([True, False]),
    "True": lambda library: True,
    "None": lambda library: None,
    ":": lambda library: slice(None),
    "...": lambda library: ...,
}


@pytest.mark.parametrize("first", PARTS)
def test_indices_of_all_kinds_mixed(torch, first):
    """The shape, the elements and where a gradient or a value goes, for each index torch takes."""
    array = np.arange(12.0).reshape(2, 3, 2)
    for others in itertools.product(PARTS, repeat=2):
        names, found = (first, *others), []
        if names.count("...") > 1:
            continue
        for library in (torch, ta):
            x, y = library.tensor(array, requires_grad=True), library.tensor(array)
            index = tuple(PARTS[name](library) for name in names)
            try:
                taken = x[index]
            except (IndexError, RuntimeError):
                assert library is torch
                break
            values = np.arange(1.0, 1 + np.prod(taken.shape)).reshape(taken.shape)
            taken.backward(library.tensor(values))
            y[index] = values = library.tensor(values, requires_grad=True)
            (y * y).sum().backward()
            parts = taken.detach(), x.grad, y.detach(), values.grad
            found.append([np.asarray(part) for part in parts])
        for theirs, ours in zip(*found, strict=True) if found else ():
            assert ours.shape == theirs.shape, names
            np.testing.assert_array_equal(ours, theirs, err_msg=str(names))


def test_assigned_values_are_cast_and_broadcast():
    x = ta.Tensor(np.zeros((2, 3), np.int64))
    x[0] = 1.7
    x[1, 1:] = ta.tensor([2.5])
    x[ta.tensor([True, False]), 0] = np.int8(9)
    assert x.data.tolist() == [[9, 1, 1], [0, 2, 2]]
    assert x.dtype == np.int64
    x[0, 0] = ta.tensor(3.0, requires_grad=True)
    assert x.data[0, 0] == 3
    assert not x.requires_grad  # integers have no gradients


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int8", "uint8", "bool"])
@pytest.mark.parametrize("other", [True, 2, 1.5, "float64", "int64", "int8", "bool"], ids=str)
@pytest.mark.parametrize("name", ["+=", "*=", "/="])
def test_dtypes_that_a_tensor_can_hold_in_place(torch, name, dtype, other):
    """A result of a kind that the tensor cannot hold is refused where torch refuses it."""
    update = OPERATORS[name]
    theirs = torch.ones(3, dtype=getattr(torch, dtype))
    ours = ta.Tensor(np.ones(3, dtype))
    b = other, other
    if isinstance(other, str):
        b = torch.ones(3, dtype=getattr(torch, other)), ta.Tensor(np.ones(3, other))
    try:
        update(theirs, b[0])
    except RuntimeError:
        with pytest.raises(TypeError, match=f"cannot be put into a tensor of {dtype}"):
            update(ours, b[1])
        assert ours.data.all()
    else:
        update(ours, b[1])
        assert ours.dtype == dtype
        assert ours.data.tolist() == theirs.tolist()


def test_a_result_that_would_grow_the_tensor_is_refused():
    x = ta.zeros(3)
    with pytest.raises(ValueError, match=r"shape \(3,\) .* shape \(2, 3\) in place"):
        x += ta.ones(2, 3)
    with pytest.raises(TypeError, match="unsupported operand"):
        x += [1, 2, 3]
    with pytest.raises(ValueError, match="broadcast"):
        x[:2] = ta.ones(3)
    assert x.data.tolist() == [0, 0, 0]


WRITES = {
    "+=": lambda x: operator.iadd(x, 1),
    "**=": lambda x: operator.ipow(x, 2),
    "[0] =": lambda x: operator.setitem(x, 0, 1),
    "[...] =": lambda x: operator.setitem(x, ..., 1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_leaves_and_their_views_change_under_no_grad_only(write):
    leaf = ta.zeros(3, requires_grad=True)
    with ta.no_grad():
        made_without = leaf[:]
    for x in (leaf, leaf[1:], leaf.reshape(3, 1), made_without):
        with pytest.raises(RuntimeError, match="no_grad"):
            write(x)
        assert not leaf.data.any()
    with ta.no_grad():
        write(leaf[:])
        write(leaf)
    assert leaf.is_leaf
    assert leaf.requires_grad
    write(leaf.detach())


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_views_and_what_they_show_change_in_the_graph_no_more(write):
    """The history of the one would not tell what happened to the other."""
    y = ta.ones(3, requires_grad=True) * 2
    view = y[1:]
    for x in (y, view):
        with pytest.raises(RuntimeError, match="view"):
            write(x)
    del view
    y = ta.ones(3, requires_grad=True).exp().reshape(3, 1)[:]  # what these are views of is gone
    write(y)
    plain = ta.zeros(3)
    part = plain[1:]
    with pytest.raises(RuntimeError, match="view"):
        part += ta.ones(2, requires_grad=True)
    part += 1
    assert plain.data.tolist() == [0, 1, 1]


def test_a_training_step_by_hand():
    layer = nn.Linear(2, 1)
    before, weight = layer.state_dict(), layer.weight
    layer(ta.ones(1, 2)).sum().backward()
    with ta.no_grad():
        for p in layer.parameters():
            p -= 0.5 * p.grad
        layer.bias *= 1
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert layer.weight is weight
    assert weight.requires_grad
    for name, p in layer.named_parameters():
        assert_close(p.data, before[name] - 0.5)


def test_aliases_and_views_see_what_is_written():
    x = ta.zeros(2, 3)
    x.detach()[0] += 1
    x[1, 2] += 5
    x.T[0] *= 7
    assert x.data.tolist() == [[7, 1, 1], [0, 0, 5]]


@pytest.mark.parametrize(
    "array", [np.broadcast_to(np.float32(1), 3), np.frombuffer(b"1234", np.uint8)], ids=["0", "1"]
)
def test_memory_that_cannot_be_written_is_refused(array):
    x = ta.Tensor(array)
    with pytest.raises(RuntimeError, match="read-only"):
        x += 1
    with pytest.raises(RuntimeError, match="read-only"):
        x[0] = 1


def test_the_device_of_what_is_written(cuda):
    x = ta.zeros(3, requires_grad=True).to("cuda")
    x += 1
    x[1] = ta.ones((), requires_grad=True).to("cuda") * 2
    x[2] = 5
    (x * x).sum().backward()
    assert x.detach().cpu().numpy().tolist() == [1, 2, 5]
    with pytest.raises(ValueError, match="one device"):
        x[0] = ta.ones(1)
