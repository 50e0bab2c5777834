"""Pictures of filters and predictions, drawn with Pillow."""

from __future__ import annotations

import bisect
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tinyalex.backends.devices import move
from tinyalex.folders import write_atomically
from tinyalex.models import AlexNet
from tinyalex.nn import Conv2d
from tinyalex.text import escaped, percent, printable

INK, PALE, RED, BLUE = "#222222", "#8a8a8a", "#c0392b", "#7f9cc0"

PALE_GREEN, PALE_BLUE = "#b5dcab", "#d3deec"

DEJAVU = "mpl-data/fonts/ttf/DejaVuSans.ttf"
"""A font with Latin, Greek, Cyrillic and more letters, where matplotlib has it."""

NO_CHARACTER = "\U0010fffe"
"""A character that no font has."""


def first_filters(model: AlexNet) -> Image.Image:
    """Draw the filters of conv1 as in the paper's Figure 3.

    One tower is above the other.
    """
    towers = max(layer.groups for layer in model.modules() if isinstance(layer, Conv2d))
    weight = move(model.weight_layers["conv1"].weight.data, "cpu")
    return filter_grid(weight, towers=towers)


def filter_grid(weight: np.ndarray, scale: int = 6, gap: int = 2, towers: int = 1) -> Image.Image:
    """Draw the filters of a first convolution side by side (paper, Figure 3).

    weight [K, 3 or 1, R, S]. Each filter is stretched to the full contrast by its own largest
    magnitude, with 0 at mid-grey, and enlarged `scale` times without smoothing. The first
    K / `towers` filters are those of the first tower, and so on: a white line parts the towers.
    """
    count, channels, height, width = weight.shape
    if channels not in (1, 3):
        raise ValueError(f"expected filters over 1 or 3 colours to draw, got shape {weight.shape}")
    if count % towers:
        raise ValueError(f"{count} filters cannot be divided among {towers} towers")
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    stretched = 0.5 + 0.5 * weight / np.where(largest > 0, largest, 1)
    pixels = np.rint(255 * stretched).astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = np.broadcast_to(pixels, (count, height, width, 3))

    each = count // towers
    columns = 16 if each % 16 == 0 else math.ceil(math.sqrt(2 * count))
    rows = math.ceil(each / columns)
    cell_w, cell_h = width * scale + gap, height * scale + gap
    size = columns * cell_w + gap, rows * cell_h + gap
    apart = size[1] + 4 * gap
    grid = Image.new("RGB", (size[0], towers * apart - 4 * gap), "white")
    for tower in range(towers):
        grid.paste("black", (0, tower * apart, size[0], tower * apart + size[1]))
    for i, kernel in enumerate(pixels):
        tower, place = divmod(i, each)
        row, column = divmod(place, columns)
        tile = Image.fromarray(np.ascontiguousarray(kernel))
        tile = tile.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        grid.paste(tile, (gap + column * cell_w, tower * apart + gap + row * cell_h))
    return grid


def contact_sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    columns: int = 5,
    size: int = 208,
    labels: Sequence[int] | None = None,
) -> Image.Image:
    """Draw images with bars of their five most probable classes (Figure 4).

    images: uint8 [H, W, 3] of any size; titles of one line or more; probabilities [N, C]. The bar
    of the right class is green where `labels` are given (-1: not known), and a line below all
    images says so.
    """
    margin, title_height = 14, captions_height(titles, size)
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    cell_w, cell_h = size + margin, size + title_height + answers_height(classes) + margin + 6
    known = labels is not None and max(labels) >= 0
    height = rows * cell_h + margin + (captions_height([""], size) if known else 0)
    sheet = Image.new("RGB", (columns * cell_w + margin, height), "white")
    draw, small = ImageDraw.Draw(sheet), font(12)
    if known:
        draw.text((margin, height - margin - 11), "green: the right class", PALE, small)

    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(i, columns)
        left, top = margin + column * cell_w, margin + row * cell_h
        sheet.paste(fit(image, size), (left, top))
        draw_caption(draw, (left, top + size + 4), size, title)
        label = -1 if labels is None else labels[i]
        draw_answers(
            draw, (left, top + size + title_height), size, probabilities[i], classes, label
        )
    return sheet


LINE_HEIGHT = 15


def captions_height(titles: Iterable[str], width: int) -> int:
    """Return the height of the longest caption, with space."""
    return 7 + LINE_HEIGHT * max((len(caption_lines(title, width)) for title in titles), default=1)


