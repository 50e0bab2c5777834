"""Classify images: the five most probable classes each, and a picture.

tinyalex predict runs/flowers-torchvision photo.jpg holiday/
tinyalex predict runs/flowers-torchvision holiday/ --sort sorted   copies: sorted/CLASS
tinyalex predict alexnet.pth photo.jpg                             with other people's weights
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyalex.backends.devices import check
from tinyalex.cli.common import (
    add_crops,
    check_picture,
    check_writable,
    command,
    complain,
    find_images,
    readable,
)
from tinyalex.cli.network import add_network_arguments, open_network
from tinyalex.cli.parser import Parser, name_in, parser_of, path_in
from tinyalex.data.copies import NotCopiedError, SortedCopies
from tinyalex.data.image import decode_image, read_bytes
from tinyalex.interrupts import DONE, FAILED, USAGE
from tinyalex.pictures.sheets import contact_sheet, failure, save_png
from tinyalex.progress import one_sentence, say, warn
from tinyalex.text import counted, percent, printable
from tinyalex.threads import set_num_threads

EXIT_CODES = (
    "0 done, perhaps without images in folders that could not be read; 1 failed on the way: a disk "
    "that is full or does not answer, no contact sheet; 2 arguments that cannot be used, or done "
    "but for images named here that cannot be read, or that cannot be copied"
)
BATCH = 32
BATCH_BYTES = 2**28
"""Bytes of files above which a batch is not filled up."""
ON_SHEET = 40
"""Most images on the contact sheet."""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = make_parser().parse_args(argv)
    check(args.device)
    check_picture(args.out)
    if args.sort is not None:
        check_writable(args.sort, advice="give another place with --sort")
    set_num_threads(args.threads)
    paths, skipped = list(find_images(args.images)), list[str]()
    classifier = open_network(args).classifier
    classifier.model.to(args.device)
    named = copied = failed = 0
    drawn: list[tuple[str, np.ndarray, np.ndarray]] = []
    photos = readable(partial(read, classifier.resizing), paths, skipped, printable)
    with closing(photos), ExitStack() as held:
        if args.sort is not None:
            copies = held.enter_context(SortedCopies(args.sort, classifier.classes, args.images))
        for batch in batches(photos):
            images = [photo.pixels for _, photo in batch]
            results = classifier.probabilities(images, crops=args.crops)
            for (path, photo), result in zip(batch, results, strict=True):
                say(describe(path, result, classifier.classes))
                named += 1
                if len(drawn) < ON_SHEET:
                    drawn.append((path, decode_image(photo.content, path, 256), result))
                if args.sort is None:
                    continue
                try:
                    name = os.path.basename(path)
                    copied += copies.add(int(result.argmax()), name, photo.content, photo.status)
                except NotCopiedError as error:
                    failed += 1
                    warn(f"not copied: {printable(path)}: {one_sentence(error)}")
                except OSError as error:
                    whole = f"the copies made before that ({copied}) are whole"
                    return complain(f"{one_sentence(error)}; {whole}", FAILED)
    if not named:
        raise ValueError(f"none of {counted(len(paths), 'image')} could be read")
    reason = failure(lambda: draw(drawn, classifier.classes, args.out))
    code = complain(f"no contact sheet: {one_sentence(reason)}", FAILED) if reason else DONE
    if reason is None:
        rest = f" (the first {ON_SHEET} of {named})" if named > ON_SHEET else ""
        say(f"drawn in {printable(args.out)}{rest}")
    if args.sort is not None:
        there = named - copied - failed
        parts = [f"copied {counted(copied, 'image')} into the folders of {printable(args.sort)}"]
        parts += [f"{counted(there, 'was', 'were')} there already"] if there else []
        parts += [f"{failed} could not be copied"] if failed else []
        unread = counted(len(skipped), "could not be read and was", "could not be read and were")
        some = f"; {unread} left out" if skipped else ""
        say(", ".join(parts) + some)
    return code or (USAGE if failed or set(skipped) & set(args.images) else DONE)


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("predict", __doc__, EXIT_CODES)
    add_network_arguments(parser)
    parser.add_argument(
        "images", type=name_in, metavar="IMAGE", nargs="+", help="images, or folders of images"
    )
    parser.add_argument(
        "--out", type=path_in, default=Path("predictions.png"), metavar="PNG", help="contact sheet"
    )
    parser.add_argument(
        "--sort",
        type=path_in,
        metavar="DIR",
        help="copy each image into the folder in DIR that has the name of its most probable class; "
        "nothing is moved or overwritten",
    )
    add_crops(parser, default=1)
    return parser


class Photo(NamedTuple):
    """An image, from one reading of its file."""

    pixels: np.ndarray
    content: bytes
    status: os.stat_result


def read(resizing: tuple[int, str], path: str) -> Photo:
    """Read an image; ImageError where that is not possible."""
    content, status = read_bytes(path)
    return Photo(decode_image(content, path, *resizing), content, status)


def batches(photos: Iterable[tuple[str, Photo]]) -> Iterator[list[tuple[str, Photo]]]:
    """Yield `BATCH` images at a time, fewer where their files are large."""
    batch: list[tuple[str, Photo]] = []
    for photo in photos:
        batch.append(photo)
        if len(batch) == BATCH or sum(len(one.content) for _, one in batch) > BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def draw(drawn: list[tuple[str, np.ndarray, np.ndarray]], classes: list[str], out: Path) -> None:
    """Draw the contact sheet."""
    sheet = contact_sheet(
        [pixels for _, pixels, _ in drawn],
        [printable(os.path.join(*Path(path).parts[-2:])) for path, *_ in drawn],
        np.stack([result for *_, result in drawn]),
        classes,
    )
    save_png(sheet, out)


def describe(path: str, probabilities: np.ndarray, classes: list[str]) -> str:
    """Return one line: the image and its five most probable classes."""
    order = np.argsort(-probabilities, kind="stable")[:5]
    shares = (f"{printable(classes[i])} {percent(probabilities[i], 1)}" for i in order)
    return f"{printable(path)}: {', '.join(shares)}"
