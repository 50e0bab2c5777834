"""First lines of docstrings, and words that this project avoids."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_WORDS = 12
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for room in ("tinyalex", "examples", "benchmarks", "docs", "tests", "kernels")
    for path in sorted((ROOT / room).rglob("*"))
    if path.suffix in {".py", ".cu", ".cuh", ".cpp", ".h"}
}

SPAN = re.compile(r"`+[^`]+`+|\[[^\]]*\]")
"""Code, or a shape in brackets: one word."""

TITLE = re.compile(
    r'\s*r?"""(What|Where|Whether|How|Who)\b|// (What|Where|Whether|How|Which|Who)\b'
)
"""Beginning of a docstring, or of a CUDA file, that names nothing."""

AVOIDED = {
    r"\bgo(es|ing)? on\b": "resume, or continue",
    r"\bpassed over\b": "skipped",
    r"\blearn\w* by heart\b": "memorise",
    r"\b(some|no|every)body\b": "name the code or the person",
    r"\b(one|a) thread an? ": "per",
}


def complaints(line):
    """Yield everything that is wrong with the first line of a docstring."""
    words = [word for word in SPAN.sub("span", line).split() if re.search("[A-Za-z]", word)]
    if len(words) > MOST_WORDS:
        yield f"has {len(words)} words, {MOST_WORDS} are allowed"
    if TITLE.match(f'"""{line}'):
        yield "begins like a question; begin with a noun or a verb"
    if not line.endswith((".", ":", "?")):
        yield "does not end: give it a line of its own"


def first_lines(tree, modules_only):
    """Yield the line number and the first line of each docstring."""
    for node in [tree] if modules_only else ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text.splitlines()[0]


@pytest.mark.parametrize(
    "line",
    [
        "What a run knows.",
        "Return a sentence that ends in the next",
        "Return one two three four five six seven eight nine ten eleven twelve.",
    ],
)
def test_a_bad_first_line_is_noticed(line):
    assert list(complaints(line))


def test_code_and_shapes_count_as_one_word_and_numbers_as_none():
    line = "Set `y = a * x + b` [N, C, H, W] to 1 - one two three four five six seven eight."
    assert not list(complaints(line))


def test_first_lines_are_short_and_name_the_thing():
    wrong = [
        f"{name}:{number}: {line!r} {complaint}"
        for name, path in FILES.items()
        if path.suffix == ".py"
        for number, line in first_lines(ast.parse(path.read_bytes()), name.startswith("tests/"))
        for complaint in complaints(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_attributes_and_cuda_files_are_named_too():
    wrong = [
        f"{name}:{number}: {line.strip()}"
        for name, path in FILES.items()
        if not name.startswith("tests/") or path.suffix != ".py"  # tests have sentences
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if TITLE.match(line) and (path.suffix == ".py" or number == 1)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("pattern", AVOIDED)
def test_words_that_are_avoided(pattern):
    wrong = [
        f"{name}:{number}: {line.strip()} ({AVOIDED[pattern]})"
        for name, path in FILES.items()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not wrong, "\n".join(wrong)
