"""Training on a GPU: as on the CPU but for rounding, and with a graph bit for bit as without."""

import os
import signal

import pytest
from commands import Watcher, result, resumed, tiny_settings, trainer
from helpers import assert_close

import tinyalex as ta
from tinyalex.training import (
    StoppedError,
    StopRequest,
    load_checkpoint,
    new_run,
)

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny", "cuda")

COSINE = {"epochs": 2, "schedule": "cosine"}
"""A rate that changes in every step."""


def train(photos, out, **changes):
    """Train the tiny network on the GPU; return its checkpoints and rows, without times."""
    out.mkdir(exist_ok=True)
    trainer(new_run(tiny_settings(photos, **{"device": "cuda", **changes})), out).train()
    return result(out)


def what_was_computed(found):
    """Return what must not depend on settings that are about speed only."""
    last, best, rows = found
    for content in (last, best):
        del content["settings"]
    return last, best, rows


@pytest.fixture(scope="module")
def plain(request, photos, tmp_path_factory):
    """Return what a run computes step by step, read at every one; made at the first call."""
    found = []

    def get():
        if not found:
            found.append(
                train(photos, tmp_path_factory.mktemp("plain"), read_loss_every=1, **COSINE)
            )
        return what_was_computed([dict(found[0][0]), dict(found[0][1]), found[0][2]])

    return get


@pytest.mark.parametrize("augment", ["paper", "strong"])
def test_metrics_and_weights_are_those_of_the_cpu(photos, tmp_path, augment):
    """Without dropout, whose draws are others on a GPU."""
    rows, weights = [], []
    for device in ("cpu", "cuda"):
        options = {"device": device, "augment": augment, "dropout": 0.0, "epochs": 2}
        rows.append(train(photos, tmp_path / device, **options)[2])
        weights.append(load_checkpoint(tmp_path / device / "last.safetensors")["classifier"])
    for one, other in zip(*rows, strict=True):
        assert one.pop("kind") == other.pop("kind")
        # Sums of a few hundred products in another order, over 14 steps.
        assert one == pytest.approx(other, rel=1e-5)
    for name, array in weights[0]["weights"].items():
        assert_close(weights[1]["weights"][name], array, 1e-4, name)


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("graph", [False, True])
def test_neither_graph_nor_readings_change_a_bit(photos, tmp_path, plain, graph, every):
    options = {"cuda_graph": graph, "read_loss_every": every}
    assert what_was_computed(train(photos, tmp_path, **options, **COSINE)) == plain()


@pytest.mark.parametrize("graph", [False, True])
def test_resuming_is_as_never_stopping(photos, tmp_path, plain, graph):
    options = {"device": "cuda", "cuda_graph": graph, "read_loss_every": 4}
    run = new_run(tiny_settings(photos, **options, **COSINE))
    for step in (2, 6, 9):
        with pytest.raises(StoppedError):
            trainer(run, tmp_path).train(StopRequest(step))
        assert run.state.step == step
        ta.manual_seed(99)  # whatever the new process draws first
        run = resumed(tmp_path)
    trainer(run, tmp_path).train()
    assert what_was_computed(result(tmp_path)) == plain()


def test_a_signal_stops_and_saves(photos, tmp_path, plain):
    def stop(title, done):
        if title == "epoch 1/2":
            os.kill(os.getpid(), signal.SIGTERM)

    run = new_run(tiny_settings(photos, device="cuda", read_loss_every=3, **COSINE))
    with pytest.raises(StoppedError):
        trainer(run, tmp_path, Watcher(stop)).train()
    assert run.state.step == 3
    trainer(resumed(tmp_path), tmp_path).train()
    assert what_was_computed(result(tmp_path)) == plain()


def test_a_run_can_go_on_on_another_device(photos, tmp_path):
    options = {"epochs": 2, "dropout": 0.0}
    (tmp_path / "whole").mkdir()
    trainer(new_run(tiny_settings(photos, **options)), tmp_path / "whole").train()
    expected = result(tmp_path / "whole")[2]

    (tmp_path / "parts").mkdir()
    run = new_run(tiny_settings(photos, **options))
    for step, device in ((3, "cuda"), (6, "cuda:1"), (9, "cpu")):
        with pytest.raises(StoppedError):
            trainer(run, tmp_path / "parts").train(StopRequest(step))
        run = resumed(tmp_path / "parts", device=device)
        assert {p.device for p in run.classifier.model.parameters()} == {
            {"cuda": "cuda:0"}.get(device, device)
        }
    trainer(run, tmp_path / "parts").train()
    for one, other in zip(result(tmp_path / "parts")[2], expected, strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-5)
