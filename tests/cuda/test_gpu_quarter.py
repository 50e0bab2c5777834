"""Quarter of an hour on a GPU, on the stand-in."""

import argparse
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
from simt import exercises, memory
from simt.exercises import Exercise

import gpu_quarter
import tinyalex as ta
from gpu import journal, layers, machine, tables
from gpu.cases import Net
from gpu.layer_rows import rows
from gpu_quarter import Part, Step
from tinyalex import nn
from tinyalex.backends.cuda import launch

SCRIPT = Path(gpu_quarter.__file__)
MARK = "QUARTER_OF_THIS_TEST"
# A program above the step that starts another one, which lives on when the step is killed.
SLEEPER = ("sh", "-c", 'sleep 99 & exec "$@"', "sh")

pytestmark = pytest.mark.usefixtures("standin")  # for its word on a missing g++


@pytest.fixture(autouse=True)
def marked(tmp_path, monkeypatch):
    """Mark the processes of a test, and end those that are left."""
    monkeypatch.setenv(MARK, str(tmp_path))
    monkeypatch.delenv("TINYALEX_COMMIT", raising=False)
    yield
    assert not alive(tmp_path)


def alive(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if path.parent.name != str(os.getpid()) and os.fsencode(folder) in path.read_bytes():
                found.append(path.parent.joinpath("cmdline").read_bytes())
        except OSError:
            continue  # it has ended, or is another user's
    return found


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def archived(folder, number=1):
    """Return names and texts of an archive."""
    newest = max(folder.glob(f"gpu-part-{number}-*.tar.gz"))
    with tarfile.open(newest) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}


def run_part(monkeypatch, folder, seconds, *steps, clock=time.monotonic):
    """Run these steps as a part at toy sizes; return ends and notes by step, and all results."""
    monkeypatch.setattr(gpu_quarter, "PARTS", {1: Part(seconds, steps)})
    gpu_quarter.main(["--part", "1", "--toy", "--out", str(folder)], clock)
    results = journal.load(folder)
    assert archived(folder)["gpu-part-1.jsonl"] == (folder / "gpu-part-1.jsonl").read_bytes()
    ends = [results[f"gpu-end 1 {step.label}"]["end"] for step in steps]
    notes = [results.get(f"gpu-note 1 {step.label}", {}).get("note") for step in steps]
    return ends, notes, results


class Clock:
    """A clock that stands still until a step has its first result; then its limit is over."""

    def __init__(self, path, limits):
        self.path, self.limits = path, limits

    def __call__(self):
        measured, step = set(), None
        for line in lines_of(self.path):
            if line.get("note") == "begun":
                step = line["of"]
            else:
                measured.add(step)
        return math.fsum(self.limits[step] for step in measured)


def test_what_was_measured_before_a_cut_is_kept(tmp_path, monkeypatch):
    steps = (
        Step("sweep", 60),
        Step("exercises", 50, above=SLEEPER),
        Step("nets", 40, ("train", "128", "B")),
        Step("golden", 30),
    )
    clock = Clock(tmp_path / "gpu-part-1.jsonl", {f"1 {s.label}": s.seconds for s in steps})
    ends, notes, results = run_part(monkeypatch, tmp_path, 150, *steps, clock=clock)
    assert ends == ["stopped: its time was up"] * 3 + ["no time left"]
    assert "gpu-layers-g1-lrn-thin32-63-1-conv1-forward-B" in results
    assert "passed" in notes[1]
    net = results["gpu-train-g1-lrn-thin32-63-1-B"]
    assert net["contestants"]["tinyalex"]["errors"]["update"] < 0.01
    assert not net["complete"]
    assert net["failed"]["torch"]
    assert b"simt.exercises" in archived(tmp_path)["gpu-part-1/1-sh-exercises.log"]


