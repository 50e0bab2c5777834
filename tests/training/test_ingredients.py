"""benchmarks/ingredients.py: how images are divided, and runs that are not repeated."""

import importlib
import shutil

import pytest
from commands import contents

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def ingredients(tmp_path, monkeypatch):
    """Return the script, with a small recipe, writing below a folder."""
    script = importlib.import_module("ingredients")
    monkeypatch.setattr(script.report, "ROOT", tmp_path)
    monkeypatch.setattr(script.report, "RESULTS", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/recipe.md").write_text(
        "<!-- ingredients-tuning-0.5 --><!-- /ingredients-tuning-0.5 -->"
    )
    tiny = {"variant": "tiny", "input_size": 28, "batch_size": 8, "augment": "none", "epochs": 2}
    monkeypatch.setattr(script, "RECIPE", {**script.RECIPE, **tiny})
    rows = {"recipe": ("it", {}), "mixed": ("mixed", {"mixup": 0.2})}
    monkeypatch.setattr(script, "ROWS", rows)
    return script


@pytest.fixture
def halves(photos, tmp_path):
    """Return a folder with the same images in train/ and in val/."""
    for split in ("train", "val"):
        shutil.copytree(photos, tmp_path / "photos" / split)
    return tmp_path / "photos"


def test_choices_are_made_on_images_of_train_alone(ingredients, halves, tmp_path):
    small = ingredients.Split("train", ("ash", "elm"), lambda i: i < 10)
    for split, learned, classes in ((ingredients.SPLITS["tuning"], 20, 3), (small, 10, 2)):
        out = ingredients.divided(halves, split, tmp_path / str(classes))
        assert ingredients.divided(halves, split, out) == out  # once more changes nothing
        for part, count in (("train", learned), ("val", 24 - learned)):
            folders = list((out / part).iterdir())
            assert len(folders) == classes
            for folder in folders:
                assert len(list(folder.iterdir())) == count
                assert all((halves / "train") in p.resolve().parents for p in folder.iterdir())
    assert ingredients.divided(halves, ingredients.SPLITS["final"], tmp_path) == halves
    with pytest.raises(ValueError, match="there are no images in"):
        ingredients.divided(halves, ingredients.SPLITS["small"], tmp_path / "none")


def test_runs_that_are_done_are_skipped_and_means_are_told(ingredients, halves, tmp_path, capsys):
    arguments = [str(halves), "--out", str(tmp_path / "runs"), "--threads", "1", "--share", "0.5"]
    assert ingredients.main([*arguments, "--seeds", "0", "1", "--table"]) == 0
    before = contents(tmp_path / "runs")
    capsys.readouterr()
    assert ingredients.main([*arguments, "--seeds", "0", "1"]) == 0
    assert capsys.readouterr().out.count("is done") == 4
    assert contents(tmp_path / "runs") == before
    table = (tmp_path / "docs/recipe.md").read_text()
    assert "| mixed | " in table
    assert "Of 12 images held out." in table
