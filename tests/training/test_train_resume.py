"""tinyalex train --resume: exact resumption, and options that may change."""

import contextlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from commands import (
    TRAIN,
    assert_refused,
    contents,
    put,
    result,
    resumed,
    run,
    tiny_settings,
)

import tinyalex as ta
from tinyalex.cli.train_options import read_arguments
from tinyalex.training import (
    Checkpoints,
    load_checkpoint,
    new_run,
    read_metrics,
)
from tinyalex.training.datasets import what_changed

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def test_resuming_a_finished_run_changes_nothing(copy, trained):
    (copy / "run.json").write_text('{"sessions": [5]}')
    before = contents(copy)
    assert "anew" not in run(TRAIN, "--resume", copy, "--dry-run")[1]
    code, said, _ = run(TRAIN, "--resume", copy)
    assert code == 0
    assert "from step 21 on" in said
    assert "nothing is left to train: the run has its 3 epochs" in said
    assert said.count("its pictures are drawn anew") == 1
    assert result(copy) == result(trained)
    names = {path.name for path, *_ in set(contents(copy)) - set(before)}
    assert names == {"run.json", "metrics.jsonl", "filters.png", "curves.png"}
    assert len(json.loads((copy / "run.json").read_text())["sessions"]) == 1


def test_a_longer_run_goes_on_where_the_shorter_ended(copy, trained):
    code, said, _ = run(TRAIN, "--resume", copy, "--epochs", 4, "--workers", 1)
    assert code == 0
    assert "changed: --epochs 3 then, 4 now, --workers 2 then, 1 now\n" in said
    before, after = (read_metrics(f / "metrics.jsonl") for f in (trained, copy))
    assert after[: len(before)] == before
    assert after[-1]["epoch"] == 4
    assert load_checkpoint(Checkpoints(copy).last)["settings"]["epochs"] == 4


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("step", "5 now; the schedule keeps the length that it was made for"),
        ("discrete_exponential", "5 now; the schedule keeps the length that it was made for"),
        ("cosine", "5 now; the cosine is stretched to the new length, so the rate jumps"),
        ("constant", "5 now"),
    ],
)
def test_what_more_epochs_do_to_the_schedule(photos, tmp_path, capsys, schedule, said):
    run = new_run(tiny_settings(photos, schedule=schedule))
    Checkpoints(tmp_path).save(run)
    read_arguments(["--resume", str(tmp_path), "--epochs", "5"])
    assert capsys.readouterr().out == f"changed: --epochs 3 then, {said}\n"
    longer = resumed(tmp_path, epochs=5).schedule
    same = [longer.factor(step) == run.schedule.factor(step) for step in range(21)]
    assert all(same) == (schedule != "cosine")


def test_more_epochs_let_images_that_grow_begin_smaller_again(trained, tmp_path, capsys):
    growing = {"augment": "strong", "first_size": 64, "input_size": 96, "variant": "torchvision"}
    settings = tiny_settings(tmp_path / "data", schedule="cosine", **growing)
    assert settings.size_at(2) > replace(settings, epochs=9).size_at(2)
    content = {**load_checkpoint(Checkpoints(trained).last), "settings": asdict(settings)}
    ta.save(content, Checkpoints(tmp_path).last)
    read_arguments(["--resume", str(tmp_path), "--epochs", "9"])
    assert (
        "jumps; the images grow over the new length, and may be smaller" in capsys.readouterr().out
    )


def test_a_run_from_before_means_and_noise_had_names_goes_on(copy, trained):
    content = load_checkpoint(Checkpoints(copy).last)
    for key in ("mean", "colour_noise"):
        del content["settings"][key]
    del content["colour_covariance"], content["random"]["step"]
    ta.save(content, Checkpoints(copy).last)
    new = shutil.copytree(trained, copy.with_name("new"))
    assert [run(TRAIN, "--resume", out, "--epochs", 4)[0] for out in (copy, new)] == [0, 0]
    (old, *_), (new, *_) = result(copy), result(new)
    assert (old["classifier"], old["settings"]) == (new["classifier"], new["settings"])