def test_a_failing_step_stops_no_other(tmp_path, monkeypatch):
    sources = shutil.copytree(launch.source_folder(), tmp_path / "kernels")
    with open(sources / "dropout.cu", "a") as file:
        file.write("#error planted\n")
    monkeypatch.setenv("TINYALEX_KERNELS", str(sources))
    monkeypatch.setenv("TINYALEX_COMMIT", "0123abc")
    steps = (
        Step("build", 99, ("dropout", "relu")),
        Step("exercises", 99, ("dropout_of_any", "relu_of_any")),
        Step("golden", 99),
        Step("one_step", 99, above=("no-such-program",)),
        Step("nets", 99, ("infer", "1", "A", "C")),
    )
    probed = {"of": "2 probe", "note": "begun", "facts": {}}  # and cut short
    journal.append(tmp_path / "gpu-part-2.jsonl", "gpu-note 2 probe", probed)
    ends, notes, results = run_part(monkeypatch, tmp_path, 999, *steps)
    skipped = "skipped: there is no no-such-program, nor in /usr/local/cuda/bin"
    assert ends == ["FAILED (1)", "FAILED (1)", "done", skipped, "done"]
    assert notes[0] == "1 of 2 sources compile; failed: dropout.cu"
    assert "1 of 2 passed; failed: elementwise.dropout_of_any_shape" in notes[1]
    assert b"planted" in archived(tmp_path)["gpu-part-1/1-build-dropout-relu.log"]
    assert "gpu-part-1/to_tf32.npz" in archived(tmp_path)
    assert notes[-1] == "in the tables: A, C"
    assert results["gpu-infer-g1-lrn-thin32-63-1-A"]["complete"]
    net = results["gpu-infer-g1-lrn-thin32-63-1-C"]
    assert net["complete"]
    assert net["facts"]["commit"] == "0123abc"
    assert net["facts"]["environment"]["TINYALEX_ALLOW_TF32"] == "1"
    assert len(net["contestants"]["tinyalex"]["turns"]) == 2

    # The tables; what the stand-in measured is refused there.
    places = tmp_path / "results", tmp_path / "golden", tmp_path / "gpu.md"
    (archive,) = tmp_path.glob("gpu-part-1-*.tar.gz")
    with pytest.raises(SystemExit, match="of the stand-in, not of a GPU: nothing was written"):
        gpu_quarter.unpack([archive], *places)
    assert not any(place.exists() for place in places)
    places[2].write_text(tables.DOCUMENT.read_text())
    lines = tmp_path / "gpu-part-1.jsonl"
    lines.write_text(lines.read_text().replace('"gpu": "stand-in"', '"gpu": "a GPU of the tests"'))
    gpu_quarter.pack(lines, sources, archive)
    gpu_quarter.unpack([archive], *places)
    text = places[2].read_text()
    assert "| g1-lrn-thin32-63 | 1 | tinyalex | " in text
    assert "| 1 exercises dropout_of_any relu_of_any | FAILED (1) | " in text


def test_a_part_that_is_stopped_leaves_results_and_no_child(tmp_path):
    lines = tmp_path / "gpu-part-1.jsonl"
    command = [sys.executable, SCRIPT, "--part", "1", "--toy", "--out", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        while not lines_of(lines):
            assert driver.poll() is None
            time.sleep(0.02)
        driver.send_signal(signal.SIGTERM)
        assert b"1 build: stopped with its part" in driver.communicate(timeout=60)[0]
    assert driver.returncode == 1
    begun, end = lines_of(lines)
    assert begun["note"] == "begun"
    assert end["end"] == "stopped with its part"
    assert "gpu-part-1/1-build.log" in archived(tmp_path)


def test_what_earlier_archives_of_a_part_had_is_kept(tmp_path):
    document = tmp_path / "gpu.md"
    document.write_text(tables.DOCUMENT.read_text())
    lines, logs = tmp_path / "gpu-part-1.jsonl", tmp_path / "logs"
    logs.mkdir()
    archives = [tmp_path / f"gpu-part-1-{n}.tar.gz" for n in range(2)]
    for archive, step in zip(archives, ("1 build", "1 sweep"), strict=True):
        lines.unlink(missing_ok=True)  # on a machine of its own
        journal.append(lines, f"gpu-end {step}", {"of": step, "end": "done", "seconds": 1})
        gpu_quarter.pack(lines, logs, archive)
    results = tmp_path / "results"
    for _ in range(2):
        gpu_quarter.unpack(archives, results, tmp_path, document)
        assert set(journal.load(results)) == {"gpu-end 1 build", "gpu-end 1 sweep"}
    assert len(lines_of(results / lines.name)) == 2


class RestartError(Exception):
    """In place of a program that takes this one's."""


class Fragile:
    """A GPU that fails for good after one error in a process."""

    def __init__(self, monkeypatch):
        self.alive = True
        monkeypatch.setattr(memory.Device, "synchronize", lambda _: self.call())
        monkeypatch.setattr(os, "execv", self.restart)
        monkeypatch.setenv(machine.FAILED, "{}")

    def call(self, deadly=False):
        self.alive = self.alive and not deadly
        if not self.alive:
            raise RuntimeError("illegal address")

    def restart(self, *_):
        self.alive = True
        raise RestartError


def test_exercises_go_on_behind_one_that_ends_the_context(monkeypatch):
    gpu = Fragile(monkeypatch)
    every = [Exercise(name, (), lambda _, n=name: gpu.call(n in "bd")) for name in "abcd"]
    monkeypatch.setattr(exercises, "all_exercises", lambda: every)
    notes = []
    for end in (RestartError, RestartError, SystemExit):
        with pytest.raises(end):
            notes.extend(gpu_quarter.exercises(argparse.Namespace(words=[])))
    assert notes == [
        "1 of 4 passed",
        "1 of 4 passed; failed: b",
        "2 of 4 passed; failed: b",
        "2 of 4 passed; failed: b, d",
    ]


def test_a_row_goes_on_behind_a_version_that_ends_the_context(monkeypatch, tmp_path):
    gpu = Fragile(monkeypatch)

    def version(row, deadly):
        gpu.call(deadly)
        return layers.ours(row)

    names = "tinyalex a", "tinyalex b", "tinyalex c"
    monkeypatch.setattr(
        layers,
        "versions",
        lambda row: {name: partial(version, row, name == names[1]) for name in names},
    )
    net = Net(thin=32, pixels=63, classes=4)
    first_two = list(rows(net, 1, nn.Conv2d))[:2]
    monkeypatch.setattr(layers, "rows", lambda *_: first_two)
    lines = tmp_path / "gpu.jsonl"
    words = argparse.Namespace(toy=True, until=math.inf, lines=lines)
    ends = []
    for _ in range(9):
        try:
            with ta.use_backend("reference"):
                campaign, _, _ = gpu_quarter.prepare(words)
                layers.measure(net, 1, "B", campaign, sweep=True)
            break
        except RestartError:
            ends.append(machine.last_failure())
    assert [end.split()[-1] for end in ends] == ["b", "b"]
    found = [r for r in journal.load(tmp_path).values() if "times" in r]
    assert len(found) == 2
    for row in found:
        assert set(row["times"]) == {"tinyalex", names[0], names[2]}
        assert row["failed"] == {names[1]: "RuntimeError: illegal address"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--step nonsense", "no step 'nonsense'; there are build, sweep, exercises"),
        ("--table none.tar.gz", "no archive none.tar.gz"),
        ("--part 1", "--part wants a folder: --out FOLDER, or OUT in the environment"),
        ("--part 1 --out x --packages none", "--packages none has no folder ml_dtypes"),
    ],
)
def test_what_is_asked_for_wrongly_is_named(words, message, monkeypatch, capsys):
    monkeypatch.delenv("OUT", raising=False)
    with pytest.raises(SystemExit):
        gpu_quarter.main(words.split())
    assert message in capsys.readouterr().err


