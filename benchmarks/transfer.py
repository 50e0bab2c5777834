"""Transfer of a network to a few photographs, beside training from scratch.

    python benchmarks/transfer.py flowers                # half an hour on one core

The first classes of the folder are learned from all their photographs, by a thin network, the
others from a few each: from scratch, beginning with that network, or by a linear classifier of its
features, of an untrained network's and of pixels. The rate of each way to learn is the best of five
for each number of photographs, by images that are in no table; accuracies are then of the
validation images, over other draws of photographs. The folder has train/ and val/.

Resumes where it was interrupted. Writes benchmarks/results/transfer.json and the table in
docs/weights.md.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import tinyalex as ta
from shared import report
from tinyalex import nn, threads
from tinyalex.data import EvalTransform, ImageFolder, Loader, TrainTransform
from tinyalex.models import VARIANTS, AlexNet
from tinyalex.schedule import Cosine
from tinyalex.training import (
    evaluate,
    features,
    freeze,
    layer_rates,
    replace_head,
    set_training,
    train_step,
)
from tinyalex.training.build import first_images
from tinyalex.training.features import pixels
from tinyalex.training.probe import fit_probe
from tinyalex.training.settings import AUGMENTATIONS

PIXELS, SIDE = 95, 109
VARIANT = VARIANTS["torchvision"].thinner(4, PIXELS)
BASE, BASE_EPOCHS, BASE_RATE = 3, 15, 0.003
"""Number of classes that the network learns first, and how."""
SHOTS = (5, 20, 80)
RATES = (0.00003, 0.0001, 0.0003, 0.001, 0.003)
STEPS = 120
"""Steps on the few photographs."""
TUNING, SEEDS = range(100, 103), range(5)
"""Draws of photographs that the rates are chosen by, and those that count."""


class Images:
    """Data set of images in memory, of some of a folder's classes."""

    def __init__(self, classes: list[str], images: list[np.ndarray], labels: np.ndarray) -> None:
        self.classes, self.images, self.labels = classes, images, labels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> np.ndarray:
        """Return image `index`."""
        return self.images[index]

    def describe(self, index: int) -> str:
        """Return a name for image `index`."""
        return f"image {index}"

    def some(self, places: np.ndarray) -> Images:
        """Return those of the images."""
        return Images(self.classes, [self.images[i] for i in places], self.labels[places])


def read(data: Path, split: str, first: bool) -> Images:
    """Return the images of the first classes, or of the others."""
    folder = ImageFolder(data, split, shorter_side=SIDE)
    labels = folder.labels if first else folder.labels - BASE
    classes = folder.classes[:BASE] if first else folder.classes[BASE:]
    places = np.flatnonzero((labels >= 0) & (labels < len(classes)))
    return Images(classes, [folder.load(i) for i in places.tolist()], labels[places])


def drawn(pool: Images, shots: int, seed: int) -> Images:
    """Draw so many images of each class."""
    rng = np.random.default_rng(seed)
    each = [np.flatnonzero(pool.labels == label) for label in range(len(pool.classes))]
    return pool.some(np.concatenate([rng.permutation(places)[:shots] for places in each]))


