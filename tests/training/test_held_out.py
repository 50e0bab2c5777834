"""The images held out by a run, whatever becomes of its data."""

import json
import os
import re
import shlex
import shutil
import sys
import unicodedata
from pathlib import Path

import images
import numpy as np
import pytest
from commands import TRAIN, assert_refused, draw_photos, result, run, train_on

import tinyalex as ta
from tinyalex.calls import words_of
from tinyalex.data import ImageFolder
from tinyalex.text import counted
from tinyalex.training import Checkpoints, load_checkpoint

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(autouse=True)
def no_matplotlib(monkeypatch):
    """Let evaluate.py and runs leave out the pictures that take most of their time here."""
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.colors"):
        monkeypatch.setitem(sys.modules, name, None)


def edit(folder, change):
    """Change what the checkpoints of a run hold."""
    for path in folder.glob("*.safetensors"):
        content = load_checkpoint(path)
        change(content)
        ta.save(content, path)


@pytest.fixture
def data(photos, copy, tmp_path):
    """Return a copy of the photos, which the run in `copy` has for its data."""
    data = shutil.copytree(photos, tmp_path / "data")
    edit(copy, lambda content: content["settings"].update(data=str(data)))
    return data


def evaluated(copy, *arguments):
    """Return the exit code of evaluate.py, what it says of accuracy, and its complaints."""
    code, said, complaints = run("evaluate", copy, "--crops", 1, *arguments)
    return code, re.findall(r"(?m)^(?:ash|birch|elm|all) .*|^loss.*", said), complaints


def held_out(data):
    return [Path(path) for path in ImageFolder(data, "val").paths]


def learned(data):
    return [Path(path) for path in ImageFolder(data, "train").paths]


def nothing(data):
    pass


def rename_one_of_each_class(data):
    for name in ("ash", "birch", "elm"):
        path = next(path for path in learned(data) if path.parent.name == name)
        path.rename(path.with_name("zz.png"))


def delete_a_training_image(data):
    learned(data)[0].unlink()


def add(data):
    shutil.copy(held_out(data)[0], data / "ash" / "00a.png")


def add_a_class(data):
    images.folder(data, oak=3)


def rename_held_out(data):
    path = held_out(data)[0]
    path.rename(path.with_name("zz.png"))


def delete_held_out(data):
    held_out(data)[3].unlink()


def move_to_another_class(data):
    path = held_out(data)[0]
    path.rename(data / "elm" / "zz.png")


def exchange(data):
    one, two = held_out(data)[0], learned(data)[0]
    one.rename(data / "x")
    two.rename(one)
    (data / "x").rename(two)


def number_anew(data):
    """Delete an image, and give each one behind it the name of the one before."""
    first, *rest = sorted((data / "ash").iterdir())
    first.unlink()
    for path in rest:
        path.rename(path.with_name(f"{int(path.stem) - 1:02}.png"))
    shutil.copy(rest[0].with_name("00.png"), rest[-1])


def rename_a_class(data):
    (data / "ash").rename(data / "oak")


def exchange_two_classes(data):
    (data / "ash").rename(data / "x")
    (data / "birch").rename(data / "ash")
    (data / "x").rename(data / "birch")


def split_into_folders(data):
    places = [(path, "train") for path in learned(data)] + [
        (path, "val") for path in held_out(data)
    ]
    for path, split in places:
        target = data / split / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for name in ("ash", "birch", "elm"):
        (data / name).rmdir()


HARMLESS = [nothing, rename_one_of_each_class, delete_a_training_image, add, add_a_class]
HARMFUL = {
    rename_held_out: "1 is no longer there: ash/",
    delete_held_out: "1 is no longer there: ash/",
    move_to_another_class: "1 is no longer there: ash/",
    exchange: "of the 15 images that the run held out, 1 has other contents than then: ash/",
    number_anew: "have other contents than then: ash/",
    exchange_two_classes: "of the 15 images that the run held out, 10 have other contents",
    rename_a_class: "does not hold the classes of the run any more: ash gone, oak new",
    split_into_folders: "ash, birch, elm gone, train, val new",
}


@pytest.mark.parametrize("change", HARMLESS)
def test_evaluation_is_of_the_same_images(change, data, copy):
    before = evaluated(copy)
    change(data)
    assert evaluated(copy) == before
    assert before[0] == 0


