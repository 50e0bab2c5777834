"""Mean image and colours are measured once, on these images alone."""

import os
import shutil
import time

import commands
import images
import numpy as np
import pytest
from helpers import finished

from tinyalex.data import (
    DataError,
    ImageFolder,
    load_statistics,
    pixel_statistics,
    training_statistics,
)
from tinyalex.data.manifest import MANIFEST, STATISTICS, sha256, verify
from tinyalex.data.training_statistics import WHAT, cache_file, prepared_statistics
from tinyalex.files import FileError, load, save
from tinyalex.training import new_run

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

SIZE = 32
"""What 28 pixels are cut from."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return an empty cache folder for statistics."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(training_statistics, "WORTH_KEEPING", 50)
    return tmp_path / "cache" / "tinyalex"


def measure(folder, **changes):
    """Set up a run that needs the mean image; return that and what was said."""
    watcher = commands.Watcher()
    run = new_run(commands.tiny_settings(folder, mean="image", **changes), progress=watcher)
    return run.classifier.mean, watcher.said


def true_mean(folder):
    """Return the mean image of the training images, measured."""
    found = pixel_statistics(ImageFolder(folder, "train", shorter_side=SIZE), SIZE)
    return found.mean_image.astype(np.float32)


# --- kept from an earlier run ---------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    return commands.draw_photos(tmp_path / "photos")


def test_statistics_without_what_the_disk_withheld_are_not_remembered(photos, cache):
    with open(photos / "elm/07.png", "wb") as file:
        file.truncate(100)  # no image, which counts as one for good
    _, said = measure(photos)
    assert any("07.png: not an image" in line for line in said)
    (place,) = cache.iterdir()
    place.unlink()
    (photos / "elm/07.png").unlink()
    (photos / "elm/07.png").symlink_to(photos / "elm/07.png")  # too many levels of links
    _, said = measure(photos)
    assert any("07.png: Too many levels" in line for line in said)
    assert not list(cache.iterdir())


def test_measured_once_and_then_remembered(photos, cache):
    first, said = measure(photos)
    assert said == [f"{WHAT} are measured now"]
    (place,) = cache.iterdir()
    again, said = measure(photos)
    assert said == [f"{WHAT} are those measured before, in {place}"]
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(first, true_mean(photos))


def same_name_and_size(photos):
    """Replace a picture by one with equal size and times."""
    path, before = photos / "ash/00.bmp", (photos / "ash/00.bmp").stat()
    pixels = np.asarray(images.Image.open(path))
    images.Image.fromarray(pixels[::-1, ::-1]).save(path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def one_more(photos):
    images.write(photos / "elm/more.png")


def another_name(photos):
    """Exchange two pictures, one of which may be held out."""
    (photos / "elm/00.png").rename(photos / "elm/zz.png")


@pytest.mark.parametrize("change", [same_name_and_size, one_more, another_name])
def test_a_change_of_the_images_is_noticed(change, photos):
    for path in (photos / "ash").iterdir():
        images.Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    time.sleep(0.02)  # let the clock of the file system tick
    before, _ = measure(photos)
    change(photos)
    after, said = measure(photos)
    assert said == [f"{WHAT} are measured now"]
    assert (after != before).any()
    np.testing.assert_array_equal(after, true_mean(photos))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"index_cache": False}])
def test_another_split_is_measured_and_so_is_all_without_the_cache(changes, photos):
    measure(photos)
    assert measure(photos, **changes)[1] == [f"{WHAT} are measured now"]


@pytest.mark.parametrize("content", [b"garbage", None])
def test_a_damaged_cache_is_ignored_and_mended(content, photos, cache):
    expected, _ = measure(photos)
    (place,) = cache.iterdir()
    if content is None:  # one bit
        content = bytearray(place.read_bytes())
        content[-1] ^= 1
    place.write_bytes(content)
    for said in (f"{WHAT} are measured now", f"{WHAT} are those measured before, in {place}"):
        found = measure(photos)
        assert found[1] == [said]
        np.testing.assert_array_equal(found[0], expected)


def test_few_images_leave_nothing_and_no_place_is_no_error(photos, cache, monkeypatch):
    monkeypatch.setattr(training_statistics, "WORTH_KEEPING", 58)
    measure(photos)
    assert not cache.exists()
    monkeypatch.setattr(training_statistics, "WORTH_KEEPING", 57)
    cache.parent.write_text("a file where the folder would be")
    assert measure(photos)[1] == [f"{WHAT} are measured now"]


def test_where_the_cache_lies(cache, monkeypatch):
    assert cache_file("photos").parent == cache
    assert cache_file("photos") == cache_file(os.path.abspath("photos"))
    assert cache_file("photos") != cache_file("other")
    monkeypatch.setenv("HOME", "/home/user")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert str(cache_file("photos")).startswith("/home/user/.cache/tinyalex/statistics-")


def test_a_dry_run_measures_for_the_run_itself_and_leaves_nothing_else(photos, cache, tmp_path):
    out = tmp_path / "run"
    arguments = ("--variant", "tiny", "--data", photos, "--mean", "image", "--out", out)
    for extra in (["--dry-run", "--no-index-cache"], ["--summary"], ["--dry-run"]):
        assert not cache.exists()
        code, said, _ = commands.run("train", *arguments, *extra)
        assert code == 0
        assert (f"{WHAT} are measured now\n" in said) == ("--summary" not in extra)
    place = cache_file(photos)
    assert list(cache.iterdir()) == [place]
    assert not out.exists()
    code, said, _ = commands.run("train", *arguments, "--epochs", 1)
    assert code == 0
    assert said.startswith(f"{WHAT} are those measured before, in {place}\n")


def test_unreadable_images_are_named_and_too_many_are_an_error(photos):
    train = ImageFolder(photos, "train")
    for index, listed in enumerate((train.paths[5], train.paths[6])):
        images.text(photos / listed)
        if index == 0:
            _, said = measure(photos)
            reason = "not an image that can be read"
            assert said[1].startswith(f"left out of the mean: {listed}: {reason}")
    with pytest.raises(DataError, match="2 of 57 images cannot be read, 1 is allowed: "):
        measure(photos)


# --- prepared with the images ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Return a prepared folder with train/ and val/."""
    root = tmp_path_factory.mktemp("prepared")
    for split, count in (("train", 20), ("val", 4)):
        commands.draw_photos(root / "photos" / split, count)
    arguments = (root / "photos", root / "clean", "--size", SIZE, "--processes", 1)
    assert commands.run("prepare", *arguments)[0] == 0
    return root / "clean"


