"""Contribution of each ingredient of a recipe for few photographs.

    python benchmarks/ingredients.py flowers                  # on a fifth of the training images
    python benchmarks/ingredients.py flowers --rows former recipe --seeds 0
    python benchmarks/ingredients.py flowers --split small    # daisy and tulips, 120 of each
    python benchmarks/ingredients.py flowers --split final    # on the validation images, at the end

The folder has train/ and val/. A choice between recipes is made on images of train/ alone: every
fifth of each class, by name, is held out of what is learned from. The last network counts, not the
best one. Each run is saved where it is interrupted and resumes by the same command; what is done is
skipped. Results go to benchmarks/results/ingredients.json, tables to docs/recipe.md (`--table`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from recipes import measure, resumable, train
from shared import report
from tinyalex.cli.train_options import SMALL_DATA
from tinyalex.data.image import EXTENSIONS
from tinyalex.training import Settings

RECIPE = SMALL_DATA
"""The default, which each row changes."""
FORMER = {"input_size": 224, "epochs": 30, "lr": 0.001, "mixup": 0.0, "label_smoothing": 0.0}
"""Changes that make it the default of before."""

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "former": ("the former default: 224 pixels, 30 epochs, no mixup or smoothing", FORMER),
    "recipe": ("the default", {}),
    "rate-half": ("... at half the rate", {"lr": RECIPE["lr"] / 2}),
    "rate-double": ("... at twice the rate", {"lr": RECIPE["lr"] * 2}),
    "batch-64": (
        "... in batches of 64 at twice the rate",
        {"lr": RECIPE["lr"] * 2, "batch_size": 64},
    ),
    "no-mixup": ("... without mixup", {"mixup": 0.0}),
    "no-smoothing": ("... without label smoothing", {"label_smoothing": 0.0}),
    "longer": ("... for twice the epochs", {"epochs": 2 * RECIPE["epochs"]}),
    "average": ("... with averaged weights", {"average": 0.1}),
    "decay-2e-3": ("... with a weight decay of 0.002", {"weight_decay": 2e-3}),
    "dropout-0.3": ("... with a dropout of 0.3", {"dropout": 0.3}),
    "160": ("... of 160 pixels, as long", {"input_size": 160, "epochs": 120}),
    "growing": (
        "... from 96 to 176 pixels, as long",
        {"first_size": 96, "input_size": 176, "epochs": 130},
    ),
    "224": ("... of 224 pixels, as long", {"input_size": 224, "epochs": 85}),
    "paper-augmentation": ("... with the paper's augmentation", {"augment": "paper"}),
    "variant-weights": ("... from the variant's weights", {"initial_weights": "variant"}),
}
"""Rows of the table, and what each changes in the default."""


class Split(NamedTuple):
    """Images to learn from and to judge by."""

    folder: str
    """Of the data, whose images are divided; "" for the data as it is."""
    classes: tuple[str, ...]
    learns: Callable[[int], bool]
    """Tells for the i-th image of a class, by name, whether it is learned from."""


SPLITS = {
    "tuning": Split("train", (), lambda i: i % 5 < 4),
    "small": Split("train", ("daisy", "tulips"), lambda i: i < 120),
    "small-final": Split("*", ("daisy", "tulips"), lambda i: i < 120),
    "final": Split("", (), lambda i: True),
}


def divided(data: Path, split: Split, out: Path) -> Path:
    """Divide images into train/ and val/ by links; return the folder."""
    if not split.folder:
        return data
    files = defaultdict(list)
    for path in sorted(data.glob(f"{split.folder}/*/*"), key=lambda path: path.name):
        name = path.parent.name
        if path.suffix.lower() in EXTENSIONS and name in (split.classes or (name,)):
            files[name].append(path)
    if not files:
        raise ValueError(
            f"there are no images in {data / split.folder}: expected train/CLASS/IMAGE"
        )
    for name, paths in files.items():
        for i, path in enumerate(paths):
            link = out / ("train" if split.learns(i) else "val") / name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.resolve())
    return out


def settings_of(row: str, seed: int, data: Path, arguments: argparse.Namespace) -> Settings:
    """Return a run's settings; `--share` shortens all but the former default."""
    settings = {**RECIPE, **ROWS[row][1]}
    if row != "former":
        settings["epochs"] = max(1, round(settings["epochs"] * arguments.share))
    where = {"data": os.path.abspath(data), "threads": arguments.threads, "seed": seed}
    return Settings(**settings, **where)


def run(settings: Settings, out: Path) -> dict[str, Any]:
    """Train a run, from where it is, and measure it."""
    train(settings, out)
    found = measure(out)
    last = found["epochs"][-1]
    return {
        "settings": found["settings"],
        "images": found["images"],
        "seconds": last["time"]["seconds"],
        "crops1": found["crops1"],
        "crops10": found["crops10"],
        **{name: last[name] for name in ("loss", "top1", "val_loss")},
    }


def table(found: dict[str, Any]) -> str:
    """Return a table of rows with means over seeds."""
    lines = [
        "| recipe | ten crops | centre crop | validation loss | training top-1 | minutes | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, (title, _) in ROWS.items():
        results = [r for name, r in found["runs"].items() if name.rpartition("-")[0] == row]
        if not results:
            continue
        mean = {
            key: statistics.mean(result[key] for result in results)
            for key in ("crops10", "crops1", "val_loss", "top1", "seconds")
        }
        tens = [result["crops10"] for result in results]
        spread = f" ({min(tens):.1%} .. {max(tens):.1%})" if len(tens) > 1 else ""
        lines.append(
            f"| {title} | {mean['crops10']:.1%}{spread} | {mean['crops1']:.1%} "
            f"| {mean['val_loss']:.3f} | {mean['top1']:.1%} | {mean['seconds'] / 60:.0f} "
            f"| {len(results)} |"
        )
    images = next(iter(found["runs"].values()))["images"]
    lines += [
        "",
        f"Of {images} images held out. {report.measured_on(found, found['runs'].values())}.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Read the command line; train, measure and record. Return the exit code."""
    parser = report.parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/ of classes")
    parser.add_argument("--split", choices=SPLITS, default="tuning")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the epochs, for a quick look"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/ingredients"))
    parser.add_argument("--table", action="store_true", help="write docs/recipe.md")
    arguments = parser.parse_args(argv)
    return resumable(compare, arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Train and measure missing runs, seed by seed; record all there are."""
    name = arguments.split + (f"-{arguments.share:g}" if arguments.share != 1 else "")
    recorded = report.RESULTS / "ingredients.json"
    everything = json.loads(recorded.read_text()) if recorded.exists() else {}
    found = everything.setdefault(name, {"runs": {}})
    data = divided(arguments.data, SPLITS[arguments.split], arguments.out / arguments.split)
    for seed in arguments.seeds:
        for row in arguments.rows:
            label, settings = f"{row}-{seed}", settings_of(row, seed, data, arguments)
            known = {name: value for name, value in asdict(settings).items() if name != "data"}
            if found["runs"].get(label, {}).get("settings") == known:
                print(f"{label}: is done", flush=True)
                continue
            print(f"\n{label}: {ROWS[row][0]}", flush=True)
            result = run(settings, arguments.out / name / label)
            found["runs"][label] = {**result, "machine": report.machine()}
            report.save("ingredients", everything)
    text = table(found)
    print("\n" + text)
    if arguments.table:
        report.replace_table(report.ROOT / "docs" / "recipe.md", f"ingredients-{name}", text)


if __name__ == "__main__":
    sys.exit(main())
