"""Name what is in images: the five most probable classes each, and a picture of it all.

python examples/predict.py runs/flowers-torchvision photo.jpg holiday/
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinyalex.data import ImageError, read_image
from tinyalex.data.dataset import printable
from tinyalex.data.image import EXTENSIONS
from tinyalex.files import write_atomically
from tinyalex.threads import set_num_threads
from tinyalex.training import load_classifier
from tinyalex.training.command import (
    DONE,
    EXPECTED_ERRORS,
    Help,
    Parser,
    add_network_arguments,
    complain,
)
from tinyalex.training.pictures import contact_sheet

BATCH = 32
ON_SHEET = 40
"""How many images the contact sheet shows at most."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        args = make_parser().parse_args(argv)
        check_out(args.out)
        set_num_threads(args.threads)
        classifier = load_classifier(args.checkpoint)
        paths = list(find_images(args.images))
        named: list[str] = []
        shares: list[np.ndarray] = []
        for start in range(0, len(paths), BATCH):
            found = list(read(paths[start : start + BATCH], classifier.shorter_side))
            results = classifier.probabilities([image for _, image in found])
            for (path, _), result in zip(found, results, strict=True):
                print(describe(path, result, classifier.classes), flush=True)
                named.append(path)
                shares.append(result)
        if not named:
            raise ValueError(f"none of {len(paths)} images could be read")
        drawn = named[:ON_SHEET]
        sheet = contact_sheet(
            [read_image(path, 256) for path in drawn],
            [printable(os.path.join(*Path(path).parts[-2:])) for path in drawn],
            np.stack(shares[:ON_SHEET]),
            classifier.classes,
        )
        write_atomically(args.out, lambda file: sheet.save(file, "PNG"))
    except EXPECTED_ERRORS as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130
    rest = f" (the first {ON_SHEET} of {len(named)})" if len(named) > ON_SHEET else ""
    print(f"drawn in {args.out}{rest}")
    return DONE


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(description=__doc__, formatter_class=Help)
    add_network_arguments(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="images, or folders of images")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions.png"), metavar="PNG", help="contact sheet"
    )
    return parser


def check_out(out: Path) -> None:
    """See that the contact sheet can go there, before the work is done."""
    if out.is_dir():
        raise ValueError(f"--out must name a file, {out} is a folder")
    if not out.parent.is_dir():
        raise ValueError(f"--out must name a file in a folder that is there, {out.parent} is none")


def find_images(paths: list[str]) -> Iterator[str]:
    """Yield each file given, and the images in each folder given and below it, sorted."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        found = sorted(images_below(path))
        if not found:
            raise ValueError(f"no images ({' '.join(EXTENSIONS)}) in {path}")
        yield from found


def images_below(root: str) -> Iterator[str]:
    """Yield the images in a folder and its subfolders."""
    for folder, _, files in os.walk(root):
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield os.path.join(folder, name)


def read(paths: list[str], shorter_side: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (path, pixels) of the images that can be read, and name the others on stderr."""
    for path in paths:
        try:
            yield path, read_image(path, shorter_side)
        except ImageError as error:
            print(f"skipped: {error}", file=sys.stderr)


def describe(path: str, probabilities: np.ndarray, classes: list[str]) -> str:
    """Return one line: the image and its five most probable classes."""
    order = np.argsort(-probabilities, kind="stable")[:5]
    return f"{printable(path)}: " + ", ".join(f"{classes[i]} {probabilities[i]:.1%}" for i in order)


if __name__ == "__main__":
    sys.exit(main())
