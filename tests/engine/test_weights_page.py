"""Figures of docs/weights.md are those of benchmarks/results."""

import importlib
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinyalex.cli.network import prefix_of

pytestmark = pytest.mark.documents

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def report():
    """Return the module that keeps results."""
    return importlib.import_module("shared.report")


def between(name):
    """Return what stands between the markers of a name."""
    return TEXT.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def test_the_table_is_that_of_the_last_measurement(report):
    transfer = importlib.import_module("transfer")
    assert between("transfer") == transfer.table(report.load("transfer"))


def test_the_picture_of_the_example_is_the_one_that_the_probe_draws(tmp_path, monkeypatch):
    script = importlib.import_module("weights_example")
    assert ".venv/bin/tinyalex probe runs/three --data two" in TEXT
    (tmp_path / "runs/three").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    drawn = f"{prefix_of(Path('runs/three/best.safetensors'), ['two'])}probe.png"
    assert script.probe_picture(tmp_path).name == drawn


WORDS = ["train", "probe", "train", "evaluate", "convert"]
PRINTED = {
    "train": "  validation accuracy: 80.1% after the last epoch, 81.2% after the best, epoch 9",
    "probe": f"two, layer pool5\n{between('probe')[4:-4]}\n  top-1: share of the images",
    "evaluate": "best.safetensors, torchvision, on the 300 images that the run held out of two",
    "convert": "two.onnx: ONNX, 228.1 MB",
}


def test_the_example_of_the_page_is_run_and_its_figures_are_found(report, tmp_path, monkeypatch):
    script = importlib.import_module("weights_example")
    ran = []

    def run(command, **options):
        ran.append(command[2])
        word = command[2].partition("tinyalex ")[2].partition(" ")[0]
        return subprocess.CompletedProcess(command, 0, PRINTED.get(word, ""))

    monkeypatch.setattr(script.subprocess, "run", run)
    arguments = SimpleNamespace(store=tmp_path)
    said = {command: script.run(command, arguments) for command in script.commands()}
    assert [command.split()[3] for command in ran[1:]] == WORDS
    found = script.blocks(
        {"said": script.figures(said), "machine": report.load("transfer")["machine"]}
    )
    assert found["probe"] == between("probe")
    assert "at 80.1% of the 300 of the two others. " in found["example"]
    assert "<!-- example -->" in TEXT
    (tmp_path / "runs/two").mkdir(parents=True)
    (tmp_path / "runs/two/last.safetensors").touch()
    script.run(script.commands()[3], arguments)
    assert ran[-1].endswith("tinyalex train --resume runs/two")


def test_frozen_layers_save_as_much_as_was_measured(report):
    script = importlib.import_module("bench_trainer")
    assert between("frozen") == script.gains(report.load("frozen-torchvision-32"))
