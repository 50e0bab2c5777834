"""The page on networks that do not learn: symptoms as printed."""

import io
import math
import shlex
from contextlib import redirect_stdout

import pytest
from commands import ROOT, run

from no_learning import NUMBER, blocks, filled, shown, skeleton
from shared import report
from tinyalex.cli import overfit
from tinyalex.training.datasets import PATTERN_SIZES

pytest_plugins = ("trained",)
pytestmark = pytest.mark.documents

PAGE = (ROOT / "docs" / "no-learning.md").read_text(encoding="utf-8")
BLOCKS, PRINTED = blocks(PAGE), shown(PAGE)


def size(number):
    """Return a number, or the power of ten of one that is written as such."""
    return math.log10(float(number)) if "e" in number else float(number)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Run the programs in a folder; return it, and what they print."""
    folder, printed = tmp_path_factory.mktemp("symptoms"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(folder)
        exec("\n".join(code for language, code in BLOCKS if language == "python"), {})
    return folder, printed.getvalue()


def test_programs_print_these_numbers(programs):
    printed = programs[1]
    wanted = "".join(text for language, _, text in PRINTED if language == "python")
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    for got, expected in zip(NUMBER.findall(printed), NUMBER.findall(wanted), strict=True):
        margin = max(0.2, 0.2 * abs(size(expected)))  # other processors round differently
        assert size(got) == pytest.approx(size(expected), abs=margin)


COMMANDS = [(code.strip(), text) for language, code, text in PRINTED if language == "sh"]


@pytest.mark.parametrize(("command", "text"), COMMANDS, ids=[code for code, _ in COMMANDS])
def test_commands_of_thin_networks_print_such_lines(command, text, programs, thin, monkeypatch):
    monkeypatch.chdir(programs[0])
    monkeypatch.setattr(overfit, "MOST_STEPS", 50)
    for split, count in {"train": 600, "val": 50, "test": 50}.items():
        monkeypatch.setitem(PATTERN_SIZES, split, count)
    code, said, complaints = run(*shlex.split(command)[1:])
    printed, wanted = (map(skeleton, lines.splitlines()) for lines in (said + complaints, text))
    assert {*wanted} <= {*printed}
    assert code == 0 or "error: " in text or "did not fall below" in complaints


def test_every_command_has_its_lines():
    assert len(COMMANDS) == sum(language == "sh" for language, _ in BLOCKS) == 9


def test_numbers_are_those_of_the_last_measurement():
    found = report.load("no-learning")["printed"]
    assert found.keys() == {command for command, _ in COMMANDS}
    assert filled(PAGE, found) == PAGE, "run benchmarks/no_learning.py"
    count = PATTERN_SIZES["train"]
    steps = f"batches of 32 has {count // 32} steps, of batches of 500 it has {count // 500}:"
    assert steps in " ".join(PAGE.split())
