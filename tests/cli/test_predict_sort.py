"""tinyalex predict --sort: copies in the folders of their classes, whatever happens."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import ROOT, assert_refused, run
from helpers import finished
from PIL import Image

import tinyalex as ta
from tinyalex.data.copies import NotCopiedError, SortedCopies
from tinyalex.folders import Folder, locked
from tinyalex.training import Checkpoints, Classifier, load_checkpoint

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def sorted_into(folder):
    """Return the files in the class folders as {"class/name": bytes}."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_sorting_copies_into_the_folder_of_the_most_probable_class(photos, trained, tmp_path):
    mixed = tmp_path / "mixed"
    for name in ("ash", "elm"):  # the same names in both
        shutil.copytree(photos / name, mixed / name, ignore=shutil.ignore_patterns("[12]*"))
    (mixed / "broken.png").write_text("not an image")
    before = sorted_into(mixed)
    target = tmp_path / "sorted"
    arguments = (trained, mixed, "--sort", target, "--crops", 10, "--out", tmp_path / "s.png")
    code, said, complaints = run("predict", *arguments)
    assert code == 0
    assert complaints.startswith(f"skipped: {mixed}/broken.png: not an image")
    last = f"copied 20 images into the folders of {target}; 1 could not be read and was left out"
    assert said.splitlines()[-1] == last
    assert sorted_into(mixed) == before
    assert {folder.name for folder in target.iterdir()} <= {"ash", "birch", "elm"}

    copies = sorted_into(target)
    del before["broken.png"]
    assert Counter(copies.values()) == Counter(before.values())
    named = dict(re.findall(r"^(.*\.png): (\w+) ", said, re.MULTILINE))
    for path, answer in named.items():
        stem, content = Path(path).stem, Path(path).read_bytes()
        assert content in (copies.get(f"{answer}/{stem}.png"), copies.get(f"{answer}/{stem}-2.png"))

    name = next(iter(copies))
    (target / name).write_text("the user's own")  # is not overwritten when the command runs again
    said = run("predict", *arguments)[1]
    assert f"copied 1 image into the folders of {target}, 19 were there already; 1 could" in said
    again = sorted_into(target)
    assert again.pop(name) == b"the user's own"
    assert len(again) == 20
    assert Counter(again.values()) == Counter(before.values())


