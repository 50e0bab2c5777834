"""A Jupyter notebook: commands behind `!`, and the library in its kernel."""

import os
import sys
import textwrap

import pytest
from commands import ROOT

if os.environ.get("CI") == "true":  # where the extra "dev" is installed
    import nbclient
    import nbformat
else:
    nbclient, nbformat = map(pytest.importorskip, ("nbclient", "nbformat"))

pytest_plugins = ("trained",)

CELLS = {
    "summary": "!{tiny} train --variant tiny --summary --data {photos} | head -4",
    "training": "!{tiny} train --variant tiny --threads 1 --data {photos} --out run",
    "mistake": "!{tiny} predict run gone.png; echo exit $?",
    "in the kernel": """
        import sys
        sys.path.insert(0, "{root}/tests/support")
        import commands
        with commands.tiny_variant():
            code = commands.load("train").main(["--resume", "run", "--epochs", "4"])
            drawn = commands.load("look").main(["run", "curves"])
        code, drawn
        """,
    "a picture": """
        from IPython.display import Image
        Image("run/curves.png")
        """,
    "library": """
        import numpy as np, tinyalex as ta, tinyalex.functional as F
        model = ta.nn.Linear(4, 3)
        optimizer = ta.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(ta.ones(2, 4)), np.array([0, 0]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        losses[1] < losses[0]
        """,
    "processes": """
        from tinyalex.data import EvalTransform, ImageFolder, Loader
        data = ImageFolder({photos!r}, shorter_side=28)
        loader = Loader(data, 8, EvalTransform(28), shuffle=False, processes=True)
        sum(len(batch) for batch in loader.epoch(0)), loader.close()
        """,
}


@pytest.fixture(scope="module")
def outputs(photos, tmp_path_factory):
    """Return what each cell of a notebook showed: text, or the kind of a picture."""
    names = {"root": ROOT, "photos": str(photos)}
    names["tiny"] = f"{sys.executable} {ROOT}/tests/support/commands.py"
    cells = [textwrap.dedent(cell).strip().format(**names) for cell in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    folder = tmp_path_factory.mktemp("notebook")
    resources = {"metadata": {"path": str(folder)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        nbclient.NotebookClient(notebook, timeout=60, resources=resources).execute()
    shown = {}
    for name, cell in zip(CELLS, notebook.cells, strict=True):
        data = [output.get("data", {"text/plain": output.get("text")}) for output in cell.outputs]
        text = "".join(part.get("text/plain") or "" for part in data)
        shown[name] = text.replace("\r\n", "\n")  # a terminal, for what IPython starts
        shown[name] += " ".join(kind for part in data for kind in part if kind != "text/plain")
    return shown


EXPECTED = {
    "summary": "tinyalex ",
    "training": "next:\n",
    "mistake": "gone.png",
    "in the kernel": "(0, 0)",
    "a picture": "image/png",
    "library": "True",
    "processes": "(72, None)",
}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_of_a_notebook(outputs, cell):
    assert EXPECTED[cell] in outputs[cell]
    for trouble in ("Traceback", "Broken pipe", "Exception ignored", "Error"):
        assert trouble not in outputs[cell]


def test_a_mistake_in_a_notebook_has_its_exit_code(outputs):
    assert outputs["mistake"].endswith("exit 2\n")
    assert outputs["summary"].count("\n") == 4