@pytest.mark.parametrize(("change", "expected"), HARMFUL.items())
def test_evaluation_of_other_images_is_refused(change, expected, data, copy):
    change(data)
    for command in (["evaluate", copy], ["look", copy, "answers"]):
        code, _, complaints = run(*command)
        assert_refused(code, complaints, expected)
        assert str(data) in complaints
        assert complaints.endswith("; put them back, or name other images\n")


@pytest.mark.parametrize("change", [*HARMLESS[1:], *HARMFUL])
def test_a_run_does_not_go_on_with_other_images(change, data, copy):
    change(data)
    code, _, complaints = run(TRAIN, "--resume", copy, "--epochs", 4)
    assert_refused(code, complaints, "the data set is not the one that this run began with: ")
    assert "put the images back, or say with --data where they are" in complaints


def test_a_run_does_not_go_on_with_other_images_elsewhere(data, copy, tmp_path):
    other = shutil.copytree(data, tmp_path / "other")
    for path in other.glob("*/*.png"):
        path.write_bytes(path.read_bytes() + b"x")
    code, _, complaints = run(TRAIN, "--resume", copy, "--data", other, "--epochs", 4)
    assert_refused(code, complaints, f"held out in {other}, 15 have other contents than then: ash/")


def test_an_image_held_out_that_cannot_be_read_is_none_exchanged(data, copy):
    before = held_out(data)[1]
    before.rename(data / "x")
    before.symlink_to(before.name)
    assert run(TRAIN, "--resume", copy, "--epochs", 4)[0] == 0
    before.unlink()
    (data / "x").rename(before)
    assert run(TRAIN, "--resume", copy, "--epochs", 5)[0] == 0


