"""Tensors of bfloat16 on a GPU, which mostly compute in float32."""

import copy
import importlib
import sys

import numpy as np
import pytest
from helpers import normal
from simt import arrays

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import backends, nn
from tinyalex.backends import cuda as kernels
from tinyalex.backends.bfloat16 import bfloat16
from tinyalex.backends.devices import host_copy, move
from tinyalex.backends.sharded import sharded
from tinyalex.backends.shards import Part

MODULE = importlib.import_module("tinyalex.backends.cuda.operands")


def stored(values, requires_grad=False):
    """Return values on the GPU in bfloat16, and the same numbers in float32."""
    x = ta.Tensor(values.astype(np.float32)).to("cuda").to(bfloat16()).detach()
    return x.requires_grad_(requires_grad), x.detach().to("float32").requires_grad_(requires_grad)


@pytest.fixture
def pair(cuda, rng):
    """Return the same numbers in bfloat16 and in float32."""
    return stored(normal(rng, (3, 4), np.float32))


def assert_same(found, wanted):
    """Compare tensors, arrays or numbers, by value."""
    found, wanted = (
        x.detach().cpu().numpy() if isinstance(x, ta.Tensor) else x for x in (found, wanted)
    )
    np.testing.assert_array_equal(found, wanted)


def in_place(change):
    """Return a function that changes a copy and returns it in float32, rounded to bfloat16."""

    def changed(x):
        x = ta.tensor(x)
        change(x)
        return x.to(bfloat16())

    return changed


def add(x):
    x += 0.7


def divide(x):
    x /= ta.Tensor(np.full(4, 3.0, np.float32)).to("cuda")


def raised(x):
    x **= 2


def put(x):
    x[0] = 1.1


def put_tensor(x):
    x[:, 1:] = ta.Tensor(np.full((3, 3), 0.3, np.float32)).to("cuda")