def caption_lines(text: str, width: int, most: int = 3) -> list[tuple[str, str]]:
    """Return a caption's lines with their colours, `most` for each of `text`."""
    lines = []
    for number, line in enumerate(text.split("\n")):
        parts = wrapped(line, font(12), width, most)
        lines += [(part, PALE if number else INK) for part in parts]
    return lines


def draw_caption(draw: Any, place: tuple[int, int], width: int, text: str) -> None:
    """Draw a caption from `place` down."""
    left, top = place
    for number, (line, colour) in enumerate(caption_lines(text, width)):
        draw.text((left, top + number * LINE_HEIGHT), line, colour, font(12))


BAR_HEIGHT, ANSWERS = 21, 5


def answers_height(classes: Sequence[str]) -> int:
    """Return the height of `draw_answers`."""
    return BAR_HEIGHT * min(ANSWERS, len(classes))


def draw_answers(
    draw: Any,
    place: tuple[int, int],
    width: int,
    probabilities: np.ndarray,
    classes: Sequence[str],
    label: int = -1,
) -> None:
    """Draw bars of the most probable classes from `place` down; `label` green."""
    (left, top), small = place, font(12)
    for rank, best in enumerate(np.argsort(-probabilities, kind="stable")[:ANSWERS]):
        y, share = top + rank * BAR_HEIGHT, float(probabilities[best])
        bar = (left, y + 2, left + round(share * (width - 1)), y + BAR_HEIGHT - 3)
        draw.rectangle(bar, PALE_GREEN if best == label else PALE_BLUE)
        figure = percent(share)
        figure_width = round(draw.textlength(figure, small))
        name = shorten(draw, printable(classes[best]), small, width - figure_width - 14)
        draw.text((left + 4, y + 3), name, INK, small)
        draw.text((left + width - figure_width - 4, y + 3), figure, INK, small)


def failure(draw: Callable[[], None]) -> Exception | None:
    """Draw a picture; return the error, if any, instead of raising it."""
    try:
        draw()
    except Exception as error:
        return error
    return None


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures, one below the other."""
    width, height = max(p.width for p in pictures), sum(p.height for p in pictures)
    whole, top = Image.new("RGB", (width, height), "white"), 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def save_png(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture, whole or not at all."""
    write_atomically(path, lambda file: picture.save(file, "PNG"))


@functools.cache
def font(size: int) -> Any:
    """Return matplotlib's DejaVu Sans if installed, else Pillow's own font."""
    found = PathFinder.find_spec("matplotlib")  # without importing it
    for folder in (found and found.submodule_search_locations) or ():
        try:
            return ImageFont.truetype(Path(folder, DEJAVU), size)
        except (OSError, ImportError):  # or Pillow cannot read fonts
            pass
    try:
        return ImageFont.load_default(size)
    except (OSError, ImportError):
        return ImageFont.load_default()


def drawable(text: str, font: Any) -> str:
    """Return text with escapes for characters that the font lacks."""
    return "".join(c if _has(font, c) else ascii(c)[1:-1] for c in escaped(text))


@functools.cache
def _has(font: Any, character: str) -> bool:
    if " " <= character <= "~":
        return True
    if not isinstance(font, ImageFont.FreeTypeFont):
        return character <= "\xff"
    drawn, missing = font.getmask(character), font.getmask(NO_CHARACTER)
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


def fit(image: np.ndarray, size: int) -> Image.Image:
    """Scale and crop an image to a centred square of `size` pixels."""
    return ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.LANCZOS)


def wrapped(text: str, font: Any, width: int, most: int = 100) -> list[str]:
    """Return text in lines of at most `width` pixels.

    It is broken between words, and after the marks that part those of a file's name; the last of
    `most` lines is shortened.
    """
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = [""]
    for part in re.split(r"(?<=[\s/_-])", drawable(text, font)):
        longer = f"{lines[-1]}{part}"
        if lines[-1] and len(lines) < most and draw.textlength(longer.strip(), font) > width:
            lines.append(part)
        else:
            lines[-1] = longer
    return [shorten(draw, line.strip(), font, width) for line in lines]


def shorten(draw: Any, text: str, font: Any, width: int) -> str:
    """Cut `text` to at most `width` pixels, an ellipsis in its middle.

    Characters that the font does not have are escaped before.
    """
    text = drawable(text, font)

    def cut(kept: int) -> str:
        head = (kept + 1) // 2
        return text[:head] + dots + text[len(text) - (kept - head) :]

    if draw.textlength(text, font) <= width:
        return text
    dots = drawable("…", font)
    # By halves, for a name may have any length.
    longest = bisect.bisect(range(1, len(text)), width, key=lambda k: draw.textlength(cut(k), font))
    return cut(max(1, longest))
