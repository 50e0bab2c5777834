"""tinyalex predict and evaluate: what a trained network is good for."""

import errno
import os
import re
import shutil
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import draw_photos, load, run
from PIL import Image

from tinyalex.calls import pip_install
from tinyalex.data import ImageFolder, worker_processes
from tinyalex.training import (
    Checkpoints,
    Classifier,
    load_classifier,
    read_metrics,
)

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def test_predictions_of_files_and_folders(photos, trained, tmp_path):
    sheet = tmp_path / "sheet.png"
    images = [photos / "elm/03.png", photos / "ash"]
    code, said, complaints = run("predict", trained, *images, "--out", sheet)
    assert (code, complaints) == (0, "")
    lines = said.splitlines()
    assert lines[0].startswith(f"{photos / 'elm/03.png'}: ")
    assert [line.partition(": ")[0] for line in lines[1:-1]] == [
        str(photos / f"ash/{i:02}.png") for i in range(24)
    ]
    shares = [float(share) for share in re.findall(r" ([\d.]+)%", lines[0])]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert sorted(re.findall(r"(ash|birch|elm) ", lines[0].partition(": ")[2])) == [
        "ash", "birch", "elm"
    ]  # fmt: skip
    assert lines[-1] == f"drawn in {sheet}"
    with Image.open(sheet) as image:
        assert image.size[0] == 5 * 222 + 14
        assert image.size[1] > 4 * 300


def test_only_the_answers_that_are_drawn_are_kept(photos, trained, tmp_path, monkeypatch):
    probabilities, answers, alive = Classifier.probabilities, [], []

    def watched(self, *args, **options):
        alive.append(sum(answer() is not None for answer in answers))
        found = probabilities(self, *args, **options)
        answers.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Classifier, "probabilities", watched)
    code, said, _ = run("predict", trained, *[photos] * 3, "--out", tmp_path / "sheet.png")
    assert code == 0
    assert said.splitlines()[-1].endswith("(the first 40 of 216)")
    assert alive == [0, 1, 2, 3, 3, 3, 3]  # of 32 images each: two on the sheet, one under way


@pytest.mark.parametrize("crops", [1, 10])
def test_predictions_are_those_of_the_network(photos, trained, tmp_path, crops):
    classifier = load_classifier(trained)
    path = photos / "birch/05.png"
    (shares,) = classifier.probabilities([np.asarray(Image.open(path))], crops=crops)
    _, said, _ = run("predict", trained, path, "--crops", crops, "--out", tmp_path / "sheet.png")
    best = int(shares.argmax())
    assert f"{path}: {classifier.classes[best]} {shares[best]:.1%}" in said


def test_the_checkpoint_alone_is_enough(photos, trained, tmp_path):
    alone = shutil.copy(Checkpoints(trained).best, tmp_path / "moved.safetensors")
    image = photos / "elm/01.png"
    answers = [
        run("predict", checkpoint, image, "--out", tmp_path / "sheet.png")
        for checkpoint in (trained, alone)
    ]
    assert answers[0] == answers[1]


