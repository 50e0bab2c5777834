"""The images of a folder: one rule for training, prediction and preparation."""

import os
import socket
import subprocess
from collections import Counter

import commands
import images
import pytest
from helpers import finished
from preparing import prepare

from tinyalex.cli.common import find_images
from tinyalex.data import DataError, ImageFolder, index
from tinyalex.data.index import images_below, in_words

pytest_plugins = ("trained",)


def camera(folder):
    """Write what comes from cameras, phones and browsers."""
    for name in ("a.jpg", "B.JPEG", "c.jfif", "d.JPE", "e.webp", "more/f.gif"):
        images.write(folder / "x.png").rename(made(folder / name))
    for name in ("1.heic", "2.HEIC", "3.heif", "4.avif", "5.tiff", "6.tif", "7.CR2", "8.svg"):
        made(folder / name).touch()
    return 6, {"HEIC": 3, "AVIF": 1, "TIFF": 2, "raw": 1, "SVG": 1}


def litter(folder):
    """Write what systems leave behind."""
    images.write(folder / "a.png")
    names = ("Thumbs.db", "desktop.ini", "Icon\r", ".DS_Store", "._a.png", ".nfs0001")
    for name in (*names, ".thumbnails/a.png", "@eaDir/a.png", "__MACOSX/a.png", "notes.txt"):
        made(folder / name).touch()
    return 1, {"hidden": 9, "other": 1}


def links(folder):
    """Link images and folders of them, more than once."""
    images.write(folder / "a.png")
    images.write(folder / "more" / "b.png")
    outside = made(folder.parent.parent / "outside" / "c.png")
    images.write(outside)
    for link, target in {
        "0.png": "a.png",  # which sorts before
        "c1.png": outside,
        "c2.png": outside,
        "again": "more",  # which sorts before
        "more/loop": folder,
        "above": folder.parent.parent,
        "outside": outside.parent,
        "outside2": outside.parent,
        "outside.png": outside.parent,
    }.items():
        (folder / link).symlink_to(target)
    (folder / "lost").symlink_to("nowhere")
    return 3, {"linked twice": 8, "linked to nothing": 1}


def linked_folders(folder):
    """Link the only folders of images there are."""
    images.folder(folder.parent.parent / "disk", one=2, two=1)
    folder.mkdir(parents=True)
    (folder / "one").symlink_to(folder.parent.parent / "disk" / "one")
    (folder / "both").symlink_to(folder.parent.parent / "disk")
    return 3, {"linked twice": 1}


def special(folder):
    """Make what must not be opened: named as images that cannot be read."""
    images.write(folder / "a.png")
    images.pipe(folder / "pipe.jpg")
    images.pipe(folder / "pipe")
    images.directory(folder / "empty.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # its path may be too long
        server.bind("socket.png")
        os.chdir(here)
    (folder / "lost.png").symlink_to("nowhere")
    (folder / "self.png").symlink_to("self.png")
    return 6, {"other": 1}


def strange(folder):
    """Write names of any bytes."""
    for name in (b"caf\xe9.png", b"a\nb.png", b"\xff/\xfe.png", "é.png".encode()):
        images.write(folder / "x.png").rename(made(folder / os.fsdecode(name)))
    return 4, {}


def made(path):
    """Make the folder of a path; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


FOLDERS = [camera, litter, links, linked_folders, special, strange]


@pytest.mark.parametrize("make", FOLDERS)
def test_one_rule_for_all_commands(make, tmp_path, capsys):
    root = tmp_path / "data" / "photos"
    count, passed_over = make(root / "ash")
    images.folder(root, elm=1)
    dataset = finished(ImageFolder, root)
    assert (len(dataset), dataset.passed_over) == (count + 1, passed_over)
    assert dataset.labels.tolist() == [0] * count + [1]
    found = finished(lambda: list(find_images([str(root / "ash")])))
    assert found == dataset.paths[:count]
    said = capsys.readouterr().err
    expected = in_words(Counter(passed_over))
    assert said == (f"{root / 'ash'}: {expected}\n" if expected else "")


def test_folders_in_one_another_deeper_than_python_calls_functions(tmp_path):
    images.folder(tmp_path, elm=1)
    folder = tmp_path / "ash"
    try:
        for _ in range(1100):
            folder.mkdir()
            folder = folder / "d"
        images.write(tmp_path / "a.png").rename(folder.parent / "b.png")
        assert len(ImageFolder(tmp_path)) == 2
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "ash"], check=True)


def test_the_commands_say_what_they_pass_over(tmp_path, trained):
    photos = commands.draw_photos(tmp_path / "photos", count=4)
    camera(photos / "ash")
    said = "skipped: 3 HEIC, 2 TIFF, 1 AVIF, 1 SVG, 1 raw (to use HEIC, TIFF, "
    with commands.tiny_variant():
        out = commands.train_on(photos, tmp_path / "run", "--summary")[1]
        sheet = ("--out", tmp_path / "sheet.png")
        *_, predicted = commands.run("predict", trained, photos, *sheet, "--sort", tmp_path / "s")
        *_, alike = commands.run("look", trained, "neighbours", "--among", photos, *sheet)
    assert f"validation images; {said}" in out
    assert f"{photos}: {said}" in predicted
    assert f"{photos}: {said}" in alike
    assert said in prepare(photos, tmp_path / "clean", "--size", 8)[1]


def test_images_beside_the_class_folders_are_counted(tmp_path):
    images.folder(tmp_path, ash=2, elm=2)
    images.write(tmp_path / "loose.jpg")
    assert ImageFolder(tmp_path).passed_over == {"beside the class folders": 1}


def test_a_folder_that_cannot_be_read_is_named(unprivileged):
    images.folder(unprivileged, ash=2, elm=2)
    closed = unprivileged / "ash" / "closed"
    closed.mkdir(mode=0)
    found, scan = images_below(str(unprivileged))
    assert len(found) == 4
    assert scan.unreadable == [f"{closed}: the folder cannot be read: Permission denied"]
    with pytest.raises(DataError, match="closed: the folder cannot be read: Permission denied"):
        ImageFolder(unprivileged)
    closed.chmod(0o700)


def test_a_folder_that_vanishes_is_named(tmp_path, monkeypatch):
    images.folder(tmp_path, ash=2, elm=2)
    (tmp_path / "ash" / "gone").mkdir()
    entries_of = index.entries_of

    def late(folder):
        if folder.endswith("gone"):
            os.rmdir(folder)
        return entries_of(folder)

    monkeypatch.setattr(index, "entries_of", late)
    found, scan = images_below(str(tmp_path))
    assert len(found) == 4
    assert "gone: the folder cannot be read: No such file" in scan.unreadable[0]


def test_a_prepared_folder_may_hold_what_systems_leave(tmp_path):
    images.folder(tmp_path / "photos", ash=2, elm=2)
    clean = tmp_path / "clean"
    litter(clean)
    (clean / "a.png").unlink()
    (clean / "notes.txt").unlink()
    assert prepare(tmp_path / "photos", clean, "--size", 8)[0] == 0
    litter(clean / "ash" / "more")
    for name in ("a.png", "notes.txt"):
        code, _, complaints = prepare("--verify", clean)
        assert (code, complaints.splitlines()[0]) == (2, f"unexpected: ash/more/{name}")
        (clean / "ash/more" / name).unlink()
    assert prepare("--verify", clean)[::2] == (0, "")
    assert prepare(tmp_path / "photos", clean, "--size", 8)[0] == 0
