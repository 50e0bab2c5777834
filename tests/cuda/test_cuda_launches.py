"""Launches of a prediction and a step, counted on the stand-in."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import normal

import gpu_arithmetic
import tinyalex as ta
import tinyalex.functional as F
from gpu.cases import Case, Net
from gpu.contestant_tinyalex import WORDS, TinyalexGraph
from tinyalex import models, optim
from tinyalex.backends.cuda import bias_grad, channels, lrn, lrn_pool, pool
from tinyalex.backends.cuda.conv import products
from tinyalex.backends.cuda.conv.tiles import Cut
from tinyalex.backends.cuda.last_block import arrivals
from tinyalex.backends.cuda.launch import MOST_ROWS, launch, parameters
from tinyalex.backends.devices import move, use
from tinyalex.backends.geometry import NormOptions, PoolOptions
from tinyalex.backends.gpu import most_shared_bytes, multiprocessors
from tinyalex.backends.layout import copy_images, copy_with_room, with_room
from tinyalex.backends.numerics import LONG
from tinyalex.data import Batch
from tinyalex.models import VARIANTS
from tinyalex.ops.activation import ReLU
from tinyalex.ops.fused import LinearReLU
from tinyalex.training.gpu_steps import GPUSteps

ROOT = Path(__file__).parents[2]
THIN = 4  # leaves a multiple of four channels in each group


@pytest.fixture(autouse=True)
def _stream(standin):
    use("cuda")  # with a stream that can be recorded


@pytest.fixture
def split(monkeypatch):
    """Split each convolution's sum in three, as where multiprocessors would idle."""
    plan = products.plan
    monkeypatch.setattr(
        products, "plan", lambda *args: plan(*args[:3], Cut(args[3].tile, splits=3))
    )


def thin(variant):
    ta.manual_seed(5)
    return models.alexnet(VARIANTS[variant].thinner(THIN, 67), 10).to("cuda")


def recorded(xp, call):
    """Return the result of a recorded call, and the graph."""
    pool, stream = xp.cuda.MemoryPool(), xp.cuda.Stream(non_blocking=True)
    with stream, xp.cuda.using_allocator(pool.malloc):
        call()
        stream.begin_capture()
        try:
            result = call()
        finally:
            graph = stream.end_capture()
    return result, graph, pool


def test_the_arithmetic_counts_as_many():
    case = Case(Net(thin=THIN, pixels=67, classes=10), "infer", 1, "A")
    assert sum(line.launches for line in gpu_arithmetic.lines(case)) == 12


@pytest.mark.documents
def test_the_page_has_the_arithmetic_of_these_tiles():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    said = page.split("<!-- gpu-arithmetic -->\n")[1].split("\n<!-- /gpu-arithmetic -->")[0]
    assert said == gpu_arithmetic.block(), "run python benchmarks/gpu_arithmetic.py --table"


@pytest.mark.parametrize("precision", WORDS)
def test_a_training_step(monkeypatch, precision):
    """As many as by arithmetic, on as many multiprocessors."""
    monkeypatch.setattr(gpu_arithmetic, "GPU", (multiprocessors(), most_shared_bytes()))
    case = Case(Net(thin=THIN, pixels=67, classes=16), "train", 9, precision)
    try:
        step = TinyalexGraph(case)
    finally:
        ta.set_float32_matmul_precision("highest")
    assert step.settings["stored numbers"] == ("bfloat16" if precision == "C" else "float32")
    counted = len(step._graph._work)
    assert counted == sum(line.launches for line in gpu_arithmetic.lines(case))


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("variant", ["paper", "one_tower"])
@pytest.mark.parametrize(("place", "count"), [(lambda x: x, 13), (copy_with_room, 12)])
def test_a_prediction_of_one_image(standin, rng, variant, place, count):
    """Of 67 pixels pool5 leaves one, which has no order to change: of 224, one launch more."""
    model = thin(variant).eval()
    images = normal(rng, (1, 3, 67, 67), np.float32)
    on_gpu = ta.Tensor(place(ta.Tensor(images).to("cuda").data))
    with ta.no_grad():
        logits, graph, _pool = recorded(standin, lambda: model(on_gpu))
        wanted = model.to("cpu")(ta.Tensor(images)).data
    assert len(graph._work) == count
    for _ in range(2):  # counters of blocks are zeros again
        graph.launch()
        found = move(logits.data, "cpu")
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
        logits.data[...] = np.nan


