"""Comparison of several training recipes on one folder of photographs.

    python benchmarks/recipes.py flowers                 # 20 epochs of each: an hour and a half
    python benchmarks/recipes.py flowers --only linear   # one of them

resumes where it was interrupted, and skips what is there already. Writes
benchmarks/results/recipes.json, the table in docs/recipe.md and docs/images/recipes.png.

The accuracies are of the last epoch's network, not of the best one, which would have been chosen by
the very images that it is judged by. `tinyalex evaluate RUN/last.safetensors` prints the same.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shared import report
from tinyalex.cli.common import EXPECTED_ERRORS, complain
from tinyalex.cli.train_options import defaults_for
from tinyalex.data import Loader
from tinyalex.models import VARIANTS
from tinyalex.models.spec import LRN, Gaussian, Layer, Linear, ReLU
from tinyalex.text import counted
from tinyalex.training import (
    Checkpoints,
    Progress,
    Settings,
    StoppedError,
    StopRequest,
    classifier_in,
    examine,
    load_checkpoint,
    new_run,
    open_dataset,
    read_metrics,
    settings_in,
)
from tinyalex.training.build import resumed_run
from tinyalex.training.datasets import RunImages
from tinyalex.training.run_folder import open_run_folder

DEFAULT = None
SHORT = {"lr": 0.001, "mixup": 0.0, "label_smoothing": 0.0}
"""In place of the default's, which are for 150 epochs."""
FEW_IMAGES = {"lr": 0.002, "batch_size": 32}
"""In place of the presets' 0.01 and 128, with which a few thousand images soon give NaN."""


class Row(NamedTuple):
    """A recipe: whose settings it takes, and what it changes in them."""

    title: str
    preset: str | None
    changes: dict[str, Any]


ROWS = {
    "linear": Row(  # at the best of three rates, 3e-6, 1e-5 and 3e-5
        "no network: a linear classifier of the pixels",
        DEFAULT,
        {"variant": "linear", "initial_weights": "variant", "augment": "paper", "lr": 3e-6},
    ),
    "paper": Row("`paper` with its own recipe", "paper", FEW_IMAGES),
    "paper-none": Row(
        "`paper` without augmentation",
        "paper",
        {**FEW_IMAGES, "augment": "none", "colour_noise": "none"},
    ),
    "paper-without-lrn": Row(
        "`paper` without LRN", "paper", {**FEW_IMAGES, "variant": "paper_without_lrn"}
    ),
    "source2012": Row("`source2012` with its own recipe", "source2012", FEW_IMAGES),
    "default": Row("`torchvision`, strong augmentation", DEFAULT, {}),
    "default-none": Row("... without augmentation", DEFAULT, {"augment": "none"}),
    "default-with-lrn": Row("... with LRN", DEFAULT, {"variant": "torchvision_with_lrn"}),
}
CURVES = {"paper": "#c0392b", "source2012": "#2c6fbb", "default": "#7d9a3a"}
"""Rows whose curves are drawn, and in which colours."""


def add_variants() -> None:
    """Add the networks that are here for the comparison only."""
    paper, torchvision = VARIANTS["paper"], VARIANTS["torchvision"]
    without = tuple(layer for layer in paper.features if not isinstance(layer, LRN))
    with_lrn: list[Layer] = []
    for layer in torchvision.features:
        with_lrn.append(layer)
        if isinstance(layer, ReLU) and sum(isinstance(one, LRN) for one in with_lrn) < 2:
            with_lrn.append(LRN(alpha=5e-4, k=2))  # as the paper's
    VARIANTS["paper_without_lrn"] = replace(paper, name="paper_without_lrn", features=without)
    VARIANTS["torchvision_with_lrn"] = replace(
        torchvision, name="torchvision_with_lrn", features=tuple(with_lrn)
    )
    VARIANTS["linear"] = replace(
        torchvision, name="linear", features=(), classifier=(Linear(None, Gaussian(0.0)),)
    )


def settings_of(row: Row, data: Path, epochs: int, threads: int) -> Settings:
    """Return the settings of a row, with seed 0."""
    settings = defaults_for(row.preset, str(data)) | ({} if row.preset else SHORT)
    settings["variant"] = row.preset or settings["variant"]
    where = {"data": str(data.absolute()), "epochs": epochs, "threads": threads}
    return Settings(**{**settings, "input_size": 224, **where, **row.changes})


def train(settings: Settings, out: Path) -> None:
    """Train to the end, from where the folder `out` is."""
    checkpoints = Checkpoints(out)
    if checkpoints.exist():
        checkpoint, path = checkpoints.load()
        if settings_in(checkpoint, path) != settings:
            raise ValueError(f"{out} was trained with other settings: remove it, or name another")
        run = resumed_run(settings, checkpoint, out)
        del checkpoint
    else:
        run = new_run(settings, progress=Progress())
    stop = StopRequest()
    with open_run_folder(run, checkpoints, stop, shlex.join(["python", *sys.argv])) as trainer:
        trainer.train(stop)


