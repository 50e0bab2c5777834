"""Plans for products on tensor cores: 132 multiprocessors, 227 KB each (H100)."""

import pytest

from tinyalex.backends.cuda.conv import tensor_cores
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tensor_cores import Cut, Sizes, plan
from tinyalex.backends.geometry import ConvOptions


@pytest.fixture(autouse=True)
def h100(monkeypatch):
    monkeypatch.setattr(tensor_cores, "multiprocessors", lambda: 132)
    monkeypatch.setattr(tensor_cores, "most_shared_bytes", lambda: 227 << 10)


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
    product = tensor_cores.sizes(LAYERS[layer], which)
    assert plan(which, product, "highest")[:2] == highest
    assert plan(which, product, "high")[:2] == high


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
    assert tensor_cores.blocks_that_fit(precision, tile, 227 << 10) == fit
    assert tensor_cores.blocks_that_fit(precision, tile, 163 << 10) == max(1, fit - 1)  # an A100


def test_a_plan_beats_its_neighbours():
    """The estimate falls to the plan that is chosen: a tile with empty columns loses."""
    product = tensor_cores.sizes(LAYERS["conv2"], "input_grad")
    best = plan("input_grad", product, "high")
    cycles = {
        tile: tensor_cores.estimate(
            "input_grad", product, "high", best._replace(tile=tile), 132, 227 << 10
        )
        for tile in tensor_cores.TILES["input_grad"]
    }
    assert min(cycles, key=cycles.get) == best.tile == (128, 96)
    assert cycles[128, 128] > 1.1 * cycles[128, 96]


def test_no_images():
    assert plan("forward", Sizes(0, 256, 2400, 1), "high").splits > 0
    assert plan("weight_grad", Sizes(256, 2400, 0, 1), "high")[1:] == (1, 1)


def test_no_more_shared_memory_than_there_is(monkeypatch):
    monkeypatch.setattr(tensor_cores, "most_shared_bytes", lambda: 99 << 10)
    product = tensor_cores.sizes(LAYERS["conv4"], "forward")
    assert plan("forward", product, "high").tile in ((128, 96), (64, 64))


def test_a_gpu_without_room_for_any_tile_is_refused(monkeypatch):
    monkeypatch.setattr(tensor_cores, "most_shared_bytes", lambda: 64 << 10)
    with pytest.raises(RuntimeError, match=r"74752 bytes of shared memory .* this one has 65536"):
        plan("forward", Sizes(64, 64, 64, 1), "high")


def test_parts_of_forward_cost_their_adding_up_and_no_kernel():
    """In forward the last block of a tile reads its parts; a gradient's have a kernel."""
    product, split = Sizes(64, 64, 4096, 1), tensor_cores.Plan((64, 64), 8, 16)
    whole = split._replace(splits=1)
    added = {
        which: tensor_cores.estimate(which, product, "high", split, 132, 227 << 10)
        - tensor_cores.estimate(which, product, "high", whole, 132, 227 << 10)
        for which in ("forward", "weight_grad")
    }
    assert added["forward"] == pytest.approx(8 * 64 * 64 * 4 / tensor_cores.L2_BYTES)
    assert added["weight_grad"] > tensor_cores.LAUNCH


def test_every_k_tile_is_in_one_part():
    for reduction in (1, 31, 33, 1000, 12345):
        for splits in (1, 2, 3, 7, 100):
            chosen = plan("forward", Sizes(64, 64, reduction, 1), "high", Cut((64, 64), splits))
            k_tiles = -(-reduction // 32)
            assert (chosen.splits - 1) * chosen.split_k_tiles < k_tiles
            assert k_tiles <= chosen.splits * chosen.split_k_tiles


def test_applicable_where_four_channels_lie_together():
    def shape(C, K, groups):
        options = ConvOptions(groups=groups)
        return ConvShape.of((2, C, 5, 5), (K, C // groups, 3, 3), options)

    for which in ("input_grad", "weight_grad"):
        assert not tensor_cores.applicable(shape(8, 6, 1), which)
        assert tensor_cores.applicable(shape(8, 8, 2), which)
    assert tensor_cores.applicable(shape(8, 6, 1), "forward")
    assert not tensor_cores.applicable(shape(8, 8, 4), "forward")
    assert not tensor_cores.applicable(shape(3, 8, 1), "weight_grad")
