"""The page on Winograd's convolution prints what the code does."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "winograd.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generated():
    """What the page should have between its markers now."""
    return runpy.run_path(str(ROOT / "docs" / "winograd_page.py"))["blocks"]()


def on_page(name):
    """Return what stands between the markers of this name."""
    return TEXT.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


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
