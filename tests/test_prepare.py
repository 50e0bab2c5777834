"""prepare_images.py: whatever lies in the folder, whenever it is stopped, the result is right."""

import hashlib
import json
import os
import shutil
import signal
import time

import commands
import images
import numpy as np
import pytest
from PIL import Image

from tinyalex.data import ImageFolder, load_statistics, pixel_statistics, read_image
from tinyalex.data.manifest import (
    JOURNAL,
    LEFT_OUT,
    MANIFEST,
    STATISTICS,
    Entry,
    Options,
    open_journal,
    read_manifest,
)
from tinyalex.data.prepare import _convert_all
from tinyalex.training.lock import locked

GOOD = 40


def prepare(*arguments):
    return commands.run("prepare_images", "--processes", 1, *arguments)


def lines(path):
    """Return what the lines of a file stand for."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder):
    """Return the bytes of all files below a folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of noisy photographs, split into train and val."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for number in range(GOOD):
        split, name = ("val", "train")[number % 5 > 0], ("ash", "elm")[number % 2]
        path = root / split / name / f"{number:02}.{('jpg', 'png')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (int(rng.integers(280, 400)), int(rng.integers(256, 300)))
        noise = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        noise.resize(size, Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    """Return what an uninterrupted run makes of the photographs."""
    target = tmp_path_factory.mktemp("prepared") / "clean"
    code, out, err = prepare(photos, target)
    assert (code, err) == (0, "")
    assert f"{GOOD} images made, 0 were there, 0 left out, 0 other files ignored" in out
    return target


@pytest.fixture
def copy(prepared, tmp_path):
    """Return a copy of the prepared folder, to be damaged."""
    return shutil.copytree(prepared, tmp_path / "copy")


def test_layout_images_and_manifest(photos, prepared):
    entries = lines(prepared / MANIFEST)[1:]
    assert [entry["path"] for entry in entries] == sorted(entry["path"] for entry in entries)
    assert len(entries) == GOOD
    for entry in entries:
        assert entry["path"] == entry["source"].replace(".png", ".png.jpg")
        file = prepared / entry["path"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["sha256"]
        assert file.stat().st_size == entry["size"]
        assert (photos / entry["source"]).stat().st_size == entry["source_size"]
        with Image.open(file) as image:
            assert (image.format, image.mode, min(image.size)) == ("JPEG", "RGB", 256)
    assert (prepared / LEFT_OUT).read_text() == ""
    left = {path.name for path in prepared.iterdir()}
    assert left == {"train", "val", MANIFEST, STATISTICS, LEFT_OUT, "run.lock"}


def test_pixels_are_those_that_the_loader_would_have_made(photos, prepared):
    for split in ("train", "val"):
        paths = (ImageFolder(folder, split).paths for folder in (photos, prepared))
        for before, after in zip(*paths, strict=True):
            expected = read_image(before, 256).astype(int)
            assert np.abs(read_image(after) - expected).mean() < 2  # JPEG rounds


def test_statistics_are_those_of_the_training_images(prepared):
    found, notes = load_statistics(prepared / STATISTICS)
    expected = pixel_statistics(ImageFolder(prepared, "train"))
    assert notes["images"] == "train"
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_any_number_of_processes_makes_the_same_files(photos, prepared, tmp_path):
    code, _, _ = commands.run("prepare_images", photos, tmp_path / "clean", "--processes", 2)
    assert code == 0
    assert content(tmp_path / "clean") == content(prepared)


def test_a_second_run_makes_only_what_is_missing(photos, prepared, copy):
    (copy / "train/ash/02.jpg").unlink()
    os.truncate(copy / "train/elm/01.jpg", 100)
    kept = (copy / "val/ash/10.jpg").stat().st_mtime_ns
    code, out, _ = prepare(photos, copy)
    assert code == 0
    assert f"2 images made, {GOOD - 2} were there" in out
    assert content(copy) == content(prepared)
    assert (copy / "val/ash/10.jpg").stat().st_mtime_ns == kept


def test_a_changed_source_is_made_again_and_a_broken_one_removed(photos, prepared, copy, tmp_path):
    source = shutil.copytree(photos, tmp_path / "photos")
    images.write(source / "train/ash/02.jpg", size=(300, 300))
    images.text(source / "train/elm/01.jpg")
    code, out, err = prepare(source, copy)
    assert code == 0
    assert f"1 images made, {GOOD - 2} were there, 1 left out" in out
    assert "left out: train/elm/01.jpg: not an image" in err
    assert not (copy / "train/elm/01.jpg").exists()
    assert prepare("--verify", copy)[0] == 0
    statistics = load_statistics(copy / STATISTICS)[0]
    assert statistics.count == load_statistics(prepared / STATISTICS)[0].count - 1


def test_a_picture_that_takes_the_name_of_another_takes_its_place(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    images.folder(source, dogs=1)
    images.write(source / "cats/1.png", images.RED)
    assert prepare(source, target)[0] == 0
    images.write(source / "cats/1.png.jpg", images.BLUE)
    code, out, _ = prepare(source, target)
    assert code == 0
    assert "1 images made, 1 were there" in out
    red, _, blue = read_image(target / "cats/1.png.jpg")[0, 0]
    assert blue > 250 > 5 > red


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
    assert "1 images made, 3 were there" in out
    assert f"2 removed: they are no longer in {source}\n" in out
    paths = [entry["path"] for entry in lines(target / MANIFEST)[1:]]
    assert paths == [f"{name}.png.jpg" for name in ("cats/000", "cats/001", "dogs/000", "dogs/002")]
    assert load_statistics(target / STATISTICS)[0].count == 4
    assert not (target / "birds").exists()
    assert (tmp_path / "mine.jpg").exists()
    assert prepare("--verify", target)[0] == 0


# --- what can lie in a folder ---------------------------------------------------------------------


def test_every_kind_of_bad_file_is_counted_and_named(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    images.folder(source, good=3, odd=1, broken=0)
    for write in images.ODD:
        write(source / "odd" / f"{write.__name__}.jpg")
    for write in images.BROKEN:
        write(source / "broken" / f"{write.__name__}.jpg")
    (source / "broken" / "notes.txt").write_text("not an image, and not called one")
    process = commands.start("prepare_images", source, target, "--processes", 2)
    code, out, err = commands.finish(process)
    assert code == 0
    made, broken = 4 + len(images.ODD), len(images.BROKEN)
    assert f"{made} images made, 0 were there, {broken} left out, 1 other files ignored" in out
    reasons = {line["source"]: line["reason"] for line in lines(target / LEFT_OUT)}
    assert len(reasons) == broken
    for write, reason in images.BROKEN.items():
        name = f"broken/{write.__name__}.jpg"
        assert reason.lower() in reasons[name].lower()
        assert f"left out: {name}: {reasons[name]}\n" in err
    assert err.count("\n") == broken  # nothing else, no warnings of Pillow's
    assert len(lines(target / MANIFEST)) == 1 + made
    with Image.open(target / "odd" / "exif_rotated.jpg") as image:
        assert image.size == (256, 512)
    assert (target / "broken").is_dir()  # a class that lost all images is not lost silently
    assert prepare("--verify", target)[0] == 0


def test_an_unreadable_file_is_named(unprivileged):
    images.folder(unprivileged / "source", cats=2)
    (unprivileged / "source/cats/001.png").chmod(0)
    (unprivileged / "target/cats").mkdir(parents=True)
    jobs = [("cats/000.png", "cats/000.png.jpg"), ("cats/001.png", "cats/001.png.jpg")]
    folders = (unprivileged / "source", unprivileged / "target")
    entries, left_out = _convert_all(jobs, *folders, Options(), alive=lambda: None)
    assert [entry.source for entry in entries] == ["cats/000.png"]
    assert left_out == [("cats/001.png", "Permission denied")]


def test_names_that_would_meet_and_names_that_no_terminal_takes(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    images.folder(source, cats=2, dogs=1)
    images.write(source / "cats" / "000.png.jpg")
    images.write(source / "cats" / ("n" * 251 + ".png"))
    strange = os.fsdecode(b"dogs/caf\xe9 \n.png")
    os.rename(source / "dogs/000.png", source / strange)
    code, out, err = prepare(source, target, "--size", 8)
    assert code == 0
    assert "3 images made, 0 were there, 2 left out" in out
    assert "left out: cats/000.png: would be called cats/000.png.jpg, as cats/000.png.jpg is" in err
    assert "n.png: the name is too long" in err
    assert lines(target / MANIFEST)[-1]["source"] == strange
    assert (target / (strange + ".jpg")).exists()
    assert prepare("--verify", target)[0] == 0


def test_png_keeps_every_bit(tmp_path):
    images.folder(tmp_path / "source", cats=2, dogs=2)
    options = ("--format", "png", "--size", 30)
    assert prepare(tmp_path / "source", tmp_path / "target", *options)[0] == 0
    with Image.open(tmp_path / "target/dogs/001.png") as image:
        assert (image.format, image.size) == ("PNG", (40, 30))
        assert (np.asarray(image) == (1, 2, 100)).all()


# --- interruptions --------------------------------------------------------------------------------


def begin(photos, target):
    """Start the command in a process of its own; return it when some images are made."""
    process = commands.start(
        "prepare_images", photos, target, "--processes", 1, start_new_session=True
    )
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
    """Return the command line of a process, empty for one that has ended."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def test_killed_in_the_middle_it_goes_on_to_the_same_files(photos, prepared, tmp_path):
    target = tmp_path / "clean"
    process = begin(photos, target)
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
    images.empty(target / "train/ash/.06.jpg.xyz.tmp")  # and in the middle of a file
    code, out, _ = prepare(photos, target)
    assert code == 0
    assert f"{GOOD - made} images made, {made} were there" in out
    assert content(target) == content(prepared)


def test_a_journal_goes_on_behind_its_last_whole_line(tmp_path):
    first, second = (Entry(f"a/{i}.jpg", f"a/{i}.png", "0" * 64, 10, 20) for i in range(2))
    for text in (first.line() + second.line()[:20], second.line()):
        with open_journal(tmp_path, Options()) as journal:
            journal.write(text)
    assert read_manifest(tmp_path / JOURNAL) == (Options().header(), [first, second], [])


def test_ctrl_c_leaves_nothing_half_written(photos, prepared, tmp_path):
    target = tmp_path / "clean"
    process = begin(photos, target)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the worker gets it, too
    code, _, err = commands.finish(process)
    assert (code, err) == (130, "stopped; the same command goes on\n")
    assert not list(target.rglob("*.tmp"))
    assert prepare(photos, target)[0] == 0
    assert content(target) == content(prepared)


def test_a_process_that_dies_is_an_error_that_says_so(photos, prepared, tmp_path):
    target = tmp_path / "clean"
    process = begin(photos, target)
    worker = worker_of(process)
    os.kill(worker, signal.SIGKILL)
    code, _, err = commands.finish(process)
    assert code == 1
    assert err.startswith(f"error: worker process {worker} (1 of 1) was ended by SIGKILL")
    assert "the same command goes on" in err
    assert prepare(photos, target)[0] == 0
    assert content(target) == content(prepared)


# --- verification ---------------------------------------------------------------------------------


def test_verify_names_what_is_changed_missing_or_unexpected(photos, prepared, copy):
    assert prepare("--verify", copy)[::2] == (0, "")
    flipped = copy / "train/ash/02.jpg"
    pixels = bytearray(flipped.read_bytes())
    pixels[len(pixels) // 2] ^= 16
    flipped.write_bytes(pixels)
    read_image(flipped)  # nothing else would notice
    (copy / "train/elm/01.jpg").unlink()
    (copy / "val/ash/10.jpg").unlink()
    images.pipe(copy / "val/ash/10.jpg")
    images.write(copy / "val/elm/new.jpg")
    code, out, err = prepare("--verify", copy)
    assert code == 2
    assert "4 files are wrong" in out
    assert err.splitlines() == [
        "changed: train/ash/02.jpg",
        "missing: train/elm/01.jpg",
        "missing: val/ash/10.jpg",
        "unexpected: val/elm/new.jpg",
    ]
    assert out.endswith("remove them, then prepare again\n")
    for line in err.splitlines():
        (copy / line.partition(": ")[2]).unlink(missing_ok=True)
    assert f"3 images made, {GOOD - 3} were there" in prepare(photos, copy)[1]
    assert content(copy) == content(prepared)


def cut_manifest(folder):
    """Take the last image out of the manifest, and off the disk."""
    *kept, last = (folder / MANIFEST).read_text().splitlines(keepends=True)
    (folder / MANIFEST).write_text("".join(kept))
    (folder / json.loads(last)["path"]).unlink()
    return f"changed: {MANIFEST}\n"


def damage_statistics(folder):
    """Change a bit of the mean image."""
    file = folder / STATISTICS
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    return f"changed: {STATISTICS} ("


def garble_manifest(folder):
    """Write over a line of the manifest."""
    before = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(before.replace('{"path"', "{path", 1))
    return f"error: {folder / MANIFEST} is damaged in line 2: prepare again, which mends it"


def garble_options(folder):
    """Write over the first line of the manifest."""
    before = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(before[1:])
    return f"error: {folder / MANIFEST} is damaged in line 1: prepare again, which mends it"


def foreign_statistics(folder):
    """Save statistics that do not say what they are of."""
    load_statistics(folder / STATISTICS)[0].save(folder / STATISTICS)
    return f"changed: {MANIFEST}\n"


DAMAGES = [
    cut_manifest,
    damage_statistics,
    garble_manifest,
    garble_options,
    foreign_statistics,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_its_own_files_is_noticed_and_mended(damage, photos, prepared, copy):
    expected = damage(copy)
    code, _, err = prepare("--verify", copy)
    assert code == 2
    assert err.startswith(expected)
    assert prepare(photos, copy)[0] == 0
    assert content(copy) == content(prepared)


def test_without_its_manifest_a_folder_is_made_anew(photos, prepared, copy):
    (copy / MANIFEST).unlink()
    code, out, _ = prepare(photos, copy)
    assert code == 0
    assert f"{GOOD} images made, 0 were there" in out
    assert content(copy) == content(prepared)


# --- mistakes -------------------------------------------------------------------------------------


def mistakes(photos, clean, folder):
    """Return arguments that cannot be, and what is said about them."""
    (folder / "other").mkdir()
    (folder / "other" / "diary.txt").write_text("mine")
    inside = photos / "clean"
    return [
        ((photos,), "two folders are needed"),
        ((folder / "none", folder / "new"), "No such file or directory"),
        ((photos, photos), "must not lie in one another"),
        ((photos, inside), "must not lie in one another"),
        ((photos / "train", photos), "must not lie in one another"),
        ((photos, folder / "other"), "other holds other files"),
        ((photos, clean, "--size", 128), "was prepared with other options"),
        ((photos, folder / "new", "--size", 0), "at least 1 pixel"),
        ((photos, folder / "new", "--quality", 101), "1 to 100"),
        ((photos, folder / "new", "--processes", 0), "--processes must be at least 1"),
        (("--verify", photos), "was not made by prepare_images.py"),
    ]


def test_mistakes_are_one_sentence_and_change_nothing(photos, copy, tmp_path):
    cases = mistakes(photos, copy, tmp_path)
    before = content(tmp_path), content(photos)
    for arguments, message in cases:
        code, out, err = prepare(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err
        assert err.count("\n") == 1
    assert (content(tmp_path), content(photos)) == before


def test_a_folder_of_broken_images_is_an_error(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "source" / name).mkdir(parents=True)
        images.text(tmp_path / "source" / name / "a.jpg")
    code, _, err = prepare(tmp_path / "source", tmp_path / "target")
    assert code == 2
    assert f"none of the 2 images in {tmp_path / 'source'} could be read" in err


def test_one_process_at_a_time_in_a_folder(photos, copy):
    with locked(copy):
        code, _, err = prepare(photos, copy)
    assert code == 2
    assert "another process is at work" in err
