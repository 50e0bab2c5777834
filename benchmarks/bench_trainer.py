"""The rate of a trainer that reads photographs, beside the bare step's.

    python benchmarks/bench_trainer.py --data flowers

Blocks of steps take turns: forward, loss, backward and update alone on one batch that is there
already ("bare"); and `train_step`, which also looks whether all is finite, on batches that the
loader decodes and augments meanwhile, as in a first epoch, and on batches of images that were
decoded in an earlier epoch. A block's first steps, on batches that were prepared before, are not
timed.

    python benchmarks/bench_trainer.py --freeze conv5

compares bare steps, those with frozen layers ("frozen"), and those on kept features of such layers
("kept"), without photographs; see `tinyalex.training.transfer`.

Writes benchmarks/results/trainer-BATCH.json, and with --table the table in docs/cpu.md, which has
those for batches of 32 and 128; of frozen layers, a sentence in docs/weights.md.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

import tinyalex as ta
import tinyalex.functional as F
from shared import report
from tinyalex.data import (
    Batch,
    CachedDataset,
    EvalTransform,
    ImageFolder,
    Loader,
    Patterns,
    TrainTransform,
)
from tinyalex.training import freeze, layer_rates, train_step
from tinyalex.training.transfer import keep_features

KINDS = {
    "bare": "one that is there",
    "decoding": "read, decoded and augmented meanwhile: a first epoch",
    "cached": "of images that were decoded before: later epochs",
    "frozen": "one that is there, with frozen layers",
    "kept": "of kept features of frozen layers",
}


def main() -> None:
    """Read the command line and measure."""
    parser = report.parser(__doc__)
    parser.add_argument("--data", type=Path, help="a folder with one folder of images a class")
    parser.add_argument("--variant", default="torchvision")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12, help="steps of a block")
    parser.add_argument("--freeze", metavar="LAYER", help="compare steps with frozen layers")
    parser.add_argument("--table", action="store_true", help="update the document")
    arguments = parser.parse_args()
    if arguments.freeze:
        return compare_frozen(arguments)
    dataset = ImageFolder(arguments.data, "train") if arguments.data else Patterns("train", 4000)
    cached = CachedDataset(dataset, 1_000_000_000)
    for index in range(len(dataset)):
        cached.load(index)
    pixels = ta.models.VARIANTS[arguments.variant].input_size
    transform = TrainTransform(pixels, mean=(125.0, 120.0, 110.0), std=(60.0, 60.0, 60.0))
    loaders = {
        "decoding": Loader(dataset, arguments.batch_size, transform),
        "cached": Loader(cached, arguments.batch_size, transform),
    }
    model = ta.models.alexnet(arguments.variant, num_classes=len(dataset.classes))
    optimizer = ta.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    fixed = next(loaders["cached"].epoch(0))
    seconds: dict[str, list[float]] = {name: [] for name in ("bare", *loaders)}
    untimed = loaders["cached"].prefetch + 1
    for turn in range(arguments.rounds + 1):
        for name, times in seconds.items():
            step = train_step if name in loaders else bare_step
            batches = itertools.repeat(fixed)
            if name in loaders:
                epochs = map(loaders[name].epoch, itertools.count(turn))
                batches = itertools.chain.from_iterable(epochs)
            for batch in itertools.islice(batches, untimed):
                step(model, optimizer, batch)
            start = time.perf_counter()
            for batch in itertools.islice(batches, arguments.steps):
                step(model, optimizer, batch)
            if turn:  # the first round compiles
                times.append(time.perf_counter() - start)
            del batches  # ends its threads
    settings = {
        key: value for key, value in vars(arguments).items() if key not in ("data", "table")
    }
    result = {"machine": report.machine(), "settings": settings, "seconds": seconds}
    report.publish(f"trainer-{arguments.batch_size}", result, table(result), arguments.table)


def compare_frozen(arguments: argparse.Namespace) -> None:
    """Measure what frozen layers save."""
    size, patterns = arguments.batch_size, Patterns("train", 2 * arguments.batch_size)
    pixels = ta.models.VARIANTS[arguments.variant].input_size
    images = Loader(patterns, size, EvalTransform(pixels, 125.0, 60.0))
    whole, frozen = (ta.models.alexnet(arguments.variant, 10) for _ in range(2))
    kept = keep_features(freeze(frozen, arguments.freeze), images, 2_000_000_000)
    assert kept is not None
    takers = {"bare": (whole, images), "frozen": (frozen, images), "kept": kept}
    seconds: dict[str, list[float]] = {name: [] for name in takers}
    optimizers = {
        name: ta.optim.SGD(layer_rates(model, 1), 1e-4, momentum=0.9)
        for name, (model, _) in takers.items()
    }
    batches = {name: next(loader.epoch(0)) for name, (_, loader) in takers.items()}
    for turn in range(arguments.rounds + 1):
        for name, (model, _) in takers.items():
            start = time.perf_counter()
            for _ in range(arguments.steps):
                bare_step(model, optimizers[name], batches[name])
            if turn:
                seconds[name].append(time.perf_counter() - start)
    settings = {
        key: value for key, value in vars(arguments).items() if key not in ("data", "table")
    }
    result = {"machine": report.machine(), "settings": settings, "seconds": seconds}
    name = f"frozen-{arguments.variant}-{arguments.batch_size}"
    report.publish(name, result, table(result), into_document=False)
    if arguments.table:
        report.replace_table(report.ROOT / "docs" / "weights.md", "frozen", gains(result))


def gains(result: dict[str, Any]) -> str:
    """Return the sentence on what frozen layers save."""
    settings = result["settings"]
    bare, frozen, kept = (np.median(times) for times in result["seconds"].values())
    return (
        f"With {settings['batch_size']} images of `{settings['variant']}` per step, a step with "
        f"layers up to {settings['freeze']} frozen is {bare / frozen:.1f} times as fast, and one "
        f"on kept features {bare / kept:.1f} times. {report.one_line(result['machine'])}."
    )


def bare_step(model: ta.models.AlexNet, optimizer: ta.optim.SGD, batch: Batch) -> None:
    """Learn from a batch and look at nothing."""
    optimizer.zero_grad()
    F.cross_entropy(model(ta.Tensor(batch.images)), batch.labels).backward()
    optimizer.step()


def table(result: dict[str, Any]) -> str:
    """Return the rates of the three kinds of steps."""
    settings, seconds = result["settings"], result["seconds"]
    images = settings["steps"] * settings["batch_size"]
    rows = ["| batches | images a second | share of the bare step |", "|---|---|---|"]
    for name in seconds:
        shares = [bare / own for bare, own in zip(seconds["bare"], seconds[name], strict=True)]
        span = f"{np.median(shares):.0%} ({min(shares):.0%} .. {max(shares):.0%})"
        rate = images / np.median(seconds[name])
        rows.append(f"| {KINDS[name]} | {rate:.0f} | {'' if name == 'bare' else span} |")
    caption = f"`{settings['variant']}`, batch {settings['batch_size']}. "
    return "\n".join([*rows, "", caption + report.one_line(result["machine"])])


if __name__ == "__main__":
    main()
