"""Training on a GPU against the CPU, and graphs against plain steps."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import (
    TINY,
    TRAIN,
    Watcher,
    draw_photos,
    result,
    resumed,
    run,
    tiny_settings,
    train_on,
    trainer,
)
from helpers import assert_close

import tinyalex as ta
from tinyalex.backends.bfloat16 import bfloat16
from tinyalex.backends.cuda.conv import products
from tinyalex.cli.train import print_header
from tinyalex.data import DataError
from tinyalex.models import VARIANTS
from tinyalex.models.spec import AdaptivePool
from tinyalex.training import (
    Checkpoints,
    DivergedError,
    StoppedError,
    StopRequest,
    load_checkpoint,
    new_run,
)
from tinyalex.training.gpu_steps import WARM_UP, GPUSteps, StepGraph

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny", "cuda")

STEPS = {"device": "cuda", "epochs": 2, "batch_size": 8, "schedule": "cosine", "lr": 0.05}
"""Two epochs of three steps, at a rate that changes in each of them; with dropout."""


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return half as many pictures as elsewhere: a CUDA thread takes its time without a GPU."""
    return draw_photos(tmp_path_factory.mktemp("data") / "photos", 12)


def train(photos, out, **changes):
    """Train the tiny network; return its checkpoints and rows, without times and settings."""
    out.mkdir(exist_ok=True)
    trainer(new_run(tiny_settings(photos, **changes)), out).train()
    return computed(out)


def computed(out):
    """Return a run's results without its settings of speed."""
    last, best, rows = result(out)
    for content in (last, best):
        del content["settings"]
    return last, best, rows


@pytest.fixture(scope="module")
def kept():
    """Return a dictionary for what is computed once."""
    return {}


@pytest.fixture
def plain(photos, tmp_path_factory, kept):
    """Return what a run computes that reads every step."""
    if not kept:
        out = tmp_path_factory.mktemp("plain")
        kept["plain"] = train(photos, out, read_loss_every=1, **STEPS)
    return kept["plain"]


def assert_rows_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.pop("kind") == other.pop("kind")
        # Sums of a few hundred products in another order, over a dozen steps.
        assert one == pytest.approx(other, rel=1e-5)


SOFT = {"mixup": 0.4, "label_smoothing": 0.1, "average": 0.5, "epochs": 4}


@pytest.mark.parametrize("change", [{}, {"augment": "strong"}, SOFT])
def test_metrics_and_weights_are_those_of_the_cpu(photos, tmp_path, change):
    """Without dropout, whose draws are others on a GPU."""
    rows, weights = [], []
    for device in ("cpu", "cuda"):
        options = {**STEPS, **change, "device": device, "dropout": 0.0}
        rows.append(train(photos, tmp_path / device, **options)[2])
        weights.append(load_checkpoint(tmp_path / device / "last.safetensors")["classifier"])
    assert_rows_close(*rows)
    for name, array in weights[0]["weights"].items():
        assert_close(weights[1]["weights"][name], array, 1e-4, name)


def test_shards_are_those_of_the_cpu(photos, tmp_path):
    rows = [
        train(
            photos, tmp_path / device, **{**STEPS, "device": device, "dropout": 0.0, "shards": 3}
        )[2]
        for device in ("cpu", "cuda")
    ]
    assert_rows_close(*rows)


def test_neither_graph_nor_readings_change_a_bit(photos, tmp_path, plain, monkeypatch):
    replays = []
    replay = StepGraph._replay
    monkeypatch.setattr(StepGraph, "_replay", lambda *args: replays.append(1) or replay(*args))
    for name, graph, every in (("seldom", False, 10), ("graph", True, 10), ("often", True, 1)):
        options = {**STEPS, "cuda_graph": graph, "read_loss_every": every}
        assert train(photos, tmp_path / name, **options) == plain, name
        assert len(replays) == graph * (6 - WARM_UP)
        replays.clear()


def test_a_graph_of_soft_targets(photos, tmp_path):
    plain, graph = (
        train(photos, tmp_path / str(graph), **{**STEPS, **SOFT}, cuda_graph=graph)
        for graph in (False, True)
    )
    assert graph == plain


