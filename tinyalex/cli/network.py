"""The trained network that a command uses, from whatever file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyalex.cli.common import add_device, add_threads
from tinyalex.cli.parser import Parser, name_in
from tinyalex.data.class_names import imagenet, read_class_names
from tinyalex.interop import Weights, load_weights
from tinyalex.models import VARIANTS
from tinyalex.progress import say
from tinyalex.text import printable
from tinyalex.training import (
    Classifier,
    checkpoint_path,
    classifier_in,
    load_checkpoint,
    settings_in,
)
from tinyalex.training.checkpoint import is_checkpoint
from tinyalex.training.datasets import RunImages


class Network(NamedTuple):
    """Classifier with the file that it came from."""

    classifier: Classifier
    path: Path
    content: dict[str, Any] | None
    """Content of the checkpoint without its arrays, None for a weight file."""

    def run_images(self, data: str | None = None, option: str = "--data DIR") -> RunImages | None:
        """Return the images of the run, None for a weight file."""
        if self.content is None:
            return None
        settings = settings_in(self.content, self.path)
        return RunImages(self.content, settings, self.path, data, option)


def add_network_arguments(parser: Parser) -> None:
    """Add the arguments of commands that use a trained network."""
    add_checkpoint(parser)
    add_threads(parser)
    add_device(parser)


def add_checkpoint(parser: Parser) -> None:
    """Add CHECKPOINT, and the options of weight files."""
    parser.add_argument(
        "checkpoint",
        type=name_in,
        metavar="CHECKPOINT",
        help="a .safetensors file of a run, or the run's folder, of which the best is taken; or "
        "other people's weights of an AlexNet: PyTorch, safetensors, Caffe, ONNX, MatConvNet",
    )
    add_weight_options(parser)


def add_weight_options(parser: argparse._ActionsContainer) -> None:
    """Add --classes, --variant and --mean."""
    parser.add_argument(
        "--classes",
        type=name_in,
        metavar="FILE",
        help="names of the classes of a weight file that brings none: one per line, JSON, or a "
        "folder of class folders (default for 1,000 classes: ImageNet's)",
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help=f"which AlexNet a weight file is of, where it leaves that open: {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--mean",
        type=name_in,
        metavar="FILE",
        help="mean image or colour that Caffe subtracts: .binaryproto, .npy or .mat",
    )


def open_network(args: argparse.Namespace) -> Network:
    """Read CHECKPOINT; say in a line what a weight file is."""
    path = checkpoint_path(args.checkpoint)
    if is_checkpoint(path):
        for option in ("classes", "variant", "mean"):
            if getattr(args, option) is not None:
                raise ValueError(
                    f"--{option} is for weight files; {printable(path)} is a checkpoint of "
                    "tinyalex, which has its own"
                )
        content = load_checkpoint(path)
        classifier = classifier_in(content, path)
        without = content["classifier"] | {"weights": {}}  # hundreds of megabytes
        return Network(classifier, path, {**content, "classifier": without, "optimizer": {}})
    weights, classifier = open_weights(args, path)
    say(f"{printable(path)}: {'; '.join(described(weights, classifier))}")
    return Network(classifier, path, None)


def open_weights(args: argparse.Namespace, path: str | Path) -> tuple[Weights, Classifier]:
    """Read a weight file as the options say."""
    names = None if args.classes is None else read_class_names(args.classes)
    weights = load_weights(path, args.variant, args.mean)
    return weights, Classifier.from_weights(weights, names)


def described(weights: Weights, classifier: Classifier) -> list[str]:
    """Return what was read from a weight file: format, network, classes, pixels."""
    names = classifier.classes
    count = f"{len(names)} classes"
    if names == list(imagenet().values()):
        count += ", named as ImageNet's"
    elif names[0] == "class 0":
        count += " without names, which --classes FILE gives"
    return [
        weights.source,
        f"{weights.variant}, {count}",
        f"pixels - {_numbers(classifier.mean)}"
        + ("" if set(classifier.std) == {1} else f", / {_numbers(classifier.std)}")
        + f"; {_RESIZED[classifier.resize].format(classifier.shorter_side)}, the central "
        f"{classifier.input_size} x {classifier.input_size}",
        *weights.notes,
    ]


_RESIZED = {
    "shorter_side": "shorter side resized to {0}",
    "warp": "stretched to {0} x {0}",
}


def _numbers(values: tuple[float, ...] | np.ndarray) -> str:
    if isinstance(values, np.ndarray):
        return f"a mean image of {values.shape[0]} x {values.shape[1]}"
    return " ".join(f"{value:.6g}" for value in values)