def test_neighbours_are_those_that_the_run_learned_from(data, copy, tmp_path):
    arguments = ("look", copy, "neighbours", "--out")
    assert run(*arguments, tmp_path / "a.png")[0] == 0
    add(data)
    assert run(*arguments, tmp_path / "b.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    delete_a_training_image(data)
    code, _, complaints = run(*arguments, tmp_path / "c.png")
    assert_refused(code, complaints, "of the 57 images of the run, 1 is no longer there: ash/")


def test_ready_splits_are_kept(tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    for split, count in (("Train", 8), ("valid", 5), ("test", 4)):
        draw_photos(data / split, count)
    assert train_on(data, out, "--epochs", 1)[0] == 0
    before = evaluated(out)
    shutil.copy(data / "Train/ash/00.png", data / "test/ash/new.png")
    assert evaluated(out) == before
    alone = shutil.copytree(data / "test", tmp_path / "alone")
    (data / "test/ash/02.png").rename(data / "Train/ash/02x.png")
    assert_refused(
        *evaluated(out)[::2], "of the 12 images of the run, 1 is no longer there: ash/02"
    )
    assert evaluated(out, "--data", alone, "--held-out") == before
    assert_refused(*run(TRAIN, "--resume", out)[::2], "began with: ")


def test_names_in_another_unicode_form_are_the_same(tmp_path):
    data, out = draw_photos(tmp_path / "data", 8), tmp_path / "run"
    (data / "elm").rename(data / "frêne")
    for before, name in (("00", "é"), ("05", "z")):
        (data / "ash" / f"{before}.png").rename(data / "ash" / f"{name}.png")
    assert train_on(data, out, "--epochs", 1)[0] == 0
    before, same = evaluated(out), shutil.copytree(out, tmp_path / "same")
    assert run(TRAIN, "--resume", same, "--epochs", 2)[0] == 0
    for path in [*data.glob("ash/*"), *data.glob("*")]:
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert sorted(path.name for path in data.glob("ash/*"))[-1] == "z.png"  # another order
    assert evaluated(out) == before
    assert run(TRAIN, "--resume", out, "--epochs", 2)[0] == 0
    assert result(out) == result(same)


@pytest.mark.parametrize("twins", ["images", "classes"])
def test_two_unicode_forms_of_a_name_are_two_images(twins, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    forms = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    if twins == "images":
        images.folder(data, ash=16, birch=16)
        for folder in data.iterdir():
            for number, path in enumerate(sorted(folder.iterdir())):
                path.rename(path.with_name(f"{forms[number % 2]}{number // 2}.png"))
    else:
        images.folder(data, **{"ash": 6, "x": 6, "y": 6})
        (data / "x").rename(data / forms[0])
        (data / "y").rename(data / forms[1])
    assert train_on(data, out, "--epochs", 1)[0] == 0
    assert evaluated(out)[::2] == (0, "")
    if twins == "images":
        others = {unicodedata.normalize("NFC", str(path)) for path in held_out(data)}
        twin = next(p for p in learned(data) if unicodedata.normalize("NFC", str(p)) in others)
        twin.unlink()
    else:
        shutil.rmtree(data / forms[0])
    code, _, complaints = run(TRAIN, "--resume", out, "--epochs", 2)
    assert_refused(code, complaints, "gone" if twins == "classes" else "1 is no longer there: ")


# --- splits that share files


def link_to_folder(train, val):
    val.symlink_to(train.name)


def link_class_folders(train, val):
    shutil.copytree(train, val)
    shutil.rmtree(val / "elm")
    (val / "elm").symlink_to(train / "elm")


def link_images(train, val):
    val.mkdir()
    for path in train.glob("*/*0.png"):
        (val / path.parent.name).mkdir()
        (val / path.parent.name / "x.png").symlink_to(path)


def link_hard(train, val):
    shutil.copytree(train, val, copy_function=os.link)


SHARED = {link_to_folder: 24, link_class_folders: 8, link_images: 3, link_hard: 24}


@pytest.mark.parametrize(("link", "count"), SHARED.items())
def test_splits_that_share_files_are_refused(link, count, tmp_path, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "run"
    link(draw_photos(data / "train", 8), data / "val")
    code, _, complaints = train_on(data, out, "--epochs", 1)
    files = counted(count, "image file belongs", "image files belong")
    assert_refused(code, complaints, f"{files} to train and to val, by links")
    assert f"{data}/train/" in complaints
    assert f" is {data}/val/" in complaints
    monkeypatch.setattr("tinyalex.training.build.in_both", lambda splits: "")
    assert train_on(data, out, "--epochs", 1)[0] == 0  # as runs did before this was noticed
    monkeypatch.undo()
    _, _, complaints = evaluated(out)
    assert f"warning: the run learned from {count} of " in complaints
    assert "images here: that says nothing about others" in complaints


def test_an_image_linked_into_a_drawn_split_is_in_one_part_alone(photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    shutil.copytree(data / "ash", data / "oak", copy_function=os.link)
    code, _, complaints = train_on(data, tmp_path / "run", "--epochs", 1)
    assert_refused(code, complaints, " to train and to val, by links")


# --- runs from before


def forget(copy):
    edit(copy, lambda content: content.pop("split", None))


def test_a_run_from_before_has_the_images_that_are_split_so_now(data, copy):
    same = shutil.copytree(copy, copy.with_name("same"))
    before = evaluated(copy)
    images.write(data / "ash" / "a.png").rename(data / "ash" / "0.jfif")  # which was none
    images.write(data / "ash" / "@eaDir" / "a.png").rename(data / "0.png")
    forget(copy)
    *answer, note = evaluated(copy)
    assert answer == list(before[:2])
    assert note.startswith(f"note: {copy / 'best.safetensors'} is from before runs kept the names")
    (data / "ash" / "0.jfif").unlink()
    assert run(TRAIN, "--resume", same, "--epochs", 4)[0] == 0
    (data / "ash" / "@eaDir").rmdir()
    images.write(data / "ash" / "a.png").rename(data / "ash" / "0.jfif")
    for epochs in (4, 5):  # the second time with the names that the first has written
        assert run(TRAIN, "--resume", copy, "--epochs", epochs)[0] == 0
        if epochs == 4:
            assert result(copy)[0]["classifier"] == result(same)[0]["classifier"]
    add(data)
    forget(copy)
    code, _, complaints = evaluated(copy)
    assert code == 2
    assert "'ash' had 24 images, not 25; put the images back, or say with --data" in complaints


@pytest.mark.parametrize("damage", [{}, 5, {"train": {}}, {"train": None, "val": None}, "names"])
def test_names_that_no_run_wrote(damage, data, copy):
    def spoil(content):
        if damage == "names":
            content["split"]["val"]["names"] = np.zeros(3, np.uint8)
        else:
            content["split"] = damage

    edit(copy, spoil)
    for command in (["evaluate", copy], [TRAIN, "--resume", copy]):
        code, _, complaints = run(*command)
        whole = damage in ({}, "names")
        assert_refused(code, complaints, "the names of images in " if whole else "used: split")


def test_a_split_leads_nowhere_else(data, copy):
    for folder in ("..", "/etc", "a/b"):
        edit(copy, lambda content, folder=folder: content["split"]["val"].update(folder=folder))
        assert_refused(*evaluated(copy)[::2], "is no name for the folder of a split")


# --- other images, and images elsewhere


def one_class(data, other):
    return shutil.copytree(data / "ash", other / "ash").parent


def five_linked(link):
    """Return a function that makes a folder of links to five images that were learned from."""

    def make(data, other):
        (other / "ash").mkdir(parents=True)
        for path in learned(data)[:5]:
            link(path, other / "ash" / f"x{path.name}")
        return other

    return make


def copy_after_all_is_gone(data, other):
    data.rename(other)
    return other


def copy_below(data, other):
    shutil.copytree(data, other)
    return other.rename(data / "backup")


LEARNED = {
    "copies below": (copy_below, (57, 72, True)),
    "hard links": (five_linked(os.link), (5, 5, False)),
    "the folder itself": (lambda data, other: data, (57, 72, True)),
    "one class": (one_class, (19, 24, True)),
    "links": (five_linked(os.symlink), (5, 5, False)),
    "copies": (shutil.copytree, (57, 72, True)),
    "copies, and all is gone": (copy_after_all_is_gone, (57, 72, True)),
}


@pytest.mark.parametrize(("make", "expected"), LEARNED.values(), ids=LEARNED)
def test_evaluating_training_images_is_said(make, expected, data, copy, tmp_path):
    other = make(data, tmp_path / "other")
    code, _, complaints = evaluated(copy, "--data", other)
    count, among, some_held_out = expected
    assert code == 0
    assert complaints.startswith(f"warning: the run learned from {count} of {among} images here")
    assert ("judging by their names" in complaints) == (make is copy_after_all_is_gone)
    assert (f"--data {other} --held-out takes those alone" in complaints) == some_held_out


def test_other_images_under_the_same_names_are_others(data, copy, tmp_path):
    other = images.folder(tmp_path / "other", ash=2, elm=2)
    for path in other.glob("*/*.png"):
        path.rename(path.with_name(f"{path.stem[1:]}.png"))
    assert evaluated(copy, "--data", other)[::2] == (0, "")
    only = tmp_path / "only"
    for path in held_out(data):
        (only / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, only / path.parent.name)
    assert evaluated(copy, "--data", only)[::2] == (0, "")


@pytest.mark.parametrize("learned_from_prepared", [False, True])
def test_prepared_copies_of_training_images_are_known(learned_from_prepared, data, tmp_path):
    clean, out = tmp_path / "clean", tmp_path / "run"
    assert run("prepare", data, clean, "--size", 36, "--processes", 1)[0] == 0
    one, other = (clean, data) if learned_from_prepared else (data, clean)
    assert train_on(one, out, "--epochs", 1)[0] == 0
    code, _, complaints = evaluated(out, "--data", other)
    assert code == 0
    assert complaints.startswith("warning: the run learned from 57 of 72 images here")


def test_a_copy_with_names_in_another_unicode_form_is_known(tmp_path):
    data, out = draw_photos(tmp_path / "data", 8), tmp_path / "run"
    for path in data.glob("*/*.png"):
        path.rename(path.with_name(f"é{path.name}"))
    (data / "elm").rename(data / "frêne")
    assert train_on(data, out, "--epochs", 1)[0] == 0
    other = shutil.copytree(data, tmp_path / "other")
    for path in [*other.glob("*/*"), *other.glob("*")]:
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    code, _, complaints = evaluated(out, "--data", other)
    assert code == 0
    assert complaints.startswith("warning: the run learned from 18 of 24 images here")


def test_the_files_that_links_lead_to_are_known(photos, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    for path in photos.glob("*/*.png"):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        (data / path.parent.name / f"x{path.name}").symlink_to(path)
    assert train_on(data, out, "--epochs", 1)[0] == 0
    _, _, complaints = evaluated(out, "--data", photos)
    assert complaints.startswith("warning: the run learned from 57 of 72 images here")


@pytest.mark.parametrize("root", ["all", "train"])
@pytest.mark.parametrize("learned_from_prepared", [False, True])
def test_a_part_of_a_prepared_folder_is_known(root, learned_from_prepared, tmp_path):
    data, clean, out = tmp_path / "data", tmp_path / "clean", tmp_path / "run"
    for split, count in (("train", 8), ("val", 5)):
        draw_photos(data / split, count)
    for path in data.glob("val/*/*"):  # which would be copies of training images
        path.write_bytes(path.read_bytes() + b"x")
    assert run("prepare", data, clean, "--size", 36, "--processes", 1)[0] == 0
    one, other = (clean, data) if learned_from_prepared else (data, clean)
    assert train_on(one if root == "all" else one / "train", out, "--epochs", 1)[0] == 0
    code, _, complaints = evaluated(out, "--data", other / "train")
    assert code == 0
    count = 24 if root == "all" else 18
    assert complaints.startswith(f"warning: the run learned from {count} of 24 images here")
    assert evaluated(out, "--data", other / "val")[::2] == (0, "")
    again = tmp_path / "test"
    if learned_from_prepared:
        shutil.copytree(data / "train", again)
    else:
        arguments = ("--size", 36, "--processes", 1)
        assert run("prepare", data / "train", again, *arguments)[0] == 0
    _, _, complaints = evaluated(out, "--data", again)
    assert complaints.startswith(f"warning: the run learned from {count} of 24 images here")


def test_names_that_no_file_has_cost_no_evaluation(data, copy, tmp_path):
    other = shutil.copytree(data, tmp_path / "other")
    entry = {"path": "\ud800", "source": "\ud800", "sha256": "", "size": 1, "source_size": 1}
    (tmp_path / "manifest.jsonl").write_text("{}\n" + json.dumps(entry) + "\n")
    code, _, complaints = evaluated(copy, "--data", other)
    assert code == 0
    assert complaints.startswith("warning: the run learned from 57 of 72 images here")


def test_printed_commands_run(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--variant", "tiny", "--data", photos, "--steps", 3)
    code, said, _ = run(TRAIN, *arguments, "--out=-my run's")
    assert code == 0
    before = len(words_of("train"))
    resume = shlex.split(said.partition("; resume: ")[2])[before:]
    code, said, _ = run(TRAIN, *resume)
    assert code == 0
    evaluate, predict = (shlex.split(line)[before:] for line in said.splitlines()[-2:])
    assert run("evaluate", *evaluate)[0] == 0
    assert run("predict", *predict[:-1], photos / "ash" / "00.png")[0] == 0
    again = json.loads(Path("-my run's", "run.json").read_text())["again"]
    assert run(TRAIN, *shlex.split(again)[before:])[0] == 0
    code, _, complaints = run(TRAIN, *arguments, "--out=-my run's")
    assert_refused(code, complaints, "holds a run already: resume it by --resume ")


def test_a_run_and_its_data_can_be_moved(data, copy, tmp_path):
    before = evaluated(copy)
    moved = shutil.move(copy, tmp_path / "moved run")
    shutil.move(data, tmp_path / "new place" / "photos")
    new = tmp_path / "new place" / "photos"
    for command in (["evaluate", moved], ["look", moved, "answers"], [TRAIN, "--resume", moved]):
        code, _, complaints = run(*command)
        assert_refused(
            code, complaints, f"were in {data}, which is no folder any more: say with --data"
        )
    assert evaluated(moved, "--data", new, "--held-out") == before
    assert run("look", moved, "features", "--data", new)[0] == 0
    code, said, _ = run(TRAIN, "--resume", moved, "--data", new)
    assert code == 0
    assert load_checkpoint(Checkpoints(moved).best)["settings"]["data"] == str(new)
    assert evaluated(moved) == before
    assert os.fspath(moved) in said.splitlines()[-2]


def test_the_data_of_a_run_that_draws_its_images_cannot_have_moved(tmp_path):
    out = tmp_path / "run"
    assert run(TRAIN, "--variant", "tiny", "--steps", 1, "--out", out)[0] == 0
    code, _, complaints = run("evaluate", out, "--data", tmp_path, "--held-out")
    assert_refused(code, complaints, "this run drew its images itself, they lie in no folder")
