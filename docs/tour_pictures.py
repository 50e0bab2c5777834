"""Pictures and traced calls of docs/tour.md."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

import tinyalex
from tinyalex.pictures.sheets import INK, PALE, RED

PACKAGE = Path(tinyalex.__file__).parent


def calls(function: Callable[[], Any], files: Collection[str]) -> str:
    """Return the functions in ``files`` that a call enters, indented by depth."""
    lines: list[str] = []
    depth = 0

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal depth
        code = frame.f_code
        path = Path(code.co_filename)
        if event not in ("call", "return") or PACKAGE not in path.parents:
            return
        file = path.relative_to(PACKAGE).as_posix()
        if file not in files or code.co_name.startswith(("<", "_")):
            return
        depth += 1 if event == "call" else -1
        if event == "call":
            owner = frame.f_locals.get("cls", type(frame.f_locals.get("self")))
            name = code.co_name if owner is type(None) else f"{owner.__name__}.{code.co_name}"
            lines.append(f"{'  ' * (depth - 1)}{name}".ljust(46) + file)

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return "\n".join(lines)


def _png(figure: Figure) -> Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return Image(data=file.getvalue())


def _bare(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(PALE)


def _grey(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, cmap="gray")
    _bare(axes, title)


def _signed(axes: Axes, image: np.ndarray, title: str) -> None:
    limit = float(np.abs(image).max())
    axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
    _bare(axes, title)


def _coloured(values: np.ndarray) -> np.ndarray:
    """Return [3, R, S] as an image [R, S, 3], 0 in the middle of the range."""
    return 0.5 + values.transpose(1, 2, 0) / np.abs(values).max() / 2


def way(photo: np.ndarray, maps: Sequence[tuple[str, np.ndarray]]) -> Image:
    """Return the photograph and one map of each layer."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    first, *others = figure.subplots(2, (len(maps) + 2) // 2).ravel()
    first.imshow(photo)
    _bare(first, "photograph, 256 x 256")
    for axes in others:
        axes.axis("off")
    for axes, (title, image) in zip(others, maps, strict=False):
        axes.axis("on")
        _grey(axes, image, title)
    return _png(figure)


def window(
    x: np.ndarray, corner: tuple[int, int], taps: np.ndarray, y: np.ndarray, at: tuple[int, int]
) -> Image:
    """Return a window, its filter, their products and the output."""
    size = taps.shape[1]
    top, left = corner
    patch = x[:, top : top + size, left : left + size]
    figure = Figure(figsize=(11, 2.7), layout="constrained")
    whole, cut, filters, product, result = figure.subplots(
        1, 5, width_ratios=(1.5, 1, 1, 1, 1.5)
    ).tolist()
    whole.imshow((x - x.min()).transpose(1, 2, 0) / np.ptp(x))
    _bare(whole, "x")
    frame = Rectangle((left - 0.5, top - 0.5), size, size, fill=False, ec=RED, lw=1.5)
    whole.add_patch(frame)
    cut.imshow(_coloured(patch))
    _bare(cut, "the window")
    filters.imshow(_coloured(taps))
    _bare(filters, "times the filter")
    product.imshow(_coloured(patch * taps))
    _bare(product, "products")
    _grey(result, y, f"their sum is one of {y.size:,}")
    result.add_patch(Rectangle((at[1] - 1.5, at[0] - 1.5), 3, 3, fill=False, ec=RED, lw=1.5))
    _arrow(figure, whole, (left + size, top + size / 2), cut, (-0.5, size / 2))
    _arrow(figure, product, (size - 0.5, size / 2), result, (at[1] - 2, at[0]))
    return _png(figure)


def _arrow(
    figure: Figure, here: Axes, start: tuple[float, float], there: Axes, end: tuple[float, float]
) -> None:
    figure.add_artist(
        ConnectionPatch(
            start, end, "data", "data", axesA=here, axesB=there, arrowstyle="->", color=RED
        )
    )


def pooled(normalised: np.ndarray, corner: tuple[int, int], tap: int) -> Image:
    """Return nine numbers, the winner, and where the next windows overlap."""
    top, left = corner
    part = normalised[top - 2 : top + 5, left - 2 : left + 5]
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    _grey(axes, part, "before pooling; windows of 3 x 3, two apart")
    for (row, column), value in np.ndenumerate(part):
        inside = 2 <= row < 5 and 2 <= column < 5
        light = value < part.max() / 2
        axes.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=8 if inside else 7,
            weight="bold" if inside else "normal",
            color="white" if light else "black",
        )
    for row in (0, 2, 4):
        for column in (0, 2, 4):
            own = row == column == 2
            offset = 0.5 - (0.04 if own else 0.0)
            axes.add_patch(
                Rectangle(
                    (column - offset, row - offset),
                    2 + 2 * offset,
                    2 + 2 * offset,
                    fill=False,
                    ec=RED if own else PALE,
                    lw=2.5 if own else 0.8,
                    zorder=3 if own else 2,
                )
            )
    row, column = 2 + tap // 3, 2 + tap % 3
    axes.add_patch(
        Rectangle((column - 0.4, row - 0.4), 0.8, 0.8, fill=False, ec=RED, lw=1.5, ls=":", zorder=4)
    )
    return _png(figure)


def back(x: np.ndarray, grad: np.ndarray, taps: np.ndarray, weight_grad: np.ndarray) -> Image:
    """Return the gradient that reached conv1, and that of a filter."""
    figure = Figure(figsize=(11, 2.7), layout="constrained")
    image, arrived, made, now = figure.subplots(1, 4).tolist()
    image.imshow((x - x.min()).transpose(1, 2, 0) / np.ptp(x))
    _bare(image, "x: 3,025 windows")
    _signed(arrived, grad, "g: a number for each window")
    made.imshow(_coloured(weight_grad))
    _bare(made, "their products' sum: the filter's gradient")
    now.imshow(_coloured(taps))
    _bare(now, "the filter")
    return _png(figure)
