"""Training on ranks with GPUs, which the stand-in plays."""

import sys

import gpus
import pytest
from commands import draw_photos, finish, result, start
from test_train_ranks import MPIEXEC, OPTIONS
from test_train_split import assert_close

BY_NCCL = "arrays on GPUs by NCCL 2.27.7"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of photographs."""
    return draw_photos(tmp_path_factory.mktemp("data") / "photos", count=12)


def trained(ranks, photos, out, *arguments):
    """Return what training leaves behind, and its header."""
    before = (*((MPIEXEC, "-n", str(ranks)) if ranks else ()), sys.executable, gpus.__file__)
    words = ("--data", photos, *OPTIONS, "--epochs", 1, "--device", "cuda", "--out", out)
    code, said, complaints = finish(start("train", *words, *arguments, before=before))
    assert code == 0, said + complaints
    return result(out), " ".join(said.split())


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    """Return a function that returns what one process finds, for each variant."""
    folder, found = tmp_path_factory.mktemp("alone"), {}

    def of(variant):
        if variant not in found:
            found[variant], _ = trained(0, photos, folder / variant, "--variant", variant)
        return found[variant]

    return of


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_bits_are_those_of_one_process(standin, photos, alone, tmp_path, ranks):
    found, said = trained(ranks, photos, tmp_path / "run")
    assert BY_NCCL in said
    assert found == alone("tiny")


def test_ranks_that_share_a_gpu_send_by_way_of_the_host(
    standin, photos, alone, tmp_path, monkeypatch
):
    monkeypatch.setenv("GPUS", "2")
    found, said = trained(3, photos, tmp_path / "run")
    assert "by way of the host (ranks 0 and 2 have the same GPU, which NCCL refuses)" in said
    assert found == alone("tiny")


@pytest.mark.parametrize(
    ("variant", "parallel", "ranks"),
    [("tiny", "hybrid", 2), ("twins", "towers", 4)],
)
def test_split_networks_learn_as_one_process(
    standin, photos, alone, tmp_path, variant, parallel, ranks
):
    words = ("--variant", variant, "--parallel", parallel)
    found, said = trained(ranks, photos, tmp_path / "run", *words)
    assert BY_NCCL in said
    assert_close(found, alone(variant))
