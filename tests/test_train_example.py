"""examples/train_alexnet.py from the outside: what it says, writes, refuses and returns."""

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from commands import (
    ROOT,
    TINY,
    draw_photos,
    finish,
    load,
    result,
    resumed,
    run,
    start,
    tiny_settings,
    trainer,
)
from PIL import Image

import tinyalex as ta
from tinyalex.models import VARIANTS
from tinyalex.models.spec import Gaussian, Linear
from tinyalex.training import (
    Checkpoints,
    Settings,
    StopRequest,
    evaluate,
    load_checkpoint,
    load_classifier,
    new_run,
    read_metrics,
)
from tinyalex.training.datasets import PATTERN_SIZES, what_changed
from tinyalex.training.options import EMBEDDED, SMALL_DATA, read_arguments
from tinyalex.training.overfit import chosen_images

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

TRAIN = "train_alexnet"
FALLING = ("--variant", "tiny", "--epochs", 4, "--lr", 0.2)
"""Options with which the last epoch on the embedded data is not the best one."""


def contents(folder):
    """Return every file below a folder with its size and time."""
    return sorted((p, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


@pytest.fixture
def copy(trained, tmp_path):
    """Return a copy of the finished run, to be spoilt."""
    return shutil.copytree(trained, tmp_path / "copy")


# --- a run that goes well


def test_a_run_says_what_it_does(trained):
    said = (trained / "said.txt").read_text()
    for expected in (
        "reference backend",
        "57 training, 15 validation images",
        "3: ash, birch, elm; guessing costs ln(3) = 1.099",
        "tiny, for the tests: 13,667 parameters",
        "3 epochs of 7 steps of 8 images, lr 0.02 plateau, momentum 0.9, decay 0.0005",
        "epoch 1/3  step 1/7  loss 1.",
        "epoch 3/3 in ",
        "trained 3 epochs in ",
        "validation accuracy: ",
        "examples/evaluate.py",
        "examples/predict.py",
    ):
        assert expected in said
    assert "\r" not in said


def test_a_run_leaves_its_files(trained):
    for name in load(TRAIN).OUTPUTS:
        assert (trained / name).stat().st_size > 0
    record = json.loads((trained / "run.json").read_text())
    assert record["settings"]["batch_size"] == 8
    assert record["recipe"]["momentum"] == 0.9
    assert record["classes"] == ["ash", "birch", "elm"]
    assert record["environment"]["backend"] == "reference"
    assert "openblas" in record["environment"]["blas"]
    assert [session["from_step"] for session in record["sessions"]] == [0]
    with Image.open(trained / "filters.png") as grid:
        assert grid.size == (4 * (5 * 6 + 2) + 2, 2 * (5 * 6 + 2) + 2)
    assert load_checkpoint(Checkpoints(trained).last)["state"]["epoch"] == 3


def test_a_run_can_be_done_again_from_its_record(trained):
    again = shlex.split(json.loads((trained / "run.json").read_text())["again"])
    assert again[:2] == ["python", os.path.relpath(ROOT / "examples/train_alexnet.py")]
    settings = read_arguments([*again[2:], "--out", "elsewhere"])[1]
    assert asdict(settings) == load_checkpoint(Checkpoints(trained).last)["settings"]


@pytest.mark.parametrize("checkout", [True, False])
def test_the_commit_is_recorded(tmp_path, checkout):
    shutil.copytree(ROOT / "tinyalex", tmp_path / "tinyalex")
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
    code, said, _ = run(TRAIN, *FALLING, "--out", tmp_path / "run")
    assert code == 0
    assert "patterns, drawn on the fly: 20 training, 20 validation, 20 test images" in said
    assert "of 20 images that played no part in training" in said
    row = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert row["kind"] == "test"
    content = load_checkpoint(tmp_path / "run/best.safetensors")
    assert content["state"]["epoch"] < 4
    test_data = new_run(Settings(**content["settings"])).test_data
    assert row["loss"] == evaluate(load_classifier(tmp_path / "run").model, test_data).loss
    code, said, _ = run("evaluate", tmp_path / "run")
    assert code == 0
    assert "Patterns('test', size=20, seed=0)" in said
    os.truncate(tmp_path / "run/best.safetensors", 9999)
    code, _, complaints = run(TRAIN, "--resume", tmp_path / "run")
    assert_refused(code, complaints, "best.safetensors is damaged")
    assert "; remove it, and the last network takes its place: python " in complaints


def test_defaults_are_for_small_data_and_a_variant_brings_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, settings, _ = read_arguments([])
    assert {name: getattr(settings, name) for name in EMBEDDED} == EMBEDDED
    assert str(args.out) == "runs/patterns-torchvision"
    args, settings, _ = read_arguments(["--data", "photos/"])
    assert {name: getattr(settings, name) for name in SMALL_DATA} == SMALL_DATA
    assert str(args.out) == "runs/photos-torchvision"
    args, settings, _ = read_arguments(["--variant", "paper", "--data", "my photos", "--lr", "1"])
    recipe = VARIANTS["paper"].recipe
    assert (settings.epochs, settings.batch_size) == (recipe.epochs, recipe.batch_size)
    assert settings.lr == 1
    assert settings.data == str(tmp_path / "my photos")
    assert str(args.out) == "runs/my photos-paper"


def test_the_paper_s_variants_bring_the_mean_image_and_colour_noise(tmp_path):
    found = {}
    for variant in ("paper", "source2012", "caffe", "torchvision"):
        _, settings, _ = read_arguments(["--variant", variant, "--out", str(tmp_path)])
        found[variant] = settings.mean, settings.colour_noise, settings.recipe.colour_noise
    assert found == {
        "paper": ("image", "eigenvalues", "eigenvalues"),
        "source2012": ("image", "deviations", "deviations"),
        "caffe": ("image", "none", "none"),
        "torchvision": ("colour", "none", "none"),
    }
    options = ("--variant", "paper", "--mean", "colour", "--colour-noise", "none")
    _, settings, _ = read_arguments([*options, "--out", str(tmp_path)])
    assert (settings.mean, settings.colour_noise) == ("colour", "none")


def test_show_recipe_says_where_every_setting_is_from():
    code, said, complaints = run(TRAIN, "--show-recipe", "source2012")
    assert (code, complaints) == (0, "")
    lines = [line.split("  ") for line in said.splitlines()]
    rows = {words[0]: [word.strip() for word in words[1:] if word] for words in lines}
    assert rows["momentum"] == ["0.9", "layers/layer-params-145.cfg: momW, momB"]
    assert rows["conv4 weights"][0] == "normal, deviation 0.03; bias 1"
    assert "conv1 rounds up" in said


def test_help_fits_two_screens(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, said, _ = run(TRAIN, "--help")
    assert code == 0
    assert said.count("\n") <= 2 * 40
    for expected in ("paper section 5", "(default: 0)", "exit codes: 0 done", "--resume"):
        assert expected in said


# --- dry run


def test_dry_run_checks_everything_and_leaves_nothing(photos, tmp_path):
    before = contents(photos), contents(tmp_path)
    out = tmp_path / "not" / "there"
    code, said, complaints = run(
        TRAIN, "--dry-run", "--variant", "tiny", "--data", photos, "--out", out
    )
    assert (code, complaints) == (0, "")
    for expected in ("8 training images read", "step 2 in", "validation images judged",
                     "written to", "read back", "all is well"):  # fmt: skip
        assert expected in said
    assert (contents(photos), contents(tmp_path)) == before


@pytest.mark.parametrize("arguments", [["--lr", "1e30"], ["--lr", "1e30", "--batch-size", "57"]])
def test_dry_run_finds_a_rate_that_diverges(photos, tmp_path, arguments):
    code, _, complaints = train_on(photos, tmp_path / "out", "--dry-run", *arguments)
    assert code == 3
    assert complaints.count("\n") == 1
    assert complaints.endswith(": lower --lr\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_weights_that_are_not_finite_are_found_before_training(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", replace(TINY, classifier=(Linear(None, Gaussian(1e39)),)))
    code, _, complaints = train_on(photos, tmp_path / "out")
    expected = "error: classifier.0.weight has values that are not finite: lower --lr\n"
    assert (code, complaints) == (3, expected)


def test_files_that_are_no_images_are_counted(tmp_path):
    for split in ("train", "val"):
        draw_photos(tmp_path / split, count=9)
        (tmp_path / split / "elm/notes.txt").write_text("")
    _, said, _ = train_on(tmp_path, tmp_path / "out", "--dry-run")
    assert "27 training, 27 validation images; 2 other files ignored\n" in said


# --- what is refused, before training and in one sentence


def train_on(photos, out, *arguments):
    return run(TRAIN, "--variant", "tiny", "--data", photos, "--out", out, *arguments)


def assert_refused(code, complaints, expected):
    assert code == 2
    assert complaints.count("\n") == 1
    assert expected in complaints
    assert "Traceback" not in complaints


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--variant", "vgg"], "invalid choice: 'vgg'"),
        (["--lr", "nan"], "lr must be a finite number > 0, got nan"),
        (["--lr", "-1"], "lr must be a finite number > 0, got -1.0"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--batch-size", "-8"], "batch-size must be a whole number >= 1, got -8"),
        (["--batch-size", "58"], "a batch of 58 needs more than the 57 images"),
        (["--epochs", "0"], "epochs must be a whole number >= 1, got 0"),
        (["--threads", "0"], "threads must be a whole number >= 1, got 0"),
        (["--threads", "1000000"], "the number of threads must be at most"),
        (["--seed", "-1"], "seed must be a whole number >= 0"),
        (["--dropout", "1.5"], "dropout must be at least 0 and below 1"),
        (["--input-size", "64"], "input-size must be 28"),
        (["--schedule", "sawtooth"], "invalid choice: 'sawtooth'"),
        (["--shade", "blue"], "unrecognized arguments: --shade blue"),
        (["--steps", "0"], "steps must be a whole number >= 1, got 0"),
        (["--time-limit", "2 days"], "expected a time like 2h, 1h30m or 90s, got '2 days'"),
        (["--overfit", "58"], "overfit must be at most 57"),
        (["--overfit", "5", "--dry-run"], "not allowed with argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be(photos, tmp_path, arguments, expected):
    code, _, complaints = train_on(photos, tmp_path / "out", *arguments)
    assert_refused(code, complaints, expected)
    assert not list(tmp_path.iterdir())


def missing(folder):
    folder.rmdir()


def empty(folder):
    pass


def a_file(folder):
    folder.rmdir()
    folder.write_text("")


def one_class(folder):
    draw_photos(folder / "all", count=2)
    (folder / "all/ash").rename(folder / "ash")
    shutil.rmtree(folder / "all")


def class_without_images(folder):
    draw_photos(folder, count=4)
    (folder / "oak").mkdir()


def all_unreadable(folder):
    for path in draw_photos(folder, count=4).glob("*/*"):
        path.write_text("no image")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (missing, "No such file or directory"),
        (empty, "expected one folder for each class"),
        (a_file, "found a file"),
        (one_class, "expected at least 2 classes, found only 'ash'"),
        (class_without_images, "no images (.jpg"),
        (all_unreadable, "images could be read"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path, spoil, expected):
    folder = tmp_path / "photos"
    folder.mkdir()
    spoil(folder)
    code, _, complaints = train_on(folder, tmp_path / "out")
    assert_refused(code, complaints, expected)
    assert str(folder) in complaints or spoil is all_unreadable
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").write_text("")
    for dry in ([], ["--dry-run"]):
        code, _, complaints = train_on(photos, tmp_path / "file" / "out", *dry)
        assert_refused(code, complaints, "Not a directory")
    code, _, complaints = train_on(photos, tmp_path / "file")
    assert_refused(code, complaints, f"cannot write to the folder {tmp_path / 'file'}")


def test_a_full_disk_is_found_out_before_training(photos, tmp_path):
    def shrink():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    arguments = ("--variant", "tiny", "--data", photos, "--out", tmp_path / "out")
    code, said, complaints = finish(start(TRAIN, *arguments, preexec_fn=shrink))
    assert_refused(code, complaints, "File too large, there is no room for the file")
    assert "epoch 1" not in said
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--variant", "vgg"], "invalid choice"), (["--data", "/nowhere"], "/nowhere: expected a")],
)
def test_refusals_in_a_process_of_its_own(tmp_path, arguments, expected):
    code, _, complaints = finish(start(TRAIN, "--out", tmp_path / "out", *arguments))
    assert_refused(code, complaints, expected)


@pytest.mark.parametrize("kept", [3, 2, 1, 0])
def test_a_folder_that_holds_a_run_is_not_overwritten(photos, copy, kept):
    for name in ("last", "previous", "best")[: 3 - kept]:
        (copy / f"{name}.safetensors").unlink()
    before = contents(copy)
    code, _, complaints = train_on(photos, copy)
    assert_refused(code, complaints, f"{copy} holds a run already: ")
    assert (f"go on with it by --resume {copy}, or" in complaints) == (kept > 1)
    assert "give another --out" in complaints
    assert contents(copy) == before


@pytest.mark.parametrize("began", [True, False])
def test_what_another_process_trained_meanwhile_is_not_overwritten(photos, copy, began):
    command, out = load(TRAIN), copy if began else copy / "new"
    begin = ["--variant", "tiny", "--data", str(photos), "--out", str(out)]
    args, settings, checkpoint = read_arguments(["--resume", str(out)] if began else begin)
    mine = command.old_run(settings, checkpoint, out) if began else new_run(settings)
    assert run(TRAIN, *(["--resume", out, "--epochs", 4] if began else begin))[0] == 0
    before = contents(copy)
    with ExitStack() as held, pytest.raises(ValueError, match="another process has trained in"):
        command.prepare(mine, out, held, args.found)
    assert contents(copy) == before


def test_a_folder_in_which_another_process_trains_is_left_alone(photos, copy):
    program = """if True:
        import pathlib, sys, time
        from tinyalex.training.lock import locked
        with locked(pathlib.Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", program, copy]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as other:
        other.stdout.readline()
        before = contents(copy)
        code, _, complaints = run(TRAIN, "--resume", copy)
        assert_refused(code, complaints, f"another process is at work in {copy}")
        assert contents(copy) == before
        other.kill()
    assert run(TRAIN, "--resume", copy)[0] == 0


def test_only_what_a_run_left_half_written_is_swept_away(copy):
    for name in (".run.json.x1.tmp", ".last.safetensors.x1.tmp", ".mine.tmp", ".run.json.tmp"):
        (copy / name).write_text("")
    run(TRAIN, "--resume", copy)
    assert sorted(path.name for path in copy.glob(".*")) == [".mine.tmp", ".run.json.tmp"]


# --- resuming


def test_resuming_a_finished_run_changes_nothing(copy, trained):
    (copy / "run.json").write_text('{"sessions": 5}')
    before = contents(copy)
    code, said, _ = run(TRAIN, "--resume", copy)
    assert code == 0
    assert "from step 21 on" in said
    assert result(copy) == result(trained)
    names = {path.name for path, *_ in set(contents(copy)) - set(before)}
    assert names == {"run.json", "metrics.jsonl", "filters.png", "curves.png"}
    assert len(json.loads((copy / "run.json").read_text())["sessions"]) == 1


def test_a_longer_run_goes_on_where_the_shorter_ended(copy, trained):
    code, said, _ = run(TRAIN, "--resume", copy, "--epochs", 4, "--workers", 1)
    assert code == 0
    assert "changed: epochs 3 then, 4 now, workers 2 then, 1 now\n" in said
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
    assert capsys.readouterr().out == f"changed: epochs 3 then, {said}\n"
    longer = resumed(tmp_path, epochs=5).schedule
    same = [longer.factor(step) == run.schedule.factor(step) for step in range(21)]
    assert all(same) == (schedule != "cosine")


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
    assert_refused(code, complaints, "mean image then, colour now")
    scores = read_metrics(out / "metrics.jsonl")[-1]
    code, said, _ = run("evaluate", out / "last.safetensors")
    assert code == 0
    assert f"loss {scores['val_loss']:.4f}" in said
    sheet = tmp_path / "sheet.png"
    assert run("predict", out, photos / "ash" / "00.png", "--out", sheet)[0] == 0


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: os.truncate(path, 300)])
def test_resuming_without_the_metrics(copy, spoil):
    spoil(copy / "metrics.jsonl")
    code, said, complaints = run(TRAIN, "--resume", copy, "--epochs", 4)
    assert_refused(code, complaints, "whole rows, the checkpoint counts 8: put the file back")
    assert "epoch 4" not in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lr", "0.5", "--seed", "3"], "other settings (lr 0.02 then, 0.5 now, seed 0 then, 3"),
        (["--lr", "0.5"], "leave these options out to go on with it, or add --allow-change"),
        (["--seed", "3", "--allow-change"], "on with it, or start a new run with another --out"),
        (["--batch-size", "9", "--allow-change"], "or start a new run with another --out"),
        (["--steps", "21"], "has 21 steps behind it already"),
        (["--variant", "paper", "--input-size", "224"], "variant tiny then, paper now"),
        (["--epochs", "2"], "has 3 epochs behind it already"),
        (["--out", "elsewhere"], "not allowed with argument --resume"),
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
    sessions = json.loads((copy / "run.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 21]


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
    assert f"going on from {Checkpoints(copy).previous}, of step " in warned
    assert result(copy) == result(trained)


def gone(run):
    Checkpoints(run).previous.unlink()
    Checkpoints(run).last.unlink()


def truncated(run):
    Checkpoints(run).previous.unlink()
    os.truncate(Checkpoints(run).last, 30_000)


def of_another_network(run):
    """Put a checkpoint whose weights are of another shape where this run's was."""
    content = load_checkpoint(Checkpoints(run).last)
    content["classifier"]["weights"]["features.0.weight"] = np.zeros((9, 3, 5, 5), np.float32)
    ta.save(content, Checkpoints(run).last)


def changed(run, *keys, value):
    """Put another value where the keys lead to in the checkpoint."""
    content = place = load_checkpoint(Checkpoints(run).last)
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    ta.save(content, Checkpoints(run).last)


def of_another_mean(run):
    changed(run, "classifier", "mean", value=np.zeros((31, 31, 3), np.float32))


def with_weights_that_are_none(run):
    changed(run, "classifier", "weights", "features.0.weight", value=3)


def with_no_velocities(run):
    changed(run, "optimizer", "velocity", value=[1, 2, 3, 4, 5, 6])


def with_no_state(run):
    changed(run, "state", value={})


def of_more_threads(run):
    changed(run, "settings", "threads", value=10**6)


def with_data_that_is_no_folder(run):
    changed(run, "settings", "data", value=5)


def only_the_best(run):
    Checkpoints(run).best.rename(Checkpoints(run).last)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (gone, "there is no checkpoint"),
        (truncated, "last.safetensors is damaged"),
        (of_another_network, "copy cannot be resumed: these weights do not fit"),
        (only_the_best, "it lacks ['optimizer', 'random', 'schedule']"),
        (of_another_mean, "the mean image has shape (31, 31, 3), expected (32, 32, 3)"),
        (with_weights_that_are_none, "cannot be resumed: no run wrote its state, AttributeError("),
        (with_no_velocities, "cannot be resumed: no run wrote its state, AttributeError("),
        (with_no_state, "last.safetensors cannot be used: this is not where a run was"),
        (of_more_threads, "the cores at hand; got 1000000: go on with --threads "),
        (with_data_that_is_no_folder, "data must be a folder, got 5"),
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
    assert f"in {moved} 'ash' had 24 images, not 25; put the images back" in complaints
    code, _, complaints = run(TRAIN, "--resume", Checkpoints(copy).last)
    assert_refused(code, complaints, "last.safetensors is a file: give --resume the folder")


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (None, {"a": 1}, "the classes or the number of images in one of them have changed"),
        ({"a": 1}, {"a": 1}, "the images are split otherwise"),
        ({"a": 1, "b": 2}, {"a": 1, "c": 3}, "'b' had 2 images, not 0, 'c' had 0 images, not 3"),
        (dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2), "'c' had 1 images, not 2 and 2 mo"),
    ],
)
def test_what_changed_in_the_images_is_said(then, now, said):
    assert said in what_changed(then, now)


# --- limits


def test_steps_stop_a_run_that_can_go_on(photos, tmp_path, trained):
    code, said, _ = train_on(photos, tmp_path / "run", "--steps", 9)
    assert code == 0
    assert "stopped by the limit of 9 steps and saved at step 9 of 21; go on: " in said
    assert load_checkpoint(Checkpoints(tmp_path / "run").last)["state"]["step"] == 9
    assert run(TRAIN, "--resume", tmp_path / "run", "--steps", 21)[0] == 0
    assert result(tmp_path / "run") == result(trained)


def test_a_time_limit_stops_a_run_after_a_step_at_least(photos, tmp_path):
    code, said, _ = train_on(photos, tmp_path / "run", "--time-limit", "1s", "--epochs", 9999)
    assert code == 0
    assert "stopped by the time limit and saved at step " in said
    assert load_checkpoint(Checkpoints(tmp_path / "run").last)["state"]["step"] >= 1


def test_a_time_limit_leaves_time_for_a_step_and_a_save():
    stop = StopRequest(deadline=time.monotonic() + 60)
    stop.reserve = 50
    assert not stop
    stop.reserve = 61
    assert stop
    stop.reserve = 0
    assert stop  # for good
    assert stop.error().exit_code == 0


# --- instead of training


def test_images_can_be_learned_by_heart(photos, tmp_path):
    code, said, _ = train_on(photos, tmp_path / "run", "--overfit", 9)
    assert code == 0
    assert "learned: data, labels, network and recipe work together" in said
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_learned_by_heart(photos, tmp_path):
    code, said, complaints = train_on(photos, tmp_path / "run", "--overfit", 9, "--lr", 1e-9)
    assert code == 1
    assert said.count("/500  loss 1.") == 21
    assert "the loss did not fall below 0.1 in 500 steps: try --initial-weights data" in complaints


def test_the_images_to_learn_by_heart_are_from_every_class(photos):
    images = chosen_images(new_run(tiny_settings(photos)), 6)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_table_of_layers(photos, tmp_path):
    code, said, _ = train_on(photos, tmp_path / "run", "--summary")
    assert code == 0
    assert "Conv2d-1" in said
    assert not list(tmp_path.iterdir())


# --- TensorBoard


def scalars(folder):
    """Return (step, name, value) of all scalars in event files: length, checksum, event, again."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            while head := file.read(12):
                event = Event.FromString(file.read(int.from_bytes(head[:8], "little")))
                file.read(4)
                found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_tensorboard_shows_the_metrics(photos, tmp_path):
    out = tmp_path / "run"
    assert train_on(photos, out, "--tensorboard", "--epochs", 1)[0] == 0
    assert run(TRAIN, "--resume", out, "--tensorboard", "--epochs", 2)[0] == 0
    shown = scalars(out / "tensorboard")
    rows = read_metrics(out / "metrics.jsonl")
    losses = [(row["step"], row["loss"]) for row in rows if row["kind"] == "step"]
    assert [(step, v) for step, name, v in shown if name == "step/loss"] == [
        (step, np.float32(loss)) for step, loss in losses
    ]
    assert [v for _, name, v in shown if name == "epoch/val_top1"] == [
        np.float32(row["val_top1"]) for row in rows if row["kind"] == "epoch"
    ]


def to_a_full_disk(row):
    Path("/dev/full").write_text("row")


def to_a_file_to_be_read(row):
    with open(os.devnull, "rb", buffering=0) as file:
        file.write(b"row")  # an OSError without a number


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (to_a_full_disk, "No space left on device"),
        (to_a_file_to_be_read, "File not open for writing"),
    ],
)
def test_a_full_disk_ends_what_goes_to_tensorboard_alone(photos, tmp_path, write, reason):
    training = trainer(new_run(tiny_settings(photos)), tmp_path)
    training.on_row = write
    training.train()
    warnings = [line for line in training.progress.said if line.startswith("warning")]
    assert warnings == [f"warning: no more goes to TensorBoard ({reason})"]


def test_tensorboard_is_asked_for_by_name(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    code, _, complaints = train_on(photos, tmp_path / "run", "--tensorboard")
    assert_refused(code, complaints, "needs the package tensorboardX: pip install tensorboardX")
    assert not list(tmp_path.iterdir())


# --- runs that go wrong


def test_a_loss_that_is_no_number_ends_the_run_with_3(photos, tmp_path):
    code, _, complaints = train_on(photos, tmp_path / "run", "--lr", "1e30")
    assert code == 3
    assert complaints.count("\n") == 1
    assert "in step 2 (epoch 1): forward in fc2, whose output has values" in complaints
    assert "a lower rate (it was 1e+30): " in complaints
    assert "--allow-change --lr 5e+29" in complaints
    last = load_checkpoint(Checkpoints(tmp_path / "run").last)
    assert last["state"]["step"] == 0
    assert all(np.isfinite(w).all() for w in last["classifier"]["weights"].values())


def test_too_many_unreadable_images_end_the_run(tmp_path):
    photos = draw_photos(tmp_path / "photos")
    bad = [Path(p) for p in new_run(tiny_settings(photos)).train_data.dataset.paths[::9]]
    for path in bad:
        path.write_text("no image")
    code, _, complaints = train_on(photos, tmp_path / "run")
    assert_refused(code, complaints, "images cannot be read")
    assert "replace them under the same names and go on: " in complaints
    assert "--resume" in complaints
    rng = np.random.default_rng(0)
    for path in bad:
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), np.uint8)).save(path)
    assert run(TRAIN, "--resume", tmp_path / "run")[0] == 0


def test_held_out_images_that_cannot_be_read_are_found_before_training(tmp_path):
    photos = draw_photos(tmp_path / "photos")
    for path in new_run(tiny_settings(photos)).val_data.dataset.paths[:2]:
        Path(path).write_text("no image")
    code, _, complaints = train_on(photos, tmp_path / "run")
    assert_refused(code, complaints, "2 of 15 images cannot be read")
    assert not (tmp_path / "run").exists()


def test_memory_that_does_not_suffice_ends_the_run_with_1(photos, tmp_path, capsys):
    command = load(TRAIN)
    _, settings, _ = read_arguments(
        ["--variant", "tiny", "--data", str(photos), "--out", str(tmp_path / "run")]
    )
    with ExitStack() as held:
        trainer = command.prepare(command.new_run(settings), tmp_path / "run", held)
        trainer.run.train_data.transform.shape = (2**26, 2**26, 3)
        assert command.train(trainer, StopRequest()) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: the memory does not suffice: keep fewer images in it (")
    assert "--image-cache 0), or lower --batch-size (now 8)" in complaint


def test_a_disk_that_is_full_at_the_end_ends_the_run_with_1(photos, tmp_path, disk):
    command = load(TRAIN)
    _, settings, _ = read_arguments(
        ["--variant", "tiny", "--data", str(photos), "--out", str(tmp_path / "run")]
    )
    with ExitStack() as held:
        trainer = command.prepare(command.new_run(settings), tmp_path / "run", held)
        disk(20_000)
        assert command.train(trainer, StopRequest()) == 1
        disk(None)
    assert load_checkpoint(trainer.checkpoints.last)["state"]["step"] == 0
    assert run(TRAIN, "--resume", tmp_path / "run")[0] == 0
