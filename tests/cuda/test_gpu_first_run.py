"""First run on a GPU: a failing part is logged, others follow."""

import os
import sys
from pathlib import Path

import pytest
from helpers import run_python

import gpu_first_run

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def script(name, code, minutes=1.0):
    return gpu_first_run.Part(name, (sys.executable, "-c", code), minutes)


def test_parts_run_what_exists(tmp_path):
    parts = gpu_first_run.parts(tmp_path)
    for part in parts:
        for word in part.command:
            assert not word.startswith("benchmarks/") or (ROOT / word).exists()
    assert [part.name for part in parts] == [
        *("machine", "tests", "golden", "memcheck", "racecheck", "synccheck"),
        *("profile", "quick", "layers", "ladder", "full"),
    ]
    # All but the last, which stops when the time is up, fit the half hour that a GPU is lent for.
    assert sum(part.minutes for part in parts[:-1]) < 28


def test_a_failing_part_stops_no_other(tmp_path, monkeypatch):
    parts = [
        script("broken", "raise SystemExit('no GPU')"),
        script("endless", "import time; print('begun', flush=True); time.sleep(60)", 0.02),
        gpu_first_run.Part("foreign", ("no-such-program",), 1, "no-such-program"),
        script("good", "print('measured')"),
    ]
    monkeypatch.setattr(gpu_first_run, "parts", lambda folder: parts)
    gpu_first_run.main([str(tmp_path)])
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split(": ", 1)[0] for line in lines] == ["broken", "endless", "foreign", "good"]
    assert "FAILED (1)" in lines[0]
    assert "its time was up" in lines[1]
    assert "there is no no-such-program" in lines[2]
    assert "done" in lines[3]
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    assert logs == {"broken": "no GPU\n", "endless": "begun\n", "good": "measured\n"}


def test_parts_can_be_chosen_and_time_ends(tmp_path, monkeypatch, capsys):
    parts = [script(name, "") for name in ("one", "two", "three")]
    monkeypatch.setattr(gpu_first_run, "parts", lambda folder: parts)
    gpu_first_run.main([str(tmp_path), "--from", "two", "--to", "two"])
    gpu_first_run.main([str(tmp_path), "--minutes", "0", "--from", "three"])
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split(" after")[0] for line in lines] == ["two: done", "three: no time left"]
    with pytest.raises(SystemExit):
        gpu_first_run.main([str(tmp_path), "--from", "four"])
    assert "there are one, two, three" in capsys.readouterr().err


EXERCISES = """
import sys
from simt import standin
standin.install()
import gpu_exercises
{fault}
print("failed:", gpu_exercises.main(["relu_of_any_shape", "relu_at_the_edges"]))
"""


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize(
    ("fault", "failed"),
    [("", 0), ("from tinyalex.backends import cuda; cuda.elementwise.relu = lambda x: x", 2)],
    ids=["as they are", "with a fault"],
)
def test_exercises_run_without_pytest(fault, failed):
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/support", BENCHMARKS)))
    printed = run_python(EXERCISES.format(fault=fault), PYTHONPATH=path)
    assert f"failed: {failed}" in printed
    assert printed.count(": passed") == 2 - failed
