"""Charts drawn with matplotlib: learning curves, confusion matrix, accuracy over shots."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tinyalex.folders import write_atomically
from tinyalex.optional import borrowed
from tinyalex.pictures.sheets import BLUE, INK, PALE, RED, drawable, font
from tinyalex.text import counted, printable
from tinyalex.training.metrics import rows_of
from tinyalex.training.settings import STEPS_PER_ROW

NUMBERED, NAMED = 20, 60
"""Up to how many classes a confusion matrix has numbers in it, and names beside it."""


def learning_curves(
    rows: Sequence[dict[str, Any]], num_classes: int, path: str | os.PathLike[str]
) -> None:
    """Draw loss and accuracy over the epochs of ``metrics.jsonl`` into a PNG.

    Raises PackageError where matplotlib does not work, ValueError before the end of the first
    epoch.
    """
    curves = _curves(rows, num_classes)
    with _matplotlib() as png:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        for axes, draw in zip(figure.subplots(1, 2), CURVES.values(), strict=True):
            draw(axes, curves)
        figure.savefig(png, format="png", dpi=130)
    write_atomically(path, lambda file: file.write(png.getvalue()))


def curves_as_svg(rows: Sequence[dict[str, Any]], num_classes: int) -> dict[str, str]:
    """Return both charts of `learning_curves` as SVG for an HTML page.

    Their colours are the page's: --ink, --pale, --red and --blue. Of a long run, means of
    neighbouring rows are drawn. Raises what `learning_curves` raises.
    """
    curves = _curves(rows, num_classes, most=MOST_POINTS)
    found = {}
    for name, draw in CURVES.items():
        with _matplotlib() as svg:
            from matplotlib import rcParams
            from matplotlib.figure import Figure

            parts = ("text", "axes.label", "axes.edge", "xtick.", "ytick.")
            colours = {part.replace("text", "text.") + "color": INK for part in parts}
            style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, **colours}
            rcParams.update(style)
            figure = Figure(figsize=(4.2, 3.2), layout="constrained")
            draw(figure.subplots(), curves)
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
        found[name] = _for_a_page(svg.getvalue().decode())
    return found


MOST_POINTS = 500
"""Points of a curve in an SVG, each of which takes 20 bytes and more."""


class _Curves(NamedTuple):
    """Points of a run's curves."""

    steps: dict[str, list[float]]
    """By name, with "at": the place of each row on the axis of epochs."""
    epochs: dict[str, list[float]]
    num_classes: int


def _curves(rows: Sequence[dict[str, Any]], num_classes: int, most: int = 0) -> _Curves:
    """Return the curves in rows of metrics, of at most `most` points."""
    epochs = rows_of("epoch", rows)
    if not epochs:
        raise ValueError("there are no curves before the end of the first epoch: try again later")
    steps_per_epoch = epochs[0]["step"] / epochs[0]["epoch"]
    steps = _joined(rows_of("step", rows), min(STEPS_PER_ROW, steps_per_epoch))

    def points(rows: list[dict[str, Any]], at: Callable[[Any], float], *names: str) -> Any:
        found = {"at": [at(row) for row in rows]}
        found |= {name: [row[name] for row in rows] for name in names}
        if 0 < most < len(rows):
            means = {n: map(np.mean, np.array_split(found[n], most)) for n in found}
            found = {n: [float(mean) for mean in means[n]] for n in found}
        return found

    return _Curves(
        points(steps, lambda row: row["step"] / steps_per_epoch, "loss", "top1"),
        points(epochs, lambda row: row["epoch"], "val_loss", "val_top1", "val_top5"),
        num_classes,
    )


def _joined(rows: list[dict[str, Any]], least: float) -> list[dict[str, Any]]:
    """Return rows about so many steps; fewer are noise."""
    groups: list[list[dict[str, Any]]] = []
    before = 0
    for row in rows:
        if not groups or sum(part["steps"] for part in groups[-1]) >= least:
            groups.append([])
        groups[-1].append({**row, "steps": max(1, row["step"] - before)})
        before = row["step"]
    if len(groups) > 1 and sum(part["steps"] for part in groups[-1]) < least:
        last = groups.pop()
        groups[-1] += last

    def mean(name: str, group: list[dict[str, Any]]) -> float:
        steps = [row["steps"] for row in group]
        return float(np.average([row[name] for row in group], weights=steps))

    means = ({name: mean(name, group) for name in ("loss", "top1")} for group in groups)
    return [{**group[-1], **mean} for group, mean in zip(groups, means, strict=True)]


def _draw_loss(axes: Any, curves: _Curves) -> None:
    steps, epochs, chance = curves.steps, curves.epochs, math.log(curves.num_classes)
    axes.plot(
        steps["at"], steps["loss"], _style(steps, 1), color=BLUE, lw=1, ms=4, label="training"
    )
    axes.plot(epochs["at"], epochs["val_loss"], _style(epochs), color=RED, ms=4, label="validation")
    guessing = f"guessing: ln({curves.num_classes})"
    axes.axhline(chance, color=PALE, ls="--", lw=1, label=guessing)
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, 1.05 * max(axes.get_ylim()[1], chance)))
    _tidy(axes)


def _draw_accuracy(axes: Any, curves: _Curves) -> None:
    steps, epochs = curves.steps, curves.epochs
    top1 = [100 * share for share in steps["top1"]]
    axes.plot(steps["at"], top1, _style(steps, 1), color=BLUE, lw=1, ms=4, label="training top-1")
    for k, line in ((1, "-"), (5, ":")):
        if curves.num_classes > k:
            values = [100 * share for share in epochs[f"val_top{k}"]]
            style = _style(epochs, line=line)
            axes.plot(epochs["at"], values, style, color=RED, ms=4, label=f"validation top-{k}")
    axes.axhline(100 / curves.num_classes, color=PALE, ls="--", lw=1, label="guessing")
    axes.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 102))
    _tidy(axes)


def _style(points: dict[str, list[float]], most: int = 50, line: str = "-") -> str:
    """Return a line's style, with dots where there are few points."""
    return f"o{line}" if len(points["at"]) <= most else line


CURVES = {"loss": _draw_loss, "accuracy": _draw_accuracy}


def _tidy(axes: Any) -> None:
    """Give a chart over epochs its grid, axis and legend."""
    from matplotlib.ticker import MaxNLocator

    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)


def _for_a_page(svg: str) -> str:
    """Return matplotlib's SVG as an element of a page."""
    element = re.sub(r'^.*?<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, flags=re.DOTALL)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", element))
    element = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", element)
    for colour, name in {INK: "ink", PALE: "pale", RED: "red", BLUE: "blue"}.items():
        element = element.replace(colour, f"var(--{name})")
    return element.replace("xlink:href", "href").strip()


def confusion_matrix(
    counts: np.ndarray, classes: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draw a confusion matrix (rows: right class, columns: answer) into a PNG.

    counts: int [C, C]. The colour is the share of the row. Up to `NUMBERED` classes have their
    numbers written in, up to `NAMED` their names beside; more are dots, row upon row. Raises
    PackageError where matplotlib does not work.
    """
    png = confusion_png(counts, classes)
    write_atomically(path, lambda file: file.write(png))


def confusion_png(counts: np.ndarray, classes: Sequence[str]) -> bytes:
    """Return the picture that `confusion_matrix` writes."""
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
    return png.getvalue()


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
