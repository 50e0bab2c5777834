"""The list of the images in class folders."""

import os

import images
import numpy as np
import pytest

from tinyalex.data import DataError, ImageFolder
from tinyalex.data.index import Paths


def touch(path):
    """Make an empty file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_the_list_is_sorted_within_classes_and_counts_what_is_passed_over(tmp_path):
    names = ["cats/1.jpg", "cats/more/2.png", "dogs/3.JPG", "dogs/4.gif"]
    for name in (*names, "cats/.hidden", "dogs/x.txt"):
        touch(tmp_path / name)
    found = ImageFolder(tmp_path)
    assert list(found.paths) == [str(tmp_path / name) for name in names]
    assert (found.labels.tolist(), found.classes) == ([0, 0, 1, 1], ["cats", "dogs"])
    assert found.passed_over == {"hidden": 1, "other": 1}


def test_names_of_any_bytes_are_kept(tmp_path):
    images.folder(tmp_path, cats=1, dogs=1)
    names = [b"cats/caf\xe9 \n\xf0\x9f\x8c\xb7.jpg", b"cats/\xff/1.jpg"]
    for name in names:
        touch(tmp_path / os.fsdecode(name))
    found = [os.fsencode(os.path.relpath(path, tmp_path)) for path in ImageFolder(tmp_path).paths]
    assert sorted(found) == sorted([b"cats/000.png", *names, b"dogs/000.png"])


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
