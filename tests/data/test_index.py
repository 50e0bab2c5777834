"""The index of a large folder: remembered, and equal to what a new reading of the folders gives."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import images
import numpy as np
import pytest

from tinyalex.data import DataError, ImageFolder, index
from tinyalex.data.index import Paths, cache_file
from tinyalex.files import load, save

FILES = ("cats/1.jpg", "cats/more/2.png", "cats/.hidden", "dogs/3.JPG", "dogs/x.txt", "dogs/4.gif")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder of empty files, of which a list is kept however few and new they are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "WORTH_CACHING", 1)
    monkeypatch.setattr(index, "SETTLED_SECONDS", 0)
    for name in FILES:
        add(tmp_path / "photos" / name)
    return tmp_path / "photos"


def add(path):
    """Make an empty file, and let the clock of the file system tick."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    time.sleep(0.02)


@pytest.fixture
def read(monkeypatch):
    """Return the list of folders that are read from the disk, kept up to date."""
    folders = []
    entries_of = index.entries_of

    def listed(folder):
        folders.append(os.path.basename(folder))
        return entries_of(folder)

    monkeypatch.setattr(index, "entries_of", listed)
    return folders


def facts(dataset):
    """Return all that an ImageFolder knows."""
    return list(dataset.paths), dataset.labels.tolist(), dataset.classes, dataset.passed_over


def test_the_second_time_no_folder_is_read(folder, read):
    first = facts(ImageFolder(folder))
    assert sorted(read) == ["cats", "dogs", "more"]
    assert facts(ImageFolder(folder)) == first
    assert facts(ImageFolder(str(folder) + "/")) == first
    assert len(read) == 3
    names = ("cats/1.jpg", "cats/more/2.png", "dogs/3.JPG", "dogs/4.gif")
    assert first == (
        [str(folder / name) for name in names],
        [0, 0, 1, 1],
        ["cats", "dogs"],
        {"hidden": 1, "other": 1},
    )


@pytest.mark.parametrize("split", ["train", "val", None])
def test_equal_cached_or_not(split, folder):
    fresh = facts(ImageFolder(folder, split, cache=False))
    assert not cache_file(str(folder)).exists()
    for _ in range(2):
        assert facts(ImageFolder(folder, split)) == fresh
        assert cache_file(str(folder)).exists()


def test_the_cache_can_be_turned_off(folder, read):
    ImageFolder(folder)
    ImageFolder(folder, cache=False)
    assert len(read) == 6


def new_file(folder):
    add(folder / "cats" / "9.jpg")


def new_file_below(folder):
    add(folder / "cats" / "more" / "9.jpg")


def file_gone(folder):
    (folder / "cats" / "1.jpg").unlink()


def file_renamed(folder):
    (folder / "dogs" / "3.JPG").rename(folder / "dogs" / "30.JPG")


def file_hidden_and_time_set_back(folder):
    before = (folder / "dogs").stat()
    (folder / "dogs" / "3.JPG").rename(folder / "dogs" / ".3.JPG")
    os.utime(folder / "dogs", ns=(before.st_atime_ns, before.st_mtime_ns))


def new_folder(folder):
    add(folder / "cats" / "late" / "9.jpg")


def new_class(folder):
    add(folder / "frogs" / "9.jpg")


def class_gone(folder):
    add(folder / "frogs" / "9.jpg")
    ImageFolder(folder)
    (folder / "dogs").rename(folder.parent / "dogs")


def class_replaced(folder):
    (folder / "dogs").rename(folder.parent / "dogs")
    (folder / "cats" / "more").rename(folder / "dogs")


@pytest.mark.parametrize(
    "change",
    [
        new_file,
        new_file_below,
        file_gone,
        file_renamed,
        file_hidden_and_time_set_back,
        new_folder,
        new_class,
        class_gone,
        class_replaced,
    ],
)
def test_every_change_is_noticed(change, folder):
    before = facts(ImageFolder(folder))
    change(folder)
    after = facts(ImageFolder(folder))
    assert after != before
    assert after == facts(ImageFolder(folder, cache=False))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_cache_is_ignored_and_mended(content, folder, read):
    expected = facts(ImageFolder(folder))
    place = cache_file(str(folder))
    if content is None:  # one bit
        content = bytearray(place.read_bytes())
        content[-1] ^= 1
    place.write_bytes(content)
    assert facts(ImageFolder(folder)) == expected
    assert len(read) == 6
    assert facts(ImageFolder(folder)) == expected
    assert len(read) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"text": 5},
        {"text": np.zeros(3)},
        {
            "text": np.frombuffer(
                b"cats/1.jpg\0cats/../../x.jpg\0dogs/3.JPG\0dogs/4.gif\0", np.uint8
            )
        },
        {"text": np.frombuffer(b"cats/1.jpg\0dogs/2.png\0dogs/3.JPG\0dogs/4.gif\0", np.uint8)},
        {"text": np.frombuffer(b"cats/1.jpg\0cats/..\0dogs/3.JPG\0dogs/4.gif\0", np.uint8)},
        {"counts": np.array([99, 1])},
        {"counts": np.array([0.5, 0.5])},
        {"counts": np.array([1, 3])},
        {"passed_over": [1]},
        {"passed_over": {"x": "y"}},
        {"folders": [1]},
    ],
)
def test_a_list_that_cannot_be_is_made_anew(change, folder, read):
    expected = facts(ImageFolder(folder))
    place = cache_file(str(folder))
    save({**load(place), **change}, place)
    for _ in range(2):
        assert facts(ImageFolder(folder)) == expected
        assert len(read) == 6


