"""Measure how much a network's features tell of other images.

tinyalex probe RUN                                  of the run's own images
tinyalex probe RUN --data photos --shots 5,20,all   of others
tinyalex probe alexnet.pth --data photos --layer pool5

A linear classifier learns from a layer's activations for 5, 20, ... images of each class, drawn
several times, and is judged by the images held out: those in val/, else a fifth of each class.
Beside it stands the same from an untrained network and from pixels, drawn as probe.png; and images
held out with those nearest to them in these activations, as probe-neighbours.png.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyalex.backends.devices import check
from tinyalex.cli.common import add_layout, check_picture, command, readable
from tinyalex.cli.look import HELD_OUT, neighbours_of, of_all_classes
from tinyalex.cli.network import Network, add_network_arguments, open_network, prefix_of
from tinyalex.cli.parser import Parser, name_in, parser_of, path_in, whole
from tinyalex.data import Dataset, ImageFolder
from tinyalex.interrupts import DONE, FAILED
from tinyalex.optional import PackageError
from tinyalex.pictures.charts import shots_chart
from tinyalex.pictures.features import closest, neighbour_sheet
from tinyalex.pictures.sheets import failure, save_png
from tinyalex.progress import Progress, folded, one_sentence, say, warn
from tinyalex.text import counted, percent, printable
from tinyalex.threads import set_num_threads
from tinyalex.training.checkpoint import checkpoint_path
from tinyalex.training.datasets import in_both
from tinyalex.training.features import PIXELS, Described, described
from tinyalex.training.probe import draw_shots, fit_probe

EXIT_CODES = (
    "0 done, perhaps without images that could not be read; 1 failed on the way, or in drawing a "
    "picture; 2 arguments, a run or data that cannot be used"
)
ALL = 0
"""Number of shots that stands for all images."""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = make_parser().parse_args(argv)
    check(args.device)
    set_num_threads(args.threads)
    path = checkpoint_path(args.checkpoint)
    out = args.out or path.parent / f"{prefix_of(path, [args.data])}probe.png"
    check_picture(out)
    network = open_network(args)
    classifier = network.classifier
    model = classifier.model.to(args.device)
    layer = args.layer or [*model.weight_layers][-2]
    model.check_layer(layer)
    splits = open_splits(network, args)
    if shared := in_both(splits):
        warn(f"warning: {shared}")
    train, val = splits["train"], splits["val"]
    shots = possible(args.shots, train)
    where = f" in {printable(args.data)}" if args.data else ""
    say(f"{printable(path)}, {model.variant.name}, layer {layer}")
    images = f"{counted(len(train), 'image')} to learn from, {len(val)} to judge by"
    say(f"{counted(len(train.classes), 'class')}{where}: {images}")
    found = described(classifier, layer, splits, args.seed, args.cache, Progress())
    for part in found.values():
        for name, reason in part.bad:
            say(f"left out: {name}: {reason}")
    titles = {"network": layer, "random": f"{layer}, untrained", "pixels": "pixels"}
    rows = measured(found, splits, shots, args.draws, args.seed, titles)
    print_note(splits, shots, args.draws)
    return draw(rows, found, splits, titles, out)


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("probe", __doc__, EXIT_CODES)
    add_network_arguments(parser)
    parser.add_argument(
        "--data",
        type=name_in,
        metavar="DIR",
        help="folder with one folder of images per class, or with train/ and val/ of such "
        "(default: the images of the run)",
    )
    add_layout(parser)
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="conv1 ... conv5, pool1, pool2, pool5, fc6, fc7: the layer whose activations, after "
        "ReLU, describe an image (default: the last hidden one, fc7)",
    )
    parser.add_argument(
        "--shots",
        type=shots_in,
        default="5,20,80",
        metavar="N,N",
        help="training images per class; all: all that there are",
    )
    parser.add_argument(
        "--draws", type=whole(), default=5, metavar="N", help="how often images are drawn"
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="which images are drawn and held out, and the untrained network's weights",
    )
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the features, up to 1 GB in ~/.cache/tinyalex, for another time",
    )
    parser.add_argument(
        "--out",
        type=path_in,
        metavar="PNG",
        help="the picture (default: probe.png in the folder of a run, where those of --data "
        "begin with its name and a digest of its path; FILE-probe.png for another network)",
    )
    return parser


def shots_in(text: str) -> list[int]:
    """Return numbers of images per class, ascending; `ALL` comes last."""
    words = [word.strip() for word in text.split(",")]
    numbers = {whole()(word) for word in words if word != "all"}
    return sorted(numbers) + [ALL] * ("all" in words)


def open_splits(network: Network, args: argparse.Namespace) -> dict[str, Dataset]:
    """Return the images to learn from and those held out."""
    resizing = network.classifier.resizing
    images = network.run_images()
    if args.data is None:
        if images is None:
            raise ValueError(
                f"{printable(network.path)} has no run with images: give a folder with --data DIR"
            )
        return {"train": images.training(*resizing), "val": images.held_out(*resizing)}
    side, resize = resizing
    options = {"seed": args.seed, "shorter_side": side, "layout": args.layout, "resize": resize}
    splits: dict[str, Dataset] = {}
    for split in ("train", "val"):
        splits[split] = folder = ImageFolder(args.data, split, **options)
        if split == "val" and images and (warning := images.warning(folder)):
            warn(f"warning: {warning}")
    return splits


def possible(shots: list[int], train: Dataset) -> list[int]:
    """Return the shots that every class has; say which are skipped."""
    counts = np.bincount(train.labels, minlength=len(train.classes))
    smallest = int(counts.min())
    name = printable(train.classes[int(counts.argmin())])
    fewer = f"{name!r} has {counted(smallest, 'training image')}"
    few = [count for count in shots if count > smallest]
    if len(few) == len(shots):
        raise ValueError(f"--shots: {fewer}, fewer than {few[0]}: give less, or all")
    if few:
        warn(f"skipped: {', '.join(map(str, few))} shots: {fewer}")
    return [count for count in shots if count not in few]


class Row(NamedTuple):
    """Results with one number of shots."""

    shots: int
    per_class: float
    """Images per class, on average."""
    accuracies: dict[str, list[float]]
    """By name of the vectors, one per draw."""
    strengths: dict[str, list[float]]


def measured(
    found: dict[str, Described],
    splits: dict[str, Dataset],
    shots: list[int],
    draws: int,
    seed: int,
    titles: dict[str, str],
) -> list[Row]:
    """Learn with each number of shots, judge, and print a row."""
    train, val = found["train"], found["val"]
    labels, right = (splits[split].labels[found[split].indices] for split in ("train", "val"))
    classes = len(splits["train"].classes)
    say((" " * 5 + "".join(f"   {title:^22}" for title in titles.values())).rstrip())
    say("shots" + "    top-1 spread strength" * len(titles))
    rows = []
    for count in shots:
        row = Row(count, 0.0, {name: [] for name in titles}, {name: [] for name in titles})
        for number in range(draws if count else 1):
            rng = np.random.default_rng((seed, count, number))
            drawn = draw_shots(labels, count or len(labels), rng)
            row = row._replace(per_class=len(drawn) / classes)
            for name in titles:
                probe = fit_probe(train.vectors[name][drawn], labels[drawn], classes, seed=seed)
                row.accuracies[name].append(probe.accuracy(val.vectors[name], right))
                row.strengths[name].append(probe.strength)
        rows.append(row)
        say(f"{count or 'all':>5}" + "".join(cell(row, name) for name in titles))
    return rows


def cell(row: Row, name: str) -> str:
    """Return a row's accuracy, spread and strength for one kind of vectors."""
    values = row.accuracies[name]
    spread = f"{spread_of(values):7.1%}" if len(values) > 1 else f"{'-':>7}"
    strength = float(np.median(row.strengths[name]))
    return f"{np.mean(values):9.1%}{spread}{strength:9.0e}"


