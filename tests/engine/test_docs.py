"""The page on Winograd's convolution prints what the code does."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "winograd.md"
TEXT = PAGE.read_text(encoding="utf-8")


def load(path):
    """Import a script that belongs to no package."""
    description = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated():
    """What the page should have between its markers now."""
    return load(ROOT / "docs" / "winograd_page.py").blocks()


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


def names_in(path):
    """Return the functions, classes and constants at the top level of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for t in targets for name in ast.walk(t) if hasattr(name, "id"))


ROWS = re.findall(r"^\| .+ \| \[`\S+`\]\((\S+\.py)\) \| (.+) \|$", TEXT, re.MULTILINE)


def test_the_code_map_has_rows():
    assert len(ROWS) > 5


@pytest.mark.parametrize(("file", "names"), ROWS)
def test_names_of_the_code_map_exist(file, names):
    missing = set(re.findall(r"`(\w+)`", names)) - set(names_in(PAGE.parent / file))
    assert not missing, f"{file} has no {missing}"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_linked_files_exist(target):
    assert (PAGE.parent / target).exists()
