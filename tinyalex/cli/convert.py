"""Convert an AlexNet's weights from any known format into another.

tinyalex convert alexnet.pth alexnet.onnx      for ONNX Runtime and others
tinyalex convert bvlc.caffemodel bvlc.pth      a state_dict, which torch loads
tinyalex convert RUN flowers.safetensors       torchvision's names, with classes and pixels
tinyalex convert alexnet.onnx runs/alexnet     a folder, which the other commands take as a run's

The ending of OUT decides. What was read is printed: network, layers, order of axes and colours,
what becomes of pixels.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tinyalex.cli.common import check_writable, command
from tinyalex.cli.network import add_weight_options, described, load_completed
from tinyalex.cli.parser import Parser, name_in, parser_of, path_in
from tinyalex.interop import Weights, export_onnx
from tinyalex.interop.writing import save_safetensors, save_torch
from tinyalex.interrupts import DONE
from tinyalex.progress import say
from tinyalex.text import printable
from tinyalex.training import Classifier, checkpoint_path, save_classifier

EXIT_CODES = (
    "0 done; 1 failed on the way: a disk that is full; 2 arguments or a file that cannot be used"
)
ENDINGS = {
    ".safetensors": "safetensors",
    ".pth": "PyTorch, a state_dict",
    ".pt": "PyTorch, a state_dict",
    ".onnx": "ONNX",
    "": "a folder with best.safetensors",
}
"""Endings of OUT, and the formats that they stand for."""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    out, ending = args.out, args.out.suffix.lower()
    if ending not in ENDINGS:
        known = ", ".join(filter(None, ENDINGS))
        raise ValueError(f"OUT must end in {known}, or be a new folder, got {printable(out)}")
    if ending != ".onnx" and (args.softmax or args.pixels):
        parser.error("--softmax and --pixels are for an OUT that ends in .onnx")
    if os.path.lexists(out):
        raise ValueError(f"{printable(out)} is there already: give another name")
    if not out.parent.is_dir():
        raise ValueError(f"OUT must lie in a folder that is there, {printable(out.parent)} is none")
    check_writable(out.parent, advice="give OUT another place")
    path = checkpoint_path(args.file)
    weights = load_completed(args, path)
    say("\n  ".join([printable(path), *described(weights), *layers(weights)]))
    write(weights, out, args)
    size = sum(part.stat().st_size for part in (out, *out.glob("*")) if part.is_file())
    say(f"{printable(out)}: {ENDINGS[ending]}, {size / 1e6:.1f} MB")
    return DONE


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("convert", __doc__, EXIT_CODES)
    parser.add_argument(
        "file", metavar="FILE", type=name_in, help="weights, or the folder of a run"
    )
    parser.add_argument("out", metavar="OUT", type=path_in, help="file or folder to be made")
    add_weight_options(parser)
    parser.add_argument(
        "--softmax", action="store_true", help="ONNX: probabilities instead of logits"
    )
    parser.add_argument(
        "--pixels", action="store_true", help="ONNX: takes pixels of 0..255, and scales them itself"
    )
    return parser


def layers(weights: Weights) -> list[str]:
    """Return the layers in the words of the file."""
    sizes = [
        f"{name.removesuffix('.weight')} {' x '.join(map(str, array.shape))}"
        for name, array in weights.arrays.items()
        if name.endswith(".weight")
    ]
    total = sum(array.size for array in weights.arrays.values())
    return [
        f"axes in the file {weights.layout}; colours {weights.channels}; {total:,} parameters",
        ", ".join(sizes),
    ]


def write(weights: Weights, out: Path, args: argparse.Namespace) -> None:
    """Write the weights in the format of `out`."""
    ending = out.suffix.lower()
    if ending == ".onnx":
        export_onnx(weights, out, softmax=args.softmax, pixels=args.pixels)
    elif ending == ".safetensors":
        save_safetensors(weights, out)
    elif ending:
        save_torch(weights, out)
    else:
        save_classifier(Classifier.from_weights(weights), out)