def test_images_that_grow_have_a_graph_for_each_size(photos, tmp_path, monkeypatch):
    features = (*TINY.features, AdaptivePool(3))
    monkeypatch.setitem(VARIANTS, "any_size", replace(TINY, name="any_size", features=features))
    growing = {"variant": "any_size", "augment": "strong", "first_size": 20, "input_size": 36}
    replays, replay = [], StepGraph._replay

    def count(graph, images, labels):
        replays.append(images.shape[2])
        replay(graph, images, labels)

    monkeypatch.setattr(StepGraph, "_replay", count)
    plain, graph = (
        train(photos, tmp_path / str(graph), **{**STEPS, **growing, "epochs": 4}, cuda_graph=graph)
        for graph in (False, True)
    )
    assert graph == plain
    assert replays == [20] * (3 - WARM_UP) + [32] * (6 - WARM_UP) + [36] * (3 - WARM_UP)


@pytest.mark.parametrize("graph", [False, True])
def test_resuming_is_as_never_stopping(photos, tmp_path, plain, graph):
    run = new_run(tiny_settings(photos, **STEPS, cuda_graph=graph))
    for step in (1, 5):
        with pytest.raises(StoppedError):
            trainer(run, tmp_path).train(StopRequest(step))
        assert run.state.step == step
        ta.manual_seed(99)  # whatever the new process draws first
        run = resumed(tmp_path)
    trainer(run, tmp_path).train()
    assert computed(tmp_path) == plain


def test_frozen_layers_learn_later_in_another_graph(photos, trained, tmp_path):
    """The steps of the first epoch are recorded without them, those of the second with them."""
    own = {"weights": str(trained), "freeze": "conv1", "unfreeze_after": 1, "epochs": 2}
    options = {**STEPS, **own, "augment": "none", "dropout": 0.0}
    results = [
        train(photos, tmp_path / name, **options, **changes)
        for name, changes in {"plain": {}, "graph": {"cuda_graph": True}}.items()
    ]
    assert results[0] == results[1]
    *_, on_cpu = train(photos, tmp_path / "cpu", **{**options, "device": "cpu"})
    assert_rows_close(on_cpu, results[0][2])


def test_a_signal_between_two_readings_stops_and_saves(photos, tmp_path, plain, monkeypatch):
    run = new_run(tiny_settings(photos, **STEPS))
    take = GPUSteps.take

    def take_and_stop(steps, batch):
        take(steps, batch)
        if steps.unread == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(GPUSteps, "take", take_and_stop)
        with pytest.raises(StoppedError):
            trainer(run, tmp_path).train()
    assert load_checkpoint(Checkpoints(tmp_path).last)["state"]["step"] == 2
    trainer(resumed(tmp_path), tmp_path).train()
    assert computed(tmp_path) == plain


def test_a_checkpoint_that_is_due_waits_for_no_reading(photos, tmp_path, plain):
    """Killed after step 5, which only a checkpoint in the midst of an epoch knows of."""

    def kill(title, done):
        if (title, done) == ("epoch 2/2", 2):
            raise KeyboardInterrupt

    run = new_run(tiny_settings(photos, **STEPS))
    with pytest.raises(KeyboardInterrupt):
        trainer(run, tmp_path, Watcher(kill), seconds=0, share=np.inf).train()
    run = resumed(tmp_path)
    assert run.state.step == 5
    trainer(run, tmp_path).train()
    assert computed(tmp_path) == plain


def test_images_that_fail_between_two_readings(photos, tmp_path, plain, monkeypatch):
    """What was learned before is saved."""
    run = new_run(tiny_settings(photos, **STEPS))
    epoch = run.train_data.epoch

    def failing(*position):
        for number, batch in enumerate(epoch(*position)):
            if number == 2:
                raise DataError("too many images cannot be read")
            yield batch

    monkeypatch.setattr(run.train_data, "epoch", failing)
    with pytest.raises(DataError):
        trainer(run, tmp_path).train()
    run = resumed(tmp_path)
    assert run.state.step == 2
    trainer(run, tmp_path).train()
    assert computed(tmp_path) == plain


