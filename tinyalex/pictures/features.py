"""Pictures of layers' outputs, and of images that a network finds similar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from tinyalex import nn
from tinyalex.backends.devices import host_copy
from tinyalex.data import Loader
from tinyalex.grad_mode import no_grad
from tinyalex.models import AlexNet
from tinyalex.pictures.sheets import (
    INK,
    PALE,
    captions_height,
    draw_caption,
    fit,
    font,
    shorten,
)
from tinyalex.progress import Progress
from tinyalex.tensor import Tensor
from tinyalex.training.evaluation import computed
from tinyalex.training.features import features


def layer_outputs(model: AlexNet, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the output of every layer for the images, in order.

    images [N, C, H, W] as the network takes them; the names are those of `AlexNet.layers`.
    """
    names = {layer: name for name, layer in model.layers.items()}
    outputs: dict[str, np.ndarray] = {}
    device = next(model.parameters()).device

    def keep(layer: nn.Module, args: Any, output: Tensor) -> None:
        outputs[names[layer]] = host_copy(output.data)

    with ExitStack() as hooks, no_grad():
        for layer in names:
            hooks.enter_context(layer.register_forward_hook(keep))
        model.eval()
        model(Tensor(images).to(device))
    return outputs


def hidden_vectors(model: AlexNet, images: np.ndarray) -> np.ndarray:
    """Return the activations [N, D] of the last hidden layer (fc7).

    images [N, C, H, W] as the network takes them.
    """
    *_, hidden, _ = model.weight_layers
    return features(model, images, hidden)


def nearest(
    model: AlexNet,
    queries: np.ndarray,
    loader: Loader,
    count: int = 6,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loader's nearest images to each query, nearest first.

    queries [Q, D] are `hidden_vectors`; near is by Euclidean distance between them (paper, section
    6.1). Returns positions in the data set, int64 [Q, count], and distances; fewer where there are
    fewer images.
    """
    places = np.empty((len(queries), 0), np.int64)
    distances = np.empty((len(queries), 0), np.float32)
    hidden = partial(hidden_vectors, model)
    for batch, vectors in computed(hidden, loader, progress, "comparing"):
        near, far = closest(queries, vectors, count)
        distances = np.concatenate([distances, far], axis=1)
        places = np.concatenate([places, batch.indices[near]], axis=1)
        best = np.argsort(distances, axis=1, kind="stable")[:, :count]
        distances = np.take_along_axis(distances, best, axis=1)
        places = np.take_along_axis(places, best, axis=1)
    return places, distances


def closest(
    queries: np.ndarray, vectors: np.ndarray, count: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and distances of each query's nearest vectors, in order."""
    distances = np.stack([np.linalg.norm(vectors - query, axis=1) for query in queries])
    near = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return near, np.take_along_axis(distances, near, axis=1)


def neighbour_sheet(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]], size: int = 208
) -> Image.Image:
    """Draw each query and, to its right, its neighbours (paper, Figure 4 right).

    rows: for each query the uint8 RGB images, first its own; titles: lines for each.
    """
    margin, apart = 10, 24
    title_height = captions_height(chain.from_iterable(titles), size)
    cell_w, cell_h = size + margin, size + title_height + margin
    columns = max(map(len, rows))
    width = columns * cell_w + margin + apart
    sheet = Image.new("RGB", (width, len(rows) * cell_h + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (images, names) in enumerate(zip(rows, titles, strict=True)):
        top = margin + row * cell_h
        for column, (image, name) in enumerate(zip(images, names, strict=True)):
            left = margin + column * cell_w + (apart if column else 0)
            sheet.paste(fit(image, size), (left, top))
            draw_caption(draw, (left, top + size + 3), size, name)
    x = margin + cell_w + (apart - margin) // 2
    draw.line((x, margin, x, sheet.height - margin), PALE)
    return sheet


def feature_sheet(
    seen: np.ndarray, title: str, outputs: dict[str, np.ndarray], width: int = 976
) -> Image.Image:
    """Draw all layers' outputs for one image, one band per layer.

    seen: uint8 RGB, the part of the image that the network is shown, and what to write above it;
    outputs: of `layer_outputs` for this one image. White are the largest outputs of a layer, one in
    a thousand, black is 0, blue is negative; the shade grows with the square root. Of a layer with
    many maps the first ones are shown, as its title says.
    """
    margin, title_height = 12, 22
    bands = [(title, Image.fromarray(seen))]
    for name, (output,) in outputs.items():
        bands.append((_maps if output.ndim == 3 else _units)(name, output, width))
    heights = [title_height + picture.height + margin for _, picture in bands]
    sheet = Image.new("RGB", (width + 2 * margin, sum(heights) + margin), "white")
    draw, small = ImageDraw.Draw(sheet), font(13)
    legend = (
        "white: the largest outputs of a layer, one in a thousand\nblack: 0\nblue: below 0\n"
        "between: shades by the square root"
    )
    draw.text((margin + len(seen[0]) + 16, margin + title_height), legend, INK, small)
    top = margin
    for (above, picture), height in zip(bands, heights, strict=True):
        draw.text((margin, top), shorten(draw, above, small, width), INK, small)
        sheet.paste(picture, (margin, top + title_height))
        top += height
    return sheet


def _maps(name: str, maps: np.ndarray, width: int) -> tuple[str, Image.Image]:
    """Return title and picture of a layer's first maps [C, H, W]."""
    columns, rows = 16, 2
    count, shown = len(maps), maps[: columns * rows]
    cell = width // columns
    picture = Image.new("RGB", (columns * cell, math.ceil(len(shown) / columns) * cell), "white")
    for i, tile in enumerate(_colours(shown)):
        row, column = divmod(i, columns)
        size = (cell - 2, cell - 2)
        tile = Image.fromarray(tile).resize(size, Image.Resampling.NEAREST)
        picture.paste(tile, (column * cell, row * cell))
    some = f", the first {len(shown)}" if len(shown) < count else ""
    return f"{name}: {count} maps of {maps.shape[1]} x {maps.shape[2]}{some}", picture


def _units(name: str, values: np.ndarray, width: int) -> tuple[str, Image.Image]:
    """Return title and picture of a fully connected layer's outputs [D]."""
    side = min(max(width // len(values), 5), 40)
    columns = min(len(values), (width - 2) // side)
    padded = np.zeros(math.ceil(len(values) / columns) * columns, values.dtype)
    padded[: len(values)] = values
    pixels = _colours(padded.reshape(-1, columns))
    picture = Image.fromarray(pixels)
    size = (picture.width * side, picture.height * side)
    picture = ImageOps.expand(picture.resize(size, Image.Resampling.NEAREST), 1, PALE)
    return f"{name}: {len(values)} units", picture


def _colours(values: np.ndarray) -> np.ndarray:
    """Return colours uint8 [..., 3]: 0 black, high values white, negative ones blue."""
    size = np.abs(values)
    # One glaring value would darken the rest; of a layer that is all but silent it is the one.
    largest = np.quantile(size, 0.999) or size.max() or 1
    share = np.sqrt(np.clip(size / largest, 0, 1))
    white, blue = np.array([255.0, 255.0, 255.0]), np.array([60.0, 110.0, 255.0])
    colour = np.where(values[..., None] > 0, white, blue)
    return np.rint(share[..., None] * colour).astype(np.uint8)