@pytest.mark.parametrize("graph", [False, True])
def test_a_step_pads_no_images(rng, monkeypatch, graph):
    """Only the weights of the first layer, once."""
    padded = []
    launch = channels.launch
    monkeypatch.setattr(
        channels, "launch", lambda *args: padded.append(args[4][1].shape) or launch(*args)
    )
    model = thin("paper")
    steps = GPUSteps(model, optim.SGD(model.parameters(), lr=1e-3), every=9, graph=graph)
    images = copy_with_room(ta.Tensor(normal(rng, (2, 3, 67, 67), np.float32)).to("cuda").data)
    for step in range(3):
        ta.random.start_step(step)
        steps.take(Batch(images, np.array([0, 1]), np.arange(2)))
    assert padded == [(24, 11, 11, 4)] * 3
    if graph:
        assert with_room(steps._graph._images) is not None


@pytest.mark.parametrize("place", [copy_with_room, lambda x: x])
@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (2, 4, 5, 5), (2, 3)])
def test_images_are_copied_with_the_room_beside_them(standin, rng, place, shape):
    images = place(ta.Tensor(normal(rng, shape, np.float32)).to("cuda").data)
    target = copy_with_room(standin.zeros_like(images))
    for array, room in ((images, 7), (target, 0)):
        if with_room(array) is not None:
            with_room(array)[..., images.shape[1] :] = room
    copy_images(images, target)
    assert np.array_equal(target.get(), images.get())
    if with_room(images) is not None:  # also what lies beside them: so it was one run
        assert np.array_equal(with_room(target).get(), with_room(images).get())


def test_each_thread_has_counters_of_its_own():
    """Their own default streams have the same pointer."""
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        first, other, again = (pool.submit(arrivals, 7).result() for pool in (one, another, one))
    assert first is again is not other


def test_a_linear_layer_and_its_relu_are_one_op():
    y = thin("paper").classifier[:2](ta.zeros((1, 64)).to("cuda"))
    assert isinstance(y.grad_fn, LinearReLU)


def test_a_linear_layer_summed_in_pieces_and_its_relu_are_two_ops(rng):
    x, weight = normal(rng, (2, LONG + 4)), normal(rng, (3, LONG + 4))
    y = F.linear_relu(*(ta.Tensor(a, requires_grad=True).to("cuda") for a in (x, weight)))
    assert type(y.grad_fn) is ReLU
    np.testing.assert_allclose(y.cpu().data, np.maximum(x @ weight.T, 0))


def test_the_second_side_of_a_grid_is_short():
    """Sums of a bias's gradient keep to it; a launch beyond it is refused."""
    assert bias_grad.ranges(2**31 - 1) == MOST_ROWS
    sums = move(np.zeros((MOST_ROWS + 1, 1), np.float32), "cuda")
    with pytest.raises(ValueError, match="at most 65,535 blocks along"):
        bias_grad._launch("bias_grad", (sums, sums))


@pytest.mark.parametrize(
    ("channels", "dtype", "fours"),
    [(8, "float32", True), (6, "float32", False), (8, "float64", False)],
)
def test_four_channels_per_thread_where_they_can_be(monkeypatch, channels, dtype, fours):
    """Values are right either way, only slower: so the names are compared."""
    names = []
    for module in (pool, lrn, lrn_pool):
        monkeypatch.setattr(module, "launch", lambda file, entry, *_: names.append(entry))
    shapes = (1, channels, 5, 5), (1, channels, 2, 2)
    x, grad = (move(np.zeros(shape, dtype), "cuda") for shape in shapes)
    norm, window = NormOptions(5, 1e-4, 0.75, 2.0, 1), PoolOptions((3, 3), (2, 2))
    taps = pool.max_pool2d(x, window, (2, 2))[1]
    pool.max_pool2d_input_grad(grad, taps, x.shape, window)
    lrn.local_response_norm(x, norm)
    lrn.local_response_norm_input_grad(x, x, norm)
    lrn_pool.norm_max_pool2d(x, norm, window, (2, 2))
    lrn_pool.norm_max_pool2d_input_grad(grad, taps, x, norm, window)
    assert ["_quads<" in name for name in names] == [fours] * 6


def test_parameters_of_templates_are_those_of_their_types():
    found = parameters("relu.cu")
    assert list(found)[:3] == ["relu<float>", "relu<double>", "relu<bfloat16>"]
    assert found["relu<bfloat16>"] == ("bfloat16*", "bfloat16*", "unsigned")
    assert parameters("dropout.cu")["dropout<bfloat16>"][-2:] == ("float", "unsigned")  # Compute<T>
    assert parameters("dropout.cu")["dropout<double>"][-2:] == ("double", "unsigned")


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ("few_rows<bfloat16>", TypeError, "few_rows takes float or double, got bfloat16; convert"),
        ("few_rows", ValueError, "few_rows.cu has no entry few_rows"),
        ("rows<float>", ValueError, "few_rows.cu has no entry rows<float>"),
    ],
)
def test_entries_that_are_not_there(standin, entry, error, message):
    with pytest.raises(error, match=message):
        launch("few_rows.cu", entry, (1,), (32,), ())
