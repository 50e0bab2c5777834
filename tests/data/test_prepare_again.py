"""tinyalex prepare again: right whatever has changed or stopped it."""

import os
import shutil
import signal
import time

import commands
import images
from preparing import GOOD, content, lines, prepare

from tinyalex.data import load_statistics, read_image
from tinyalex.data.manifest import (
    JOURNAL,
    MANIFEST,
    STATISTICS,
    Entry,
    Options,
    open_journal,
    read_manifest,
)
from tinyalex.folders import Folder

pytest_plugins = ("originals",)


def test_a_second_run_makes_only_what_is_missing(originals, prepared, prepared_copy):
    (prepared_copy / "train/ash/02.jpg").unlink()
    os.truncate(prepared_copy / "train/elm/01.jpg", 100)
    kept = (prepared_copy / "val/ash/10.jpg").stat().st_mtime_ns
    code, out, _ = prepare(originals, prepared_copy)
    assert code == 0
    assert f"2 images made, {GOOD - 2} were there" in out
    assert content(prepared_copy) == content(prepared)
    assert (prepared_copy / "val/ash/10.jpg").stat().st_mtime_ns == kept


def test_a_changed_source_is_made_again_and_a_broken_one_removed(
    originals, prepared, prepared_copy, tmp_path
):
    source = shutil.copytree(originals, tmp_path / "photos")
    images.write(source / "train/ash/02.jpg", size=(300, 300))
    images.text(source / "train/elm/01.jpg")
    code, out, err = prepare(source, prepared_copy)
    assert code == 0
    assert f"1 image made, {GOOD - 2} were there, 1 left out" in out
    assert "left out: train/elm/01.jpg: not an image" in err
    assert not (prepared_copy / "train/elm/01.jpg").exists()
    assert prepare("--verify", prepared_copy)[0] == 0
    statistics = load_statistics(prepared_copy / STATISTICS)[0]
    assert statistics.count == load_statistics(prepared / STATISTICS)[0].count - 1


def test_a_picture_that_takes_the_name_of_another_takes_its_place(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    images.folder(source, dogs=1)
    images.write(source / "cats/1.png", images.RED)
    assert prepare(source, target)[0] == 0
    images.write(source / "cats/1.png.jpg", images.BLUE)
    code, out, _ = prepare(source, target)
    assert code == 0
    assert "1 image made, 1 was there" in out
    red, _, blue = read_image(target / "cats/1.png.jpg")[0, 0]
    assert blue > 250 > 5 > red


def test_another_source_in_the_place_of_the_first_removes_nothing(tmp_path):
    first, second, target = (tmp_path / name for name in ("first", "second", "target"))
    images.folder(first, birds=2, cats=2)
    images.folder(second, oaks=2, elms=2)
    assert prepare(first, target)[0] == 0
    before = content(target)
    code, _, err = prepare(second, target)
    assert code == 2
    assert err == (
        f"error: {target} was prepared from other images, of which none is in {second}: give "
        "another TARGET, or empty it\n"
    )
    assert content(target) == before


def test_what_leaves_the_source_leaves_the_target(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    images.folder(source, birds=1, cats=3, dogs=1)
    images.write(tmp_path / "mine.jpg")
    assert prepare(source, target)[0] == 0
    with (target / MANIFEST).open("a") as manifest:  # from elsewhere, and of ill will
        size = (tmp_path / "mine.jpg").stat().st_size
        manifest.write(Entry("../mine.jpg", "gone.png", "0" * 64, size, 1).line())
    os.rename(source / "cats/002.png", source / "dogs/002.png")
    shutil.rmtree(source / "birds")
    code, out, _ = prepare(source, target)
    assert code == 0
    assert "1 image made, 3 were there" in out
    assert f"2 removed: they are no longer in {source}\n" in out
    paths = [entry["path"] for entry in lines(target / MANIFEST)[1:]]
    assert paths == [f"{name}.png.jpg" for name in ("cats/000", "cats/001", "dogs/000", "dogs/002")]
    assert load_statistics(target / STATISTICS)[0].count == 4
    assert not (target / "birds").exists()
    assert (tmp_path / "mine.jpg").exists()
    assert prepare("--verify", target)[0] == 0


# --- interruptions --------------------------------------------------------------------------------


def begin(originals, target):
    """Start the command in a process of its own; return it when some images are made."""
    process = commands.start("prepare", originals, target, "--processes", 1, start_new_session=True)
    while not (target / JOURNAL).exists() or len((target / JOURNAL).read_bytes()) < 1000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    return process


def worker_of(process):
    """Return the process id of the only worker of a command."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    (worker,) = (child for child in children if "spawn_main" in command_line(child))
    return worker


def command_line(pid):
    """Return the command line of a process, or nothing."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def test_killed_in_the_middle_it_goes_on_to_the_same_files(originals, prepared, tmp_path):
    target = tmp_path / "clean"
    process = begin(originals, target)
    worker = worker_of(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while command_line(worker):  # it notices, and ends as well
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made = len(lines(target / JOURNAL)) - 1
    assert 0 < made < GOOD
    assert prepare("--verify", target)[::2] == (
        2,
        f"error: {target} is not finished: prepare it to the end first\n",
    )
    with (target / JOURNAL).open("a") as journal:  # what a kill in the middle of a line leaves
        journal.write('{"path": "train/ash/0')
    images.empty(target / "train/ash/.06.jpg.12345678.tmp")  # and in the middle of a file
    code, out, _ = prepare(originals, target)
    assert code == 0
    assert f"{GOOD - made} images made, {made} were there" in out
    assert content(target) == content(prepared)


def test_a_journal_goes_on_behind_its_last_whole_line(tmp_path):
    first, second = (Entry(f"a/{i}.jpg", f"a/{i}.png", "0" * 64, 10, 20) for i in range(2))
    for text in (first.line() + second.line()[:20], second.line()):
        with Folder(tmp_path) as folder, open_journal(folder, Options()) as journal:
            journal.write(text.encode())
    assert read_manifest(tmp_path / JOURNAL) == (Options().header(), [first, second], [])
    with (tmp_path / JOURNAL).open("r+b") as file:  # what it lists may be of other options
        file.write(b"x")
    with Folder(tmp_path) as folder, open_journal(folder, Options()) as journal:
        journal.write(first.line().encode())
    assert read_manifest(tmp_path / JOURNAL) == (Options().header(), [first], [])


def test_ctrl_c_leaves_nothing_half_written(originals, prepared, tmp_path):
    target = tmp_path / "clean"
    process = begin(originals, target)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the worker gets it, too
    code, _, err = commands.finish(process)
    assert (code, err) == (130, "\nstopped by SIGINT, and the same command resumes\n")
    assert not list(target.rglob("*.tmp"))
    assert prepare(originals, target)[0] == 0
    assert content(target) == content(prepared)


def test_a_process_that_dies_is_an_error_that_says_so(originals, prepared, tmp_path):
    target = tmp_path / "clean"
    process = begin(originals, target)
    worker = worker_of(process)
    os.kill(worker, signal.SIGKILL)
    code, _, err = commands.finish(process)
    assert code == 1
    assert err.startswith(f"error: worker process {worker} (1 of 1) was ended by SIGKILL")
    assert "the same command resumes" in err
    assert prepare(originals, target)[0] == 0
    assert content(target) == content(prepared)
