"""How much of the bare step's rate is left when a trainer reads, decodes and augments photographs?

    python benchmarks/bench_trainer.py --data flowers

Blocks of steps take turns: on batches that the loader prepares meanwhile, as in training, and on
one batch that is there already. Writes benchmarks/results/trainer.json.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

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
    images = arguments.steps * arguments.batch_size
    rates = {name: images / np.median(values) for name, values in seconds.items()}
    ratios = [
        bare / loaded for bare, loaded in zip(seconds["bare"], seconds["loader"], strict=True)
    ]
    share = f"{np.median(ratios):.1%} ({min(ratios):.1%} .. {max(ratios):.1%})"
    print(f"{rates['loader']:.1f} of {rates['bare']:.1f} img/s: {share} of the bare step's rate")
    machine = report.machine()
    print(report.one_line(machine))
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "data"}
    report.save("trainer", {"machine": machine, "settings": settings, "seconds": seconds})


if __name__ == "__main__":
    main()
