"""Losses of one network trained twice: fast kernels, and plain NumPy.

    python benchmarks/follow_reference.py --data flowers --steps 200 --table

Both begin with the same weights and see the same batches and dropout; nothing else connects them.
Rounding errors differ and every step amplifies them, so that the curves cannot stay together for
ever; how far apart they are is what this measures. Without --data the images are the embedded
patterns. Writes benchmarks/results/follow-reference.json, and with --table the table and the
picture in docs/cpu.md. Plain NumPy takes its time.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tinyalex as ta
import tinyalex.functional as F
from shared import report
from tinyalex import nn
from tinyalex.data import Batch, ImageFolder, Loader, Patterns, TrainTransform

BACKENDS = ("cpu", "reference")
ROWS = 10  # of the table


def batches(folder: Path | None, size: int, pixels: int) -> tuple[list[str], Iterator[Batch]]:
    """Return the classes and endless batches, the same in every run."""
    dataset = ImageFolder(folder, "train") if folder else Patterns("train", 4000)
    transform = TrainTransform(pixels, mean=(125.0, 120.0, 110.0), std=(60.0, 60.0, 60.0))
    loader = Loader(dataset, size, transform)
    return dataset.classes, itertools.chain.from_iterable(map(loader.epoch, itertools.count()))


class Twin:
    """A network and its optimiser on one backend."""

    def __init__(self, backend: str, variant: str, classes: int, first: Batch, lr: float) -> None:
        self.backend = backend
        ta.manual_seed(0)
        self.model = ta.models.alexnet(variant, num_classes=classes)
        with ta.use_backend("reference"):  # the same weights to the last bit
            nn.data_dependent_(self.model, ta.Tensor(first.images))
        self.optimizer = ta.optim.SGD(self.model.parameters(), lr, momentum=0.9, weight_decay=5e-4)

    def step(self, number: int, batch: Batch) -> float:
        """Train one step and return the loss before it."""
        ta.manual_seed(number)  # the same dropout
        with ta.use_backend(self.backend):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(ta.Tensor(batch.images)), batch.labels)
            loss.backward()
            self.optimizer.step()
        return float(loss.item())


def follow(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train both and return their losses."""
    pixels = ta.models.VARIANTS[arguments.variant].input_size
    classes, data = batches(arguments.data, arguments.batch_size, pixels)
    first = next(data)
    twins = [Twin(name, arguments.variant, len(classes), first, arguments.lr) for name in BACKENDS]
    losses: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for number, batch in enumerate(itertools.islice(data, arguments.steps), start=1):
        for twin in twins:
            losses[twin.backend].append(twin.step(number, batch))
        cpu, reference = (losses[name][-1] for name in BACKENDS)
        print(f"step {number:4}  cpu {cpu:.5f}  reference {reference:.5f}", flush=True)
    return {
        "machine": report.machine(),
        "variant": arguments.variant,
        "batch_size": arguments.batch_size,
        "data": arguments.data.name if arguments.data else "the embedded patterns",
        "losses": losses,
    }


def table(result: dict[str, Any]) -> str:
    """Return the mean losses over equal parts, and their largest difference."""
    cpu, reference = (np.array(result["losses"][name]) for name in BACKENDS)
    lines = [
        "| steps | loss, fast kernels | loss, plain NumPy | largest difference of a step |",
        "|---|---|---|---|",
    ]
    for part in np.array_split(np.arange(len(cpu)), min(ROWS, len(cpu))):
        difference = np.abs(cpu[part] - reference[part]).max()
        lines.append(
            f"| {part[0] + 1} to {part[-1] + 1} | {cpu[part].mean():.4f} "
            f"| {reference[part].mean():.4f} | {difference:.1e} |"
        )
    what = f"`{result['variant']}`, batches of {result['batch_size']}, {result['data']}"
    return "\n".join([*lines, "", f"{what}. {report.one_line(result['machine'])}"])


def picture(result: dict[str, Any], path: Path) -> None:
    """Draw both curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    reference, cpu = (result["losses"][name] for name in reversed(BACKENDS))
    steps = range(1, len(cpu) + 1)
    axes.plot(steps, reference, color="#bbbbbb", linewidth=5, label="plain NumPy")
    axes.plot(steps, cpu, color="#1f5fa8", linewidth=1.2, label="fast kernels")
    axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the command line and run."""
    parser = report.parser(__doc__)
    parser.add_argument("--data", type=Path, help="a folder with one folder of images a class")
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.0003)
    parser.add_argument("--table", action="store_true", help="update docs/cpu.md")
    arguments = parser.parse_args()
    result = follow(arguments)
    report.publish("follow-reference", result, table(result), arguments.table)
    if arguments.table:
        picture(result, report.ROOT / "docs" / "images" / "follow-reference.png")


if __name__ == "__main__":
    main()
