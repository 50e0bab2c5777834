"""How much of the bare step's rate is left when a trainer reads, decodes and augments photographs?

    python benchmarks/bench_trainer.py --data flowers

Blocks of steps take turns: on batches that the loader prepares meanwhile, as in training, and on
one batch that is there already. Writes benchmarks/results/trainer.json, and with --table
the sentence in docs/cpu.md.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import report

import tinyalex as ta
from tinyalex.data import ImageFolder, Loader, Patterns, TrainTransform
from tinyalex.training import train_step


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder with one folder of images a class")
    parser.add_argument("--variant", default="torchvision")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12, help="steps of a block")
    parser.add_argument("--table", action="store_true", help="update docs/cpu.md")
    arguments = parser.parse_args()
    dataset = ImageFolder(arguments.data, "train") if arguments.data else Patterns("train", 4000)
    pixels = ta.models.VARIANTS[arguments.variant].input_size
    transform = TrainTransform(pixels, mean=(125.0, 120.0, 110.0), std=(60.0, 60.0, 60.0))
    loader = Loader(dataset, arguments.batch_size, transform)
    batches = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
    model = ta.models.alexnet(arguments.variant, num_classes=len(dataset.classes))
    optimizer = ta.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    fixed = next(batches)
    seconds: dict[str, list[float]] = {"loader": [], "bare": []}
    for turn in range(arguments.rounds + 1):
        for name, source in (("loader", batches), ("bare", itertools.repeat(fixed))):
            start = time.perf_counter()
            for batch in itertools.islice(source, arguments.steps):
                train_step(model, optimizer, batch)
            if turn:  # the first round compiles and fills the loader's queue
                seconds[name].append(time.perf_counter() - start)
    settings = {
        key: value for key, value in vars(arguments).items() if key not in ("data", "table")
    }
    result = {"machine": report.machine(), "settings": settings, "seconds": seconds}
    report.save("trainer", result)
    print(table(result))
    if arguments.table:
        report.replace_table(report.ROOT / "docs" / "cpu.md", "trainer", table(result))


def table(result: dict[str, Any]) -> str:
    """Return the rates of both kinds of steps."""
    settings, seconds = result["settings"], result["seconds"]
    images = settings["steps"] * settings["batch_size"]
    loader, bare = (images / np.median(seconds[name]) for name in ("loader", "bare"))
    shares = [b / a for a, b in zip(seconds["loader"], seconds["bare"], strict=True)]
    span = f"{min(shares):.0%} .. {max(shares):.0%}"
    return "\n".join(
        [
            f"`{settings['variant']}`, batch {settings['batch_size']}: {bare:.0f} images a second "
            f"on a batch that is there, {loader:.0f} with photographs that are read, decoded and "
            f"augmented meanwhile: {np.median(shares):.0%} ({span}).",
            "",
            report.one_line(result["machine"]),
        ]
    )


if __name__ == "__main__":
    main()