def test_a_run_with_the_mean_image_and_noise_from_end_to_end(photos, tmp_path):
    out = tmp_path / "run"
    options = ("--mean", "image", "--colour-noise", "deviations", "--epochs", 1)
    code, said, _ = run(TRAIN, "--variant", "tiny", "--data", photos, "--out", out, *options)
    assert code == 0
    assert "measuring the mean and the colours of the training images  step 57/57" in said
    assert "colour noise deviations, minus the mean image" in said
    assert json.loads((out / "run.json").read_text())["mean"] == pytest.approx([125] * 3, abs=6)
    assert run(TRAIN, "--resume", out, "--epochs", 2)[0] == 0
    code, _, complaints = run(TRAIN, "--resume", out, "--mean", "colour")
    assert_refused(code, complaints, "--mean image then, colour now")
    scores = read_metrics(out / "metrics.jsonl")[-1]
    code, said, _ = run("evaluate", out / "last.safetensors")
    assert code == 0
    assert f"loss {scores['val_loss']:.4f}" in said
    sheet = tmp_path / "sheet.png"
    assert run("predict", out, photos / "ash" / "00.png", "--out", sheet)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--lr", "0.5", "--seed", "3"],
            "other settings (--lr 0.02 then, 0.5 now, --seed 0 then, 3",
        ),
        (["--lr", "0.5", "--allow-change"], "is finished, with other settings (--lr "),
        (["--lr", "0.5"], "leave these options out to resume it, or add --allow-change"),
        (
            ["--seed", "3", "--allow-change"],
            "out to resume it, or start a new run",
        ),
        (["--batch-size", "9", "--allow-change"], "or start a new run with another --out"),
        (["--steps", "21"], "has 21 steps behind it already"),
        (["--variant", "paper", "--input-size", "224"], "--variant tiny then, paper now"),
        (["--epochs", "2"], "has 3 epochs behind it already"),
        (["--out", "elsewhere"], "not allowed with argument --resume"),
        (["--overfit", "3"], "--overfit begins with fresh weights: leave --resume out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_resuming_with_other_arguments(copy, arguments, expected):
    before = contents(copy)
    code, _, complaints = run(TRAIN, "--resume", copy, *arguments)
    assert_refused(code, complaints, expected)
    assert contents(copy) == before


def test_changes_that_are_allowed_are_listed_and_hold(copy):
    arguments = ("--lr", 0.001, "--schedule", "constant", "--weight-decay", 0, "--dropout", 0.1)
    code, said, _ = run(TRAIN, "--resume", copy, "--epochs", 4, "--allow-change", *arguments)
    assert code == 0
    assert "lr 0.02 then, 0.001 now" in said
    last = load_checkpoint(Checkpoints(copy).last)
    group = last["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (0.001, 0)
    assert last["schedule"] == {"schedule": "Constant", "base_lrs": [0.001, 0.001]}
    assert last["classifier"]["dropout"] == 0.1
    assert read_metrics(copy / "metrics.jsonl")[-2]["lr"] == 0.001
    record = json.loads((copy / "run.json").read_text())
    assert [session["from_step"] for session in record["sessions"]] == [0, 21]
    assert [session["lr"] for session in record["sessions"]] == [0.02, 0.001]
    assert record["again_differs"] == (
        "settings were changed on the way, as sessions say: epochs, dropout, lr, schedule, "
        "weight_decay"
    )


def test_another_rate_keeps_what_the_schedule_remembers(photos, tmp_path):
    run = new_run(tiny_settings(photos, lr=0.5))
    run.schedule.reductions = 2
    Checkpoints(tmp_path).save(run)
    changed = resumed(tmp_path, lr=0.1).schedule
    assert (changed.reductions, changed.base_lrs) == (2, [0.1, 0.1])


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: os.truncate(path, 30_000)])
def test_a_damaged_checkpoint_costs_steps_and_no_run(copy, trained, spoil):
    spoil(Checkpoints(copy).last)
    code, _, warned = run(TRAIN, "--resume", copy)
    assert code == 0
    assert warned.startswith("warning: ")
    assert f"resuming from {Checkpoints(copy).previous}, of step " in warned
    assert result(copy) == result(trained)