def spread_of(values: list[float]) -> float:
    """Return the standard deviation, 0 of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def print_note(splits: dict[str, Dataset], shots: list[int], draws: int) -> None:
    """Print what the figures mean."""
    chance = 1 / len(splits["val"].classes)
    more = "" if ALL in shots else f"; --shots all: learn from all {len(splits['train'])}"
    note = (
        "top-1: share of the images held out that are named right, the mean over "
        f"{counted(draws, 'draw')} of the training images; spread: its standard deviation; "
        "strength: of the penalty, the median of those chosen by cross-validation; "
        f"pixels: {PIXELS} x {PIXELS}; guessing would be right in {percent(chance, 1)}{more}"
    )
    say(folded(note, 2))


def draw(
    rows: list[Row],
    found: dict[str, Described],
    splits: dict[str, Dataset],
    titles: dict[str, str],
    out: Path,
) -> int:
    """Draw both pictures; return the exit code."""
    curves = {
        title: [
            (row.per_class, float(np.mean(row.accuracies[name])), spread_of(row.accuracies[name]))
            for row in rows
        ]
        for name, title in titles.items()
    }
    pictures = {
        out: partial(shots_chart, curves, len(splits["val"].classes), out),
        out.with_stem(f"{out.stem}-neighbours"): partial(draw_neighbours, found, splits, out),
    }
    code = DONE
    for path, draw_into in pictures.items():
        error = failure(draw_into)
        say(
            f"no {printable(path)}: {one_sentence(error)}"
            if error
            else f"drawn in {printable(path)}"
        )
        if error and not isinstance(error, PackageError):
            code = FAILED
    return code


def draw_neighbours(found: dict[str, Described], splits: dict[str, Dataset], out: Path) -> None:
    """Draw images held out with the training images nearest to them."""
    train, val = found["train"], found["val"]
    dataset, others = splits["val"], splits["train"]
    chosen = of_all_classes(dataset.labels[val.indices], HELD_OUT["neighbours"])
    images = dict(readable(dataset.load, val.indices[chosen].tolist(), [], dataset.describe))
    rows = [row for row in chosen if int(val.indices[row]) in images]
    near, far = closest(val.vectors["network"][rows], train.vectors["network"])
    places = list(images)
    drawn = neighbours_of(dataset, places, list(images.values()), others, train.indices[near], far)
    save_png(neighbour_sheet(*drawn), out.with_stem(f"{out.stem}-neighbours"))
