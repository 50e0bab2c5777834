"""benchmarks/recipes.py: it resumes, repeats nothing, and refuses before training."""

import importlib
import os
import shutil
import signal

import pytest
from commands import contents

from tinyalex.training import Checkpoints, load_checkpoint, run_folder

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

TINY = {"variant": "tiny", "input_size": 28, "batch_size": 8, "augment": "none"}


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Return the script, with two rows, writing below a folder."""
    script = importlib.import_module("recipes")
    monkeypatch.setattr(script.report, "ROOT", tmp_path)
    monkeypatch.setattr(script.report, "RESULTS", tmp_path / "results")
    (tmp_path / "docs/images").mkdir(parents=True)
    (tmp_path / "docs/recipe.md").write_text("<!-- recipes -->\n<!-- /recipes -->\n")
    rows = {name: script.Row(name, None, {**TINY, "lr": lr}) for name, lr in (("a", 0.1), ("b", 1))}
    monkeypatch.setattr(script, "ROWS", rows)
    monkeypatch.setattr(script, "CURVES", {"a": "red"})
    monkeypatch.setattr(script, "add_variants", lambda: None)
    return script


def compare(script, photos, *arguments):
    """Run the script for one epoch, and return its exit code."""
    options = ("--epochs", "1", "--threads", "1", *arguments)
    return script.main([str(photos), "--out", str(script.report.ROOT / "runs"), *options])


def test_what_is_there_is_not_repeated_and_what_does_not_fit_is_refused(photos, recipes, capsys):
    assert compare(recipes, photos) == 0
    folder = recipes.report.ROOT
    assert "Each 1 epoch, seed 0; top-1 of 15 validation" in (folder / "docs/recipe.md").read_text()
    before = contents(folder / "runs")
    assert compare(recipes, photos) == 0
    assert contents(folder / "runs") == before
    capsys.readouterr()
    assert compare(recipes, photos, "--only", "a", "--epochs", "2") == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "of 15 validation images, epochs: 1, this one would be of 15 and 2" in complaint
    assert contents(folder / "runs") == before
    shutil.rmtree(folder / "runs/b")  # to have that one done again
    assert compare(recipes, photos) == 0
    assert Checkpoints(folder / "runs/b").exist()


def test_a_truncated_checkpoint_does_not_take_the_place_of_the_good_one(photos, recipes):
    assert compare(recipes, photos, "--only", "a") == 0
    checkpoints = Checkpoints(recipes.report.ROOT / "runs/a")
    os.truncate(checkpoints.last, 9999)
    (recipes.report.RESULTS / "recipes.json").unlink()
    assert compare(recipes, photos, "--only", "a") == 0
    for path in (checkpoints.last, checkpoints.previous):
        assert load_checkpoint(path)["state"]["step"] in (0, 7)
    assert load_checkpoint(checkpoints.last)["state"]["epoch"] == 1


def test_a_signal_ends_in_a_sentence(photos, recipes, monkeypatch, capsys):
    monkeypatch.setattr(
        run_folder, "load_checkpoint", lambda _: os.kill(os.getpid(), signal.SIGINT)
    )
    assert compare(recipes, photos) == 130
    assert capsys.readouterr().out.endswith("by SIGINT and saved; the same command resumes\n")
