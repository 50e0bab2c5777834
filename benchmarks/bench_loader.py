"""Photographs per second, read and augmented, beside torch's DataLoader.

    python benchmarks/bench_loader.py flowers

Both read the same files with Pillow and make float32 batches of 224 x 224 pixels. torch's data set
does what torchvision's transforms do to Pillow images (it is written out below, so that torchvision
need not be installed), in worker processes that persist. The contestants take turns with whole
passes over the images; a pass before the first is not timed. "Large" are the same photographs
enlarged to 1600 x 1200, as a camera makes them.
Writes benchmarks/results/loader.json, and with --table the table in docs/cpu.md.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance

from shared import report
from tinyalex.data import ImageFolder, Loader, TrainTransform
from tinyalex.training.settings import AUGMENTATIONS

MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
CROP, BATCH = 224, 32
BILINEAR = Image.Resampling.BILINEAR

WORK = {
    "paper": "a random crop of 224 from a shorter side of 256, mirrored or not",
    "strong": "a random part resized to 224, mirrored or not; brightness, contrast, saturation",
}


class TorchImages(torch.utils.data.Dataset):
    """The photographs, as torchvision's ImageFolder and transforms on Pillow images make them."""

    def __init__(self, dataset: ImageFolder, augment: str) -> None:
        self.paths, self.labels, self.augment = dataset.paths, dataset.labels, augment
        self.mean = torch.tensor(MEAN).view(3, 1, 1) / 255
        self.std = torch.tensor(STD).view(3, 1, 1) / 255

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one image and its class."""
        with open(self.paths[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        image = self.crop(image) if self.augment == "paper" else self.strong(image)
        if torch.rand(1).item() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment == "strong":
            image = jitter(image, 0.3)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        pixels = pixels.to(torch.float32).div(255)  # ToTensor
        return pixels.sub_(self.mean).div_(self.std), int(self.labels[index])  # Normalize

    def crop(self, image: Image.Image) -> Image.Image:
        """Do as Resize(256) and RandomCrop(224)."""
        scale = 256 / min(image.size)
        width, height = (max(256, int(side * scale)) for side in image.size)
        image = image.resize((width, height), BILINEAR)
        top = int(torch.randint(0, height - CROP + 1, (1,)))
        left = int(torch.randint(0, width - CROP + 1, (1,)))
        return image.crop((left, top, left + CROP, top + CROP))

    def strong(self, image: Image.Image) -> Image.Image:
        """Do as RandomResizedCrop(224, scale=(0.35, 1))."""
        width, height = image.size
        area = width * height * torch.empty(1).uniform_(0.35, 1.0).item()
        aspect = np.exp(torch.empty(1).uniform_(np.log(3 / 4), np.log(4 / 3)).item())
        part = (
            min(width, round((area * aspect) ** 0.5)),
            min(height, round((area / aspect) ** 0.5)),
        )
        left = int(torch.randint(0, width - part[0] + 1, (1,)))
        top = int(torch.randint(0, height - part[1] + 1, (1,)))
        part_of_it = image.crop((left, top, left + part[0], top + part[1]))
        return part_of_it.resize((CROP, CROP), BILINEAR)


def jitter(image: Image.Image, strength: float) -> Image.Image:
    """Do as ColorJitter: brightness, contrast and saturation, in a random order."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in torch.randperm(3).tolist():
        factor = torch.empty(1).uniform_(1 - strength, 1 + strength).item()
        image = kinds[kind](image).enhance(factor)
    return image


def contestants(
    dataset: ImageFolder, augment: str, workers: int
) -> dict[str, Callable[[int], Iterator[Any]]]:
    """Return how to begin a pass, by name."""
    transform = TrainTransform(CROP, MEAN, STD, **AUGMENTATIONS[augment])
    threads = Loader(dataset, BATCH, transform, workers=workers)
    processes = Loader(dataset, BATCH, transform, workers=workers, processes=True)
    kept = Loader(dataset, BATCH, transform, workers=workers, cache_bytes=2**31)
    loader = torch.utils.data.DataLoader(
        TorchImages(dataset, augment),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
    )
    return {
        "torch": lambda epoch: iter(loader),
        "threads": threads.epoch,
        "processes": processes.epoch,
        "kept": kept.epoch,
    }


def measure(
    dataset: ImageFolder, augment: str, workers: int, rounds: int
) -> dict[str, list[float]]:
    """Return the images per second of each pass."""
    rates: dict[str, list[float]] = {}
    passes = contestants(dataset, augment, workers)
    for turn, (name, begin) in itertools.product(range(rounds + 1), passes.items()):
        start, images = time.perf_counter(), 0
        for batch in begin(turn):
            images += len(batch[0] if isinstance(batch, list) else batch)
        if turn:  # the first starts processes, and fills the memory of the loader that keeps
            rates.setdefault(name, []).append(images / (time.perf_counter() - start))
    return rates


def enlarge(dataset: ImageFolder, folder: Path, count: int) -> ImageFolder:
    """Write some of the photographs as a camera would make them."""
    chosen = np.linspace(0, len(dataset) - 1, count, dtype=int)
    for index in chosen.tolist():
        path = folder / dataset.classes[dataset.labels[index]] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(dataset.load(index)).resize((1600, 1200), BILINEAR)
        picture.save(path, quality=90)
    return ImageFolder(folder)


def main() -> None:
    """Read the command line and measure."""
    parser = report.parser(__doc__)
    parser.add_argument("data", type=Path, help="a folder with one folder of images a class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=200, help="how many to enlarge")
    parser.add_argument("--table", action="store_true", help="update docs/cpu.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    dataset = ImageFolder(arguments.data, "train")
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        large = enlarge(dataset, Path(folder), arguments.large)
        for size, images in (("as they are", dataset), ("large", large)):
            for augment, used in itertools.product(WORK, sorted({1, len(cores)})):
                os.sched_setaffinity(0, cores[:used])
                rates = measure(images, augment, used, arguments.rounds)
                os.sched_setaffinity(0, cores)
                cases.append({"photos": size, "augment": augment, "cores": used, "rates": rates})
                print(table({"machine": report.machine("torch", "pillow"), "cases": cases[-1:]}))
    result = {"machine": report.machine("torch", "pillow"), "cases": cases}
    report.publish("loader", result, table(result), arguments.table)


def table(result: dict[str, Any]) -> str:
    """Return images per second and core, and the ratio to torch."""
    rows = [
        "| photographs, augmentation, cores | torch DataLoader | threads | processes "
        "| decoded before |",
        "|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        rates, cores = case["rates"], case["cores"]
        cells = [f"{np.median(rates['torch']) / cores:.0f}"]
        for name in ("threads", "processes", "kept"):
            ratios = [own / other for own, other in zip(rates[name], rates["torch"], strict=True)]
            span = f"{np.median(ratios):.2f}{report.TIMES} ({min(ratios):.2f} .. {max(ratios):.2f})"
            cells.append(f"{np.median(rates[name]) / cores:.0f}, {span}")
        what = f"{case['photos']}, `{case['augment']}`, {cores}"
        rows.append(f"| {what} | {' | '.join(cells)} |")
    works = "; ".join(f"`{name}`: {work}" for name, work in WORK.items())
    return "\n".join([*rows, "", f"{works}. {report.one_line(result['machine'])}"])


if __name__ == "__main__":
    main()
