"""tinyalex prepare: whatever lies in the folder, the result is right."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time

import commands
import images
import numpy as np
from PIL import Image
from preparing import GOOD, content, lines, prepare

import tinyalex.data.prepare as prepare_module
from tinyalex.data import ImageFolder, load_statistics, pixel_statistics, read_image
from tinyalex.data.manifest import LEFT_OUT, MANIFEST, STATISTICS, Options
from tinyalex.data.prepare import _convert_all
from tinyalex.folders import Folder, locked

pytest_plugins = ("originals",)


def test_layout_images_and_manifest(originals, prepared):
    entries = lines(prepared / MANIFEST)[1:]
    assert [entry["path"] for entry in entries] == sorted(entry["path"] for entry in entries)
    assert len(entries) == GOOD
    for entry in entries:
        assert entry["path"] == entry["source"].replace(".png", ".png.jpg")
        file = prepared / entry["path"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["sha256"]
        assert file.stat().st_size == entry["size"]
        assert (originals / entry["source"]).stat().st_size == entry["source_size"]
        with Image.open(file) as image:
            assert (image.format, image.mode, min(image.size)) == ("JPEG", "RGB", 256)
    assert (prepared / LEFT_OUT).read_text() == ""
    left = {path.name for path in prepared.iterdir()}
    assert left == {"train", "val", MANIFEST, STATISTICS, LEFT_OUT, "run.lock"}


def test_pixels_are_those_that_the_loader_would_have_made(originals, prepared):
    for split in ("train", "val"):
        paths = (ImageFolder(folder, split).paths for folder in (originals, prepared))
        for before, after in zip(*paths, strict=True):
            expected = read_image(before, 256).astype(int)
            assert np.abs(read_image(after) - expected).mean() < 2  # JPEG rounds


def test_statistics_are_those_of_the_training_images(prepared):
    found, notes = load_statistics(prepared / STATISTICS)
    expected = pixel_statistics(ImageFolder(prepared, "train"))
    assert notes["images"] == "train"
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_any_number_of_processes_makes_the_same_files(originals, prepared, tmp_path):
    code, _, _ = commands.run("prepare", originals, tmp_path / "clean", "--processes", 2)
    assert code == 0
    assert content(tmp_path / "clean") == content(prepared)


# --- what can lie in a folder ---------------------------------------------------------------------


def test_every_kind_of_bad_file_is_counted_and_named(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    images.folder(source, good=3, odd=1, broken=0)
    for write in images.ODD:
        write(source / "odd" / f"{write.__name__}.jpg")
    for write in images.BROKEN:
        write(source / "broken" / f"{write.__name__}.jpg")
    (source / "broken" / "notes.txt").write_text("not an image, and not called one")
    process = commands.start("prepare", source, target, "--processes", 2)
    code, out, err = commands.finish(process)
    assert code == 0
    made, broken = 4 + len(images.ODD), len(images.BROKEN)
    assert f"{made} images made, 0 were there, {broken} left out\nskipped: 1 other\n" in out
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
    with Folder(unprivileged / "target") as target:
        folders = (unprivileged / "source", (target.path, target.identity))
    entries, left_out = _convert_all(jobs, *folders, Options(), alive=lambda position: None)
    assert [entry.source for entry in entries] == ["cats/000.png"]
    assert left_out == [("cats/001.png", "Permission denied")]


def test_a_stuck_image_is_left_out_and_named(tmp_path, monkeypatch):
    """Its process is stopped in the middle of it, and another one makes the others."""
    assert prepare_module.PATIENCE == 30
    monkeypatch.setattr(prepare_module, "PATIENCE", 2.0)
    source, target = tmp_path / "source", tmp_path / "target"
    for number in range(8):
        images.write(source / f"{'ab'[number % 2]}/{number}.png", size=(2400, 2000))

    def stop():
        while not list(target.rglob("*.jpg")):
            time.sleep(0.005)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)

    threading.Thread(target=stop, daemon=True).start()
    code, out, err = prepare(source, target)
    assert code == 0, err
    assert "7 images made, 0 were there, 1 left out" in out
    (line,) = lines(target / LEFT_OUT)
    assert line["reason"] == "not read within 2 s"
    assert err == f"left out: {line['source']}: not read within 2 s\n"
    assert len(lines(target / MANIFEST)) == 8
    assert multiprocessing.active_children() == []


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


# --- mistakes -------------------------------------------------------------------------------------


def mistakes(originals, clean, folder):
    """Return arguments that cannot be, and what is said about them."""
    (folder / "other").mkdir()
    (folder / "other" / "diary.txt").write_text("mine")
    inside = originals / "clean"
    return [
        ((originals,), "two folders are needed"),
        ((folder / "none", folder / "new"), "No such file or directory"),
        ((originals, originals), "must not lie in one another"),
        ((originals, inside), "must not lie in one another"),
        ((originals / "train", originals), "must not lie in one another"),
        ((originals, folder / "other"), "other holds other files"),
        ((originals, folder / "other/diary.txt/new"), "Not a directory"),
        ((originals, clean, "--size", 128), "was prepared with other options"),
        ((originals, folder / "new", "--size", 0), "--size: expected a whole number"),
        ((originals, folder / "new", "--quality", 101), "1 to 100"),
        ((originals, folder / "new", "--processes", 0), "--processes: expected a whole number"),
        (("--verify", originals), "was not made by `tinyalex prepare`"),
        (("--verify", folder / "none"), "none: expected a folder, made by `tinyalex prepare`"),
    ]


def test_mistakes_are_one_sentence_and_change_nothing(originals, prepared_copy, tmp_path):
    cases = mistakes(originals, prepared_copy, tmp_path)
    before = content(tmp_path), content(originals)
    for arguments, message in cases:
        code, out, err = prepare(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err
        assert err.count("\n") == 1
    assert (content(tmp_path), content(originals)) == before


def test_a_folder_of_broken_images_is_an_error(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "source" / name).mkdir(parents=True)
        images.text(tmp_path / "source" / name / "a.jpg")
    code, _, err = prepare(tmp_path / "source", tmp_path / "target")
    assert code == 2
    assert f"none of the 2 images in {tmp_path / 'source'} could be read" in err


def test_one_process_at_a_time_in_a_folder(originals, prepared_copy):
    with locked(prepared_copy):
        code, _, err = prepare(originals, prepared_copy)
    assert code == 2
    assert "another process is at work" in err
