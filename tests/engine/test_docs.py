"""README and the page on Winograd's convolution: what the code does."""

import ast
import re
import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "winograd.md"
TEXT = PAGE.read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generated():
    """What the page should have between its markers now."""
    return runpy.run_path(str(ROOT / "docs" / "winograd_page.py"))["blocks"]()


def on_page(name, text=TEXT):
    """Return what stands between the markers of this name."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def test_matrices_and_counts_are_those_of_the_code(generated):
    for name, text in generated.items():
        assert on_page(name) == text, f"{name}: run python docs/winograd_page.py"


def test_measured_blocks_are_filled():
    for name in ("winograd-errors", "winograd-time"):
        assert on_page(name).strip(), name


def test_code_on_the_page_runs(capsys):
    source = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    assert source.count("assert ") == 4
    exec(source, {})
    assert "[-1.  3.  1.  3.]" in capsys.readouterr().out


def test_the_readme_is_a_door():
    assert len(README.splitlines()) <= 150
    blocks = runpy.run_path(str(ROOT / "docs" / "readme_page.py"))["blocks"]()
    assert on_page("input-grad", README) == blocks["input-grad"], "run python docs/readme_page.py"
    said, now = (
        [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", text)]
        for text in (on_page("size", README), blocks["size"])
    )
    assert said == pytest.approx(now, rel=0.05), "run python docs/readme_page.py"


def test_no_sentence_of_the_readme_stands_elsewhere():
    """Sentences of six words or more, outside of code and of tables."""
    others = " ".join(
        " ".join(path.read_text(encoding="utf-8").split())
        for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), ROOT / "CONTRIBUTING.md")
    )
    text = re.sub(r"```.*?```|^\|.*?$|<!--.*?-->", "", README, flags=re.DOTALL | re.MULTILINE)
    sentences = re.split(r"(?<=[.:])\s", " ".join(text.split()))
    twice = [s for s in sentences if len(s.split()) >= 6 and s in others]
    assert not twice


# A path of the repository, not of a test's own folder, that is a document.
READS_A_DOCUMENT = re.compile(r'(ROOT|PACKAGE|FOLDER|__file__)\b.*("docs\b|\.md")')


def test_tests_of_documents_are_marked():
    """``pytest -m documents`` leaves out none of them."""
    found = {
        f"{path.name}::{name}": marked
        for path in (ROOT / "tests").glob("*/test_*.py")
        for name, marked in reading_tests(path.read_text(encoding="utf-8")).items()
    }
    assert len(found) > 20
    assert [name for name, marked in found.items() if not marked] == []


def reading_tests(source):
    """Return the tests that read a document, or use what does, and whether they are marked."""
    whole, lines = "\npytestmark = pytest.mark.documents" in source, source.splitlines()
    parts = {}
    for node in ast.parse(source).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        for name in names_of(node):
            parts[name] = "\n".join(lines[first - 1 : node.end_lineno])
    read, before = {name for name, code in parts.items() if READS_A_DOCUMENT.search(code)}, set()
    while read != before:
        before = set(read)
        words = re.compile(rf"\b({'|'.join(read)})\b")
        read |= {name for name, code in parts.items() if words.search(code)}
    return {
        name: whole or "@pytest.mark.documents" in parts[name]
        for name in sorted(read)
        if name.startswith("test_")
    }


def names_of(node):
    """Return the names that a statement defines."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if hasattr(node, "name") else []


def test_one_mark_is_not_enough_for_a_file_of_tests_of_documents():
    source = """
PAGE = ROOT / "docs"

@pytest.mark.documents
def test_a():
    PAGE.read_text()

def test_b():
    PAGE.read_text()

def test_c():
    pass
"""
    assert reading_tests(source) == {"test_a": True, "test_b": False}
