"""The trained network that a command uses, from whatever file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyalex.cli.common import add_device, add_threads
from tinyalex.cli.parser import Parser, name_in
from tinyalex.data.class_names import read_class_names
from tinyalex.data.folder import check_root
from tinyalex.data.layout import split_of
from tinyalex.interop import Weights, load_weights
from tinyalex.models import VARIANTS
from tinyalex.progress import say
from tinyalex.text import counted, printable
from tinyalex.training import (
    Classifier,
    Settings,
    checkpoint_path,
    classifier_in,
    load_checkpoint,
    settings_in,
)
from tinyalex.training.checkpoint import BEST, is_checkpoint
from tinyalex.training.classifier import complete
from tinyalex.training.datasets import RunImages
from tinyalex.training.transfer import span


class Network(NamedTuple):
    """Classifier with the file that it came from."""

    classifier: Classifier
    path: Path
    content: dict[str, Any] | None
    """Content of the checkpoint without its arrays, None for a weight file."""

    def run_images(self, data: str | None = None, option: str = "--data DIR") -> RunImages | None:
        """Return the images of the run, None where there was none."""
        if self.content is None or "settings" not in self.content:
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
        choices=VARIANTS,
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
    for folder in filter(None, (getattr(args, name, None) for name in ("data", "among"))):
        check_root(Path(folder))
    if is_checkpoint(path):
        for option in ("classes", "variant", "mean"):
            if getattr(args, option) is not None:
                raise ValueError(
                    f"--{option} is for weight files; {printable(path)} is a checkpoint of "
                    "tinyalex, which has its own"
                )
        return read_network(path)
    weights = load_completed(args, path)
    say(f"{printable(path)}: {'; '.join(described(weights))}")
    return Network(Classifier.from_weights(weights), path, None)


def read_network(path: Path) -> Network:
    """Read the network in a checkpoint of a run."""
    content = load_checkpoint(path)
    classifier = classifier_in(content, path)
    without = content["classifier"] | {"weights": {}}  # hundreds of megabytes
    return Network(classifier, path, {**content, "classifier": without, "optimizer": {}})


def prefix_of(path: Path, images: Iterable[str | None] = ()) -> str:
    """Return what names of pictures beside a network's file begin with.

    These are the names of the file and of the first file or folder with other images than the
    run's, and a digest of the whole paths of all of those, lest their pictures replace those of the
    run or of others; nothing for the best network of a run and its images.
    """
    names = [] if path.name == BEST and is_checkpoint(path) else [path.name]
    paths = [Path(os.path.abspath(one)) for one in images if one is not None]
    for first in paths[:1]:
        names += [first.parent.name, first.name] if split_of(first.name) else [first.name]
    prefix = "-".join(filter(None, names))
    while len(os.fsencode(prefix)) > 200:  # of the 255 bytes that a file's name may have
        prefix = prefix[:-1]
    if paths:
        prefix += f"-{sha256(os.fsencode(os.pathsep.join(map(str, paths)))).hexdigest()[:6]}"
    return f"{prefix}-" if prefix else ""


def load_completed(args: argparse.Namespace, path: Path) -> Weights:
    """Read a weight file as the options say, and complete it."""
    names = None if args.classes is None else read_class_names(args.classes)
    return complete(load_weights(path, args.variant, args.mean), names)


def described(weights: Weights) -> list[str]:
    """Return format, network, classes, pixels and notes in words."""
    count = counted(weights.num_classes, "class")
    if weights.classes is None:
        count += " without names, which --classes FILE gives"
    size, std = weights.input_size, weights.std or (1.0,)
    scale = "" if set(std) == {1} else f", / {_numbers(std)}"
    return [
        weights.source,
        f"{weights.variant}, {count}",
        f"pixels - {_numbers(weights.mean)}{scale}",
        f"{RESIZED[weights.resize].format(weights.shorter_side)}, the central {size} x {size} seen",
        *weights.notes,
    ]


def recipe_of(settings: Settings) -> str:
    """Return how a run learns, in words."""
    words = {
        "mixup": "mixup",
        "label_smoothing": "label smoothing",
        "average": "average of the last",
        "first_size": "first size",
    }
    used = {text: value for name, text in words.items() if (value := getattr(settings, name))}
    return (
        f"lr {settings.lr:g} {settings.schedule}, momentum {settings.recipe.momentum:g}, "
        f"decay {settings.weight_decay:g}, augmentation {settings.augment}, "
        f"colour noise {settings.colour_noise}, minus the mean {settings.mean}"
        + "".join(f", {text} {value:g}" for text, value in used.items())
    )


def weights_of(
    settings: Settings, classifier: Classifier, origin: Mapping[str, str], frozen: list[str]
) -> str:
    """Return a sentence on the weights that a run begins with."""
    head = list(classifier.model.weight_layers)[-1]
    mean, std = ("/".join(f"{n:.4g}" for n in v) for v in (classifier.mean_colour, classifier.std))
    parts = [f"{printable(origin['source'])}, SHA-256 {origin['digest']}"]
    if origin["head"] == "kept":
        parts.append(f"{head} is kept, for the classes are the same")
    else:
        factor = f"rate times {settings.head_lr_factor:g}"
        parts.append(f"{head} is new, for {counted(len(classifier.classes), 'class')}, {factor}")
    if settings.layer_lr_decay != 1:
        parts.append(f"each layer below has {settings.layer_lr_decay:g} times the rate")
    parts.append(
        f"theirs are the mean {mean}, std {std} and the size, {classifier.resize} "
        f"{classifier.shorter_side} pixels"
    )
    if frozen:
        until = f" until epoch {settings.unfreeze_after}" if settings.unfreeze_after else ""
        parts.append(f"{span(frozen)} frozen{until}, SHA-256 {origin['frozen']}")
    return "; ".join(parts)


RESIZED = {"shorter_side": "shorter side resized to {0}", "warp": "stretched to {0} x {0}"}
"""Rules of resizing in words."""


def _numbers(values: tuple[float, ...] | np.ndarray | None) -> str:
    if isinstance(values, np.ndarray):
        return f"a mean image of {values.shape[0]} x {values.shape[1]}"
    return " ".join(f"{value:.6g}" for value in values or ())
