"""Look at a trained network: one command for each picture.

tinyalex look RUN filters                        what the first layer looks for
tinyalex look RUN answers photos/                images with the five best answers
tinyalex look RUN neighbours a.jpg --among DIR   images that the network finds alike
tinyalex look RUN features a.jpg                 what each layer makes of an image
tinyalex look RUN why a.jpg                      where in an image its answer comes from
tinyalex look RUN curves                         loss and accuracy over the epochs

RUN is the folder of a run, a .safetensors file of one, or a file of other people's weights. Without
images, some are taken that the run did not learn from.
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyalex.cli.common import (
    add_threads,
    check_picture,
    command,
    find_images,
    readable,
)
from tinyalex.cli.network import add_checkpoint, open_network, prefix_of
from tinyalex.cli.parser import Parser, name_in, parser_of, path_in
from tinyalex.data import Dataset, Loader
from tinyalex.interrupts import DONE, USAGE
from tinyalex.pictures.charts import learning_curves
from tinyalex.pictures.features import (
    feature_sheet,
    hidden_vectors,
    layer_outputs,
    nearest,
    neighbour_sheet,
)
from tinyalex.pictures.sheets import contact_sheet, first_filters, save_png, stacked
from tinyalex.pictures.why_sheet import explain, why_picture
from tinyalex.progress import Progress, say, warn
from tinyalex.text import counted, listed, percent, printable
from tinyalex.threads import set_num_threads
from tinyalex.training import Classifier, checkpoint_path, read_metrics
from tinyalex.training.datasets import ImageFiles, RunImages, title
from tinyalex.training.metrics import METRICS

EXIT_CODES = (
    "0 done; 1 failed on the way; 2 arguments, a run or images that cannot be used, or done "
    "without some of the images named here, which cannot be read"
)
AT_MOST = {"answers": 40, "neighbours": 20, "features": 1, "why": 10}
"""Most images on a sheet."""
HELD_OUT = {"answers": 10, "neighbours": 5, "features": 1, "why": 3}
"""Number of held-out images if none are named."""


class Look(NamedTuple):
    """A command with what it needs."""

    args: argparse.Namespace
    folder: Path
    classifier: Classifier
    run_images: RunImages | None
    missing: list[str]
    """Images that were named, and could not be read."""

    def of_run(self) -> RunImages:
        """Return the images of the run; raise ValueError for weights without one."""
        if self.run_images is None:
            raise ValueError(
                "a weight file has no run with images: name some, and for neighbours also "
                "--among DIR"
            )
        return self.run_images

    def images(self) -> tuple[Dataset, list[int], list[np.ndarray]]:
        """Return the images to look at: data set, positions in it, pixels."""
        what = self.args.what
        paths: list[str] = []
        if self.args.images:
            paths = list(find_images(self.args.images))
            dataset: Dataset = self.files(paths)
            chosen = list(range(len(paths)))
        else:
            dataset = self.of_run().held_out(*self.classifier.resizing)
            chosen = of_all_classes(dataset.labels, HELD_OUT[what])
        skipped: list[int] = []
        with closing(readable(dataset.load, chosen, skipped, dataset.describe)) as images:
            found = list(islice(images, AT_MOST[what]))
        self.missing.extend({paths[place] for place in skipped if paths} & set(self.args.images))
        if not found:
            raise ValueError(f"none of {counted(len(chosen), 'image')} could be read")
        if len(chosen) > AT_MOST[what]:
            say(f"drawn: the first {len(found)} of {counted(len(chosen), 'image')}")
        return dataset, [place for place, _ in found], [image for _, image in found]

    def files(self, paths: list[str]) -> ImageFiles:
        """Return files as a data set."""
        return ImageFiles(paths, self.classifier.classes, *self.classifier.resizing)


def of_all_classes(labels: np.ndarray, count: int) -> list[int]:
    """Return `count` positions, or all, as many of each class.

    A class that has fewer gives all; within a class they are spread evenly.
    """
    sizes = np.bincount(labels)
    count = min(count, len(labels))
    each = max(n for n in range(count + 1) if np.minimum(sizes, n).sum() <= count)
    takes = np.minimum(sizes, each)
    larger = np.flatnonzero(sizes > each)
    takes[larger[spread(count - takes.sum(), len(larger))]] += 1
    chosen: list[int] = []
    for label in np.flatnonzero(takes):
        own = np.flatnonzero(labels == label)
        chosen += own[spread(takes[label], len(own))].tolist()
    return chosen


def spread(count: int, length: int) -> np.ndarray:
    """Return `count` of the positions below `length`, spread evenly."""
    return ((np.arange(count) + 0.5) * length / max(count, 1)).astype(int)


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = make_parser().parse_args(argv)
    set_num_threads(args.threads)
    path = checkpoint_path(args.checkpoint)
    others = [*getattr(args, "images", ()), getattr(args, "among", None)]
    out = args.out or path.parent / f"{prefix_of(path, others)}{args.what}.png"
    check_picture(out)
    network = open_network(args)
    of_run = network.run_images(getattr(args, "data", None))
    args.draw(look := Look(args, path.parent, network.classifier, of_run, []), out)
    say(f"drawn in {printable(out)}")
    return USAGE if look.missing else DONE


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("look", __doc__, EXIT_CODES)
    add_checkpoint(parser)
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    all_of_them = (filters, answers, neighbours, features, why, curves)
    pictures = {draw.__name__: draw for draw in all_of_them}
    for name, draw in {**pictures, "kernels": filters}.items():  # filters' former name, not listed
        text = inspect.cleandoc(draw.__doc__ or "")
        listed: dict[str, Any] = {}
        if name in pictures:
            listed["help"] = text.partition("\n")[0].removesuffix(".")
        parts = commands.add_parser(name, description=text, **listed)
        parts.set_defaults(draw=draw)
        if name in AT_MOST:
            parts.add_argument(
                "images",
                type=name_in,
                metavar="IMAGE",
                nargs="*",
                help="images, or folders of images",
            )
            parts.add_argument(
                "--data",
                type=name_in,
                metavar="DIR",
                help="where the images of the run are, if they have moved",
            )
        if draw is neighbours:
            parts.add_argument(
                "--among",
                type=name_in,
                metavar="DIR",
                help="where to look for neighbours (default: the images that the run learned from)",
            )
        if draw is why:
            parts.add_argument(
                "--class",
                dest="of_class",
                metavar="NAME",
                help="which class is asked about (default: the most probable one of each image)",
            )
        parts.add_argument(
            "--out",
            type=path_in,
            metavar="PNG",
            help=f"the picture (default: {name}.png in the folder of a run, where names of those "
            f"of IMAGE{' or --among' if draw is neighbours else ''} begin with its name and a "
            f"digest of its path; FILE-{name}.png for another network)",
        )
        add_threads(parts)
    return parser


def filters(look: Look, out: Path) -> None:
    """Draw the filters of the first layer (Figure 3 of the paper).

    In networks of two towers, those of the second tower are below the white line.
    """
    save_png(first_filters(look.classifier.model), out)


def answers(look: Look, out: Path) -> None:
    """Draw images with their five most probable classes (Figure 4 left).

    The bar of the right class is green, where it is known: where the folder of the image has the
    name of a class.
    """
    dataset, places, images = look.images()
    sheet = contact_sheet(
        images,
        [title(dataset, place, "\n") for place in places],
        look.classifier.probabilities(images),
        dataset.classes,
        labels=dataset.labels[places].tolist(),
    )
    save_png(sheet, out)


def neighbours(look: Look, out: Path) -> None:
    """Draw each image with its six nearest neighbours (Figure 4 right).

    Those are the ones with the smallest Euclidean distance between the activations of the last
    hidden layer; the distance is written below.
    """
    dataset, places, images = look.images()
    model = look.classifier.model
    if look.args.among is None:
        others = look.of_run().training(*look.classifier.resizing)
    else:
        named = getattr(dataset, "paths", None)  # the embedded images have none
        own = {os.path.realpath(named[place]) for place in places if named is not None}
        paths = find_images([look.args.among])
        others = look.files([path for path in paths if os.path.realpath(path) not in own])
        if not len(others):
            raise ValueError(f"there are no other images in {printable(look.args.among)}")
    transform = look.classifier.transform
    loader = Loader(others, min(64, len(others)), transform, shuffle=False, max_bad=1.0)
    queries = hidden_vectors(model, look.classifier.inputs(images))
    found, distances = nearest(model, queries, loader, progress=Progress())
    for name, reason in loader.bad:
        warn(f"left out: {name}: {reason}")
    rows, titles = neighbours_of(dataset, places, images, others, found, distances)
    save_png(neighbour_sheet(rows, titles), out)


def neighbours_of(
    dataset: Dataset,
    places: Sequence[int],
    images: Sequence[np.ndarray],
    others: Dataset,
    found: np.ndarray,
    distances: np.ndarray,
) -> tuple[list[list[np.ndarray]], list[list[str]]]:
    """Return rows of an image and its neighbours in `others`, and titles."""
    rows: list[list[np.ndarray]] = []
    titles: list[list[str]] = []
    for place, image, near, far in zip(places, images, found, distances, strict=True):
        distance = dict(zip(near.tolist(), far.tolist(), strict=True))
        again = dict(readable(others.load, distance, [], others.describe))
        rows.append([image, *again.values()])
        names = {other: title(others, other, "\n") for other in again}
        below = (f"{name}\ndistance {distance[o]:#.3g}" for o, name in names.items())
        titles.append([title(dataset, place, "\n"), *below])
    return rows, titles


def features(look: Look, out: Path) -> None:
    """Draw what every layer makes of one image.

    White are a layer's largest outputs, one in a thousand; black is 0; blue is negative. The shade
    grows with the square root.
    """
    dataset, (place,), images = look.images()
    outputs = layer_outputs(look.classifier.model, look.classifier.inputs(images))
    (shares,) = look.classifier.probabilities(images)
    best = int(shares.argmax())
    answer = f"{printable(dataset.classes[best])}, {percent(shares[best])}"
    heading = f"{title(dataset, place)}; answer: {answer}"
    save_png(feature_sheet(look.classifier.seen(images[0]), heading, outputs), out)


def why(look: Look, out: Path) -> None:
    """Draw where in an image the answer comes from.

    Beside the image are three maps, each with a legend: occlusion, gradient of the input, Grad-CAM.
    It takes seconds per image.
    """
    classifier, name = look.classifier, look.args.of_class
    if name not in (None, *classifier.classes):
        known = listed(classifier.classes, limit=20)
        raise ValueError(f"--class must be one of {known}; got {printable(name)}")
    target = None if name is None else classifier.classes.index(name)
    dataset, places, images = look.images()
    progress, rows = Progress(), []
    for place, image in zip(places, images, strict=True):
        found = explain(classifier, image, target, progress)
        heading, label = title(dataset, place), int(dataset.labels[place])
        rows.append(why_picture(found, classifier.classes, heading, label=label))
    save_png(stacked(rows), out)


def curves(look: Look, out: Path) -> None:
    """Draw loss and accuracy over the epochs."""
    metrics = look.folder / METRICS
    if look.run_images is None or not metrics.exists():
        raise ValueError(
            f"curves are drawn from the folder of a run, and there is no {METRICS} of one beside "
            f"{printable(look.args.checkpoint)}"
        )
    learning_curves(read_metrics(metrics), len(look.classifier.classes), out)
