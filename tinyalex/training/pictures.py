"""Pictures of a run: learned kernels and predictions (Pillow), learning curves (matplotlib)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyalex.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

INK, PALE, RED, BLUE = "#222222", "#8a8a8a", "#c0392b", "#7f9cc0"
PALE_RED, PALE_BLUE = "#f0a8a0", "#d3deec"


def filter_grid(weight: np.ndarray, scale: int = 6, gap: int = 2) -> Image:
    """Draw the kernels of a first convolution side by side, as in Figure 3 of the 2012 paper.

    weight [K, 3 or 1, R, S]. Each kernel is stretched to the full contrast by its own largest
    magnitude, with 0 at mid-grey, and enlarged `scale` times without smoothing.
    """
    from PIL import Image

    count, channels, height, width = weight.shape
    if channels not in (1, 3):
        raise ValueError(f"expected kernels over 1 or 3 colours to draw, got shape {weight.shape}")
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    stretched = 0.5 + 0.5 * weight / np.where(largest > 0, largest, 1)
    pixels = np.rint(255 * stretched).astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = np.broadcast_to(pixels, (count, height, width, 3))

    columns = 16 if count % 16 == 0 else math.ceil(math.sqrt(2 * count))
    rows = math.ceil(count / columns)
    cell_w, cell_h = width * scale + gap, height * scale + gap
    grid = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), "black")
    for i, kernel in enumerate(pixels):
        row, column = divmod(i, columns)
        tile = Image.fromarray(np.ascontiguousarray(kernel))
        tile = tile.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        grid.paste(tile, (gap + column * cell_w, gap + row * cell_h))
    return grid


def contact_sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    columns: int = 5,
    size: int = 208,
) -> Image:
    """Draw images with a bar for each of their five most probable classes (paper, Figure 4).

    images: uint8 [H, W, 3] of any size; probabilities [N, C].
    """
    from PIL import Image, ImageDraw

    margin, title_height, bar_height = 14, 22, 21
    shown = min(5, len(classes))
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    cell_w, cell_h = size + margin, size + title_height + shown * bar_height + margin + 6
    sheet = Image.new("RGB", (columns * cell_w + margin, rows * cell_h + margin), "white")
    draw, small = ImageDraw.Draw(sheet), _font(12)

    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(i, columns)
        left, top = margin + column * cell_w, margin + row * cell_h
        sheet.paste(_fit(image, size), (left, top))
        draw.text((left, top + size + 4), _shorten(draw, title, small, size), PALE, small)
        order = np.argsort(-probabilities[i], kind="stable")[:shown]
        for rank, label in enumerate(order):
            y = top + size + title_height + rank * bar_height
            share = float(probabilities[i, label])
            bar = (left, y + 2, left + round(share * (size - 1)), y + bar_height - 3)
            draw.rectangle(bar, PALE_RED if rank == 0 else PALE_BLUE)
            percent = f"{share:.0%}"
            percent_width = round(draw.textlength(percent, small))
            name = _shorten(draw, classes[label], small, size - percent_width - 14)
            draw.text((left + 4, y + 3), name, INK, small)
            draw.text((left + size - percent_width - 4, y + 3), percent, INK, small)
    return sheet


def learning_curves(
    rows: Sequence[dict[str, Any]], num_classes: int, path: str | os.PathLike[str]
) -> None:
    """Draw loss and accuracy over the epochs from the rows of ``metrics.jsonl`` into a PNG.

    Raises ModuleNotFoundError without matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [row for row in rows if row["kind"] == "step"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    steps_per_epoch = epochs[0]["step"] / epochs[0]["epoch"]
    x, ends = [row["step"] / steps_per_epoch for row in steps], [row["epoch"] for row in epochs]
    chance = math.log(num_classes)

    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(x, [row["loss"] for row in steps], color=BLUE, lw=1, label="training")
    loss.plot(ends, [row["val_loss"] for row in epochs], "o-", color=RED, ms=4, label="validation")
    loss.axhline(chance, color=PALE, ls="--", lw=1, label=f"guessing: ln({num_classes})")
    loss.set(xlabel="epoch", ylabel="loss", ylim=(0, 1.05 * max(loss.get_ylim()[1], chance)))

    top1 = [100 * row["top1"] for row in steps]
    accuracy.plot(x, top1, color=BLUE, lw=1, label="training top-1")
    for k, style in ((1, "o-"), (5, "o:")):
        if num_classes > k:
            values = [100 * row[f"val_top{k}"] for row in epochs]
            label = f"validation top-{k}"
            accuracy.plot(ends, values, style, color=RED, ms=4, label=label)
    accuracy.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 102))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fit(image: np.ndarray, size: int) -> Image:
    """Scale and cut an image to a square of `size` pixels around its centre."""
    from PIL import Image, ImageOps

    return ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.LANCZOS)


def _shorten(draw: Any, text: str, font: Any, width: int) -> str:
    """Cut `text` so that it is at most `width` pixels wide, an ellipsis in place of its middle."""
    if draw.textlength(text, font) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head = (kept + 1) // 2
        cut = text[:head] + "…" + text[len(text) - (kept - head) :]
        if draw.textlength(cut, font) <= width:
            break
    return cut
