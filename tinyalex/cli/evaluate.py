"""Measure a trained network: its accuracy per class, and its confusions.

tinyalex evaluate runs/flowers-torchvision               on the run's held-out images
tinyalex evaluate best.safetensors --data more-flowers   on other images
tinyalex evaluate RUN --data flowers --held-out          on the run's, which have moved
tinyalex evaluate alexnet.pth --data imagenet/val        other people's weights

prints top-1 and top-5 for the centre of each image and for ten crops of it, averaged as in the
paper (section 4.1), and draws confusion.png (what is taken for what) and mistakes.png (the images
on which the network was most surely wrong).
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from tinyalex.backends.devices import check
from tinyalex.calls import command_line
from tinyalex.cli.common import (
    add_crops,
    add_layout,
    check_writable,
    command,
    readable,
)
from tinyalex.cli.network import add_network_arguments, open_network, prefix_of
from tinyalex.cli.parser import Parser, name_in, parser_of, path_in, whole
from tinyalex.data import Dataset, loader_on
from tinyalex.folders import make_folder
from tinyalex.interrupts import DONE, FAILED
from tinyalex.optional import PackageError
from tinyalex.pictures.charts import confusion_matrix
from tinyalex.pictures.sheets import contact_sheet, failure, save_png
from tinyalex.progress import (
    Progress,
    cells,
    folded,
    one_sentence,
    output_width,
    padded,
    say,
    warn,
)
from tinyalex.text import counted, percent, printable
from tinyalex.threads import set_num_threads
from tinyalex.training import Answers, checkpoint_path, examine
from tinyalex.training.datasets import open_folder, title

EXIT_CODES = (
    "0 done, perhaps without images that could not be read; 1 failed on the way, or in drawing a "
    "picture; 2 arguments, a run or data that cannot be used"
)
TITLES = {1: "centre crop", 10: "ten crops"}
CONFUSED = 10
"""Most pairs of classes in the list."""
MISTAKES = 20
"""Most images on the sheet."""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = make_parser().parse_args(argv)
    check(args.device)
    set_num_threads(args.threads)
    path = checkpoint_path(args.checkpoint)
    out = args.out or path.parent
    check_writable(out)
    network = open_network(args)
    classifier = network.classifier
    moved = args.data if args.held_out else None
    option = command_line(["--data", args.data or "DIR", "--held-out"])
    images = network.run_images(moved, option)
    warning = ""
    if args.data is None or args.held_out:
        if images is None:
            raise ValueError(
                f"{printable(path)} has no run that held out images: give a folder of some with "
                "--data DIR, without --held-out"
            )
        dataset = images.held_out(*classifier.resizing)
        where = f"the {counted(len(dataset), 'image')} that the run held out"
        where += f" of {printable(images.settings.data)}" if images.settings.data else ""
    else:
        dataset = folder = open_folder(
            args.data, classifier.classes, *classifier.resizing, layout=args.layout
        )
        where = printable(folder.folder)
        warning = images.warning(folder) if images else ""
    make_folder(out)
    size = min(max(1, args.batch_size // args.crops), len(dataset))
    transform = classifier.transform_for(args.crops)
    loader = loader_on(args.device, dataset, size, transform, shuffle=False)
    say(f"{printable(path)}, {classifier.model.variant.name}, on {where}")
    if warning:
        warn(f"warning: {warning}")
    answers = examine(classifier.model.to(args.device), loader, Progress())
    print_table(answers, classifier.classes)
    for name, reason in loader.bad:
        say(f"left out: {name}: {reason}")
    best = answers[args.crops]
    print_confused(best, classifier.classes, TITLES[args.crops])
    return draw(
        best,
        dataset,
        out,
        "" if args.out else prefix_of(path, () if args.held_out else [args.data]),
    )


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("evaluate", __doc__, EXIT_CODES)
    add_network_arguments(parser)
    parser.add_argument(
        "--data",
        type=name_in,
        metavar="DIR",
        help="folder with one folder of images per class, or with test/ or val/ of such, of which "
        "the first is taken; some of the network's classes may be missing, others are refused "
        "(default: the images that the run held out)",
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="of --data, only the images that the run held out, by their names: where the data of "
        "the run have moved",
    )
    add_layout(parser)
    add_crops(parser, default=10)
    parser.add_argument(
        "--batch-size", type=whole(), default=64, metavar="N", help="crops at a time"
    )
    parser.add_argument(
        "--out",
        type=path_in,
        metavar="DIR",
        help="folder for the pictures (default: the folder that the checkpoint is in, where names "
        "of those of --data begin with its name and a digest of its path)",
    )
    return parser


def print_table(answers: dict[int, Answers], classes: list[str]) -> None:
    """Print the accuracies, per class and in total, per crops."""
    scores = {TITLES[crops]: answers[crops].scores for crops in sorted(answers)}
    columns = []
    for heading, one in scores.items():
        columns.append((heading, one.class_top1))
        if len(classes) > 5:  # else the right one is always among five
            columns.append(("top-5", one.class_top5))
    best = answers[max(answers)].scores
    counts, figures = best.class_counts, sum(len(heading) + 2 for heading, _ in columns)
    room = (output_width() or math.inf) - len(" 1234567") - figures
    names = [printable(name) for name in classes]
    width = round(max(5, min(room, max(map(cells, names)))))

    def row(name: str, which: np.ndarray | slice) -> str:
        count = counts[which].sum()
        shares = (f"{hits[which].sum() / count:>{len(head) + 2}.1%}" for head, hits in columns)
        return f"{padded(name, width)} {count:7}{''.join(shares)}"

    say(f"{'class':{width}}  images" + "".join(f"  {heading}" for heading, _ in columns))
    for label in np.argsort(best.class_top1 / np.maximum(counts, 1), kind="stable"):
        if counts[label]:
            say(row(names[label], np.array([label])))
    say(row("all", slice(None)))
    note = (
        f"worst classes first; guessing would be right in {percent(1 / len(classes), 1)}, and of "
        f"{counted(best.count, 'other image')} the share would vary by about {best.spread:.1%}"
    )
    say(folded(note, 2))
    if best.guessed:
        doubt = (
            f"nothing learned that shows: {percent(best.balanced, 1)} on average over the classes "
            "may be chance; docs/no-learning.md tells the causes apart"
        )
        say(folded(doubt, 2))
    losses = ", ".join(f"{one.loss:.4f} ({heading})" for heading, one in scores.items())
    say(f"loss {losses}; guessing: {np.log(len(classes)):.4f}")


def print_confused(answers: Answers, classes: list[str], crops: str) -> None:
    """Print which classes are taken for which, judging by these crops."""
    counts = np.bincount(answers.labels, minlength=len(classes))
    pairs = answers.most_confused(CONFUSED)
    if pairs:
        say(f"\nmost confused ({crops}):")
    for right, answer, images in pairs:
        share = f"{images} of {counts[right]} ({images / counts[right]:.1%})"
        say(f"  {printable(classes[right])} taken for {printable(classes[answer])}: {share}")


def draw(answers: Answers, dataset: Dataset, out: Path, prefix: str = "") -> int:
    """Draw confusion matrix and worst mistakes into `out`; return exit code."""
    confused = partial(confusion_matrix, answers.confusion, dataset.classes)
    pictures = {"confusion.png": ("what is taken for what", confused)}
    if len(worst := answers.worst_mistakes(MISTAKES)):
        text = f"the {counted(len(worst), 'answer')} most surely wrong; green: the right class"
        pictures["mistakes.png"] = text, partial(draw_mistakes, answers, worst, dataset)
    code = DONE
    width = len(prefix) + 14
    say(f"\nin {printable(out)}:")
    for picture, (text, draw_into) in pictures.items():
        name = prefix + picture
        error = failure(partial(draw_into, out / name))
        say(f"  no {name}: {one_sentence(error)}" if error else f"  {name:{width}} {text}")
        if error and not isinstance(error, PackageError):
            code = FAILED
    if not len(worst):
        with suppress(OSError):
            (out / f"{prefix}mistakes.png").unlink()  # of another time
        say(f"  no {prefix}mistakes.png: every answer was right")
    return code


def draw_mistakes(answers: Answers, worst: np.ndarray, dataset: Dataset, path: Path) -> None:
    """Draw the images at the positions `worst` with the answers to them."""
    position = dict(zip(answers.indices[worst].tolist(), worst.tolist(), strict=True))
    again = dict(readable(dataset.load, position, [], dataset.describe))
    if not again:
        raise ValueError("none of these images can be read any more")
    shown = [position[place] for place in again]
    sheet = contact_sheet(
        list(again.values()),
        [title(dataset, place, "\n") for place in again],
        np.exp(answers.log_probabilities[shown]),
        dataset.classes,
        labels=answers.labels[shown].tolist(),
    )
    save_png(sheet, path)
