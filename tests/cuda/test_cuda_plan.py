"""Plans for products on tensor cores: 132 multiprocessors, 227 KB each (H100)."""

import re

import numpy as np
import pytest
from simt import memory
from simt.exercises import BFLOAT16

from tinyalex.backends.cuda import launch
from tinyalex.backends.cuda.conv import products, tiled, tiles
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import IMAGES, MMA_SYNC, WGMMA, Cut, Sizes, faster, plan
from tinyalex.backends.geometry import ConvOptions
from tinyalex.backends.precision import set_float32_matmul_precision

HIGH = MMA_SYNC["high"]


@pytest.fixture(autouse=True)
def h100(monkeypatch):
    monkeypatch.setattr(tiles, "multiprocessors", lambda: 132)
    monkeypatch.setattr(tiles, "most_shared_bytes", lambda: 227 << 10)


def convolution(C, H, K, R, groups=1, stride=1, padding=0):
    """Return a layer at 128 images, square ones."""
    pads = (padding, padding), (padding, padding)
    options = ConvOptions((stride, stride), pads, groups=groups)
    return ConvShape.of((128, C, H, H), (K, C // groups, R, R), options)


# The paper's layers on one GPU, and in two groups where the tiles differ.
LAYERS = {
    "conv1": convolution(4, 227, 96, 11, stride=4),
    "conv2": convolution(96, 27, 256, 5, padding=2),
    "conv3": convolution(256, 13, 384, 3, padding=1),
    "conv4": convolution(384, 13, 384, 3, padding=1),
    "conv4 in groups": convolution(384, 13, 384, 3, 2, padding=1),
    "conv5": convolution(384, 13, 256, 3, padding=1),
    "conv5 in groups": convolution(384, 13, 256, 3, 2, padding=1),
    "fc6": convolution(9216, 1, 4096, 1),
    "fc8": convolution(4096, 1, 1000, 1),
}


@pytest.mark.parametrize(
    ("layer", "which", "highest", "high"),
    [
        ("conv1", "forward", ((128, 96), 1), ((128, 96), 1)),
        ("conv1", "weight_grad", ((96, 128), 33), ((96, 128), 66)),
        ("conv2", "forward", ((128, 128), 1), ((128, 128), 1)),
        ("conv2", "input_grad", ((128, 96), 1), ((128, 96), 1)),
        ("conv2", "weight_grad", ((128, 128), 3), ((128, 128), 13)),
        ("conv3", "forward", ((128, 128), 1), ((128, 192), 1)),
        ("conv3", "input_grad", ((128, 128), 1), ((128, 128), 1)),
        ("conv3", "weight_grad", ((192, 128), 7), ((192, 128), 7)),
        ("conv4", "forward", ((128, 128), 1), ((128, 192), 1)),
        ("conv4 in groups", "forward", ((128, 192), 1), ((128, 192), 1)),
        ("conv4 in groups", "input_grad", ((128, 192), 1), ((128, 192), 1)),
        ("conv5", "forward", ((128, 128), 1), ((128, 128), 1)),
        ("conv5 in groups", "input_grad", ((128, 192), 1), ((128, 192), 1)),
        ("fc6", "forward", ((128, 96), 3), ((128, 192), 6)),
        ("fc6", "weight_grad", ((192, 128), 1), ((192, 128), 1)),
        ("fc8", "forward", ((64, 64), 8), ((64, 64), 8)),
    ],
)
def test_plan_of_alexnets_layers(layer, which, highest, high):
    product = tiles.sizes(LAYERS[layer], which)
    assert plan(which, product, MMA_SYNC["highest"])[:2] == highest
    assert plan(which, product, HIGH)[:2] == high


@pytest.mark.parametrize(
    ("precision", "tile", "fit"),
    [
        ("highest", (128, 128), 1),  # 256 threads with almost all registers
        ("high", (128, 128), 2),
        ("high", (128, 192), 1),
        ("high", (128, 96), 2),
        ("medium", (64, 64), 3),
    ],
)
def test_blocks_on_a_multiprocessor(precision, tile, fit):
    kernels = MMA_SYNC[precision]
    assert kernels.blocks_that_fit(tile, 227 << 10) == fit
    assert kernels.blocks_that_fit(tile, 163 << 10) == max(1, fit - 1)  # an A100


def test_a_plan_beats_its_neighbours():
    """The estimate falls to the plan that is chosen: a tile with empty columns loses."""
    product = tiles.sizes(LAYERS["conv2"], "input_grad")
    best = plan("input_grad", product, HIGH)
    cycles = {
        tile: tiles.estimate("input_grad", product, HIGH, best._replace(tile=tile), 132, 227 << 10)
        for tile in tiles.TILES["input_grad"]
    }
    assert min(cycles, key=cycles.get) == best.tile == (128, 96)
    assert cycles[128, 128] > 1.1 * cycles[128, 96]


def test_no_images():
    assert plan("forward", Sizes(0, 256, 2400, 1), HIGH).splits > 0
    assert plan("weight_grad", Sizes(256, 2400, 0, 1), HIGH)[1:3] == (1, 1)


def test_no_more_shared_memory_than_there_is(monkeypatch):
    monkeypatch.setattr(tiles, "most_shared_bytes", lambda: 99 << 10)
    product = tiles.sizes(LAYERS["conv4"], "forward")
    assert plan("forward", product, HIGH).tile in ((128, 96), (64, 64))


def test_a_gpu_without_room_for_any_tile_is_refused(monkeypatch):
    monkeypatch.setattr(tiles, "most_shared_bytes", lambda: 64 << 10)
    with pytest.raises(RuntimeError, match=r"74752 bytes of shared memory .* this one has 65536"):
        plan("forward", Sizes(64, 64, 64, 1), HIGH)


def test_parts_of_forward_cost_their_adding_up_and_no_kernel():
    """In forward the last block of a tile reads its parts; a gradient's have a kernel."""
    product, split = Sizes(64, 64, 4096, 1), tiles.Plan((64, 64), 8, 16)
    whole = split._replace(splits=1)
    added = {
        which: tiles.estimate(which, product, HIGH, split, 132, 227 << 10)
        - tiles.estimate(which, product, HIGH, whole, 132, 227 << 10)
        for which in ("forward", "weight_grad")
    }
    assert added["forward"] == pytest.approx(8 * 64 * 64 * 4 / tiles.L2_BYTES)
    assert added["weight_grad"] > tiles.LAUNCH


def test_every_k_tile_is_in_one_part():
    for reduction in (1, 31, 33, 1000, 12345):
        for splits in (1, 2, 3, 7, 100):
            chosen = plan("forward", Sizes(64, 64, reduction, 1), HIGH, Cut((64, 64), splits))
            k_tiles = -(-reduction // 32)
            assert (chosen.splits - 1) * chosen.split_k_tiles < k_tiles
            assert k_tiles <= chosen.splits * chosen.split_k_tiles


def test_applicable_where_four_channels_lie_together():
    single = np.dtype(np.float32)
    for which in ("input_grad", "weight_grad"):
        assert not products.applicable(8, 6, which, single)
        assert products.applicable(4, 4, which, single)
    assert products.applicable(8, 6, "forward", single)
    assert not products.applicable(2, 2, "forward", single)
    assert not products.applicable(3, 8, "weight_grad", single)


@pytest.mark.parametrize(
    ("layer", "which", "kernels", "expected"),
    [
        ("conv1", "forward", IMAGES, ((256, 96), 1)),
        ("conv1", "weight_grad", IMAGES, ((128, 256), 66)),
        ("conv2", "forward", WGMMA["bfloat16"], ((192, 256), 1)),
        ("conv2", "input_grad", WGMMA["bfloat16"], ((256, 96), 1)),
        ("conv3", "forward", WGMMA["bfloat16"], ((256, 128), 1)),
        ("conv3", "input_grad", WGMMA["float32"], ((192, 256), 1)),
        ("conv4", "weight_grad", WGMMA["bfloat16"], ((192, 256), 9)),
        ("fc6", "forward", WGMMA["bfloat16"], ((128, 128), 4)),
    ],
)
def test_plan_of_wgmma(layer, which, kernels, expected):
    assert plan(which, tiles.sizes(LAYERS[layer], which), kernels)[:2] == expected


def test_wgmma_has_as_much_shared_memory_as_there_is():
    """For the largest tile to the last byte."""
    for kernels in WGMMA.values():
        assert kernels.shared_bytes((192, 256)) == 227 << 10
        for tile in set().union(*kernels.tiles.values()):
            assert kernels.blocks_that_fit(tile, 227 << 10) == 1


def test_weights_are_transposed_only_where_that_pays():
    """TF32 wants the weights of an input gradient transposed: of fc6 that is 302 MB."""
    for layer, pays in (("conv2", True), ("conv4", True), ("fc6", False)):
        product = tiles.sizes(LAYERS[layer], "input_grad")
        assert faster("input_grad", product, WGMMA["float32"], HIGH) == pays


def test_cycles_that_the_source_tells_are_of_these_rates():
    text = (launch.source_folder() / "conv_wgmma.cu").read_text()
    row = r"(\d+) x (\d+), (mma\.sync|wgmma), (TF32|bf16)[a-z ]* +(\d+) +(\d+)"
    rows = re.findall(row, text)
    kernels = HIGH, MMA_SYNC["medium"], WGMMA["float32"], WGMMA["bfloat16"]
    assert len(rows) == len(kernels)
    for (m, n, *_, loading, multiplying), each in zip(rows, kernels, strict=True):
        numbers = 64 * each.itemsize * (int(m) + int(n))
        assert int(loading) == pytest.approx(numbers / tiles.L2_BYTES, abs=1)
        assert int(multiplying) == pytest.approx(64 * int(m) * int(n) / each.multiply_adds, abs=1)


@pytest.fixture
def chosen(standin):
    """Return whether Hopper's kernels are chosen for a layer and a pass."""

    def ask(layer, which, precision="high"):
        set_float32_matmul_precision(precision)
        kernels = products.fastest(LAYERS[layer], which, np.dtype(np.float32))
        return kernels is WGMMA["float32"]

    yield ask
    set_float32_matmul_precision("highest")


def test_hopper_is_chosen_for_tf32_where_it_is_faster(chosen):
    for layer, which, wanted in (
        ("conv1", "forward", True),
        ("conv2", "forward", True),
        ("conv2", "input_grad", True),
        ("conv3", "weight_grad", False),  # TF32 has none
        ("fc6", "input_grad", False),  # would have its weights transposed
    ):
        assert chosen(layer, which) == wanted, (layer, which)
        assert not chosen(layer, which, "highest")
        assert not chosen(layer, which, "medium")


def test_hopper_is_chosen_on_hopper_alone(chosen, monkeypatch):
    monkeypatch.setattr(memory.Device, "compute_capability", "80")
    assert not chosen("conv2", "forward")


@pytest.mark.parametrize("precision", MMA_SYNC)
def test_bfloat16_is_for_hopper(standin, precision):
    """Another precision may be set before the backward pass."""
    set_float32_matmul_precision(precision)
    try:
        ones = standin.asarray(np.ones((128, 2, 2, 8), BFLOAT16))
        dweight = products.weight_grad(ones, ones, convolution(8, 2, 8, 1))
    finally:
        set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(dweight.get(), np.full((8, 1, 1, 8), 512.0, np.float32))


@pytest.mark.parametrize(
    ("channels", "filters", "passes"),
    [
        (8, 4, ()),
        (8, 8, ("forward", "input_grad", "weight_grad")),
        (4, 8, ("forward", "weight_grad")),  # images
        (8, 12, ()),
        (12, 8, ()),
    ],
)
def test_bfloat16_comes_in_eights(channels, filters, passes):
    which = [each for each in tiles.TILES if products.applicable(channels, filters, each, BFLOAT16)]
    assert tuple(which) == passes


@pytest.mark.parametrize(("channels", "filters"), [(6, 8), (8, 6)])
def test_tiles_refuse_groups_that_are_not_in_fours(channels, filters):
    shape = ConvShape.of((1, channels, 5, 5), (filters, channels, 3, 3), ConvOptions())
    with pytest.raises(ValueError, match="multiples of four channels and filters"):
        tiled.forward(None, None, None, shape)