def learn(
    model: AlexNet, groups: list[dict[str, Any]], images: Images, rate: float, steps: int, seed: int
) -> AlexNet:
    """Train with the default recipe for few images: cosine, strong augmentation."""
    pixels = VARIANT.pixels
    assert pixels.mean is not None
    size = min(32, len(images))
    transform = TrainTransform(PIXELS, pixels.mean, pixels.std, **AUGMENTATIONS["strong"])
    loader = Loader(images, size, transform, seed=seed, workers=1)
    optimizer = ta.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=5e-4)
    schedule = Cosine(optimizer, steps, steps // 20)
    step = epoch = 0
    set_training(model)
    while step < steps:
        for batch in loader.epoch(epoch):
            if step == steps:
                break
            schedule.before_step(step)
            ta.random.start_step(step)
            train_step(model, optimizer, batch)
            step += 1
        epoch += 1
    return model


def accuracy(model: AlexNet, images: Images) -> float:
    """Return the top-1 accuracy for the centres of images."""
    pixels = VARIANT.pixels
    assert pixels.mean is not None
    transform = EvalTransform(PIXELS, pixels.mean, pixels.std)
    scores = evaluate(model, Loader(images, 50, transform, shuffle=False, workers=1))
    assert scores is not None
    return scores.top1


def fresh(images: Images, seed: int) -> AlexNet:
    """Return a network with random weights that suit the images."""
    ta.manual_seed(seed)
    model = ta.models.alexnet(VARIANT, len(images.classes))
    pixels = VARIANT.pixels
    assert pixels.mean is not None
    transform = TrainTransform(PIXELS, pixels.mean, pixels.std)
    loader = Loader(images, min(32, len(images)), transform, seed=seed, workers=1)
    nn.data_dependent_(model, first_images(loader, 64))
    return model


def begun(state: dict[str, np.ndarray], images: Images, seed: int) -> AlexNet:
    """Return the network of the first classes, with a new head."""
    model = ta.models.alexnet(VARIANT, BASE)
    model.load_state_dict(state)
    ta.manual_seed(seed)
    return replace_head(model, len(images.classes), seed)


Begin = Callable[[dict[str, np.ndarray], Images, int], tuple[AlexNet, list[dict[str, Any]]]]


def scratch(state: dict[str, np.ndarray], images: Images, seed: int) -> Any:
    """Begin with random weights."""
    model = fresh(images, seed)
    return model, layer_rates(model, 1)


def fine_tuned(factor: float, frozen: str | None = None, decay: float = 1) -> Begin:
    """Return a way to begin with the first network."""

    def begin(state: dict[str, np.ndarray], images: Images, seed: int) -> Any:
        model = begun(state, images, seed)
        if frozen:
            freeze(model, frozen)
        return model, layer_rates(model, factor, decay)

    return begin


WAYS: dict[str, Begin] = {
    "from scratch": scratch,
    "fine-tuned": fine_tuned(10),
    "fine-tuned, up to conv5 frozen": fine_tuned(10, "conv5"),
}


Describe = Callable[[np.ndarray], np.ndarray]


def of_pool5(state: dict[str, np.ndarray] | None, seed: int) -> Describe:
    """Return the description by pool5, untrained without a state."""
    ta.manual_seed(seed)
    model = ta.models.alexnet(VARIANT, BASE)
    if state is not None:
        model.load_state_dict(state)
    return partial(features, model, layer="pool5")


PROBES: dict[str, Callable[[dict[str, np.ndarray], int], Describe]] = {
    "linear classifier of pool5": of_pool5,
    "of an untrained one's": lambda state, seed: of_pool5(None, seed),
    "of pixels": lambda state, seed: pixels,
}


def vectors(describe: Describe, images: Images) -> np.ndarray:
    """Return the vectors that describe images."""
    scale = VARIANT.pixels
    assert scale.mean is not None
    transform = EvalTransform(PIXELS, scale.mean, scale.std)
    loader = Loader(images, min(50, len(images)), transform, shuffle=False, workers=1)
    return np.concatenate([describe(batch.images) for batch in loader.epoch(0)])


class Experiment:
    """Trainings on one folder, with their results in a file."""

    def __init__(self, data: Path, store: Path) -> None:
        self.data, self.store = data, store
        self.done: dict[str, float] = json.loads(store.read_text()) if store.exists() else {}

    @cache  # noqa: B019 (one object, as long as the process)
    def images(self, split: str, first: bool = False) -> Images:
        """Return the images of a split."""
        return read(self.data, split, first)

    @cache  # noqa: B019
    def base(self) -> dict[str, np.ndarray]:
        """Return the weights of the network of the first classes, trained once."""
        path = self.store.with_name("transfer-base.safetensors")
        if not path.exists():
            images = self.images("train", first=True)
            model = fresh(images, 0)
            steps = BASE_EPOCHS * (len(images) // 32)
            learn(model, layer_rates(model, 1), images, BASE_RATE, steps, 0)
            path.parent.mkdir(exist_ok=True, parents=True)
            ta.save(model.state_dict(), path)
        model = ta.models.alexnet(VARIANT, BASE)
        model.load_state_dict(ta.load(path))
        if "base" not in self.done:
            self.done["base"] = accuracy(model, self.images("val", first=True))
            self.keep()
        return model.state_dict()

    def images_for(self, shots: int, seed: int) -> tuple[Images, Images]:
        """Return the images to learn from, and those to judge by."""
        pool = self.images("train")
        order = np.random.default_rng(0).permutation(len(pool))
        judges = pool.some(order[:300]) if seed in TUNING else self.images("val")
        return drawn(pool.some(order[300:]), shots, seed), judges

    def probed(self, way: str, shots: int, seed: int) -> float:
        """Return the accuracy of one probe."""
        images, judges = self.images_for(shots, seed)
        describe = PROBES[way](self.base(), seed)
        probe = fit_probe(vectors(describe, images), images.labels, len(images.classes))
        return probe.accuracy(vectors(describe, judges), judges.labels)

    def score(self, way: str, shots: int, rate: float, seed: int) -> float:
        """Return the accuracy of one training."""
        key = f"{way}, {shots}, {rate:g}, {seed}"
        if key not in self.done:
            images, judges = self.images_for(shots, seed)
            model, groups = WAYS[way](self.base(), images, seed)
            try:
                self.done[key] = accuracy(learn(model, groups, images, rate, STEPS, seed), judges)
            except ArithmeticError:  # it diverged
                self.done[key] = 0.0
            self.keep()
            print(f"{key}: {self.done[key]:.1%}", flush=True)
        return self.done[key]

    def keep(self) -> None:
        """Write what is done."""
        self.store.parent.mkdir(exist_ok=True, parents=True)
        self.store.write_text(json.dumps(self.done, indent=1))

    def cell(self, way: str, shots: int) -> dict[str, Any]:
        """Return the accuracies of a way to learn, at its best rate."""
        if way in PROBES:
            return {"top1": [self.probed(way, shots, seed) for seed in SEEDS]}

        def tuned(rate: float) -> float:
            return statistics.fmean(self.score(way, shots, rate, seed) for seed in TUNING)

        rate = max(RATES, key=tuned)
        return {"rate": rate, "top1": [self.score(way, shots, rate, seed) for seed in SEEDS]}


def table(result: dict[str, Any]) -> str:
    """Return the table: means and standard deviations of the accuracies."""
    lines = [
        "| photographs of each class | " + " | ".join([*WAYS, *PROBES]) + " |",
        "|---" * (1 + len(WAYS) + len(PROBES)) + "|",
    ]
    for shots, cells in result["cells"].items():
        texts = [
            f"{statistics.fmean(cell['top1']):.1%} ± {statistics.stdev(cell['top1']):.1%}"
            + (f" (rate {cell['rate']:g})" if "rate" in cell else "")
            for cell in cells.values()
        ]
        lines.append(f"| {shots} | " + " | ".join(texts) + " |")
    caption = (
        f"{len(SEEDS)} draws of photographs, {STEPS} steps each; mean and standard deviation of "
        f"the top-1 accuracy. The first network has {result['base']:.1%} on its own validation "
        "images. "
    )
    return "\n".join([*lines, "", caption + report.one_line(result["machine"])])


def main() -> None:
    """Read the command line, train and print."""
    parser = report.parser(__doc__)
    parser.add_argument("data", type=Path, help="a folder with train/ and val/ of class folders")
    parser.add_argument("--store", type=Path, default=Path("runs/transfer.json"))
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS)
    arguments = parser.parse_args()
    threads.set_num_threads(1)  # as many of these as there are cores are quicker
    experiment = Experiment(arguments.data, arguments.store)
    experiment.base()
    ways = [*WAYS, *PROBES]
    cells = {shots: {way: experiment.cell(way, shots) for way in ways} for shots in arguments.shots}
    result = {"machine": report.machine(), "base": experiment.done["base"], "cells": cells}
    report.save("transfer", result)
    print(table(result))
    report.replace_table(report.ROOT / "docs" / "weights.md", "transfer", table(result))


if __name__ == "__main__":
    main()
