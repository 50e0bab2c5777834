"""examples/prepare_images.py where others have been at work in TARGET: nothing foreign changes."""

import json
import os
import shutil

import commands
import pytest
from preparing import content, lines, prepare

from tinyalex.data.manifest import JOURNAL, MANIFEST, STATISTICS, Options, read_manifest
from tinyalex.data.prepare import prepare as prepare_in_steps
from tinyalex.data.prepare import source_images
from tinyalex.files import FolderLostError


@pytest.fixture
def source(tmp_path):
    """Return a folder of a few small images."""
    return commands.draw_photos(tmp_path / "source", count=6)


def made(source, target):
    assert prepare(source, target, "--size", 32)[0] == 0
    return target


@pytest.mark.parametrize("name", ["ash", "ash/deep"])
def test_no_link_to_a_folder_is_followed(source, tmp_path, name):
    target, other = tmp_path / "target", tmp_path / "other"
    (source / "ash/deep").mkdir()
    shutil.copy(source / "ash/00.png", source / "ash/deep/00.png")
    other.mkdir()
    made(source, target)
    shutil.rmtree(target / name)
    (target / name).symlink_to(other)
    code, _, complaints = prepare(source, target, "--size", 32)
    assert code == 1
    assert f"{target / name}: not a folder (links are not followed here)" in complaints
    assert complaints.count("\n") == 1
    assert not list(other.iterdir())


@pytest.mark.parametrize(
    "name", [MANIFEST, JOURNAL, STATISTICS, "left_out.jsonl", "ash/00.png.jpg"]
)
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_files_behind_links_stay_as_they_are(source, tmp_path, name, link):
    target, foreign = made(source, tmp_path / "target"), tmp_path / "foreign"
    foreign.write_text(Options(32).header())
    before = foreign.read_bytes()
    shutil.rmtree(target / "elm")  # something is to be done
    (target / name).unlink(missing_ok=True)
    link(foreign, target / name)
    assert prepare(source, target, "--size", 32)[0] == 0
    assert foreign.read_bytes() == before
    assert content(target).keys() >= {MANIFEST, STATISTICS, "elm/00.png.jpg", "ash/00.png.jpg"}
    assert not (target / MANIFEST).is_symlink()


def test_only_what_was_made_there_is_removed(source, tmp_path):
    target = made(source, tmp_path / "target")
    text = (target / MANIFEST).read_text()
    stale = [{**lines(target / MANIFEST)[1], "source": "ash/gone.png"} for _ in range(3)]
    for entry, path in zip(stale, ("mine.txt", "ash/mine.txt", "../outside"), strict=True):
        (target / path).write_text("x" * entry["size"])
        entry["path"] = path
    (target / ".draft.tmp").write_text("mine")
    text += "".join(json.dumps(entry) + "\n" for entry in stale)
    (target / MANIFEST).write_text(text)
    assert prepare(source, target, "--size", 32)[0] == 0
    for path in ("mine.txt", "ash/mine.txt", "../outside", ".draft.tmp"):
        assert (target / path).exists()


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda path: path.rename(f"{path}-moved")])
def test_a_target_that_is_replaced_meanwhile_is_left_alone(source, tmp_path, monkeypatch, lose):
    target, begun = tmp_path / "target", []
    target.mkdir()
    monkeypatch.setattr("tinyalex.data.manifest.CHUNK", 2)

    def show(what, done, total):
        if not begun:
            begun.append(done)
            lose(target)
            target.mkdir()

    work = (source, source_images(source, target), target, Options(32), 1)
    with pytest.raises(FolderLostError, match="target is "):
        prepare_in_steps(*work, show)
    assert not list(target.iterdir())


def test_a_journal_that_is_gone_at_the_end_is_not_missed(source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()

    def show(what, done, total):
        (target / JOURNAL).unlink(missing_ok=True)

    work = (source, source_images(source, target), target, Options(32), 1)
    assert prepare_in_steps(*work, show).made == 18
    assert prepare("--verify", target)[0] == 0


WRONG = [None, 5, "x" * 300_000, [], -1.5, {}]


def test_lines_of_a_manifest_that_cannot_be(tmp_path):
    good = {"path": "a", "source": "b", "sha256": "c", "size": 1, "source_size": 2}
    wrong = [{**good, name: value} for name in good for value in WRONG if type(value) is not int]
    wrong += [{}, [], 3, None]
    text = Options().header() + "".join(json.dumps(line) + "\n" for line in [good, *wrong])
    path = tmp_path / MANIFEST
    path.write_text(text)
    header, entries, damaged = read_manifest(path)
    assert (header, len(entries)) == (Options().header(), 1)
    assert damaged[0] == 3
    with path.open("r+b") as file:
        file.truncate(10**11)  # which would fill the memory
    assert read_manifest(path)[1] == entries