def measure(out: Path) -> dict[str, Any]:
    """Return a run's curves, and the accuracy of its last network."""
    path = Checkpoints(out).last
    checkpoint = load_checkpoint(path)
    classifier, settings = classifier_in(checkpoint, path), settings_in(checkpoint, path)
    dataset = RunImages(checkpoint, settings, path).held_out()
    loader = Loader(dataset, 8, classifier.transform_for(10), shuffle=False)
    answers = examine(classifier.model, loader, Progress())
    return {
        "settings": {name: value for name, value in asdict(settings).items() if name != "data"},
        "images": len(dataset),
        "epochs": epochs_in(out),
        **{f"crops{crops}": answers[crops].scores.top1 for crops in (1, 10)},
    }


def epochs_in(out: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics about whole epochs."""
    path = out / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    return [row for row in rows if row["kind"] == "epoch"]


def is_done(result: dict[str, Any] | None, settings: Settings, out: Path) -> bool:
    """Return True if the result is of the run in `out`."""
    if result is None or result["epochs"] != epochs_in(out):
        return False
    return Settings(**result["settings"], data=settings.data) == settings


def check_alike(results: Iterable[dict[str, Any]], settings: Settings) -> None:
    """Raise ValueError where results of these settings do not fit the others."""
    dataset = open_dataset(settings, "val")
    here = len(dataset or ()), settings.epochs
    for there in {(result["images"], len(result["epochs"])) for result in results} - {here}:
        raise ValueError(
            "the rows that are there are of {} validation images, epochs: {}, this one would be "
            "of {} and {}: give the same data and --epochs, or train all rows".format(*there, *here)
        )


def table(found: dict[str, Any]) -> str:
    """Return the table of docs/recipe.md."""
    lines = ["| recipe | training loss | centre crop | ten crops |", "|---|---|---|---|"]
    results = found["rows"]
    for name in (name for name in ROWS if name in results):
        result = results[name]
        lines.append(
            f"| {ROWS[name].title} | {result['epochs'][-1]['loss']:.2f} "
            f"| {result['crops1']:.1%} | {result['crops10']:.1%} |"
        )
    result = next(iter(results.values()))  # `check_alike` has seen to it that all are
    images, epochs = result["images"], len(result["epochs"])
    waited = max(
        row["time"]["data_share"]
        for name, result in results.items()
        if name != "linear"  # which has next to nothing to compute
        for row in result["epochs"]
    )
    share = statistics.mean(result["crops1"] for result in results.values())
    chance = (share * (1 - share) / images) ** 0.5
    lines += [
        "",
        f"Each {counted(epochs, 'epoch')}, seed 0; top-1 of {images} validation images after the "
        f"last epoch: the standard deviation of such a share is {chance:.1%}. In no epoch did "
        f"a network wait for data longer than {waited:.1%} of the time. "
        f"{report.measured_on(found, results.values())}.",
    ]
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw loss and accuracy of `CURVES` over the epochs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for name, colour in CURVES.items():
        if name not in found["rows"]:
            continue
        epochs = found["rows"][name]["epochs"]
        x = [row["epoch"] for row in epochs]
        label = ROWS[name].title.replace("`", "")
        loss.plot(x, [row["loss"] for row in epochs], color=colour, label=f"{name}, training")
        loss.plot(x, [row["val_loss"] for row in epochs], ":", color=colour, label="validation")
        accuracy.plot(x, [100 * row["val_top1"] for row in epochs], color=colour, label=label)
    loss.set(xlabel="epoch", ylabel="loss", ylim=0)
    accuracy.set(xlabel="epoch", ylabel="validation top-1, %, centre crop", ylim=(0, 100))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None) -> int:
    """Read the command line; train, measure and record. Return the exit code."""
    parser = report.parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    arguments = parser.parse_args(argv)
    add_variants()
    return resumable(compare, arguments)


def resumable(compare: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Run a comparison that can be resumed; return the exit code."""
    try:
        compare(arguments)
    except StoppedError as stopped:
        print(f"{stopped} and saved; the same command resumes")
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    except EXPECTED_ERRORS as error:
        return complain(error)
    return 0


def compare(arguments: argparse.Namespace) -> None:
    """Train and measure missing rows; record and draw all there are."""
    found = report.load("recipes") or {"rows": {}}
    rows = {
        name: settings_of(ROWS[name], arguments.data, arguments.epochs, arguments.threads)
        for name in arguments.only
    }
    others = [result for name, result in found["rows"].items() if name not in rows]
    check_alike(others, next(iter(rows.values())))
    for name, settings in rows.items():
        out = arguments.out / name
        if is_done(found["rows"].get(name), settings, out):
            print(f"\n{name}: is done", flush=True)
            continue
        print(f"\n{name}: {ROWS[name].title}", flush=True)
        train(settings, out)
        found["rows"][name] = {**measure(out), "machine": report.machine()}
        report.save("recipes", found)
    text = table(found)
    report.replace_table(report.ROOT / "docs" / "recipe.md", "recipes", text)
    draw(found, report.ROOT / "docs" / "images" / "recipes.png")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
