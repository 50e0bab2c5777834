"""The ladder in kernels/README.md lists all kernels, and each row runs."""

import json
import re
from pathlib import Path

import pytest
from simt import resources

ROOT = Path(__file__).parents[2]
README = ROOT / "kernels" / "README.md"
TEXT = README.read_text(encoding="utf-8")
TABLE = TEXT.split("<!-- kernel-ladder -->")[1].split("<!-- /kernel-ladder -->")[0]
# Of the norm, in float32, TF32 (rounded, or cut off: 2.6 times as far) and bfloat16.
BOUNDS = {"A": 1e-6, "B": 1.5e-3, "C": 5e-3}


@pytest.fixture
def ladder(standin):
    import kernel_ladder

    return kernel_ladder


@pytest.fixture
def rungs(ladder):
    from gpu.rungs import RUNGS

    return RUNGS


def test_every_entry_is_on_one_rung(rungs):
    entries = [(rung.file, entry) for rung in rungs for entry in rung.entries]
    assert len(entries) == len(set(entries))
    assert set(entries) == set(resources.entries())


def test_the_table_has_a_row_for_each_rung(ladder, rungs):
    first_cells = re.findall(r"^\| (\[.*?) \|", TABLE, re.MULTILINE)
    assert first_cells == [
        f"[{rung.file}]({rung.file}): {ladder.names_of(rung)}" for rung in rungs
    ], "run python benchmarks/kernel_ladder.py --table"


def test_each_version_computes_its_operation(ladder, rungs):
    errors = ladder.errors()
    assert set(errors) == {rung.entries[0] for rung in rungs if rung.call}
    for rung in rungs:
        if rung.call:
            assert errors[rung.entries[0]] < BOUNDS[rung.precision], rung.entries[0]


def test_times_are_those_of_the_file_or_awaited():
    path = ROOT / "benchmarks" / "results" / "gpu-ladder.json"
    measured = set(json.loads(path.read_text())["rungs"]) if path.exists() else set()
    awaited = TABLE.count("not yet measured on hardware")
    assert bool(awaited) == (not measured)


def test_a_row_shows_time_and_share_of_the_floor(ladder):
    found = {"times": [[3e-6, 2e-6, 1e-6], [2e-6]], "floor_seconds": 1e-6}
    assert ladder._time(found) == "2.0 us | 50%"
    assert ladder._time({"failed": "CompileError: no"}) == "CompileError: no | -"


def test_floors_of_operations_are_those_of_conv3(ladder):
    values = ladder.arguments("conv2d", ladder.FULL)
    result = ladder.np.empty((128, 384, 13, 13), ladder.np.float32)
    work = ladder.work("conv2d", values, result)
    assert work.operations == 2 * 384 * 256 * 9 * 13 * 13 * 128
    assert work.bytes("A") == 4 * (128 * 169 * (256 + 384) + 384 * 256 * 9 + 384)
