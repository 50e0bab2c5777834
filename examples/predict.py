"""Name what is in images: the five most probable classes each, and a picture of it all.

python examples/predict.py runs/flowers-torchvision photo.jpg holiday/
python examples/predict.py runs/flowers-torchvision holiday/ --sort sorted   copies: sorted/CLASS
"""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # What is imported from here on takes a second: Ctrl-C ends that without a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import numpy as np

from tinyalex.backends.devices import check
from tinyalex.data import read_image
from tinyalex.data.dataset import printable
from tinyalex.files import write_atomically
from tinyalex.threads import set_num_threads
from tinyalex.training import load_classifier
from tinyalex.training.command import (
    DONE,
    FAILED,
    Help,
    Parser,
    add_crops,
    add_network_arguments,
    check_picture,
    command,
    complain,
    find_images,
    readable,
)
from tinyalex.training.pictures import contact_sheet, failure, save_png
from tinyalex.training.progress import one_sentence, say

BATCH = 32
ON_SHEET = 40
"""How many images the contact sheet shows at most."""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = make_parser().parse_args(argv)
    check(args.device)
    check_picture(args.out)
    set_num_threads(args.threads)
    classifier = load_classifier(args.checkpoint)
    classifier.model.to(args.device)
    load = partial(read_image, shorter_side=classifier.shorter_side)
    paths = list(find_images(args.images))
    if args.sort is not None:
        prepare(args.sort, classifier.classes, args.images)
    named = copied = 0
    drawn: list[tuple[str, np.ndarray]] = []
    for start in range(0, len(paths), BATCH):
        found = list(readable(load, paths[start : start + BATCH]))
        results = classifier.probabilities([image for _, image in found], crops=args.crops)
        for (path, _), result in zip(found, results, strict=True):
            say(describe(path, result, classifier.classes))
            named += 1
            if len(drawn) < ON_SHEET:
                drawn.append((path, result))
            if args.sort is not None:
                copied += copy_into(args.sort / classifier.classes[result.argmax()], path)
    if not named:
        raise ValueError(f"none of {len(paths)} images could be read")
    error = failure(lambda: draw(drawn, classifier.classes, args.out))
    code = complain(f"no contact sheet: {one_sentence(error)}", FAILED) if error else DONE
    if error is None:
        rest = f" (the first {ON_SHEET} of {named})" if named > ON_SHEET else ""
        say(f"drawn in {printable(args.out)}{rest}")
    if args.sort is not None:
        left_out = len(paths) - named
        some = f"; {left_out} could not be read and were left out" if left_out else ""
        there = f", {named - copied} were there already" if copied < named else ""
        say(f"copied {copied} images into the folders of {printable(args.sort)}{there}{some}")
    return code


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(description=__doc__, formatter_class=Help)
    add_network_arguments(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="images, or folders of images")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions.png"), metavar="PNG", help="contact sheet"
    )
    parser.add_argument(
        "--sort",
        type=Path,
        metavar="DIR",
        help="copy each image into the folder in DIR that has the name of its most probable class; "
        "nothing is moved or overwritten",
    )
    add_crops(parser, default=1)
    return parser


def prepare(root: Path, classes: list[str], images: list[str]) -> None:
    """Make the folder for the classes' folders, and see that all of them can be used."""
    for name in classes:  # they come from a file, and must not lead out of `root`
        if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
            raise ValueError(f"images cannot be sorted: the class {name!r} is no name for a folder")
    inside = root.resolve()
    for path in images:
        if os.path.isdir(path) and inside.is_relative_to(Path(path).resolve()):
            raise ValueError(f"--sort must name a folder that is not in {path}, got {root}")
    root.mkdir(parents=True, exist_ok=True)
    for name in classes:  # what a process that was killed had not finished
        for half in (root / name).glob(".*.????????.tmp"):
            half.unlink(missing_ok=True)


def copy_into(folder: Path, path: str) -> bool:
    """Copy an image into a folder, under another name where its own is taken by another image.

    Returns False where it was there already.
    """
    stem, suffix = os.path.splitext(os.path.basename(path))
    target, number = folder / f"{stem}{suffix}", 1
    while os.path.lexists(target):
        if target.is_file() and filecmp.cmp(path, target, shallow=False):
            return False  # this command was here before, or the image is given twice
        number += 1
        target = folder / f"{stem}-{number}{suffix}"
    folder.mkdir(exist_ok=True)
    with open(path, "rb") as source:
        write_atomically(target, lambda copy: shutil.copyfileobj(source, copy), overwrite=False)
    shutil.copystat(path, target)
    return True


def draw(drawn: list[tuple[str, np.ndarray]], classes: list[str], out: Path) -> None:
    """Draw the contact sheet."""
    sheet = contact_sheet(
        [read_image(path, 256) for path, _ in drawn],
        [printable(os.path.join(*Path(path).parts[-2:])) for path, _ in drawn],
        np.stack([result for _, result in drawn]),
        classes,
    )
    save_png(sheet, out)


def describe(path: str, probabilities: np.ndarray, classes: list[str]) -> str:
    """Return one line: the image and its five most probable classes."""
    order = np.argsort(-probabilities, kind="stable")[:5]
    shares = (f"{printable(classes[i])} {probabilities[i]:.1%}" for i in order)
    return f"{printable(path)}: {', '.join(shares)}"


if __name__ == "__main__":
    sys.exit(main())
