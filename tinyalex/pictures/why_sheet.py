"""Pictures of an image's evidence for a class: photograph, three maps, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tinyalex.pictures.sheets import (
    INK,
    answers_height,
    draw_answers,
    font,
    shorten,
    wrapped,
)
from tinyalex.pictures.why import SAMPLES, grad_cam, input_gradient, occlusion
from tinyalex.progress import Progress
from tinyalex.text import percent, printable
from tinyalex.training.classifier import Classifier

MEANINGS = {
    "occlusion": (
        "Occlusion",
        "Probability that the class loses while a grey square hides this place. Little means that "
        "no single place decides.",
    ),
    "input_gradient": (
        "Gradient of the input",
        "How strongly the score of the class reacts to a change of this pixel, on average over "
        f"{SAMPLES} noisy copies of the image.",
    ),
    "grad_cam": (
        "Grad-CAM",
        "Where the last convolution found what speaks for the class.",
    ),
}
"""Titles of the maps, and what their colours mean."""

LEAST = 1e-4
"""Least brightest value of occlusion: smaller losses of probability are mostly rounding."""

DARK = "#555555"

HEAT = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)])
"""Colours from nothing to the largest value: black, violet, red, orange, pale yellow."""

BESIDE = 640
"""Width in pixels from which on the photograph and the maps stand in one row."""


class Why(NamedTuple):
    """Answer of a network for an image, with maps of its evidence."""

    seen: np.ndarray
    """Pixels that the network saw, uint8 RGB [S, S, 3]."""
    probabilities: np.ndarray
    """float32 [number of classes]."""
    target: int
    """The class that the maps are of."""
    occlusion: np.ndarray
    """float32 [S, S], as are the two other maps: see `pictures.why`."""
    input_gradient: np.ndarray
    grad_cam: np.ndarray

    def heat(self, name: str) -> tuple[np.ndarray, str]:
        """Return a map's colours over the image, and its brightest value.

        That is in words, and a map that is 0 everywhere has none; occlusion is `LEAST` at least.
        """
        values = np.nan_to_num(getattr(self, name))
        highest = float(np.quantile(values, 0.995))  # a few glaring pixels would darken all others
        figure = f"{highest:.2g}"
        if name == "occlusion":
            highest = max(highest, LEAST)
            figure = percent(highest)
        if highest <= 0:
            return _coloured(self.seen, np.zeros_like(values)), ""
        return _coloured(self.seen, values / highest), figure


def explain(
    classifier: Classifier,
    image: np.ndarray,
    target: int | None = None,
    progress: Progress | None = None,
) -> Why:
    """Return the three maps of an image for a class.

    image: uint8 RGB of any size; target: number of the class, by default the most probable one.
    """
    model, seen = classifier.model, classifier.seen(image)
    (probabilities,) = classifier.probabilities([image])
    target = int(probabilities.argmax()) if target is None else target
    views = classifier.inputs([image, np.full_like(image, 128)])  # the second: what hides
    return Why(
        seen,
        probabilities,
        target,
        occlusion(model, views[:1], target, fill=views[1], progress=progress)[0],
        input_gradient(model, views[:1], target)[0],
        grad_cam(model, views[:1], target)[0],
    )


def why_picture(
    why: Why, classes: Sequence[str], title: str, width: int = 976, label: int = -1
) -> Image.Image:
    """Draw an image with its answers and, beside it, the three maps.

    The four stand in a row, or two by two where `width` is below 640 pixels. `title` names the
    image; the bar of the right class is green where its `label` is known.
    """
    margin, gap, line, above, bar = 12, 16, 17, 22, 10
    columns = 4 if width >= BESIDE else 2
    side = (width - 2 * margin - (columns - 1) * gap) // columns
    large, small = font(16), font(12)
    question = wrapped(_question(why, classes), large, width - 2 * margin)
    texts = {name: wrapped(text, small, side) for name, (_, text) in MEANINGS.items()}
    legend = bar + 22 + line * max(map(len, texts.values()))
    cell = above + side + 8 + max(legend, answers_height(classes)) + margin
    top = margin + 22 * len(question) + 8
    sheet = Image.new("RGB", (width, top + 4 // columns * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for number, words in enumerate(question):
        draw.text((margin, margin + 22 * number), words, INK, large)

    def panel(number: int, title: str, pixels: np.ndarray) -> tuple[int, int]:
        """Draw a title and pixels; return the place below them."""
        row, column = divmod(number, columns)
        x, y = margin + column * (side + gap), top + row * cell
        draw.text((x, y), shorten(draw, title, small, side), INK, small)
        sheet.paste(_scaled(pixels, side, side), (x, y + above))
        return x, y + above + side + 8

    place = panel(0, title, why.seen)
    draw_answers(draw, place, side, why.probabilities, classes, label)
    for number, (name, (heading, _)) in enumerate(MEANINGS.items(), start=1):
        pixels, figure = why.heat(name)
        x, y = panel(number, heading, pixels)
        middle = np.full((1, 256, 3), 128)
        sheet.paste(_scaled(_coloured(middle, np.linspace(0, 1, 256)[None]), side, bar), (x, y))
        draw.text((x, y + bar + 3), "0" if figure else "0 everywhere", INK, small)
        draw.text((x + side, y + bar + 3), figure, INK, small, anchor="ra")
        for row, words in enumerate(texts[name]):
            draw.text((x, y + bar + 22 + line * row), words, DARK, small)
    return sheet


def _question(why: Why, classes: Sequence[str]) -> str:
    share = why.probabilities[why.target]
    rank = int((why.probabilities > share).sum()) + 1
    order = "the most probable class" if rank == 1 else f"number {rank} of {len(classes)}"
    return f"Why {printable(classes[why.target])}? {percent(share)}, {order}"


def _coloured(pixels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return pixels in grey under the colours of shares 0..1 [H, W], uint8 [H, W, 3]."""
    steps = np.linspace(0, 1, len(HEAT))
    heat = np.stack([np.interp(shares, steps, colour) for colour in HEAT.T], axis=-1)
    return np.rint(0.3 * pixels.mean(axis=2, keepdims=True) + 0.7 * heat).astype(np.uint8)


def _scaled(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