ANSWERS = {
    **{"==": lambda x: x == x[0], "!=": lambda x: x != 0.5, "<": lambda x: x < x.mean()},
    **{"<=": lambda x: x <= 1, ">": lambda x: x > 0, ">=": lambda x: x >= x.T.T},
    **{"argmax": lambda x: x.argmax(1), "argmin": lambda x: x.argmin(), "in": lambda x: 0.0 in x},
    **{"any": lambda x: (x - x).any(), "all": lambda x: x.all(0), "max": lambda x: x.max(0)[1]},
    **{"item": lambda x: x[1, 2].item(), "tolist": lambda x: x.tolist(), "len": len},
    **{"float": lambda x: float(x[0, 1]), "int": lambda x: int(x[0, 1] * 9)},
    **{"iter": lambda x: [*x][1], "reversed": lambda x: next(iter(reversed(x)))},
    **{"format": lambda x: f"{x[2, 2]:.3f}", "complex": lambda x: complex(x[0, 0])},
    **{"bool": lambda x: bool(x[0, 0]), "mask": lambda x: x[x > 0]},
    **{"int32": lambda x: (x * 9).to("int32"), "float64": lambda x: x.to("float64")},
    **{"host": lambda x: move(x.data, "cpu"), "copy": lambda x: host_copy(x.data)},
    **{"deepcopy": copy.deepcopy, "alias": copy.copy, "tensor": ta.tensor},
    **{"pickle": lambda x: ta.Tensor(x.__reduce_ex__(5)[1][1]), "cpu": lambda x: x.cpu()},
    **{"+=": in_place(add), "/=": in_place(divide), "**=": in_place(raised)},
    **{"[]=": in_place(put), "[]= tensor": in_place(put_tensor)},
    **{"numbers": lambda x: 1 - 2 * x / 3 + 2**x, "cuda:1": lambda x: x.to("cuda:1")},
    **{"targets": lambda x: F.cross_entropy(x, x.T.T, x[0])},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_answers_are_those_of_the_same_numbers_in_float32(pair, answer):
    found, wanted = (answer(x) for x in pair)
    assert_same(found, wanted)
    if isinstance(found, np.ndarray):
        assert found.dtype == np.float32


ON_HOST = "got bfloat16; convert the array first"
REFUSED = [
    (lambda x: ~x, "~ expects bools or integers, got bfloat16"),
    (lambda x: x & 1, "bitwise_and expects bools or integers, got bfloat16"),
    (lambda x: range(x[0, 0]), "an index must be a single integer, got bfloat16"),
    (lambda x: ta.ones(3).to("cuda")[x], "got Tensor of bfloat16"),
    (lambda x: ta.where(x, x, x), "a condition of bools, got bfloat16"),
    (lambda x: F.linear(x, ta.ones(3, 4, dtype="float64").to("cuda")), "bfloat16, float64"),
    (lambda x: ta.Tensor(np.zeros(3, bfloat16())), ON_HOST),
    (lambda x: ta.ones(3).to(bfloat16()), ON_HOST),
    (lambda x: nn.Linear(2, 2).to("cuda").to(bfloat16()), "parameters are float32 or float64"),
]


@pytest.mark.parametrize(("wrong", "error"), REFUSED)
def test_bfloat16_is_refused_as_float32_is(pair, wrong, error):
    """And where it would lie on the host, or in a parameter."""
    with pytest.raises((TypeError, IndexError), match=error):
        wrong(pair[0])


class Square(ta.Function):
    """A user's own function, which knows float32 and float64."""

    def forward(self, x):
        assert x.dtype == np.float32
        self.save(x)
        return x * x

    def backward(self, grad):
        assert grad.dtype == np.float32
        return 2 * self.saved[0] * grad


def test_gradients_of_two_uses_are_rounded_then_added(cuda, rng):
    """As PyTorch adds them: each is stored in bfloat16, and so is the sum."""
    leaf, wide = stored(normal(rng, (3, 4), np.float32), requires_grad=True)
    seen = []
    leaf.register_post_accumulate_grad_hook(lambda x: seen.append(x.grad.dtype))
    (Square.apply(leaf.T) + leaf.reshape(4, 3).exp()).sum().backward()
    parts = [Square.apply(wide.T), wide.reshape(4, 3).exp()]
    grads = []
    for part in parts:
        wide.grad = None
        part.sum().backward()
        grads.append(move(wide.grad, "cpu").astype(bfloat16()))
    assert_same(move(leaf.grad, "cpu"), (grads[0] + grads[1]).astype(np.float32))
    assert seen == [bfloat16()]
    leaf.reshape(12).backward(ta.Tensor(leaf.grad.reshape(12)))  # of its own dtype, and in it
    assert_same(move(leaf.grad, "cpu"), 2 * (grads[0] + grads[1]).astype(np.float32))
    with pytest.raises(ValueError, match="must have this tensor's shape, dtype and device"):
        leaf.grad = leaf.grad.astype(np.float32)


def test_views_share_their_memory_and_its_version(cuda, rng):
    x, _ = stored(normal(rng, (3, 4), np.float32), requires_grad=True)
    y = x.T[1:]
    with ta.no_grad():
        x[...] = 2
    assert_same(y, np.full((3, 3), 2, np.float32))
    z = F.relu(x) * 3
    with pytest.raises(RuntimeError, match="shares its memory with a view"):
        y += 1
    with ta.no_grad():
        x[0] = 1
    z.sum().backward()  # of copies that no write reaches
    assert_same(move(x.grad, "cpu"), np.full((3, 4), 3, np.float32))


def test_a_drawing_counts_the_bytes_that_are_kept(cuda, rng):
    leaf, _ = stored(normal(rng, (3, 4), np.float32), requires_grad=True)
    drawn = str(ta.draw_graph(leaf.T.reshape(12).exp().sum()))
    assert "[3, 4] bfloat16, 24 B" in drawn
    assert "[12] float32\n    keeps [12] float32, 48 B" in drawn


# --- factors of products


def factors(x, weight, dtype=np.float32):
    """Return the dtypes of `operands` for arrays of these shapes."""
    x, weight = (ta.Tensor(np.ones(shape, dtype)).to("cuda").data for shape in (x, weight))
    return [str(array.dtype) for array in kernels.operands(x, weight)]


@pytest.fixture
def medium(standin):
    ta.set_float32_matmul_precision("medium")


LARGE = ((9, 16), (8, 16)), ((9, 3, 5, 5), (8, 3, 3, 3)), ((9, 16, 5, 5), (32, 8, 3, 3))
OTHERS = (
    *[((8, *x[1:]), weight) for x, weight in LARGE],  # few images
    *(((9, 12), (8, 12)), ((9, 16), (10, 16)), ((9, 0), (8, 0)), ((0, 16), (8, 16))),
    *(((9, 5, 5, 5), (8, 5, 3, 3)), ((9, 16, 5, 5), (24, 8, 3, 3)), ((9, 6, 5, 5), (16, 3, 3, 3))),
    ((9, 16392), (8, 16392)),  # a sum in pieces
)


@pytest.mark.parametrize("shapes", [*LARGE, *OTHERS], ids=str)
def test_products_of_many_images_are_stored(medium, shapes):
    dtype = "bfloat16" if shapes in LARGE else "float32"
    assert factors(*shapes) == [dtype] * 2
    assert factors(*shapes, np.float64) == ["float64"] * 2
    for precision in ("high", "highest"):
        ta.set_float32_matmul_precision(precision)
        assert factors(*shapes) == ["float32"] * 2


@pytest.mark.parametrize("capability", ["80", "89", "100", "120"])
def test_other_gpus_store_float32(medium, standin, monkeypatch, capability):
    monkeypatch.setattr(standin.cuda.Device, "compute_capability", capability)
    assert factors(*LARGE[0]) == ["float32"] * 2


def test_without_ml_dtypes_products_store_float32(medium, monkeypatch):
    monkeypatch.setattr(MODULE, "bfloat16", lambda: None)
    assert factors(*LARGE[0]) == ["float32"] * 2


def test_an_older_numpy_has_no_bfloat16_that_cupy_knows(monkeypatch):
    assert bfloat16.__wrapped__() == bfloat16()
    monkeypatch.setattr(np, "__version__", "2.1.1")
    assert bfloat16.__wrapped__() is None


@pytest.mark.parametrize(
    ("sizes", "dtype"), [((9, 9), "bfloat16"), ((9, 8), "bfloat16"), ((6, 6, 5), "float32")]
)
def test_shards_decide_by_their_own_size(medium, sizes, dtype):
    """So that the bits do not depend on how many of them a rank has."""
    for span in ((0, 1), (0, len(sizes))):
        part = Part(sizes, span)
        x = ta.ones(part.rows.stop, 16).to("cuda").data
        with sharded(part):
            found = backends.operands(x, ta.ones(8, 16).to("cuda").data, None)
        assert [str(array.dtype) for array in found[:2]] == [dtype] * 2


def test_activations_come_back_to_float32_where_they_must(medium):
    x, wide = stored(np.linspace(-1, 1, 144).reshape(9, 16))
    weight = ta.Tensor(np.eye(16, dtype=np.float32)).to("cuda")
    for precision in ("high", "highest"):
        ta.set_float32_matmul_precision(precision)
        assert_same(F.linear(x, weight), F.linear(wide, weight))
    ta.set_float32_matmul_precision("medium")
    assert_same(F.linear(x[:8], weight), F.linear(wide[:8], weight))


def test_the_dtype_is_that_of_ml_dtypes_or_none(monkeypatch):
    bfloat16.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    try:
        assert bfloat16() is None
    finally:
        bfloat16.cache_clear()
    monkeypatch.undo()
    assert bfloat16().name == "bfloat16"


def test_the_standin_refuses_nothing_of_which_it_knows_nothing(monkeypatch):
    """Without CuPy there is no list of the types that its functions take."""
    monkeypatch.setattr(arrays, "real", None)
    arrays.expect_known("__add__", [np.zeros(1, bfloat16())])
