"""Charts drawn with matplotlib: learning curves, confusion matrix, accuracy over shots."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyalex.folders import write_atomically
from tinyalex.optional import borrowed
from tinyalex.pictures.sheets import BLUE, INK, PALE, RED, drawable, font
from tinyalex.text import counted, printable
from tinyalex.training.metrics import rows_of

NUMBERED, NAMED = 20, 60
"""Up to how many classes a confusion matrix has numbers in it, and names beside it."""


def learning_curves(
    rows: Sequence[dict[str, Any]], num_classes: int, path: str | os.PathLike[str]
) -> None:
    """Draw loss and accuracy over the epochs of ``metrics.jsonl`` into a PNG.

    Raises PackageError where matplotlib does not work, ValueError before the end of the first
    epoch.
    """
    steps, epochs = rows_of("step", rows), rows_of("epoch", rows)
    if not epochs:
        raise ValueError("there are no curves before the end of the first epoch: try again later")
    steps_per_epoch = epochs[0]["step"] / epochs[0]["epoch"]
    x, ends = [row["step"] / steps_per_epoch for row in steps], [row["epoch"] for row in epochs]
    chance = math.log(num_classes)

    with _matplotlib() as png:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(10, 4), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        loss.plot(x, [row["loss"] for row in steps], color=BLUE, lw=1, label="training")
        loss.plot(
            ends, [row["val_loss"] for row in epochs], "o-", color=RED, ms=4, label="validation"
        )
        loss.axhline(chance, color=PALE, ls="--", lw=1, label=f"guessing: ln({num_classes})")
        loss.set(xlabel="epoch", ylabel="loss", ylim=(0, 1.05 * max(loss.get_ylim()[1], chance)))

        top1 = [100 * row["top1"] for row in steps]
        accuracy.plot(x, top1, color=BLUE, lw=1, label="training top-1")
        for k, style in ((1, "o-"), (5, "o:")):
            if num_classes > k:
                values = [100 * row[f"val_top{k}"] for row in epochs]
                label = f"validation top-{k}"
                accuracy.plot(ends, values, style, color=RED, ms=4, label=label)
        accuracy.axhline(100 / num_classes, color=PALE, ls="--", lw=1, label="guessing")
        accuracy.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 102))
        for axes in (loss, accuracy):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(frameon=False, fontsize=9)
        figure.savefig(png, format="png", dpi=130)
    write_atomically(path, lambda file: file.write(png.getvalue()))


def confusion_matrix(
    counts: np.ndarray, classes: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draw a confusion matrix (rows: right class, columns: answer) into a PNG.

    counts: int [C, C]. The colour is the share of the row. Up to `NUMBERED` classes have their
    numbers written in, up to `NAMED` their names beside; more are dots, row upon row. Raises
    PackageError where matplotlib does not work.
    """
    number = len(classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.55 * number, 2.5), 11)
    with _matplotlib() as png:
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure

        figure = Figure(figsize=(side + 3, side + 2), layout="constrained")
        axes = figure.subplots()
        # A root brings out a few mistakes among many right answers, and dots among many cells.
        norm = PowerNorm(0.5 if number <= NAMED else 0.25, vmin=0, vmax=1)
        image = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
        bar.ax.set_yticklabels(["0", "1%", "5%", "20%", "50%", "100%"])
        bar.set_label("share of the row")
        right, total = int(np.trace(counts)), int(counts.sum())
        title = f"{right} of {counted(total, 'image')} right ({right / max(total, 1):.1%})"
        axes.set(xlabel="predicted", ylabel="true", title=title)
        if number <= NAMED:
            names = [drawable(printable(name), font(10)) for name in classes]
            names = [name if len(name) <= 24 else name[:23] + "…" for name in names]
            size = 10 if number <= NUMBERED else 7
            style: dict[str, Any] = {"fontsize": size, "parse_math": False}
            slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
            axes.set_xticks(range(number), names, **style, **slanted)
            axes.set_yticks(range(number), names, **style)
        if number <= NUMBERED:
            for (row, column), images in np.ndenumerate(counts):
                if images:
                    colour = "white" if share[row, column] > 0.3 else INK
                    axes.text(column, row, f"{images}", color=colour, ha="center", va="center")
        figure.savefig(png, format="png", dpi=130)
    write_atomically(path, lambda file: file.write(png.getvalue()))


def shots_chart(
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    num_classes: int,
    path: str | os.PathLike[str],
) -> None:
    """Draw accuracy over the training images per class into a PNG.

    curves: for each title (images per class, mean accuracy, spread) per point; single points are
    drawn as bars. Raises PackageError where matplotlib does not work.
    """
    with _matplotlib() as png:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator

        figure = Figure(figsize=(6.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.axhline(100 / num_classes, color=INK, ls="--", lw=1, label="guessing")
        axes.set(xlabel="training images per class", ylabel="accuracy, %")
        colours = (RED, BLUE, PALE)
        (shots, *_), *_ = drawn = [np.array(points).T for points in curves.values()]
        if len(shots) == 1:  # one point is no curve
            _, means, spreads = np.concatenate(drawn, axis=1)
            bars = axes.bar([*curves], 100 * means, yerr=100 * spreads, color=colours, capsize=3)
            axes.bar_label(bars, fmt="%.1f%%", label_type="center", color="white")
            axes.set_xlabel(counted(round(shots[0]), "training image") + " per class")
        else:
            for title, points, colour in zip(curves, drawn, colours, strict=False):
                style: dict[str, Any] = {"color": colour, "ms": 5, "capsize": 3, "label": title}
                axes.errorbar(points[0], 100 * points[1], 100 * points[2], fmt="o-", **style)
            axes.set_xscale("log")
            axes.set_xticks(shots, [f"{count:.0f}" for count in shots])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
        figure.savefig(png, format="png", dpi=130)
    write_atomically(path, lambda file: file.write(png.getvalue()))


@contextmanager
def _matplotlib() -> Iterator[io.BytesIO]:
    """Import matplotlib with its default settings, whatever the user's are."""
    backend = os.environ.pop("MPLBACKEND", None)  # may name a package that is not there
    try:
        with borrowed("matplotlib"):
            import matplotlib

            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                yield io.BytesIO()
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
