"""The same network from one rank and from several."""

import sys
from pathlib import Path

import pytest
from commands import draw_photos, finish, result, start

from tinyalex.training import Checkpoints, load_checkpoint
from tinyalex.training.ranks import Ranks

MPIEXEC = str(Path(sys.executable).with_name("mpiexec"))
OPTIONS = (
    *("--variant", "tiny", "--threads", "1", "--lr", "0.01", "--schedule", "cosine"),
    *("--batch-size", "13", "--shards", "8", "--epochs", "2", "--check-sync", "2"),
    *("--augment", "strong", "--dropout", "0.4", "--label-smoothing", "0.1"),
)


def train(ranks, *arguments):
    """Start training on so many ranks; without mpiexec for 0."""
    before = (MPIEXEC, "-n", str(ranks)) if ranks else ()
    return start("train", *arguments, before=before)


def spoil(path):
    """Cut the end off a file."""
    path.write_bytes(path.read_bytes()[:900])


def trained(ranks, out, *arguments):
    """Return what training leaves behind."""
    code, said, complaints = finish(train(ranks, *arguments, "--out", out))
    assert code == 0, said + complaints
    return result(out)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of photographs, one of which cannot be read."""
    folder = draw_photos(tmp_path_factory.mktemp("data") / "photos")
    spoil(folder / "ash" / "03.png")
    return folder


@pytest.fixture(scope="module")
def run_alone(photos, tmp_path_factory):
    """Return the folder of one process without MPI."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    trained(0, folder, "--data", photos, *OPTIONS)
    return folder


@pytest.fixture(scope="module")
def alone(run_alone):
    """Return what one process without MPI finds."""
    return result(run_alone)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_bits_are_those_of_one_process(photos, alone, tmp_path, ranks):
    assert trained(ranks, tmp_path / "run", "--data", photos, *OPTIONS) == alone


def test_mixed_images_may_be_of_other_ranks(photos, tmp_path):
    options = ("--data", photos, *OPTIONS, "--mixup", "0.4")
    assert trained(3, tmp_path / "3", *options) == trained(0, tmp_path / "0", *options)


def test_shards_change_the_rounding_alone(photos, run_alone, alone, tmp_path):
    _, _, rows = trained(0, tmp_path / "run", "--data", photos, *OPTIONS, "--shards", "1")
    for row, other in zip(rows, alone[2], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-6)
    weights, others = (
        load_checkpoint(Checkpoints(folder).last)["classifier"]["weights"]
        for folder in (tmp_path / "run", run_alone)
    )
    for name, array in weights.items():
        assert abs(array - others[name]).max() <= 1e-6 * abs(array).max(), name


def test_statistics_are_those_of_one_process(photos, tmp_path):
    options = ("--data", photos, *OPTIONS, "--mean", "image", "--colour-noise", "eigenvalues")
    assert trained(3, tmp_path / "3", *options) == trained(0, tmp_path / "0", *options)


def test_a_rank_may_have_fewer_images_than_planned():
    ranks = Ranks(shards=4)
    assert ranks.part(8).sizes == (2, 2, 2, 2)
    part = ranks.part(8, 7)
    assert part.sizes == (2, 2, 2, 1)
    assert part.of(7) is part
