"""The training loop and the settings that it follows."""

import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import Watcher, result, resumed, tiny_settings, trainer

import tinyalex as ta
from tinyalex.cli.finish import finish
from tinyalex.training import (
    Checkpoints,
    StoppedError,
    StopRequest,
    evaluate,
    load_checkpoint,
    new_run,
    read_metrics,
)

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """Return the results of uninterrupted runs, on demand, one for each backend."""
    found = {}

    def get():
        backend = ta.current_backend()
        if backend not in found:
            out = tmp_path_factory.mktemp(backend)
            trainer(new_run(tiny_settings(photos)), out).train()
            found[backend] = result(out)
        return found[backend]

    return get


@pytest.mark.parametrize(
    "cuts",
    [[("epoch 1/3", 1)], [("epoch 2/3", 3)], [("epoch 3/3", 7)], [("validating", 1)],
     [("epoch 1/3", 4), ("epoch 1/3", 5), ("epoch 2/3", 7), ("epoch 3/3", 2)]],
    ids=["first step", "within an epoch", "last step", "validation", "four times"],
)  # fmt: skip
def test_resuming_is_as_never_stopping(photos, tmp_path, undisturbed, backend, cuts):
    expected = undisturbed()
    run = new_run(tiny_settings(photos))
    for cut in cuts:
        stop = Watcher(lambda *now, cut=cut: now == cut and os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError) as stopped:
            trainer(run, tmp_path, stop).train()
        assert stopped.value.exit_code == 143
        ta.manual_seed(99)  # whatever the new process draws first
        run = resumed(tmp_path)
    trainer(run, tmp_path).train()
    assert result(tmp_path) == expected


def test_what_is_drawn_between_two_steps_does_not_change_training(photos, tmp_path, undisturbed):
    def draw(title, done):
        ta.randn(3)
        ta.functional.dropout(ta.ones(5), 0.5)

    trainer(new_run(tiny_settings(photos)), tmp_path, Watcher(draw)).train()
    last, best, rows = result(tmp_path)
    assert rows == undisturbed()[2]
    assert (last["classifier"], best["classifier"]) == tuple(
        content["classifier"] for content in undisturbed()[:2]
    )


def test_a_killed_run_takes_up_an_older_checkpoint(photos, tmp_path, undisturbed):
    run = new_run(tiny_settings(photos))

    def copy(title, done):
        if (title, done) == ("epoch 2/3", 4):
            shutil.copy(Checkpoints(tmp_path).last, tmp_path / "older")

    trainer(run, tmp_path, Watcher(copy), seconds=0, share=math.inf).train()
    (tmp_path / "older").replace(Checkpoints(tmp_path).last)
    run = resumed(tmp_path)
    assert run.state.step == 11
    trainer(run, tmp_path).train()
    assert result(tmp_path) == undisturbed()


def test_metrics_reach_the_disk_before_the_checkpoint_that_counts_them(
    photos, tmp_path, monkeypatch
):
    calls = []
    fsync, replace_ = os.fsync, os.replace

    def record_fsync(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_replace(source, target, **folders):
        calls.append(("now called", Path(target).name))
        replace_(source, target, **folders)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    trainer(new_run(tiny_settings(photos, epochs=1)), tmp_path).train()
    assert calls.index("metrics.jsonl") < calls.index(("now called", "last.safetensors"))


def test_two_runs_are_equal_and_another_seed_is_not(photos, tmp_path, undisturbed):
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        trainer(new_run(tiny_settings(photos, seed=seed)), tmp_path / name).train()
    assert result(tmp_path / "same") == undisturbed()
    assert result(tmp_path / "other")[2] != undisturbed()[2]


def test_metrics_say_what_happened(photos, tmp_path):
    run = new_run(tiny_settings(photos, epochs=2))
    watcher = Watcher()
    trainer(run, tmp_path, watcher).train()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["step"] for row in steps] == [7, 10, 14]
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 7), (2, 14)]
    # The epoch's average is that of its rows: steps 8 to 10, and 11 to 14.
    assert epochs[1]["loss"] == pytest.approx((3 * steps[1]["loss"] + 4 * steps[2]["loss"]) / 7)
    scores = evaluate(run.classifier.model, run.val_data)
    assert epochs[1]["val_loss"] == scores.loss
    assert epochs[1]["val_top1"] == scores.top1
    assert run.state.best_top1 == max(row["val_top1"] for row in epochs)
    assert 0 < rows[0]["time"]["seconds"] < rows[-1]["time"]["seconds"] <= run.state.seconds + 5e-4
    assert 0 <= rows[-1]["time"]["data_share"] <= 1
    assert [line.partition(" in ")[0] for line in watcher.said] == ["epoch 1/2", "epoch 2/2"]