def test_a_list_made_by_other_rules_is_ignored(folder, monkeypatch):
    ImageFolder(folder)
    monkeypatch.setattr(index, "EXTENSIONS", (".txt", ".png"))
    found = [os.path.basename(path) for path in ImageFolder(folder).paths]
    assert found == ["2.png", "x.txt"]


def test_a_cache_that_cannot_be_written_is_done_without(folder, monkeypatch):
    expected = facts(ImageFolder(folder, cache=False))
    (folder.parent / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "a file"))
    assert facts(ImageFolder(folder)) == expected


def test_what_may_change_unnoticed_is_not_remembered(folder, monkeypatch):
    monkeypatch.setattr(index, "SETTLED_SECONDS", 2)  # the folder is younger
    ImageFolder(folder)
    assert not cache_file(str(folder)).exists()
    monkeypatch.setattr(index, "SETTLED_SECONDS", 0)
    (folder / "cats" / "link.jpg").symlink_to(folder / "cats" / "1.jpg")
    time.sleep(0.02)
    ImageFolder(folder)
    assert not cache_file(str(folder)).exists()


def test_few_images_are_not_worth_a_file(folder, monkeypatch):
    monkeypatch.setattr(index, "WORTH_CACHING", 5)
    ImageFolder(folder)
    assert not cache_file(str(folder)).exists()


def test_many_may_write_the_cache_at_once(folder):
    expected = facts(ImageFolder(folder, cache=False))
    start = threading.Barrier(8)

    def read_and_write(_):
        start.wait()
        return [facts(ImageFolder(folder)) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        found = [fact for facts_ in pool.map(read_and_write, range(8)) for fact in facts_]
    assert all(fact == expected for fact in found)
    assert [path.name for path in cache_file(str(folder)).parent.iterdir()] == [
        cache_file(str(folder)).name
    ]


def test_where_the_cache_lies(folder, monkeypatch):
    assert cache_file("photos").parent == folder.parent / "cache" / "tinyalex"
    assert cache_file("photos") == cache_file(os.path.abspath("photos"))
    assert cache_file("photos") != cache_file("other")
    monkeypatch.setenv("HOME", "/home/somebody")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert str(cache_file("photos")).startswith("/home/somebody/.cache/tinyalex/index-")


def test_names_of_any_bytes_are_kept(folder):
    name = os.fsdecode(b"caf\xe9 \n\xf0\x9f\x8c\xb7.jpg")
    add(folder / "cats" / name)
    add(folder / "cats" / os.fsdecode(b"\xff") / "1.jpg")
    fresh = facts(ImageFolder(folder, cache=False))
    assert str(folder / "cats" / name) in fresh[0]
    for _ in range(2):
        assert facts(ImageFolder(folder)) == fresh


def test_a_folder_called_like_an_image_is_an_image_only_if_nothing_is_in_it(tmp_path):
    images.folder(tmp_path, cats=1, dogs=1)
    images.write(tmp_path / "cats" / "full.jpg" / "1.png")
    images.directory(tmp_path / "dogs" / "empty.jpg")
    found = [os.path.relpath(path, tmp_path) for path in ImageFolder(tmp_path).paths]
    assert found == ["cats/000.png", "cats/full.jpg/1.png", "dogs/000.png", "dogs/empty.jpg"]
    with pytest.raises(DataError, match="not a regular file"):
        ImageFolder(tmp_path).load(3)


def test_paths_are_a_sequence_and_small():
    names = [f"n01440764/n01440764_{i}.JPEG" for i in range(10_000)]
    text = np.frombuffer(b"".join(name.encode() + b"\0" for name in names), np.uint8)
    paths = Paths("/data", text)
    expected = [f"/data/{name}" for name in names]
    assert len(paths) == 10_000
    assert list(paths) == expected
    assert (paths[0], paths[-1], paths[7:9]) == (expected[0], expected[-1], expected[7:9])
    odd = np.arange(10_000) % 2 == 1
    assert list(paths.take(odd)) == expected[1::2]
    with pytest.raises(IndexError):
        paths[10_000]
    assert len(Paths("/data", text[:0])) == 0
