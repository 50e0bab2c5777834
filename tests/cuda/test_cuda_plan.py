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


@pytest.mark.parametrize(
    ("rows", "columns", "groups", "reduction", "expected"),
    [
        pytest.param(93312, 256, 1, 2400, ((128, 128), 1, 75), id="conv2"),
        pytest.param(256, 2400, 1, 93312, ((128, 128), 6, 486), id="conv2's weights"),
        pytest.param(128, 4096, 1, 9216, ((128, 128), 8, 36), id="fc6"),
        pytest.param(128, 1000, 1, 4096, ((64, 64), 8, 16), id="fc8"),
        pytest.param(96, 64, 2, 80, ((64, 64), 1, 3), id="small"),
        pytest.param(0, 256, 1, 2400, ((64, 64), 9, 9), id="no images"),
        pytest.param(256, 2400, 1, 0, ((64, 64), 1, 1), id="weights, no images"),
    ],
)
def test_plan(rows, columns, groups, reduction, expected):
    assert plan(Sizes(rows, columns, reduction, groups), "high") == expected


def test_no_more_shared_memory_than_there_is(monkeypatch):
    monkeypatch.setattr(tensor_cores, "most_shared_bytes", lambda: 99 << 10)
    assert plan(Sizes(93312, 256, 2400, 1), "high") == ((64, 64), 1, 75)


def test_every_k_tile_is_in_one_part():
    for reduction in (1, 31, 33, 1000, 12345):
        for splits in (1, 2, 3, 7, 100):
            chosen = plan(Sizes(64, 64, reduction, 1), "high", Cut((64, 64), splits))
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
