"""tinyalex train with faults: one sentence, an exit code, nothing lost."""

import itertools
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import (
    ROOT,
    TINY,
    TRAIN,
    assert_refused,
    contents,
    draw_photos,
    finish,
    load,
    run,
    start,
    tiny_settings,
    train_on,
)
from PIL import Image

from tinyalex.cli.train_options import read_arguments
from tinyalex.models import VARIANTS
from tinyalex.models.spec import Gaussian, Linear
from tinyalex.training import Checkpoints, StopRequest, load_checkpoint, new_run
from tinyalex.training.build import resumed_run
from tinyalex.training.run_folder import open_run_folder

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


# --- what is refused, before training and in one sentence


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--variant", "vgg"], "invalid choice: 'vgg'"),
        (["--lr", "nan"], "error: --lr must be a finite number > 0, got nan"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--batch-size", "58"], "a batch of 58 needs more than the 57 images"),
        (["--threads", "1000000"], "the number of threads must be at most"),
        (["--schedule", "sawtooth"], "invalid choice: 'sawtooth'"),
        (["--shade", "blue"], "unrecognized arguments: --shade blue"),
        (["--steps", "0"], "--steps: expected a whole number >= 1, got '0'"),
        (["--time-limit", "2 days"], "expected a time like 2h, 1h30m or 90s, got '2 days'"),
        (["--overfit", "58"], "error: --overfit must be at most 57"),
        (["--overfit", "5", "--dry-run"], "not allowed with argument"),
        (["--overfit", "5", "--time-limit", "1h"], "does not train: leave --time-limit out"),
        (["--dry-run", "--steps", "5"], "--dry-run does not train: leave --steps out"),
        (["--summary", "--tensorboard"], "does not train: leave --tensorboard out"),
        (["--allow-change"], "--allow-change is for --resume alone: leave it out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be(photos, tmp_path, arguments, expected):
    code, _, complaints = train_on(photos, tmp_path / "out", *arguments)
    assert_refused(code, complaints, expected)
    assert not list(tmp_path.iterdir())


BAD = {
    **dict.fromkeys(("epochs", "batch_size", "workers", "threads", "shards", "lr"), "0"),
    **dict.fromkeys(("weight_decay", "mixup", "average", "seed", "image_cache"), "-1"),
    **dict.fromkeys(("dropout", "label_smoothing", "input_size", "first_size"), "1"),
    **{"freeze": "conv1", "unfreeze_after": "1", "head_lr_factor": "2", "layer_lr_decay": "0.5"},
    **{"precision": "high", "parallel": "towers", "read_loss_every": "11", "cuda_graph": None},
}
"""Values that settings cannot have."""


@pytest.mark.parametrize(("setting", "value"), BAD.items(), ids=str)
def test_a_setting_is_called_by_its_option(tmp_path, setting, value):
    option = f"--{setting.replace('_', '-')}"
    code, _, complaints = run(TRAIN, option, *filter(None, [value]), "--out", tmp_path / "run")
    assert_refused(code, complaints, f"error: {option} must be ")


NAMES = {
    "train": (["--data"], ["--out"], ["--resume"]),
    "prepare": (["--verify"], ["photos"]),
    "predict": ([], ["run"], ["run", "photos", "--out"], ["run", "photos", "--sort"]),
    "evaluate": ([], ["run", "--data"], ["run", "--out"]),
    "convert": ([], ["run"], ["run", "out", "--classes"], ["run", "out", "--mean"]),
    "look": ([], ["run", "answers"], ["run", "neighbours", "--among"], ["run", "curves", "--out"]),
}
"""Of each command, what comes before the names that it takes."""


@pytest.mark.parametrize(
    ("command", "before"), [(name, before) for name in NAMES for before in NAMES[name]]
)
def test_an_empty_name_is_not_the_current_folder(command, before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, complaints = run(command, *before, "")
    assert_refused(code, complaints, "expected a name, got nothing")
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


def name_that_is_no_utf8(folder):
    (draw_photos(folder, count=2) / "ash").rename(folder / os.fsdecode(b"as\xffh"))


def name_that_steers_the_terminal(folder):
    (draw_photos(folder, count=2) / "ash").rename(folder / "as\x1b[2Jh")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (missing, "No such file or directory"),
        (empty, "expected one folder for each class"),
        (a_file, "found a file"),
        (one_class, "expected at least 2 classes, found only 'ash'"),
        (class_without_images, "no images (.jpg"),
        (all_unreadable, "images could be read"),
        (name_that_is_no_utf8, r"the folder 'as\udcffh' has control characters in its name, or"),
        (name_that_steers_the_terminal, r"the folder 'as\x1b[2Jh' has control characters"),
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


@pytest.mark.parametrize("out", ["photos", "photos/run", "photos/train/run", "disk/val", None])
def test_an_output_folder_that_cannot_be_among_the_images(tmp_path, monkeypatch, out):
    photos = tmp_path / "photos"
    photos.mkdir()
    for split in ("train", "val"):
        (photos / split).symlink_to(draw_photos(tmp_path / "disk" / split, count=9))
    before = contents(tmp_path)
    monkeypatch.chdir(photos)  # into which runs/ goes by default
    place = ("--out", tmp_path / out) if out else ()
    code, _, complaints = run(TRAIN, "--variant", "tiny", "--data", ".", *place)
    assert_refused(code, complaints, "and would be taken for a class: give an --out elsewhere")
    assert contents(tmp_path) == before


def test_an_output_folder_that_cannot_be_written(photos, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    places = {file: "Not a directory", file / "out": f"{file}: Not a directory"}
    for (out, reason), dry in itertools.product(places.items(), ([], ["--dry-run"])):
        code, said, complaints = train_on(photos, out, *dry)
        expected = f"error: {out} cannot be written to ({reason}): give another place with --out\n"
        assert (code, said, complaints) == (2, "", expected)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_full_disk_is_found_out_before_training(photos, tmp_path, dry):
    def shrink():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    arguments = ("--variant", "tiny", "--data", photos, "--out", tmp_path / "out", *dry)
    code, said, complaints = finish(start(TRAIN, *arguments, preexec_fn=shrink))
    expected = f"{tmp_path / 'out/last.safetensors'}: File too large, there is no room for the file"
    assert_refused(code, complaints, expected)
    assert "epoch 1" not in said
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert not list((tmp_path / "out").glob(".*"))


def test_names_that_the_terminal_lacks_are_escaped(tmp_path, monkeypatch):
    photos = draw_photos(tmp_path / "photos", count=5)
    (photos / "ash").rename(photos / "Äsche")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    arguments = ("--variant", "tiny", "--data", photos, "--summary")
    code, said, complaints = finish(start(TRAIN, *arguments))
    assert (code, complaints) == (0, "")
    assert "3: birch 4, elm 4, \\xc4sche 4;" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--variant", "vgg"], "invalid choice"), (["--data", "/nowhere"], "/nowhere: expected a")],
)
def test_refusals_in_a_process_of_its_own(tmp_path, arguments, expected):
    code, _, complaints = finish(start(TRAIN, "--out", tmp_path / "out", *arguments))
    assert_refused(code, complaints, expected)


@pytest.mark.parametrize(("kept", "how"), [(3, []), (2, []), (1, []), (0, []), (3, ["--dry-run"])])
def test_a_folder_that_holds_a_run_is_not_overwritten(photos, copy, kept, how):
    for name in ("last", "previous", "best")[: 3 - kept]:
        (copy / f"{name}.safetensors").unlink()
    before = contents(copy)
    code, _, complaints = train_on(photos, copy, *how)
    assert_refused(code, complaints, f"{copy} holds a run already: ")
    assert (f"resume it by --resume {copy}, or" in complaints) == (kept > 1)
    assert "give another --out" in complaints
    assert contents(copy) == before


@pytest.mark.parametrize("began", [True, False])
def test_what_another_process_trained_meanwhile_is_not_overwritten(photos, copy, began):
    out = copy if began else copy / "new"
    begin = ["--variant", "tiny", "--data", str(photos), "--out", str(out)]
    resume = ["--resume", str(out)]
    _, settings, checkpoints, checkpoint = read_arguments(resume if began else begin)
    mine = resumed_run(settings, checkpoint, out) if began else new_run(settings)
    assert run(TRAIN, *(["--resume", out, "--epochs", 4] if began else begin))[0] == 0
    before = contents(copy)
    refused = pytest.raises(ValueError, match="another process has trained in")
    with refused, open_run_folder(mine, checkpoints, StopRequest(), "again"):
        pass
    assert contents(copy) == before


def test_a_folder_in_which_another_process_trains_is_left_alone(photos, copy):
    program = """if True:
        import pathlib, sys, time
        from tinyalex.folders import locked
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
    assert "replace them under the same names and resume: " in complaints
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


def test_memory_that_does_not_suffice_from_the_start_ends_with_1(photos, tmp_path, monkeypatch):
    layers = (Linear(2**31 - 1, Gaussian(0.02)), Linear(None, Gaussian(0.01)))
    monkeypatch.setitem(VARIANTS, "tiny", replace(TINY, classifier=layers))
    code, _, complaints = train_on(photos, tmp_path / "run")
    assert code == 1
    assert complaints.startswith("error: the memory does not suffice: lower --batch-size (Unable")


def test_memory_that_does_not_suffice_ends_the_run_with_1(photos, tmp_path, capsys):
    new, stop = new_run(tiny_settings(photos)), StopRequest()
    with open_run_folder(new, Checkpoints(tmp_path / "run"), stop, "again") as trainer:
        trainer.run.train_data.transform.shape = (2**26, 2**26, 3)
        assert load(TRAIN).train(trainer, stop) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: the memory does not suffice: keep fewer images in it (")
    assert "--image-cache 0), or lower --batch-size (now 8)" in complaint


def test_a_disk_that_is_full_at_the_end_ends_the_run_with_1(photos, tmp_path, disk):
    new, stop = new_run(tiny_settings(photos)), StopRequest()
    with open_run_folder(new, Checkpoints(tmp_path / "run"), stop, "again") as trainer:
        disk(20_000)
        assert load(TRAIN).train(trainer, stop) == 1
        disk(None)
    assert load_checkpoint(trainer.checkpoints.last)["state"]["step"] == 0
    assert run(TRAIN, "--resume", tmp_path / "run")[0] == 0