def test_a_full_disk_ends_it_and_leaves_whole_copies(photos, trained, tmp_path, disk):
    for number, side in enumerate((40, 400, 40)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{number}.bmp")
    disk(100_000)
    code, _, complaints = run(
        "predict", trained, *sorted(tmp_path.glob("*.bmp")), "--sort", tmp_path / "sorted"
    )
    assert code == 1
    assert re.fullmatch(
        r"error: .*/1.bmp: File too large, there is no room for the file; the copies made before "
        r"that \(1\) are whole\n",
        complaints,
    )
    (copy,) = sorted_into(tmp_path / "sorted").values()
    assert copy == (tmp_path / "0.bmp").read_bytes()


def test_one_copy_that_fails_is_named_and_the_others_are_made(trained, tmp_path, photos):
    """A name that is a file, a link or too long is in the way of its class alone."""
    target, out = tmp_path / "sorted", tmp_path / "s.png"
    _, said, _ = run("predict", trained, photos, "--out", out)
    answers = dict(re.findall(r"^(.*\.png): (\w+) ", said, re.MULTILINE))
    counts = Counter(answers.values())
    target.mkdir()
    (target / "elm").write_text("no folder")
    (tmp_path / "elsewhere").mkdir()
    (target / "birch").symlink_to(tmp_path / "elsewhere")
    code, said, complaints = run("predict", trained, photos, "--sort", target, "--out", out)
    failed = counts["elm"] + counts["birch"]
    assert 0 < failed < len(answers)
    assert code == 2
    assert complaints.count("not copied: ") == complaints.count("\n") == failed
    assert ": not a folder (links are not followed here)" in complaints
    assert said.splitlines()[-1] == (
        f"copied {counts['ash']} images into the folders of {target}, {failed} could not be copied"
    )
    assert len(sorted_into(target / "ash")) == counts["ash"]
    assert sorted_into(tmp_path / "elsewhere") == {}


def status_of(content, tmp_path):
    """Return the status of a file with this content."""
    path = tmp_path / "status"
    path.write_bytes(content)
    return path.stat()


def test_long_names_are_cut_between_characters(tmp_path):
    name = "é" * 125 + ".jpeg"  # 255 bytes
    with SortedCopies(tmp_path / "sorted", ["cat"], []) as copies:
        for content in (b"first", b"second", b"third", b"second"):
            there = content in sorted_into(tmp_path / "sorted").values()
            assert copies.add(0, name, content, status_of(content, tmp_path)) != there
    assert sorted_into(tmp_path / "sorted") == {
        f"cat/{name}": b"first",
        f"cat/{'é' * 124}-2.jpeg": b"second",
        f"cat/{'é' * 124}-3.jpeg": b"third",
    }


def test_times_and_permissions_are_copied_and_what_is_there_is_left(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"content")
    path.chmod(0o440)
    os.utime(path, ns=(10**18, 10**18 + 5))
    with SortedCopies(tmp_path / "sorted", ["cat"], []) as copies:
        assert copies.add(0, path.name, path.read_bytes(), path.stat())
        copy = (tmp_path / "sorted/cat/image.jpg").stat()
        assert (copy.st_mode, copy.st_mtime_ns) == (path.stat().st_mode, 10**18 + 5)
        assert not copies.add(0, path.name, path.read_bytes(), path.stat())


def test_a_folder_that_cannot_be_written_to(unprivileged):
    root, status = unprivileged / "sorted", status_of(b"", unprivileged)
    with SortedCopies(root, ["cat", "dog"], []) as copies:
        copies.add(0, "1.jpg", b"1", status)
        (root / "cat").chmod(0o500)
        with pytest.raises(NotCopiedError, match="Permission denied"):
            copies.add(0, "2.jpg", b"2", status)
        assert copies.add(1, "2.jpg", b"2", status)
        (root / "dog").chmod(0o500)
        root.chmod(0o500)
        with pytest.raises(PermissionError, match="Permission denied"):
            copies.add(1, "3.jpg", b"3", status)
        for folder in (root, root / "cat", root / "dog"):
            folder.chmod(0o700)
    assert sorted_into(root) == {"cat/1.jpg": b"1", "dog/2.jpg": b"2"}


SORTER = """
import pathlib, sys
sys.path.append(sys.argv[1])
from tinyalex.data.copies import SortedCopies
root = pathlib.Path(sys.argv[2])
status = pathlib.Path(sys.argv[1]).stat()
print(flush=True)
sys.stdin.readline()
with SortedCopies(root, ["cat", "dog"], []) as copies:
    for name in range(60):
        for content in "ab":
            copies.add(name % 2, f"{name}.jpg", (content * (1 + 500 * name)).encode(), status)
"""


def sorters(count, target):
    """Start processes that copy the same images into one folder."""
    arguments = [sys.executable, "-c", SORTER, ROOT, target]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(arguments, stdin=pipe, stdout=pipe) for _ in range(count)]
    for process in started:
        process.stdout.readline()
    for process in started:
        process.stdin.write(b"\n")
        process.stdin.flush()
    return started


def test_several_at_once_and_one_killed_copy_every_image_once(tmp_path):
    target = tmp_path / "sorted"
    *others, killed = sorters(3, target)
    while len(list(target.glob("*/*.jpg"))) < 10:  # unread: others come and go meanwhile
        time.sleep(0.001)
    killed.kill()
    for process in (*others, killed):
        process.communicate()
    assert [process.returncode for process in others] == [0, 0]
    expected = {}
    for name in range(60):
        for content in "ab":
            number = "" if content == "a" else "-2"
            path = f"{('cat', 'dog')[name % 2]}/{name}{number}.jpg"
            expected[path] = (content * (1 + 500 * name)).encode()
    found = sorted_into(target)
    halves = {path for path in found if str(path).endswith(".tmp")}
    assert len(halves) <= 1  # of the one that was killed
    contents = {path: content for path, content in found.items() if path not in halves}
    # Which of two images is first under its name depends on who was faster.
    assert contents.keys() == expected.keys()
    assert Counter(contents.values()) == Counter(expected.values())


def test_what_a_killed_process_left_is_removed_when_nobody_is_at_work(tmp_path):
    half = tmp_path / "sorted/cat/.1.jpg.0123abcd.tmp"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    own = half.with_name(".mine.tmp")
    own.write_bytes(b"no half")
    with SortedCopies(tmp_path / "sorted", ["cat"], []):
        assert not half.exists()
        half.write_bytes(b"half")  # of the process at work
        with SortedCopies(tmp_path / "sorted", ["cat"], []):
            assert half.exists()
    assert own.read_bytes() == b"no half"


def test_another_kind_of_work_in_the_folder_is_an_error_at_once(photos, trained, tmp_path):
    target = tmp_path / "sorted"
    with locked(target):
        code, _, complaints = finished(run, "predict", trained, photos, "--sort", target)
    assert_refused(code, complaints, f"another process is at work in {target}: wait for it")
    assert [path.name for path in target.iterdir()] == ["run.lock"]


