"""The tour's page and notebook print what its code computes."""

import os
import re
import runpy
from pathlib import Path

import pytest
from test_pointers import ROOT, names_in

if os.environ.get("CI") == "true":  # where the extra "dev" is installed
    import jupytext  # noqa: F401
    import nbformat
else:
    _, nbformat, _ = map(pytest.importorskip, ("jupytext", "nbformat", "nbclient"))

pytestmark = pytest.mark.documents
pytest_plugins = ("trained",)  # for `disk`

DOCS = ROOT / "docs"
ADVICE = "run python docs/tour_page.py"


@pytest.fixture(scope="module")
def tour_page():
    """Return the names of the script that writes the page."""
    return runpy.run_path(str(DOCS / "tour_page.py"))


@pytest.fixture(scope="module")
def executed(tour_page):
    """Return the notebook, made and executed anew; any assertion in it that fails ends it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        return tour_page["run"]()


def in_text(cells):
    """Return cells without pictures, whose bytes depend on the version of matplotlib."""
    return [
        (cell.cell_type, cell.source, [{**o, "data": without_picture(o)} for o in outputs_of(cell)])
        for cell in cells
    ]


def outputs_of(cell):
    return [dict(output) for output in cell.get("outputs", [])]


def without_picture(output):
    data = output.get("data", {})
    return {kind: None if kind == "image/png" else text for kind, text in data.items()}


def test_page_and_notebook_are_what_the_source_prints(tour_page, executed):
    page = tour_page["page"](executed)
    for ours, committed in zip(
        page.splitlines(), tour_page["PAGE"].read_text(encoding="utf-8").splitlines(), strict=False
    ):
        assert ours == committed, ADVICE
    assert page == tour_page["PAGE"].read_text(encoding="utf-8"), ADVICE
    notebook = nbformat.read(tour_page["NOTEBOOK"], as_version=4)
    nbformat.validate(notebook)
    assert in_text(executed.cells) == in_text(notebook.cells), ADVICE


def test_what_cannot_be_written_whole_leaves_the_old(tour_page, tmp_path, disk):
    notebook = nbformat.read(tour_page["NOTEBOOK"], as_version=4)
    names = {"PAGE": tmp_path / "a.md", "NOTEBOOK": tmp_path / "a.ipynb"}
    main = tour_page["main"]
    with pytest.MonkeyPatch.context() as patch:
        for name, path in names.items():
            path.write_text("old")
            patch.setitem(main.__globals__, name, path)
        patch.setitem(main.__globals__, "run", lambda: notebook)
        patch.setitem(main.__globals__, "save_pictures", lambda _: None)
        disk(20_000)
        with pytest.raises(OSError, match="File too large"):
            main()
        assert {path.read_text() for path in names.values()} == {"old"}
        disk(None)
        main()
    for name, path in names.items():
        assert path.read_bytes() == tour_page[name].read_bytes()


def test_pictures_are_there(tour_page):
    text = tour_page["PAGE"].read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 4
    for picture in pictures:
        assert (DOCS / picture).read_bytes().startswith(b"\x89PNG"), picture


def test_the_drawing_has_the_names_of_the_files(tour_page):
    (drawing,) = re.findall(
        r"```text\n( +forward +backward.*?)```",
        tour_page["PAGE"].read_text(encoding="utf-8"),
        re.DOTALL,
    )
    named = re.findall(r"([\w/]+\.py) +(?:(\w+)\.)?(\w+)", drawing)
    assert len(named) == 8
    for file, owner, name in named:
        assert {owner, name} - {""} <= names_in(Path(ROOT, "tinyalex", file)), file
    kernels = re.findall(r"conv2d_\w+", drawing)
    assert len(kernels) == 3
    assert set(kernels) <= names_in(ROOT / "tinyalex" / "backends" / "reference.py")