def test_a_warning_that_cannot_be_shown_refuses_nothing(copy):
    Checkpoints(copy).last.unlink()
    with open("/dev/full", "w") as full, contextlib.redirect_stderr(full):
        *_, content = read_arguments(["--resume", str(copy)])
    assert content["state"]["step"] < 21


def test_only_what_a_run_left_half_written_is_swept_away(copy):
    mine = [".mine.12345678.tmp", ".run.json.my draft.tmp", ".run.json.tmp"]
    for name in (*mine, ".run.json.12345678.tmp", ".last.safetensors.0a1b2c3d.tmp"):
        (copy / name).write_text("")
    (copy / ".best.safetensors.12345678.tmp").mkdir()
    (copy / ".curves.png.12345678.tmp").symlink_to(copy)
    mine += [".best.safetensors.12345678.tmp", ".curves.png.12345678.tmp"]
    assert run(TRAIN, "--resume", copy)[0] == 0
    assert sorted(path.name for path in copy.glob(".*")) == sorted(mine)


def gone(run):
    Checkpoints(run).previous.unlink()
    Checkpoints(run).last.unlink()


def truncated(run):
    Checkpoints(run).previous.unlink()
    os.truncate(Checkpoints(run).last, 30_000)


WEIGHT = ("classifier", "weights", "features.0.weight")


def where(*keys, value):
    """Return a function that puts another value where the keys lead to in the only checkpoint."""

    def spoil(run):
        Checkpoints(run).previous.unlink()
        content = load_checkpoint(Checkpoints(run).last)
        put(content, *keys, value=value)
        ta.save(content, Checkpoints(run).last)

    return spoil


def only_the_best(run):
    Checkpoints(run).best.rename(Checkpoints(run).last)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (gone, "there is no checkpoint"),
        (truncated, "last.safetensors is damaged"),
        (
            where(*WEIGHT, value=np.zeros((9, 3, 5, 5), np.float32)),
            "cannot be used: these weights do not fit the network: features.0.weight must have",
        ),
        (only_the_best, "it lacks ['optimizer', 'random', 'schedule']"),
        (
            where("classifier", "mean", value=np.zeros((31, 31, 3), np.float32)),
            "the mean image has shape (31, 31, 3), expected (32, 32, 3)",
        ),
        (where(*WEIGHT, value=3), "weights.'features.0.weight' must be an array, got 3"),
        (
            where("optimizer", "velocity", value=[*range(1, 7)]),
            "optimizer.velocity.0 must be None or an array, got 1",
        ),
        (where("state", value={}), "last.safetensors cannot be used: state.epoch is missing"),
        (
            where("settings", "threads", value=10**6),
            "where that is less); got 1000000: resume with --threads ",
        ),
        (where("settings", "data", value=5), "data must be a folder, got 5"),
        (shutil.rmtree, "copy: give --resume the folder that was the --out of a run"),
    ],
)
def test_checkpoints_that_cannot_be_resumed(copy, spoil, expected):
    spoil(copy)
    code, _, complaints = run(TRAIN, "--resume", copy)
    assert_refused(code, complaints, expected)


def test_resuming_with_other_images(photos, copy, tmp_path):
    moved = shutil.copytree(photos, tmp_path / "moved")
    assert run(TRAIN, "--resume", copy, "--data", moved)[0] == 0
    shutil.copy(moved / "ash/00.png", moved / "ash/24.png")
    code, _, complaints = run(TRAIN, "--resume", copy, "--data", moved)
    assert_refused(code, complaints, "the data set is not the one that this run began with")
    assert f"in {moved} there are more: ash/24.png; put the images back" in complaints
    code, _, complaints = run(TRAIN, "--resume", Checkpoints(copy).last)
    assert_refused(code, complaints, "last.safetensors is a file: give --resume the folder")


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (None, {"a": 1}, "the classes or the number of images in one of them have changed"),
        ({"a": 1}, {"a": 1}, "the images are split otherwise"),
        ({"a": 1, "b": 2}, {"a": 1, "c": 3}, "'b' had 2 images, not 0, 'c' had 0 images, not 3"),
        (dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2), "'c' had 1 image, not 2 and 2 mo"),
    ],
)
def test_what_changed_in_the_images_is_said(then, now, said):
    assert said in what_changed(then, now)
