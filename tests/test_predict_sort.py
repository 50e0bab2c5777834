"""examples/predict.py --sort: copies in the folders of their classes, whatever happens."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import ROOT, run
from PIL import Image

import tinyalex as ta
from tinyalex.training import (
    Checkpoints,
    load_checkpoint,
)

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
    last = f"copied 20 images into the folders of {target}; 1 could not be read and were left out"
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
    (target / name).write_text("somebody's own")  # is not overwritten when the command runs again
    said = run("predict", *arguments)[1]
    assert f"copied 1 images into the folders of {target}, 19 were there already; 1 could" in said
    again = sorted_into(target)
    assert again.pop(name) == b"somebody's own"
    assert len(again) == 20
    assert Counter(again.values()) == Counter(before.values())


def test_a_copy_that_fails_leaves_nothing(photos, trained, tmp_path, disk):
    large = tmp_path / "large.bmp"
    Image.new("RGB", (400, 400)).save(large)
    disk(100_000)
    code, _, complaints = run(
        "predict", trained, large, "--sort", tmp_path / "sorted", "--out", tmp_path / "s.png"
    )
    assert code == 2
    assert "large.bmp: File too large, there is no room for the file" in complaints
    assert sorted_into(tmp_path / "sorted") == {}


def test_a_kill_amid_a_copy_leaves_no_half_and_no_second_copy(photos, trained, tmp_path):
    target = tmp_path / "sorted"
    for name in ("ash", "birch", "elm"):
        (target / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "00.png")  # an image that never ends
    program = (
        "import sys; sys.path.append('examples'); import pathlib, predict;"
        "predict.copy_into(pathlib.Path(sys.argv[1]), sys.argv[2])"
    )
    arguments = [sys.executable, "-c", program, target / "elm", tmp_path / "00.png"]
    with open(tmp_path / "00.png", "r+b", buffering=0) as pipe:
        pipe.write(bytes(1000))
        process = subprocess.Popen(arguments, cwd=ROOT)
        while not sorted_into(target):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    (half,) = sorted_into(target)
    assert half.startswith("elm/.00.png.")
    image = photos / "elm/00.png"
    arguments = (trained, image, "--sort", target, "--out", tmp_path / "s.png")
    for _ in range(2):
        assert run("predict", *arguments)[0] == 0
        (name,) = sorted_into(target)
        assert Path(name).name == "00.png"
        assert (target / name).stat().st_mtime_ns == image.stat().st_mtime_ns


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
