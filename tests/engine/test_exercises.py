"""Exercises: each break is caught, each answer prints what the page says."""

import os
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

import pytest
from commands import ROOT, copy_sources

import tinyalex as ta

pytestmark = pytest.mark.documents

PAGE = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
EXERCISES = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
PROGRAMS = {"python": [], "tinyalex": ["-m", "tinyalex"]}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Check(NamedTuple):
    """Command or program with its expected output, and a break before it."""

    title: str
    command: list
    printed: str
    change: str | None


def checks():
    """Yield the page's checks: a diff, then code, then what that prints."""
    for exercise in EXERCISES:
        change = command = None
        for language, text in FENCE.findall(exercise):
            if language == "diff":
                change = text
            elif language == "sh":
                program, *arguments = shlex.split(text)
                command = [*PROGRAMS[program], *arguments]
            elif language == "python":
                command = ["-c", text]
            else:
                yield Check(exercise.splitlines()[0], command, text, change)
                change = None


CHECKS = list(checks())
BREAKS = [check for check in CHECKS if check.change]


def run(check, root):
    """Run a check on the package in ``root``; return its exit code and what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TINYALEX_BACKEND": "reference",
        "COLUMNS": "100",
        "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:xdist",
    }
    done = subprocess.run(
        [sys.executable, *check.command],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def as_pattern(line):
    """Return a regular expression of a line in which ... stands for anything."""
    return ".*".join(map(re.escape, line.split("...")))


def missing(printed, text):
    """Return the lines of the page that the text lacks."""
    return [
        line for line in printed.splitlines() if not re.search(f"^{as_pattern(line)}$", text, re.M)
    ]


def broken(change, root):
    """Apply a diff to the package in ``root``; its first line names the file."""
    name, *lines = change.splitlines()
    before, after = (
        "".join(f"{line[1:]}\n" for line in lines if line[0] in (" ", sign)) for sign in "-+"
    )
    code = (root / name).read_text(encoding="utf-8")
    assert code.count(before) == 1, f"{name} has these lines {code.count(before)} times:\n{before}"
    (root / name).write_text(code.replace(before, after), encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    """A copy of the package, beside the tests."""
    copy_sources("tinyalex", tmp_path)
    for name in ("tests", "kernels", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("check", BREAKS, ids=lambda check: check.title)
def test_a_break_is_caught_as_the_page_says(check, copy):
    code, text = run(check, copy)
    assert code == 0, text
    broken(check.change, copy)
    code, text = run(check, copy)
    assert code != 0
    assert not missing(check.printed, text), text


@pytest.mark.parametrize("check", [c for c in CHECKS if not c.change], ids=lambda c: c.title)
def test_an_answer_prints_what_the_page_says(check):
    code, text = run(check, ROOT)
    assert code == 0, text
    assert re.fullmatch("\n".join(map(as_pattern, check.printed.splitlines())), text.strip())


def test_each_exercise_says_what_it_teaches_and_has_an_answer():
    assert [int(title.split(".")[0]) for title in EXERCISES] == list(range(1, 11))
    for exercise in EXERCISES:
        assert re.search(r"^\*\d+ minutes\. Learn: .*Read first:\*$", exercise, re.MULTILINE)
        assert any(check.title == exercise.splitlines()[0] for check in CHECKS)
    minutes = sum(map(int, re.findall(r"^\*(\d+) minutes", PAGE, re.MULTILINE)))
    assert f" {minutes} minutes in all." in PAGE


def test_the_picture_is_of_the_first_exercise(monkeypatch):
    monkeypatch.setenv("PATH", "")
    x = ta.tensor([1.0, 2.0], requires_grad=True)
    drawing = ta.draw_graph(((x * x).sum() + x.exp().mean()) * x.max())
    assert (ROOT / "docs" / "images" / "graph.svg").read_text(encoding="utf-8") == drawing.svg
