"""Chart of docs/cpu.md: images per second of every contestant."""

from __future__ import annotations

from typing import Any

from cpu import tables
from cpu.peers import CONTESTANTS, TINYALEX
from shared import report

OURS, THEIRS, INK = "#c8451b", "#b9bfc7", "#30343a"
BAR_INCHES, HEAD_INCHES = 0.19, 0.75  # height of a bar; of a panel's title and axis
WIDTH_INCHES = 11

Bars = list[tuple[str, float, str]]  # label, images per second, colour; a blank one parts two cases


def draw() -> None:
    """Write docs/images/cpu-speed.png: a panel for each net and mode that was measured."""
    from matplotlib.figure import Figure

    panels = [[_bars(mode, variant) for variant in tables.VARIANTS] for mode in tables.MODES]
    heights = [max(map(len, row)) * BAR_INCHES + HEAD_INCHES for row in panels]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    places = len(panels), len(tables.VARIANTS)
    axes = figure.subplots(*places, height_ratios=heights, squeeze=False)
    for mode, row, bars_of_row in zip(tables.MODES, axes, panels, strict=True):
        for variant, axis, bars in zip(tables.VARIANTS, row, bars_of_row, strict=True):
            _panel(axis, f"{tables.MODES[mode]}, {variant}", bars, max(map(len, bars_of_row)))
    figure.suptitle("images per second", color=INK)
    figure.savefig(report.ROOT / "docs" / "images" / "cpu-speed.png", dpi=110)


def _bars(mode: str, variant: str) -> Bars:
    bars: Bars = []
    for size, result in tables.load(mode, variant).items():
        if bars:
            bars.append(("", 0.0, THEIRS))
        for name in (contestant.name for contestant in CONTESTANTS[mode]):
            if name in result["runs"]:
                label = f"batch {size}   {name}" if name == TINYALEX else name
                colour = OURS if name == TINYALEX else THEIRS
                bars.append((label, tables.rate(result, name), colour))
    return bars


def _panel(axis: Any, title: str, bars: Bars, places: int) -> None:
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axis.tick_params(length=0, labelsize=9, labelcolor=INK)
    axis.set_xticks([])
    labels, rates, colours = zip(*bars, strict=True) if bars else ((), (), ())
    positions = range(len(bars))
    axis.barh(positions, rates, color=colours, height=0.8)
    axis.set_yticks(positions, labels)
    axis.set_ylim(places - 0.4, -0.6)  # from the top down, bars as high as the neighbour's
    for position, (label, rate, colour) in enumerate(bars):
        if label:
            weight = "bold" if colour == OURS else "normal"
            text = f" {rate:.1f}" if rate < 100 else f" {rate:.0f}"
            axis.text(rate, position, text, va="center", fontsize=9, color=INK, fontweight=weight)
    axis.margins(x=0.12)
