"""examples/train_alexnet.py: its output, its files, and its other modes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import scipy
from commands import (
    TINY,
    TRAIN,
    contents,
    copy_sources,
    draw_photos,
    run,
    tiny_settings,
    train_on,
)
from PIL import Image

from tinyalex.calls import words_of
from tinyalex.cli.dry_run import dry_run
from tinyalex.cli.look import of_all_classes
from tinyalex.cli.overfit import chosen_images
from tinyalex.cli.train_options import read_arguments
from tinyalex.data import ImageFolder
from tinyalex.models import VARIANTS
from tinyalex.models.spec import Gaussian, Linear
from tinyalex.training import (
    Checkpoints,
    Settings,
    evaluate,
    load_checkpoint,
    load_classifier,
    new_run,
    read_metrics,
)
from tinyalex.training.datasets import PATTERN_SIZES
from tinyalex.training.run_folder import OUTPUTS

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

FALLING = ("--variant", "tiny", "--epochs", 4, "--lr", 0.2)
"""Options with which the last epoch on the embedded data is not the best one."""


# --- a run that goes well


def test_a_run_says_what_it_does(trained):
    said = (trained / "said.txt").read_text()
    for expected in (
        "reference backend",
        "57 training, 15 validation images",
        "command  ",
        "3: ash 19, birch 19, elm 19; guessing costs ln(3) = 1.099",
        "tiny, for the tests: 13,667 parameters",
        "3 epochs of 7 steps of 8 images, lr 0.02 plateau, momentum 0.9, decay 0.0005",
        "epoch 1/3  step 1/7  loss 1.",
        "epoch 3/3 in ",
        "trained 3 epochs in ",
        "validation accuracy: ",
        "tinyalex evaluate",
        "tinyalex predict",
    ):
        assert expected in said
    assert "\r" not in said


def test_a_run_leaves_its_files(trained):
    for name in OUTPUTS:
        assert (trained / name).stat().st_size > 0
    record = json.loads((trained / "run.json").read_text())
    assert record["settings"]["batch_size"] == 8
    assert record["recipe"]["momentum"] == 0.9
    assert record["classes"] == ["ash", "birch", "elm"]
    assert record["environment"]["backend"] == "reference"
    assert "openblas" in record["environment"]["blas"]
    assert record["environment"]["scipy"] == scipy.__version__
    assert record["environment"]["processor"] in Path("/proc/cpuinfo").read_text()
    assert [session["from_step"] for session in record["sessions"]] == [0]
    with Image.open(trained / "filters.png") as grid:
        assert grid.size == (4 * (5 * 6 + 2) + 2, 2 * (5 * 6 + 2) + 2)
    assert load_checkpoint(Checkpoints(trained).last)["state"]["epoch"] == 3


def test_the_filters_drawn_are_those_of_the_network_that_is_kept(photos, tmp_path):
    out = tmp_path / "run"
    assert train_on(photos, out, "--average", 0.5)[0] == 0
    assert run("look", out / "last.safetensors", "filters", "--out", tmp_path / "kept.png")[0] == 0
    assert (out / "filters.png").read_bytes() == (tmp_path / "kept.png").read_bytes()


def test_a_run_can_be_done_again_from_its_record(trained):
    record = json.loads((trained / "run.json").read_text())
    assert "again_differs" not in record
    again = shlex.split(record["again"])
    assert again[:4] == [*words_of(), "train"]
    args, settings, *_ = read_arguments(again[4:])
    assert str(args.out) == f"{trained}-again"
    assert asdict(settings) == load_checkpoint(Checkpoints(trained).last)["settings"]


@pytest.mark.parametrize("checkout", [True, False])
def test_the_commit_is_recorded(tmp_path, checkout):
    copy_sources("tinyalex", tmp_path)
    if checkout:
        git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path)
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "One"]):
            subprocess.run([*git, *command], check=True)
    code = "from tinyalex.training.environment import commit; print(commit())"
    command = [sys.executable, "-B", "-c", code]
    found = subprocess.check_output(command, cwd=tmp_path, text=True).strip()
    if checkout:
        output = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        assert found == output.stdout.decode().strip()
    else:
        assert found == "None"


def test_the_embedded_data_set_has_a_test_split(tmp_path, monkeypatch):
    for split in PATTERN_SIZES:
        monkeypatch.setitem(PATTERN_SIZES, split, 20)
    code, said, _ = run(TRAIN, *FALLING, "--out", tmp_path / "run", "--tensorboard")
    assert code == 0
    assert "patterns, drawn on the fly: 20 training, 20 validation, 20 test images" in said
    assert "of 20 images that played no part in training" in said
    row = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert row["kind"] == "test"
    assert b"test/top1" in b"".join(
        p.read_bytes() for p in (tmp_path / "run/tensorboard").iterdir()
    )
    content = load_checkpoint(tmp_path / "run/best.safetensors")
    assert content["state"]["epoch"] < 4
    test_data = new_run(Settings(**content["settings"])).test_data
    assert row["loss"] == evaluate(load_classifier(tmp_path / "run").model, test_data).loss
    code, said, _ = run("evaluate", tmp_path / "run")
    assert code == 0
    assert "tiny, on the 20 images that the run held out\n" in said
    os.truncate(tmp_path / "run/best.safetensors", 9999)
    code, said, complaints = run(TRAIN, "--resume", tmp_path / "run")
    assert (code, complaints) == (0, "")
    assert "best.safetensors is damaged" in said
    assert "; the network of the last epoch takes its place" in said
    assert "test accuracy of the last epoch's network: " in said
    assert run("evaluate", tmp_path / "run")[0] == 0


# --- dry run


def test_dry_run_checks_everything_and_leaves_nothing(photos, tmp_path):
    before = contents(photos), contents(tmp_path)
    out = tmp_path / "not" / "there"
    code, said, complaints = run(
        TRAIN, "--dry-run", "--variant", "tiny", "--data", photos, "--out", out
    )
    assert (code, complaints) == (0, "")
    for expected in ("8 training images read", "step 2 in", "validation images evaluated",
                     "written to", "read back", "all is well"):  # fmt: skip
        assert expected in said
    assert (contents(photos), contents(tmp_path)) == before


def test_a_run_that_learned_nothing_says_so(photos, tmp_path, trained):
    said = train_on(photos, tmp_path / "run", "--epochs", 1, "--lr", 1e-12)[1]
    assert "; guessing gets 33.3%\n" in said
    nothing = "is no better than that of guessing"
    assert f"the last validation loss, 1.099, {nothing}, 1.099: try more --epochs, " in said
    assert nothing not in (trained / "said.txt").read_text()


def test_dry_run_names_what_cannot_be_read(tmp_path):
    photos = draw_photos(tmp_path / "photos")
    (photos / "ash/00.png").write_bytes(b"")
    code, said, _ = train_on(photos, tmp_path / "run", "--dry-run")
    assert code == 0
    assert f"left out: {photos}/ash/00.png: the file is empty\n" in said
    assert "all is well but for 1 of the images looked at, which cannot be read; " in said


@pytest.mark.parametrize("arguments", [["--lr", "1e30"], ["--lr", "1e30", "--batch-size", "57"]])
def test_dry_run_finds_a_rate_that_diverges(photos, tmp_path, arguments):
    code, _, complaints = train_on(photos, tmp_path / "out", "--dry-run", *arguments)
    assert code == 3
    assert complaints.count("\n") == 1
    assert complaints.endswith(": lower --lr\n")
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_the_code_is_no_divergence(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyalex.cli.dry_run.train_step", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_on(photos, tmp_path / "run", "--dry-run")


def test_dry_run_takes_the_steps_that_the_run_would_take(photos, tmp_path):
    rates = ("--lr", 10, "--schedule", "cosine", "--epochs", 40)  # 14 steps of warming up
    code, said, _ = train_on(photos, tmp_path / "run", "--dry-run", *rates)
    assert code == 0
    assert re.findall(r"ok  step .*, lr (.*)", said) == ["0.71", "1.4"]


def test_dry_run_of_a_run_that_is_resumed(copy):
    before = contents(copy)
    code, said, _ = run(TRAIN, "--resume", copy, "--dry-run")
    assert code == 0
    assert "resuming it to the end would take about 0.0 s" in said
    assert contents(copy) == before


def test_dry_run_estimates_loading_and_validation(photos, tmp_path, monkeypatch, capsys):
    load = ImageFolder.load
    monkeypatch.setattr(ImageFolder, "load", lambda *call: time.sleep(0.05) or load(*call))
    dry_run(new_run(tiny_settings(photos, epochs=2)), tmp_path)
    # Of 8 images a batch, by 2 workers: 2 epochs of 7 batches to learn from and 2 to judge.
    expected = 0.05 * 8 / 2 * 2 * (7 + 2)
    assert 0.95 * expected < seconds_told(capsys) < 1.5 * expected


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [({}, 1), ({"unfreeze_after": 20}, 5 + 1), ({"mixup": 0.2}, 25), ({"image_cache": 0}, 25)],
)
def test_dry_run_reckons_with_features_that_are_kept(
    trained, photos, tmp_path, monkeypatch, capsys, changes, epochs
):
    load = ImageFolder.load
    monkeypatch.setattr(ImageFolder, "load", lambda *call: time.sleep(0.05) or load(*call))
    frozen = {"weights": str(trained), "freeze": "conv1", "augment": "none", "epochs": 25}
    dry_run(new_run(tiny_settings(photos, **frozen, **changes)), tmp_path)
    expected = 0.05 * 8 / 2 * epochs * (7 + 2)
    assert 0.95 * expected < seconds_told(capsys) < 3 * expected


def test_dry_run_leaves_the_start_of_processes_out(photos, tmp_path, capsys):
    started = time.monotonic()
    dry_run(new_run(tiny_settings(photos, epochs=200, worker_processes=True)), tmp_path)
    start = time.monotonic() - started
    assert seconds_told(capsys) < 100 * start  # of 1,800 batches


def seconds_told(capsys):
    """Return how long the dry run says that training would take."""
    found = re.search(r"training would take about (.*:)?([\d.]+)( s)?\n", capsys.readouterr().out)
    return 60 * int((found[1] or "0:")[:-1]) + float(found[2])


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_weights_that_are_not_finite_are_found_before_training(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", replace(TINY, classifier=(Linear(None, Gaussian(1e39)),)))
    code, _, complaints = train_on(photos, tmp_path / "out")
    expected = "error: classifier.0.weight has values that are not finite: lower --lr\n"
    assert (code, complaints) == (3, expected)


def test_files_that_are_no_images_are_counted(tmp_path):
    for split in ("train", "val"):
        draw_photos(tmp_path / "photos" / split, count=9)
        (tmp_path / "photos" / split / "elm/notes.txt").write_text("")
    _, said, _ = train_on(tmp_path / "photos", tmp_path / "out", "--dry-run")
    assert "27 training, 27 validation images; skipped: 2 other\n" in said


# --- instead of training


def test_images_can_be_learned_by_heart(photos, tmp_path):
    code, said, _ = train_on(photos, tmp_path / "run", "--overfit", 9)
    assert code == 0
    assert "learned: data, labels, network and recipe work together" in said
    assert not list(tmp_path.iterdir())


def test_images_that_are_learned_slowly_are_learned(photos, tmp_path):
    """The loss falls by 2 % in the first hundred steps."""
    code, said, _ = train_on(photos, tmp_path / "run", "--overfit", 9, "--lr", 1e-3)
    assert code == 0
    found = re.findall(r"step (\d+)/500  loss (\S+)", said)
    losses = {int(step): float(loss) for step, loss in found}
    assert losses[1] > losses[100] > 0.97 * losses[1]
    assert 300 < max(losses) < 500


@pytest.mark.parametrize(
    ("lr", "last", "symptom"),
    [
        (1e-9, 102, "has not fallen by 0.1% in 100 steps"),
        (5e-4, 500, "did not fall below 0.1 in 500 steps"),
    ],
)
def test_images_that_cannot_be_learned_by_heart(photos, tmp_path, lr, last, symptom):
    code, said, complaints = train_on(photos, tmp_path / "run", "--overfit", 9, "--lr", lr)
    assert code == 1
    assert re.findall(r"step (\d+)/500", said)[-1] == str(last)
    assert f"the loss {symptom}: try --initial-weights data" in complaints


def test_the_images_to_learn_by_heart_are_from_every_class(photos):
    images = chosen_images(new_run(tiny_settings(photos)), 6)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("count", [10, 17, 32])
def test_where_classes_take_turns_the_images_are_from_every_class_too(count):
    labels = chosen_images(new_run(tiny_settings(None, data=None)), count).labels
    found = np.bincount(np.asarray(labels), minlength=10)
    assert found.max() - found.min() <= 1


@pytest.mark.parametrize(
    ("counts", "count", "expected"),
    [
        ([900, 100], 4, [2, 2]),
        ([1, 0, 50, 9], 12, [1, 0, 5, 6]),
        ([9] * 6, 3, [0, 1, 0, 1, 0, 1]),
        ([2, 1], 9, [2, 1]),
        ([0, 0], 3, [0, 0]),
    ],
)
def test_images_of_unequal_classes_are_taken_evenly(counts, count, expected):
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = of_all_classes(labels, count)
    assert len(set(chosen)) == len(chosen)
    assert np.bincount(labels[chosen], minlength=len(counts)).tolist() == expected


def test_an_unreadable_image_to_learn_by_heart_is_replaced_by_the_next(photos, tmp_path, capsys):
    folder = shutil.copytree(photos, tmp_path / "photos")
    run = new_run(tiny_settings(folder))
    dataset = run.train_data.dataset
    Path(dataset.paths[4]).write_text("no image")
    assert chosen_images(run, 6).indices.tolist() == [5, 14, 23, 33, 42, 52]
    assert f"left out: {dataset.paths[4]}: not an image" in capsys.readouterr().err


def test_the_table_of_layers(photos, tmp_path):
    code, said, _ = train_on(photos, tmp_path / "run", "--summary")
    assert code == 0
    assert "Conv2d-1" in said
    assert not list(tmp_path.iterdir())