def test_unreadable_images_are_named_and_skipped(photos, trained, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    gone = tmp_path / "gone.jpg"
    sheet = tmp_path / "sheet.png"
    good = photos / "elm/00.png"
    code, said, complaints = run("predict", trained, bad, good, gone, "--out", sheet)
    assert code == 2
    assert said.count("\n") == 2
    assert complaints.splitlines()[0].startswith(f"skipped: {bad}: not an image")
    assert complaints.splitlines()[1].startswith(f"skipped: {gone}: No such file")
    sheet.unlink()
    code, said, complaints = run("predict", trained, bad, gone, "--out", sheet)
    assert code == 2
    assert complaints.splitlines()[-1] == "error: none of 2 images could be read"
    assert not sheet.exists()


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_checkpoints_that_cannot_be_used(command, photos, trained, tmp_path):
    arguments = [photos / "elm/00.png", "--out", tmp_path / "s.png"] if command == "predict" else []
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(Checkpoints(trained).best.read_bytes()[:999])
    for checkpoint, expected in (
        (tmp_path / "gone", "gone: give a file of weights, or the folder of a run"),
        (photos, "photos is not the folder of a run"),
        (truncated, "truncated.safetensors is damaged"),
    ):
        code, said, complaints = run(command, checkpoint, *arguments)
        assert (code, said) == (2, "")
        assert complaints.count("\n") == 1
        assert expected in complaints
    code, _, complaints = run(command, trained, *arguments, "--threads", 0)
    assert code == 2
    assert "threads must be a whole number" in complaints


def test_evaluation_agrees_with_training(trained, tmp_path):
    code, said, complaints = run("evaluate", trained, "--crops", 1, "--out", tmp_path)
    assert (code, complaints) == (0, "")
    best = max(row["val_top1"] for row in read_metrics(trained / "metrics.jsonl")
               if row["kind"] == "epoch")  # fmt: skip
    assert re.search(rf"all +15 +{best:.1%}\n", said)
    assert "guessing would be right in 33.3%" in said
    per_class = [float(x) for x in re.findall(r"(?:ash|birch|elm) +5 +([\d.]+)%", said)]
    assert len(per_class) == 3
    assert per_class == sorted(per_class)  # the worst first
    assert np.mean(per_class) == pytest.approx(100 * best, abs=0.1)


def test_evaluation_of_other_images(trained, tmp_path):
    folder = draw_photos(tmp_path / "more", count=4)
    shutil.rmtree(folder / "ash")  # some of the classes are enough
    (folder / "elm/broken.png").write_bytes(b"")
    out = tmp_path / "pictures"
    code, said, _ = run("evaluate", Checkpoints(trained).last, "--data", folder, "--out", out)
    assert code == 0
    assert re.search(r"all +8 ", said)
    assert "elm/broken.png: the file is empty" in said
    assert not re.search(r"^ash ", said, re.MULTILINE)
    shutil.rmtree(folder / "birch")
    code, said, _ = run("evaluate", trained, "--data", folder, "--out", out, "--crops", 1)
    assert code == 0
    assert re.search(r"all +4 ", said)
    (folder / "elm").rename(folder / "oak")
    code, _, complaints = run("evaluate", trained, "--data", folder)
    assert code == 2
    assert "classes that this network does not know: oak" in complaints


def test_evaluation_from_ten_crops_and_its_pictures(trained, photos, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "folder"
    code, said, complaints = run("evaluate", trained, "--out", out, "--batch-size", 35)
    assert (code, complaints) == (0, "")
    classifier = load_classifier(trained)
    dataset = ImageFolder(photos, "val", shorter_side=32)
    held_out = [dataset.load(i) for i in range(15)]
    answers = [classifier.probabilities(held_out, crops=n).argmax(axis=1) for n in (1, 10)]
    centre, ten = ((answer == dataset.labels).mean() for answer in answers)
    assert re.search(rf"all +15 +{centre:.1%} +{ten:.1%}\n", said)
    confused = re.findall(r"^  (\w+) taken for (\w+): (\d+) of 5", said, re.MULTILINE)
    wrong = Counter(
        (dataset.classes[right], dataset.classes[answer])
        for right, answer in zip(dataset.labels, answers[1], strict=True)
        if right != answer
    )
    assert {(right, answer): int(n) for right, answer, n in confused} == wrong
    assert sorted(path.name for path in out.iterdir()) == ["confusion.png", "mistakes.png"]
    assert f"in {out}:" in said
    assert f"the {wrong.total()} answers most surely wrong" in said


def test_evaluation_without_matplotlib_draws_the_rest(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.colors", None)
    code, said, _ = run("evaluate", trained, "--crops", 1, "--out", tmp_path)
    assert code == 0
    assert f"no confusion.png: matplotlib is missing ({pip_install('matplotlib')})" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mistakes.png"]


def test_evaluation_notices_that_the_classes_have_changed(trained, tmp_path):
    folder = draw_photos(tmp_path / "photos")
    out = tmp_path / "run"
    run("train", "--variant", "tiny", "--epochs", 1, "--data", folder, "--out", out)
    (folder / "ash").rename(folder / "oak")
    code, said, complaints = run("evaluate", out)
    assert (code, said) == (2, "")
    assert "does not hold the classes of the run any more: ash gone, oak new" in complaints
    assert complaints.count("\n") == 1


def test_a_stuck_disk_is_a_failure_on_the_way(trained, monkeypatch):
    monkeypatch.setattr(ImageFolder, "load", lambda self, index: answer.wait(60))
    monkeypatch.setattr(worker_processes, "PATIENCE", 1.0)
    answer = threading.Event()
    code, _, complaints = run("evaluate", trained)
    answer.set()
    assert code == 1
    assert re.fullmatch(r"error: 2 images were not read within 1 s, the last one .*\n", complaints)


def test_a_stuck_image_is_skipped_and_a_stuck_disk_ends_it(trained, photos, tmp_path, monkeypatch):
    predict, answer = load("predict"), threading.Event()
    stuck = {"01.png"}

    def wait_for_it(path):
        return answer.wait(60) if Path(path).name in stuck else read_bytes(path)

    read_bytes = predict.read_bytes
    monkeypatch.setattr(predict, "read_bytes", wait_for_it)
    monkeypatch.setattr(worker_processes, "PATIENCE", 0.6)
    arguments = [trained, photos / "elm", "--out", tmp_path / "s.png"]
    assert predict.main([str(argument) for argument in arguments]) == 0
    stuck.update(f"{number:02}.png" for number in range(24))
    assert predict.main([str(argument) for argument in arguments]) == 1
    answer.set()


def test_what_the_machine_lacks_is_a_failure_on_the_way(trained, photos, tmp_path, monkeypatch):
    """No test can take away every file handle in the middle, so the call that fails is replaced."""

    def fail(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    monkeypatch.setattr("tinyalex.data.image_file.open_regular", fail)
    path = photos / "elm/00.png"
    code, _, complaints = run("predict", trained, path, "--out", tmp_path / "s.png")
    assert (code, complaints) == (1, f"error: {path}: Too many open files\n")


@pytest.mark.parametrize("command", ["predict", "answers"])
def test_a_missing_image_among_several_is_an_error_at_the_end(command, trained, photos, tmp_path):
    name, *what = {"predict": ("predict",), "answers": ("look", trained, "answers")}[command]
    out = tmp_path / "s.png"
    some = [photos / "elm/00.png", tmp_path / "gone.png", photos / "elm/01.png"]
    checkpoint = () if what else (trained,)
    code, said, complaints = run(name, *what, *checkpoint, *some, "--out", out)
    assert code == 2
    assert complaints == f"skipped: {tmp_path}/gone.png: No such file or directory\n"
    assert f"drawn in {out}" in said
    assert out.exists()
    (tmp_path / "more").mkdir()
    (tmp_path / "more/broken.png").write_text("no image")
    shutil.copy(photos / "elm/00.png", tmp_path / "more")
    assert run(name, *what, *checkpoint, tmp_path / "more", "--out", out)[0] == 0  # not named


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        (".", "--out must name a file, {folder} is a folder"),
        (
            "/proc/sheet.png",
            "/proc cannot be written to (No such file or directory): give another place with --out",
        ),
        (
            "gone/sheet.png",
            "--out must name a file in a folder that is there, {folder}/gone is none",
        ),
    ],
)
def test_a_contact_sheet_that_cannot_be_written(photos, trained, tmp_path, out, expected):
    code, said, complaints = run("predict", trained, photos, "--out", tmp_path / out)
    assert (code, said) == (2, "")
    assert complaints == f"error: {expected.format(folder=tmp_path)}\n"


def test_a_folder_without_images(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    code, _, complaints = run("predict", trained, tmp_path, "--out", tmp_path / "sheet.png")
    assert code == 2
    assert re.fullmatch(rf"error: no images \(.*\) in {tmp_path}; skipped: 1 other\n", complaints)


def test_a_name_that_is_no_text(photos, trained, tmp_path):
    path = shutil.copy(photos / "elm/00.png", os.fsencode(tmp_path) + b"/\xff.png")
    code, said, _ = run("predict", trained, os.fsdecode(path), "--out", tmp_path / "sheet.png")
    assert code == 0
    said.encode()


@pytest.mark.parametrize(
    "command",
    ["look answers photos", "look filters", "look curves", "evaluate", "predict photos"],
)
def test_a_disk_that_is_full_when_the_picture_is_written_is_a_failure(
    photos, trained, tmp_path, disk, command
):
    name, *words = command.split()
    out = tmp_path if name == "evaluate" else tmp_path / "out.png"
    disk(512)
    words = [photos / "ash" if word == "photos" else word for word in words]
    code, said, complaints = run(name, trained, *words, "--out", out)
    assert code == 1
    assert "File too large, there is no room for the file" in said + complaints
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError("it"), OSError(5, "it"), OSError(24, "it")])
@pytest.mark.parametrize("command", ["look answers", "look neighbours", "predict"])
def test_what_fails_on_the_way_has_code_1_in_every_command(
    photos, trained, tmp_path, monkeypatch, command, error
):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    name, *words = command.split()
    arguments = (trained, *words, photos / "ash/00.png", "--out", tmp_path / "out.png")
    code, _, complaints = run(name, *arguments)
    assert code == 1
    assert re.fullmatch("error: .*it\n", complaints)