def test_training_learns(photos, tmp_path):
    run = new_run(tiny_settings(photos, epochs=12, schedule="constant"))
    before = evaluate(run.classifier.model, run.val_data)
    assert before.loss == pytest.approx(run.chance, rel=0.02)
    trainer(run, tmp_path).train()
    after = evaluate(run.classifier.model, run.val_data)
    assert after.top1 >= 0.8
    assert after.loss < 0.6 * run.chance


def test_the_paper_s_plateau_schedule_sees_the_validation_error(photos, tmp_path):
    run = new_run(tiny_settings(photos, lr=1e-6, epochs=4))  # nothing improves
    trainer(run, tmp_path).train()
    assert run.schedule.reductions == 3
    rates = [row["lr"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "step"]
    assert rates[0] == 1e-6
    assert rates[-1] == pytest.approx(1e-8)


def test_a_better_network_on_the_disk_stays_and_is_the_one_reported(photos, tmp_path):
    run = new_run(tiny_settings(photos, epochs=1))
    run.state.best_epoch = 7
    for top1, kept in ((0.83, True), (0.67, False), (0.83, True), (0.99, True), (0.85, False)):
        run.state.best_top1 = top1
        earlier = Checkpoints(tmp_path)
        assert earlier.keep_best(run) == kept
        earlier.save_best()
    before = earlier.best.read_bytes()
    training = trainer(new_run(tiny_settings(photos, epochs=1)), tmp_path)
    training.train()
    finish(training, StopRequest())
    assert earlier.best.read_bytes() == before
    said = "\n".join(training.progress.said)
    assert f"{earlier.best} stays: its network was better than this" in said
    assert "(best so far)" not in said
    assert "99.0% after the best, epoch 7" in said
    os.truncate(earlier.best, 9999)
    assert Checkpoints(tmp_path).keep_best(run)


def test_no_checkpoint_is_written_twice(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    checkpoints = trainer(run, tmp_path, seconds=math.inf, share=math.inf)
    checkpoints.train()
    for path, step in ((Checkpoints(tmp_path).last, 21), (Checkpoints(tmp_path).previous, 14)):
        assert load_checkpoint(path)["state"]["step"] == step


def test_a_full_disk_is_no_reason_to_stop(photos, tmp_path, undisturbed, disk):
    def fill(title, done):
        if title.startswith("epoch 2") and done in (2, 5):
            disk(1000 if done == 2 else None)

    watcher = Watcher(fill)
    trainer(new_run(tiny_settings(photos)), tmp_path, watcher, seconds=0, share=math.inf).train()
    warnings = [line for line in watcher.said if line.startswith("warning")]
    assert "no checkpoint at step 10 (File too large); the one from before" in " ".join(warnings)
    assert result(tmp_path) == undisturbed()


def test_evaluation_takes_each_image_once(photos):
    run = new_run(tiny_settings(photos, batch_size=4))  # 15 images: the last batch has 3
    scores = evaluate(run.classifier.model, run.val_data)
    assert scores.class_counts.tolist() == [5, 5, 5]
    dataset = run.val_data.dataset
    shares = run.classifier.probabilities([dataset.load(i) for i in range(15)])
    assert scores.loss == pytest.approx(-np.log(shares[np.arange(15), dataset.labels]).mean())
    assert scores.top1 == (shares.argmax(axis=1) == dataset.labels).mean()
    assert scores.top5 == 1
