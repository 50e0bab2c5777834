"""Splits of a folder of images: usual names, and no guesses."""

import re
import shutil

import images
import pytest
from commands import assert_refused, draw_photos, run, train_on
from preparing import lines, prepare

from tinyalex.data import DataError, ImageFolder, load_statistics
from tinyalex.data.layout import find_layout
from tinyalex.data.manifest import MANIFEST, STATISTICS
from tinyalex.data.training_statistics import prepared_statistics
from tinyalex.training.datasets import open_folder

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def lay_out(root, *folders):
    """Make each folder: "train/" with two classes, "car" with images; return the root."""
    for number, name in enumerate(folders):
        if name.endswith("/"):
            images.folder(root / name, ash=5 + number, elm=5 + number)
        else:
            images.folder(root, **{name: 4})
    return root


def sizes(root, layout=None):
    """Return how many images each split has."""
    has_test = "test" in find_layout(root, layout).splits
    splits = ("train", "val", "test") if has_test else ("train", "val")
    return [len(ImageFolder(root, split, layout=layout)) for split in splits]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train/", "val/"], [10, 12]),
        (["training/", "validation/"], [10, 12]),
        (["Train/", "Val/"], [10, 12]),
        (["TRAIN/", "valid/", "Test/"], [10, 12, 14]),
        (["training_set/", "test_set/"], [8, 2, 12]),
        (["train/", "test/"], [8, 2, 12]),
        (["train/", "val/", "other/"], [10, 12]),
        (["car", "bus", "train"], [9, 3]),
        (["car", "bus", "test"], [9, 3]),
        (["car", "val", "train"], [9, 3]),
    ],
)
def test_usual_names_are_splits_and_a_folder_of_images_is_a_class(folders, expected, tmp_path):
    assert sizes(lay_out(tmp_path, *folders)) == expected


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (
            ["car", "bus", "train/"],
            "train, which may be classes beside bus, car, or hold the training",
        ),
        (["car", "bus", "test/"], "give --layout classes, or put the others into a folder train"),
        (["train/", "val/", "validation/"], "the folders val, validation, and either could hold"),
        (
            ["train/", "Training/", "val/"],
            "could hold the training images: rename or remove one, or",
        ),
        (["train/"], "has a folder train but no val: add it, or give"),
        (["val/"], "found only val: add it, or give"),
        (["valid/", "test/"], "found only test, valid: add it, or give"),
        (
            ["train", "val"],
            "train: expected one folder for each class, with its images inside, found 4",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(folders, expected, tmp_path):
    root = lay_out(tmp_path, *folders)
    with pytest.raises(DataError) as caught:
        ImageFolder(root, "train")
    assert expected in str(caught.value)
    assert folders == ["train/"] or "--layout classes" in str(caught.value)
    if len(folders) > 1:
        assert ImageFolder(root, "train", layout="classes").classes == sorted(
            name.strip("/") for name in folders
        )


def test_a_layout_that_is_given_decides(tmp_path):
    root = lay_out(tmp_path, "train/", "car")
    assert sizes(root, "splits") == [8, 2]
    assert ImageFolder(root, "train", layout="splits").passed_over == {"beside the splits": 1}
    assert ImageFolder(root, layout="classes").classes == ["car", "train"]
    assert ImageFolder(lay_out(tmp_path / "both", "train/", "val/"), layout="classes").classes == [
        "train",
        "val",
    ]
    with pytest.raises(DataError, match="expected a folder with the training images"):
        ImageFolder(lay_out(tmp_path / "none", "car", "bus"), "train", layout="splits")


@pytest.mark.parametrize("content", ["loose", "foreign"])
def test_test_images_without_the_classes_are_passed_over(content, tmp_path):
    root = lay_out(tmp_path, "train/", "val/")
    images.write(root / "test" / ("1.png" if content == "loose" else "unknown/1.png"))
    assert sizes(root) == [10, 12]
    assert ImageFolder(root, "train").passed_over == {"beside the splits": 1}


def test_test_images_may_lack_classes(tmp_path):
    root = lay_out(tmp_path, "train/", "val/")
    images.folder(root / "test", elm=3)
    test = ImageFolder(root, "test")
    assert (test.classes, test.labels.tolist()) == (["ash", "elm"], [1, 1, 1])


def test_a_run_is_tested_on_its_test_images(tmp_path):
    for name, count in (("Training", 8), ("Test", 5)):
        draw_photos(tmp_path / "photos" / name, count)
    out = tmp_path / "run"
    code, said, _ = train_on(tmp_path / "photos", out, "--epochs", 1)
    assert code == 0
    assert "18 training, 6 validation, 15 test images\n" in said
    assert "% of 15 images that played no part in training" in said
    code, said, _ = run("evaluate", out, "--crops", 1)
    assert (code, "on the 15 images that the run held out" in said) == (0, True)
    code, said, _ = run("evaluate", out, "--crops", 1, "--data", tmp_path / "photos")
    assert (code, bool(re.search("all +15 ", said))) == (0, True)
    shutil.rmtree(tmp_path / "photos/Test")
    code, _, complaints = run("evaluate", out, "--data", tmp_path / "photos")
    assert_refused(code, complaints, "has training images alone: name")


def test_evaluation_takes_what_has_classes(tmp_path):
    root = lay_out(tmp_path, "train/", "val/")
    images.write(root / "test" / "1.png")
    assert len(open_folder(str(root), ["ash", "elm"], 8)) == 12
    images.write(root / "test" / "elm" / "1.png")
    assert open_folder(str(root), ["ash", "elm"], 8).labels.tolist() == [1]
    images.write(root / "test" / "oak" / "1.png")
    with pytest.raises(DataError, match="classes that this network does not know: oak"):
        open_folder(str(root), ["ash", "elm"], 8)


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare"])
def test_commands_take_the_layout(command, tmp_path, trained):
    root = draw_photos(tmp_path / "photos", count=4)
    shutil.copytree(root / "ash", root / "train" / "ash")
    arguments = {
        "train": ("--variant", "tiny", "--data", root, "--summary"),
        "evaluate": (trained, "--data", root, "--crops", 1, "--out", tmp_path / "out"),
        "prepare": (root, tmp_path / "clean", "--size", 8, "--processes", 1),
    }[command]
    code, _, complaints = run(command, *arguments)
    assert_refused(code, complaints, "say which, --layout classes or --layout splits")
    code, _, complaints = run(command, *arguments, "--layout", "classes")
    if command == "evaluate":
        assert_refused(code, complaints, "classes that this network does not know: train")
    else:
        assert (code, complaints) == (0, "")


@pytest.mark.parametrize(
    ("folders", "layout", "training", "count"),
    [
        (["Training/", "valid/", "test/"], None, "Training", 10),
        (["ash", "elm", "train"], None, "all", 12),
        (["train/", "elm"], "classes", "all", 14),
    ],
)
def test_splits_are_prepared_with_the_statistics_of_training(
    folders, layout, training, count, tmp_path
):
    root, clean = lay_out(tmp_path / "photos", *folders), tmp_path / "clean"
    options = ("--layout", layout) if layout else ()
    assert prepare(root, clean, "--size", 8, *options)[0] == 0
    assert prepare("--verify", clean)[0] == 0
    names = {entry["path"].split("/")[0] for entry in lines(clean / MANIFEST)[1:]}
    assert names == {name.strip("/") for name in folders}
    assert load_statistics(clean / STATISTICS)[1]["images"] == training
    dataset = ImageFolder(clean, "train" if training != "all" else None, layout=layout)
    assert len(dataset) == count
    assert prepared_statistics(dataset, 8) is not None