@pytest.fixture
def copy(clean, tmp_path):
    """Return a copy of the prepared folder, to be changed."""
    return shutil.copytree(clean, tmp_path / "copy")


def test_prepared_statistics_are_used(copy, cache):
    found, said = measure(copy)
    assert said == [f"{WHAT} are those in {copy / STATISTICS}"]
    np.testing.assert_array_equal(found, true_mean(copy))
    assert not cache.exists()


def image_gone(folder):
    (folder / "train/ash/00.png.jpg").unlink()


def image_added(folder):
    images.write(folder / "train/ash/new.jpg")


def image_replaced(folder):
    images.write(folder / "train/ash/00.png.jpg", size=(SIZE, SIZE))


def prepared_anew(folder):
    """Put the statistics of an earlier state beside the manifest of now."""
    with (folder / MANIFEST).open("a") as file:
        file.write("\n")


def not_split(folder):
    """Leave class folders alone, of which a part will be held out."""
    for name in ("ash", "birch", "elm"):
        (folder / "train" / name).rename(folder / name)
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "val")
    text = (folder / MANIFEST).read_text().splitlines(keepends=True)
    text = [line.replace("train/", "") for line in text if '"val/' not in line]
    (folder / MANIFEST).write_text("".join(text))
    found, _ = load_statistics(folder / STATISTICS)
    found.save(folder / STATISTICS, manifest_sha256=sha256(folder / MANIFEST))


@pytest.mark.parametrize(
    "change", [image_gone, image_added, image_replaced, prepared_anew, not_split]
)
def test_prepared_statistics_of_other_images_are_not_used(change, copy):
    change(copy)
    found, said = measure(copy)
    assert said[0].startswith(f"{copy / STATISTICS} is not used: it is not of just the ")
    assert said[1] == f"{WHAT} are measured now"
    np.testing.assert_array_equal(found, true_mean(copy))


def test_prepared_statistics_of_another_size_are_not_used(copy):
    train = ImageFolder(copy, "train")
    assert prepared_statistics(train, SIZE) is not None
    assert prepared_statistics(train, 256) is None


def skewed(array):
    """Return no covariance: one that is not symmetric."""
    return np.triu(np.ones_like(array))


SPOILT = [
    ("notes", lambda value: 5),
    ("count", lambda value: "x"),
    ("count", lambda value: 0),
    ("mean_image", lambda array: 5),
    ("mean_image", lambda array: array[:, 1:]),
    *((name, lambda array: array + 1e30) for name in ("mean_image", "mean_colour")),
    *((name, lambda array: array * np.nan) for name in ("mean_image", "colour_covariance")),
    ("mean_image", lambda array: -array),
    ("colour_covariance", skewed),
    ("colour_covariance", lambda array: array + 1e9),
]


@pytest.mark.parametrize(("name", "spoil"), SPOILT)
def test_statistics_that_cannot_be_are_named_and_not_used(name, spoil, copy):
    content = load(copy / STATISTICS)
    save({**content, name: spoil(content[name])}, copy / STATISTICS)
    with pytest.raises(FileError, match=f"{copy / STATISTICS} cannot be used: "):
        load_statistics(copy / STATISTICS)
    found, said = measure(copy)
    assert said[0].startswith(f"warning: {copy / STATISTICS} is not used: ")
    np.testing.assert_array_equal(found, true_mean(copy))
    assert any(STATISTICS in sentence for sentence in verify(copy, 1))


@pytest.mark.parametrize(("name", "spoil"), SPOILT[1:])
def test_remembered_statistics_that_cannot_be_are_measured_anew(name, spoil, photos, cache):
    expected, _ = measure(photos)
    (place,) = cache.iterdir()
    content = load(place)
    content["statistics"][name] = spoil(content["statistics"][name])
    save(content, place)
    found, said = measure(photos)
    assert said == [f"{WHAT} are measured now"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [STATISTICS, MANIFEST])
def test_a_pipe_beside_the_images_does_not_keep_it_waiting(name, copy):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    _, said = finished(measure, copy)
    assert said[0].startswith(f"warning: {copy / STATISTICS} is not used: ")


@pytest.mark.parametrize("name", [STATISTICS, MANIFEST])
def test_damaged_prepared_statistics_are_a_warning(name, copy):
    (copy / name).write_text("{}\n{")
    found, said = measure(copy)
    assert said[0].startswith(f"warning: {copy / STATISTICS} is not used: {copy / name} is damaged")
    assert said[1] == f"{WHAT} are measured now"
    np.testing.assert_array_equal(found, true_mean(copy))
