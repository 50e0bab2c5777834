"""Record of a training run in the README: time, accuracy, curves.

    python benchmarks/record_run.py runs/patterns-torchvision patterns

reads run.json and metrics.jsonl, writes benchmarks/results/run-NAME.json, copies the curves to
docs/images/NAME-curves.png, fills the README between <!-- run-NAME --> and <!-- /run-NAME -->, and
draws what the documents show of the run: predictions.png, neighbours.png, features.png and why.png
of docs/images.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from shared import report
from tinyalex.cli import look
from tinyalex.pictures.sheets import save_png
from tinyalex.progress import duration
from tinyalex.training import read_metrics

PICTURES = {what: what for what in ("neighbours", "features", "why")} | {"answers": "predictions"}
"""Pictures that `tinyalex look` draws of the run, and their names in docs/images."""

IMAGES = report.ROOT / "docs" / "images"

MILESTONES = (1, 2, 5, 10, 20, 30, 60, 90)  # epochs worth a word, besides the last


def collect(folder: Path) -> dict[str, Any]:
    """Return settings, epochs and test result from the run's files."""
    record = json.loads((folder / "run.json").read_text())
    rows = read_metrics(folder / "metrics.jsonl")
    return {
        "machine": report.machine(),
        "settings": {k: v for k, v in record["settings"].items() if k != "data"},
        "classes": record["classes"],
        "epochs": [row for row in rows if row["kind"] == "epoch"],
        "test": next((row for row in rows if row["kind"] == "test"), None),
    }


def sentence(result: dict[str, Any]) -> str:
    """Return how the run went."""
    epochs = result["epochs"]
    chosen = [row for row in epochs if row["epoch"] in MILESTONES or row is epochs[-1]]
    milestones = ", ".join(
        f"{row['val_top1']:.1%} after {duration(row['time']['seconds'])}" for row in chosen
    )
    test = f"; of test images {result['test']['top1']:.1%}" if result["test"] else ""
    settings = result["settings"]
    facts = f"{settings['threads']} threads, one run with seed {settings['seed']}"
    return (
        f"Right answers to validation images: {milestones}{test}. "
        f"{report.one_line(result['machine'])}; {facts}."
    )


def main() -> None:
    """Read the command line and record the run."""
    parser = report.parser(__doc__)
    parser.add_argument("folder", type=Path, help="the run's output folder")
    parser.add_argument("name", help="its name in the documents")
    arguments = parser.parse_args()
    result = collect(arguments.folder)
    report.save(f"run-{arguments.name}", result)
    shutil.copy(arguments.folder / "curves.png", IMAGES / f"{arguments.name}-curves.png")
    report.replace_table(report.ROOT / "README.md", f"run-{arguments.name}", sentence(result))
    print(sentence(result))
    draw(arguments.folder)


def draw(folder: Path) -> None:
    """Draw the pictures of a run, with few colours."""
    for what, name in PICTURES.items():
        path = IMAGES / f"{name}.png"
        if code := look.main([str(folder), what, "--out", str(path)]):
            sys.exit(code)
        with Image.open(path) as picture:
            save_png(picture.quantize(256), path)


if __name__ == "__main__":
    main()
