"""Write docs/tour.md and docs/tour.ipynb from docs/tour.py.

    python docs/tour_page.py

tour.py is a notebook as text (jupytext's format "percent"). It is run from top to bottom, and both
files show what its cells printed. In prose, {{an expression}} stands for its value at that place.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import jupytext
import nbclient
import nbformat
from nbformat import NotebookNode

from tinyalex.folders import write_atomically

DOCS = Path(__file__).resolve().parent
SOURCE, PAGE, NOTEBOOK = (DOCS / name for name in ("tour.py", "tour.md", "tour.ipynb"))
NOTICE = "<!-- Written by tour_page.py from tour.py. -->"
VALUE = re.compile(r"\{\{(.+?)\}\}")
PICTURE, MARKDOWN = "image/png", "text/markdown"


def run(timeout: int = 120) -> NotebookNode:
    """Return the notebook, executed; a cell that fails raises CellExecutionError."""
    notebook = jupytext.read(SOURCE, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and VALUE.search(cell.source):
            cell = nbformat.v4.new_code_cell(_printing(cell.source), metadata={"prose": True})
            notebook.cells[number] = cell
        cell.id = f"cell-{number}"
    nbclient.NotebookClient(
        notebook,
        timeout=timeout,
        coalesce_streams=True,
        resources={"metadata": {"path": str(DOCS)}},
    ).execute()
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":  # the first use of Numba says on stderr that it compiles
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        if cell.metadata.get("prose"):
            (output,) = cell.outputs
            cell = nbformat.v4.new_markdown_cell(output["text"].rstrip(), id=cell.id)
            notebook.cells[number] = cell
        elif cell.cell_type == "code":
            for counted in (cell, *cell.outputs):
                if "execution_count" in counted:
                    counted.execution_count = None
        cell.metadata.pop("execution", None)  # when it ran
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return notebook


def _printing(text: str) -> str:
    """Return code that prints ``text`` with values for its expressions."""
    parts = VALUE.split(text)
    values = [f"f{'{' + part + '}'!r}" if i % 2 else repr(part) for i, part in enumerate(parts)]
    return f"print({', '.join(values)}, sep='')"


def page(notebook: NotebookNode) -> str:
    """Return the notebook as a document."""
    parts = [NOTICE]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        if "hide-input" not in cell.metadata.get("tags", ()):
            parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if PICTURE in data:
                name, shown = cell.metadata["picture"], cell.metadata["alt"]
                parts.append(f"![{shown}](images/{name}.png)")
            elif MARKDOWN in data:
                parts.append(data[MARKDOWN])
            else:
                text = output.get("text") or data["text/plain"]
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def save_pictures(notebook: NotebookNode) -> None:
    """Write the pictures beside those of the other documents."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if PICTURE in output.get("data", {}):
                name = f"{cell.metadata['picture']}.png"
                save(DOCS / "images" / name, base64.b64decode(output.data[PICTURE]))


def save(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    write_atomically(path, lambda file: file.write(content))


def main() -> None:
    """Run the notebook and write both files and the pictures."""
    notebook = run()
    files = {PAGE: page(notebook), NOTEBOOK: nbformat.writes(notebook) + "\n"}
    save_pictures(notebook)
    for path, text in files.items():
        save(path, text.encode())
    print(f"wrote {PAGE}, {NOTEBOOK} and their pictures")


if __name__ == "__main__":
    main()
