"""The command `probe`: its table, its pictures, what it refuses."""

import re

import images
import numpy as np
import pytest
from commands import assert_refused, run
from PIL import Image

from tinyalex.cli import probe
from tinyalex.training import Checkpoints

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep features apart from those of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shares(said):
    """Return the accuracies in each row of the table."""
    rows = [line for line in said.splitlines() if re.match(r" +(\d+|all) ", line)]
    return {row.split()[0]: [float(x) for x in re.findall(r"([\d.]+)%", row)] for row in rows}


def test_the_run_tells_more_of_its_images_than_an_untrained_network(trained, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "a.png"
    code, said, complaints = run("probe", trained, "--shots", "2,all,5", "--out", out)
    assert (code, complaints) == (0, "")
    table = shares(said)
    assert list(table) == ["2", "5", "all"]
    fc2, untrained, _ = table["all"]  # mean pixels are all that tells these classes apart
    assert fc2 > untrained
    assert max(map(len, said.split("\ntop-1")[0].splitlines()[1:])) <= 80
    for picture in (out, tmp_path / "a-neighbours.png"):
        assert f"drawn in {picture}" in said
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(2**24)) > 20
    again = run("probe", trained, "--shots", "2,all,5", "--out", out)[1]
    assert "computed before" in again
    assert shares(again) == table
    fresh = run("probe", trained, "--shots", "2,all,5", "--out", out, "--no-cache")[1]
    assert shares(fresh) == table
    assert shares(run("probe", trained, "--shots", "2,all", "--seed", 1, "--out", out)[1]) != table


def test_validation_images_change_nothing_but_the_judgement(monkeypatch, photos, trained, tmp_path):
    """The probe is never shown an image held out, neither to learn nor to choose its strength."""
    seen, fit = [], probe.fit_probe

    def noted(features, labels, *rest, **options):
        seen.append({vector.tobytes() for vector in features})
        return fit(features, labels, *rest, **options)

    judged, described = set(), probe.described

    def shown(*arguments, **options):
        found = described(*arguments, **options)
        judged.update(v.tobytes() for vs in found["val"].vectors.values() for v in vs)
        return found

    monkeypatch.setattr(probe, "fit_probe", noted)
    monkeypatch.setattr(probe, "described", shown)
    assert (
        run("probe", trained, "--data", photos, "--shots", "all", "--out", tmp_path / "a.png")[0]
        == 0
    )
    assert len(seen) == 3
    assert judged
    assert not judged & set().union(*seen)


def test_too_many_shots_are_skipped_and_named(trained, photos, tmp_path):
    out = tmp_path / "a.png"
    where = (trained, "--data", photos, "--out", out, "--layer", "pool1", "--draws", 1)
    code, said, complaints = run("probe", *where, "--shots", "3,500,900")
    assert code == 0
    assert list(shares(said)) == ["3"]
    assert "skipped: 500, 900 shots: 'ash' has 19 training images" in complaints
    assert_refused(
        *run("probe", *where, "--shots", "500")[::2], "fewer than 500: give less, or all"
    )


def test_all_shots_are_mentioned_where_they_were_not_asked_for(trained, photos, tmp_path):
    where = (trained, "--data", photos, "--draws", 1, "--out", tmp_path / "a.png", "--shots")
    assert "--shots all: learn from all 57\n" in run("probe", *where, "3")[1]
    assert "--shots all" not in run("probe", *where, "3,all")[1]


def test_mistakes_are_one_sentence(trained, photos, tmp_path):
    one = images.folder(tmp_path / "one", ash=3)
    (tmp_path / "none").mkdir()
    mistakes = {
        ("--layer", "fc9"): "layer must be one of conv1, relu1, pool1, fc2, relu2, fc3; got 'fc9'",
        ("--data", one): "expected at least 2 classes, found only 'ash'",
        ("--data", tmp_path / "none"): "found no folders",
        ("--data", tmp_path / "gone"): "No such file",
        ("--shots", "5,some"): "expected a whole number >= 1, got 'some'",
        ("--shots", "0"): "expected a whole number >= 1, got '0'",
        ("--out", tmp_path): "is a folder",
    }
    for arguments, expected in mistakes.items():
        code, _, complaints = run("probe", trained, *arguments)
        assert_refused(code, complaints, expected)


def test_images_that_the_run_learned_from_are_told(trained, photos, tmp_path):
    where = ("--data", photos, "--shots", 2, "--draws", 1, "--out", tmp_path / "a.png")
    complaints = run("probe", trained, *where, "--seed", 5)[2]
    assert "the run learned from" in complaints
    assert run("probe", trained, *where)[2] == ""


def test_unreadable_images_are_named_and_left_out(trained, tmp_path):
    folder = images.folder(tmp_path / "photos", ash=60, elm=60)
    (folder / "ash/003.png").write_text("no image")
    where = ("--data", folder, "--shots", 2, "--draws", 2, "--out", tmp_path / "a.png")
    code, said, _ = run("probe", Checkpoints(trained).best, *where)
    assert code == 0
    assert f"left out: {folder}/ash/003.png: " in said


def test_the_spread_is_that_of_the_draws():
    assert probe.spread_of([0.5]) == 0
    assert probe.spread_of([0.5, 0.7]) == pytest.approx(np.sqrt(0.02))