def test_packages_travel_to_every_step(tmp_path, monkeypatch):
    """What is installed comes first, so that a NumPy beside ml_dtypes does no harm."""
    packages = tmp_path / "packages"
    for name in ("ml_dtypes", "numpy", "only_here"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path])
    teller = ("sh", "-c", 'for word; do echo "$word"; done', "sh")
    monkeypatch.setattr(gpu_quarter, "PARTS", {1: Part(9, (Step("golden", 9, above=teller),))})
    gpu_quarter.main(["--part", "1", "--packages", str(packages), "--out", str(tmp_path)])
    assert f"--packages={packages}" in archived(tmp_path)["gpu-part-1/1-sh-golden.log"].decode()
    assert importlib.util.find_spec("only_here")
    assert Path(importlib.util.find_spec("ml_dtypes").origin).parent != packages / "ml_dtypes"


def test_a_part_says_what_it_lacks_without_bfloat16(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_quarter, "PARTS", {1: Part(9, ())})
    gpu_quarter.main(["--part", "1", "--out", str(tmp_path)])
    assert not capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    gpu_quarter.main(["--part", "1", "--out", str(tmp_path)])
    assert "class C stores its numbers as float32, and the exercises" in capsys.readouterr().out


def test_the_parts_fit_their_time():
    for part in gpu_quarter.PARTS.values():
        assert sum(step.seconds for step in part.steps) <= part.seconds
        assert {step.name for step in part.steps} <= set(gpu_quarter.STEPS)
        assert len({step.label for step in part.steps}) == len(part.steps)
    assert sum(part.seconds for part in gpu_quarter.PARTS.values()) <= 12 * 60


def test_half_a_line_costs_no_other(tmp_path):
    path = tmp_path / "gpu.jsonl"
    journal.append(path, "whole", {"complete": True, "value": 1})
    with open(path, "a") as file:
        file.write('{"name": "half", "at": 12')
    journal.append(path, "after", {"value": 2})
    journal.append(path, "whole", {"complete": False, "value": 2})
    journal.append(path, "twice", {"value": 3})
    journal.append(path, "twice", {"value": 4})
    values = {name: result["value"] for name, result in journal.load(tmp_path).items()}
    assert values == {"whole": 1, "after": 2, "twice": 4}