def test_work_that_begins_while_a_sorter_looks_whether_it_is_alone(tmp_path, monkeypatch):
    flock = fcntl.flock

    def slip_in(descriptor, kind):
        if kind & fcntl.LOCK_SH:
            flock(descriptor, fcntl.LOCK_UN)  # which changing a lock does for an instant
            flock(other, fcntl.LOCK_EX)
        flock(descriptor, kind)

    (tmp_path / "cat").mkdir()
    half = tmp_path / "cat/.1.jpg.0123abcd.tmp"
    half.touch()
    monkeypatch.setattr(fcntl, "flock", slip_in)
    with Folder(tmp_path) as folder:
        other = folder.descriptor
        error = finished(SortedCopies, tmp_path, ["cat"], [])
    assert isinstance(error, ValueError)
    assert "another process is at work" in str(error)
    assert half.exists()


def test_what_was_read_is_copied_and_drawn(photos, trained, tmp_path, monkeypatch):
    """Once read, an image may be replaced by anything: by a secret, or by a pipe without an end."""
    folder, target = tmp_path / "photos", tmp_path / "sorted"
    shutil.copytree(photos / "elm", folder, ignore=shutil.ignore_patterns("[12]*"))
    before = sorted_into(folder)
    (tmp_path / "secret").write_text("secret")
    answers = Classifier.probabilities

    def swap(self, *args, **options):
        for number, path in enumerate(sorted(folder.iterdir())):
            path.unlink()
            os.mkfifo(path) if number % 2 else path.symlink_to(tmp_path / "secret")
        return answers(self, *args, **options)

    monkeypatch.setattr(Classifier, "probabilities", swap)
    code, _, complaints = finished(
        run, "predict", trained, folder, "--sort", target, "--out", tmp_path / "s.png"
    )
    assert (code, complaints) == (0, "")
    assert Counter(sorted_into(target).values()) == Counter(before.values())


def test_sorting_into_the_folder_that_is_sorted(photos, trained, tmp_path):
    target = photos / "sorted"
    code, _, complaints = run("predict", trained, photos, "--sort", target)
    assert (code, complaints.count("\n")) == (2, 1)
    assert f"--sort must name a folder that is not in {photos}" in complaints
    assert not target.exists()


@pytest.mark.parametrize("name", ["../elm", "a/b", "", ".."])
def test_class_names_that_lead_elsewhere(name, photos, trained, tmp_path):
    content = load_checkpoint(Checkpoints(trained).best)
    content["classifier"]["classes"][2] = name
    ta.save(content, tmp_path / "crafted.safetensors")
    arguments = (photos / "elm/00.png", "--sort", tmp_path / "sorted", "--out", tmp_path / "s.png")
    code, _, complaints = run("predict", tmp_path / "crafted.safetensors", *arguments)
    assert code == 2
    assert f"the class {name!r} is no name for a folder" in complaints
    assert not (tmp_path / "sorted").exists()


def test_a_class_name_that_no_file_can_have_is_refused_by_the_checkpoint(photos, trained, tmp_path):
    crafted = load_checkpoint(Checkpoints(trained).best)
    crafted["classifier"]["classes"][1] = "\ud800"
    ta.save(crafted, tmp_path / "odd.safetensors")
    for option in ((), ("--sort", tmp_path / "sorted")):
        arguments = (tmp_path / "odd.safetensors", photos / "ash", *option)
        assert_refused(
            *run("predict", *arguments, "--out", tmp_path / "s.png")[::2],
            "odd.safetensors cannot be used: classifier.classes.1 must be text of at most",
        )
    assert os.listdir(tmp_path) == ["odd.safetensors"]


def test_names_are_utf_8_whatever_the_locale_is(tmp_path):
    """Its encoding is ASCII in the process: other letters are as bytes that are no text."""
    (tmp_path / "photos/Ä").mkdir(parents=True)
    program = r"""if True:
        import os, sys
        from pathlib import Path
        from tinyalex.data import DataError, ImageFolder
        from tinyalex.data.copies import SortedCopies
        assert sys.getfilesystemencoding() == "ascii"
        with SortedCopies(Path("sorted"), ["\xc4", "b\udcff"], []) as copies:
            for label in (0, 1):
                assert copies.add(label, os.fsdecode(b"\xc3\x96.png"), b"it", os.stat("photos"))
        try:
            ImageFolder("photos")
        except DataError as error:
            print(ascii(str(error)))
    """
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **ascii_only, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert sorted(os.listdir(os.fsencode(tmp_path / "sorted"))) == [b"b\xff", "Ä".encode()]
    assert (tmp_path / "sorted/Ä/Ö.png").read_bytes() == b"it"
    assert "that the locale (ascii) does not have: choose another one, LC_ALL=C.UTF-8" in said
    assert "UTF-8: rename it" not in said
