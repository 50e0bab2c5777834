"""The pictures of docs/winograd.md; `winograd_page.py` calls them with what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from tinyalex.backends import reference
from tinyalex.backends.geometry import ConvOptions
from tinyalex.data import Patterns
from tinyalex.folders import write_atomically
from tinyalex.pictures.sheets import BLUE, INK, PALE, PALE_BLUE, PALE_RED, RED

SIGNED = LinearSegmentedColormap.from_list("signed", [BLUE, "white", "#e0796d"])
PALE_TO_RED = LinearSegmentedColormap.from_list("amount", ["white", PALE_RED, RED])
EDGES = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32) / 4  # dark to light, rightward
TOP, LEFT = 20, 40  # of the tile that is shown; multiples of 4


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


def grey_image(size: int = 66) -> np.ndarray:
    """Return an image of the embedded data set, [size, size] in 0..1; 66 has 64 outputs."""
    image = Image.fromarray(Patterns("test").load(6)).convert("L")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def show(axes: Axes, image: np.ndarray, title: str, cmap: Any, limit: float | None) -> None:
    """Draw an image; ``limit`` makes the colours symmetric about 0."""
    low = None if limit is None else -limit
    axes.imshow(image, cmap=cmap, vmin=low, vmax=limit)
    axes.set_title(title, fontsize=10, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(PALE)


def show_numbers(axes: Axes, matrix: np.ndarray, title: str) -> None:
    """Draw a small matrix, a number per cell, of equal size everywhere."""
    show(axes, matrix, title, SIGNED, float(np.abs(matrix).max()))
    size = len(matrix)
    middle = (size - 1) / 2
    axes.set(xlim=(middle - 3, middle + 3), ylim=(middle + 3, middle - 3))
    axes.spines[:].set_visible(False)
    axes.add_patch(Rectangle((-0.5, -0.5), size, size, fill=False, ec=PALE, lw=1))
    axes.set_title(title, fontsize=10, color=INK, y=0.5 + size / 12)
    for (i, j), value in np.ndenumerate(matrix):
        number = f"{value:.2f}".replace("-0.00", "0.00")
        axes.text(j, i, number, ha="center", va="center", fontsize=8, color=INK)


def tile(convolve: Callable[..., np.ndarray], matrices: Any, path: Path) -> None:
    """Draw an image, its edges, and the steps of one tile."""
    B_t, A_t, G = (matrix.astype(np.float32) for matrix in matrices)
    x, w = grey_image(), EDGES
    by_tiles = convolve(x[None, None], w[None, None], B_t, A_t, G)[0, 0]
    direct = reference.conv2d(x[None, None], w[None, None], None, ConvOptions())[0, 0]
    difference = by_tiles - direct

    figure = Figure(figsize=(11, 8.6), layout="constrained")
    images, *steps = figure.subplots(3, 4)
    largest = float(np.abs(direct).max())
    show(images[0], x, f"image, {x.shape[0]} x {x.shape[1]}", "gray", None)
    show(images[1], by_tiles, "edges by F(4, 3), 16 x 16 tiles", SIGNED, largest)
    show(images[2], direct, "edges by direct convolution", SIGNED, largest)
    worst = float(np.abs(difference).max())
    show(images[3], difference, f"difference, at most {worst:.0e}", SIGNED, worst)
    images[0].add_patch(Rectangle((LEFT - 0.5, TOP - 0.5), 6, 6, fill=False, ec=RED, lw=2))
    for axes in images[1:]:
        axes.add_patch(Rectangle((LEFT - 0.5, TOP - 0.5), 4, 4, fill=False, ec=INK, lw=1.5))

    d = x[TOP : TOP + 6, LEFT : LEFT + 6]
    V, U = B_t @ d @ B_t.T, G @ w @ G.T
    show_numbers(steps[0][0], d, "d: the inputs of the red tile")
    show_numbers(steps[0][1], V, "V = B$^T$ d B")
    show_numbers(steps[0][2], U * V, "U * V: 36 products")
    show_numbers(steps[0][3], A_t @ (U * V) @ A_t.T, "A$^T$ (U * V) A")
    show_numbers(steps[1][0], w, "w: the kernel")
    show_numbers(steps[1][1], U, "U = G w G$^T$")
    steps[1][2].set_axis_off()
    shown = direct[TOP : TOP + 4, LEFT : LEFT + 4]
    show_numbers(steps[1][3], shown, "directly: 144 products")
    save(figure, path)


def errors(
    found: Sequence[Any],
    amplification: Callable[[int, Sequence[float]], np.ndarray],
    ours: Sequence[float],
    path: Path,
) -> None:
    """Draw what other points would cost F(4, 3), and the errors measured."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    choice, measured = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_choice(figure, choice, amplification, ours)
    bars = [e for e in found if e.way != "our kernel"]  # the same as F in NumPy
    names, values = [f"{e.layer}: {e.way}" for e in bars], [e.typical for e in bars]
    colours = [PALE_RED if e.layer == bars[0].layer else PALE_BLUE for e in bars]
    measured.barh(names, values, color=colours)
    for name, value in zip(names, values, strict=True):
        measured.text(value * 1.15, name, f"{value:.1e}", va="center", fontsize=9, color=INK)
    measured.set(
        xscale="log", xlim=(1e-7, 1e-3), xlabel="float32 error / output (root mean square)"
    )
    measured.invert_yaxis()
    measured.spines[["top", "right"]].set_visible(False)
    measured.grid(alpha=0.3, axis="x")
    measured.set_axisbelow(True)
    save(figure, path)


def _draw_choice(
    figure: Figure,
    axes: Axes,
    amplification: Callable[[int, Sequence[float]], np.ndarray],
    ours: Sequence[float],
) -> None:
    """Draw the amplification of F(4, 3) over its pairs of points."""
    small, large = np.linspace(0.21, 1.17, 41), np.linspace(0.702, 2.4, 43)
    values = [[np.sqrt(np.mean(amplification(3, (a, b)) ** 2)) for a in small] for b in large]
    levels = [4.7, 5, 5.5, 6, 7, 8, 10, 12, 15, 20, 30, 50]
    colours = {"cmap": PALE_TO_RED, "norm": LogNorm(4.6, 60), "extend": "max"}
    filled = axes.contourf(small, large, values, levels, **colours)
    bar = figure.colorbar(filled, ax=axes, label="amplification of rounding errors")
    bar.set_ticks(
        [5, 6, 8, 10, 15, 20, 30, 50], labels=["5", "6", "8", "10", "15", "20", "30", "50"]
    )
    bar.minorticks_off()
    for name, point, filling in (
        ("ours", ours, INK),
        ("±1 ±2", (1, 2), "white"),
        ("±1/2 ±1", (0.5, 1), "white"),
    ):
        axes.plot(*point, "o", color=INK, mfc=filling)
        axes.annotate(name, point, (6, 6), textcoords="offset points", color=INK)
    axes.set(xlabel="first pair of points, ±a", ylabel="second pair, ±b")
    axes.spines[["top", "right"]].set_visible(False)
