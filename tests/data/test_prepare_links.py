"""tinyalex prepare where others work in TARGET: nothing foreign changes."""

import json
import os
import shutil

import commands
import pytest
from helpers import finished
from preparing import content, lines, prepare

from tinyalex.data.manifest import (
    JOURNAL,
    MANIFEST,
    STATISTICS,
    Entry,
    Options,
    open_journal,
    read_manifest,
)
from tinyalex.data.prepare import prepare as prepare_in_steps
from tinyalex.data.prepare import source_images
from tinyalex.folders import Folder


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


def remove(folder):
    """Remove a folder in which a process is at work."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("lose", [remove, lambda path: path.rename(f"{path}-moved")])
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
    # A worker in the middle of an image may find it out first.
    with pytest.raises(OSError, match=r"target is |No such file"):
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


@pytest.mark.parametrize(
    "names", [[MANIFEST], [JOURNAL], [MANIFEST, "left_out.jsonl", "ash/00.png.jpg"], [STATISTICS]]
)
def test_what_has_the_names_of_ours_and_is_not_ours_is_not_touched(source, tmp_path, names):
    target = tmp_path / "target"
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("mine\n")
    before = content(target)
    result = prepare(source, target, "--size", 32)
    commands.assert_refused(result[0], result[2], f"{target} holds other files")
    assert content(target) == before


@pytest.mark.parametrize("name", [MANIFEST, JOURNAL])
def test_a_pipe_does_not_keep_it_waiting(source, tmp_path, name):
    target = made(source, tmp_path / "target")
    (target / name).unlink(missing_ok=True)
    os.mkfifo(target / name)
    code, _, complaints = finished(prepare, source, target, "--size", 32)
    assert code == 1
    assert f"{target / name}: not a regular file" in complaints


@pytest.mark.parametrize("link", ["ash", "ash/deep"])
@pytest.mark.parametrize("place", ["pool/clean", "pool", "."])
def test_no_target_inside_what_the_source_links_to(source, tmp_path, link, place):
    pool = tmp_path / "real/pool"
    pool.mkdir(parents=True)
    shutil.copy(source / "ash/00.png", pool / "1.png")
    if link == "ash":
        shutil.rmtree(source / "ash")
    (source / link).symlink_to(pool)
    target = tmp_path / "real" / place
    before = content(tmp_path)
    code, _, complaints = prepare(source, target, "--size", 32)
    if place == "pool/clean":
        commands.assert_refused(code, complaints, "must not lie in one another")
    assert code == 2
    assert content(tmp_path) == before


def test_what_follows_the_last_whole_line_of_a_journal_is_not_read_at_once(tmp_path):
    line = Entry("a.jpg", "a.png", "0" * 64, 1, 1).line()
    (tmp_path / JOURNAL).write_text(Options().header() + line)
    os.truncate(tmp_path / JOURNAL, 10**11)  # which would fill the memory
    with Folder(tmp_path) as folder, open_journal(folder, Options()):
        pass
    assert (tmp_path / JOURNAL).read_text() == Options().header() + line


WRONG = [None, 5, "x" * 300_000, [], -1.5, {}]


def test_lines_of_a_manifest_that_cannot_be(tmp_path):
    good = {"path": "a", "source": "b", "sha256": "0" * 64, "size": 1, "source_size": 2}
    wrong = [{**good, name: value} for name in good for value in WRONG if type(value) is not int]
    paths = ("", ".", "..", "/a", "a/../../b", "a//b", "a/", "a\0b", "a\ud800b")
    wrong += [{**good, name: path} for name in ("path", "source") for path in paths]
    wrong += [{**good, "sha256": text} for text in ("0" * 63, "g" * 64, "0" * 64 + "\n")]
    wrong += [{**good, "size": -1}, {**good, "size": 10**400}, {**good, "more": 1}]
    wrong += [{}, [], 3, None]
    text = Options().header() + "".join(json.dumps(line) + "\n" for line in [good, *wrong])
    deep = "[" * 100_000 + "\n"
    (tmp_path / MANIFEST).write_text(deep + json.dumps(good) + "\n" + deep)
    assert read_manifest(tmp_path / MANIFEST)[::2] == ("", [1, 3])
    path = tmp_path / MANIFEST
    path.write_text(text)
    header, entries, damaged = read_manifest(path)
    assert (header, len(entries)) == (Options().header(), 1)
    assert damaged == list(range(3, 3 + len(damaged)))
    shorter = [line for line in wrong if len(json.dumps(line)) < 300_000]
    path.write_text(Options().header() + "".join(json.dumps(line) + "\n" for line in shorter))
    assert read_manifest(path)[1:] == ([], list(range(2, 2 + len(shorter))))
    path.write_text(text)
    with path.open("r+b") as file:
        file.truncate(10**11)  # which would fill the memory
    assert read_manifest(path)[1] == entries