def test_a_run_can_go_on_on_another_device(cuda, photos, tmp_path):
    options = {**STEPS, "dropout": 0.0}
    expected = train(photos, tmp_path / "whole", **{**options, "device": "cpu"})[2]
    out = tmp_path / "parts"
    out.mkdir()
    run = new_run(tiny_settings(photos, **options))
    last = f"cuda:{cuda.cuda.runtime.getDeviceCount() - 1}"
    for step, device in ((1, last), (3, "cpu"), (5, "cuda:0")):
        with pytest.raises(StoppedError):
            trainer(run, out).train(StopRequest(step))
        run = resumed(out, device=device)
        assert {p.device for p in run.classifier.model.parameters()} == {device}
    trainer(run, out).train()
    assert_rows_close(computed(out)[2], expected)


@pytest.mark.parametrize("graph", [False, True])
def test_what_diverges_is_found_at_the_next_reading(photos, tmp_path, graph):
    """With the weights and the message as if each step had been looked at."""

    def diverge(name, **changes):
        options = {**STEPS, "lr": 1e4, "schedule": "constant", **changes}
        run = new_run(tiny_settings(photos, **options))
        (tmp_path / name).mkdir()
        with pytest.raises(DivergedError) as caught:
            trainer(run, tmp_path / name).train()
        report = json.loads((tmp_path / name / "diverged.json").read_text())
        run.state.seconds = 0
        return str(caught.value).replace(name, ""), report, run

    text, report, run = diverge("seldom", cuda_graph=graph)
    expected, expected_report, expected_run = diverge("every", read_loss_every=1)
    assert text == expected
    assert report == expected_report
    assert 1 < report["step"] < 6
    assert run.state == expected_run.state
    expected_weights = expected_run.classifier.model.state_dict()
    for name, array in run.classifier.model.state_dict().items():
        assert np.array_equal(array, expected_weights[name])
        assert np.isfinite(array).all()


@pytest.mark.parametrize("precision", ["medium", "highest"])
def test_a_run_multiplies_as_exactly_as_its_settings_say(photos, precision):
    ta.set_float32_matmul_precision("high")
    new_run(tiny_settings(photos, device="cuda", precision=precision))
    assert ta.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("package", [True, False])
def test_the_header_says_what_activations_are_stored_in(photos, monkeypatch, capsys, package):
    if not package:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    stored = bfloat16() is not None and products.on_hopper()
    print_header(new_run(tiny_settings(photos, device="cuda", precision="medium")), Path("run"))
    said = " ".join(capsys.readouterr().out.split())
    in_memory = ", activations in bfloat16" if stored else ""
    assert f"float32 with bfloat16 products{in_memory}, CuPy " in said


def test_the_commands(photos, tmp_path):
    """What they say of the device, and that they use it."""
    out = tmp_path / "run"
    options = ("--epochs", 1, "--batch-size", 8, "--precision", "high", "--cuda-graph")
    code, said, complaints = train_on(photos, out, "--device", "cuda", *options)
    assert (code, complaints) == (0, "")
    assert "machine  cuda backend on cuda:0 (" in said
    assert "float32 with TF32 products, a CUDA graph, CuPy " in said
    assert f"predict {out} --device cuda IMAGES" in said
    record = json.loads((out / "run.json").read_text())
    assert record["environment"]["device"] == "cuda:0"
    assert {"gpu", "cupy", "cuda", "driver"} <= record["environment"].keys()

    answers = []
    for device in ("cpu", "cuda"):
        sheet = tmp_path / f"{device}.png"
        predict = run("predict", out, photos / "ash", "--device", device, "--out", sheet)
        evaluate = run("evaluate", out, "--device", device, "--out", tmp_path, "--crops", 1)
        assert predict[0] == evaluate[0] == 0
        answers.append((predict[1].splitlines()[:-1], evaluate[1].partition("most confused")[0]))
    assert answers[0] == answers[1]

    code, said, complaints = run(TRAIN, "--resume", out, "--epochs", 2, "--no-cuda-graph")
    assert (code, complaints) == (0, "")
    assert "--cuda-graph True then, False now" in said


def test_a_dry_run(photos, tmp_path):
    code, said, complaints = train_on(photos, tmp_path / "run", "--device", "cuda", "--dry-run")
    assert (code, complaints) == (0, "")
    assert "all is well; training would take about" in said
    assert not (tmp_path / "run").exists()
