"""The options of examples/train_alexnet.py, and the settings that follow from them."""

from __future__ import annotations

import argparse
import os
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyalex.models import VARIANTS
from tinyalex.models.provenance import recipe_table
from tinyalex.threads import get_num_threads
from tinyalex.training.checkpoint import Checkpoints, load_checkpoint, settings_in
from tinyalex.training.command import EXIT_CODES, Help, Parser
from tinyalex.training.settings import (
    AUGMENTATIONS,
    CHANGEABLE,
    COLOUR_NOISES,
    INITIAL_WEIGHTS,
    MEANS,
    SCHEDULES,
    Settings,
)

SMALL_DATA: dict[str, Any] = {
    "variant": "torchvision",
    "initial_weights": "data",
    "dropout": 0.5,
    "augment": "strong",
    "mean": "colour",
    "colour_noise": "none",
    "epochs": 30,
    "batch_size": 32,
    "lr": 0.001,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}
"""What runs without --variant: made for thousands of photographs, not for ImageNet's million."""

EMBEDDED = {
    **SMALL_DATA,
    "dropout": 0.0,  # few epochs: learning by heart is not what limits it
    "augment": "paper",
    "epochs": 5,
    "lr": 0.0015,
}
"""What runs with neither --variant nor --data: less than 10 minutes on 2 cores."""

LONGER = {
    "step": "the schedule keeps the length that it was made for",
    "discrete_exponential": "the schedule keeps the length that it was made for",
    "cosine": "the cosine is stretched to the new length, so the rate jumps",
}
"""What other --epochs do to a run that is resumed; the other schedules have no length."""


class ShowRecipe(argparse.Action):
    """An option that prints the recipe of the variant it is given, and exits."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Print the table and exit with code 0."""
        variant = VARIANTS[values]
        rows = [("setting", "value", "from"), *recipe_table(variant)]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        print(f"{variant.name}: {variant.title}\n")
        for setting, value, source in rows:
            print(f"{setting:{widths[0]}}  {value:{widths[1]}}  {source}")
        print(textwrap.fill(variant.provenance, 99, initial_indent="\n"))
        parser.exit()


def make_parser(description: str | None = None) -> Parser:
    """Return the parser; its groups are in the order of the paper's sections."""
    parser = Parser(description=description, epilog=EXIT_CODES, formatter_class=Help)

    group = parser.add_argument_group("data (paper sections 2 and 4.1)")
    group.add_argument(
        "--data",
        metavar="DIR",
        help="folder with one folder of images per class, or with train/ and val/ of such "
        "(default: ten patterns, drawn on the fly)",
    )
    group.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        help="paper: random crops and reflections; strong: crops of random size and shape, and "
        "random colours (default: strong for --data without --variant, else paper)",
    )
    group.add_argument(
        "--mean",
        choices=MEANS,
        help="what is subtracted: the mean image of the training set, or a colour (default: image "
        "for variants made for raw pixels)",
    )
    group.add_argument(
        "--colour-noise",
        choices=COLOUR_NOISES,
        help="one shift of all colours per image, along their principal axes: by eigenvalues as in "
        "the paper, by standard deviations as in the 2012 source (default: the variant's)",
    )
    group.add_argument(
        "--workers", type=int, default=2, metavar="N", help="threads that load images"
    )
    group.add_argument(
        "--worker-processes",
        action="store_true",
        help="load images in processes instead of threads: the same batches, for data sets or "
        "machines on which threads get in each other's way",
    )
    group.add_argument(
        "--image-cache",
        type=int,
        default=1000,
        metavar="MB",
        help="memory for images that need not be decoded again in the next epoch, for training and "
        "for validation each (default: %(default)s; 0 for none)",
    )
    group.add_argument(
        "--no-index-cache",
        dest="index_cache",
        action="store_false",
        help="read the folders of DIR even if the list of their images is remembered and they have "
        "not changed since",
    )

    group = parser.add_argument_group("model (paper sections 3 and 4.2)")
    group.add_argument(
        "--variant",
        choices=VARIANTS,
        help="which AlexNet, with its initial weights and input scale; naming one brings its own "
        "recipe as well, made for ImageNet (default: torchvision, with a recipe for thousands "
        "of images)",
    )
    group.add_argument(
        "--show-recipe",
        choices=VARIANTS,
        action=ShowRecipe,
        metavar="VARIANT",
        help="print what a variant consists of and where each setting is from, then stop",
    )
    group.add_argument(
        "--initial-weights",
        choices=INITIAL_WEIGHTS,
        help="variant: as the variant draws them; data: then scaled to suit a few training images, "
        "so that small data sets suffice (default: data without --variant)",
    )
    group.add_argument(
        "--dropout",
        type=float,
        metavar="P",
        help="share of the fully connected layers' inputs dropped while training (default: 0.5; "
        "0 for the embedded data set)",
    )
    group.add_argument(
        "--input-size",
        type=int,
        metavar="PIXELS",
        help="side of the square that the network sees; only torchvision takes others than its own",
    )

    group = parser.add_argument_group("recipe (paper section 5; default: see --variant)")
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    group.add_argument("--batch-size", type=int, metavar="N", help="images per step")
    group.add_argument("--lr", type=float, metavar="RATE", help="learning rate at the start")
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="how the rate falls: plateau is the paper's, discrete_exponential the 2012 source's, "
        "cosine for small data sets",
    )
    group.add_argument(
        "--weight-decay", type=float, metavar="RATE", help="pull of the weights towards zero"
    )

    group = parser.add_argument_group("run")
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="equal seeds, equal results, bit for bit, on one machine with equal threads",
    )
    group.add_argument(
        "--threads",
        type=int,
        default=get_num_threads(),
        metavar="N",
        help="threads that compute",
    )
    place = group.add_mutually_exclusive_group()
    place.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where checkpoints, metrics and pictures go (default: runs/DATA-VARIANT)",
    )
    place.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in DIR and with its settings, bit for bit; may change: "
        + ", ".join(CHANGEABLE),
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="check data, network, two steps, a validation batch and a checkpoint, then stop; "
        "nothing stays on the disk",
    )
    return parser


def read_arguments(
    argv: list[str] | None, description: str | None = None
) -> tuple[argparse.Namespace, Settings, dict[str, Any] | None]:
    """Return the arguments, the settings that follow from them, and the checkpoint to resume.

    Exits with code 2 for options that do not exist. Raises ValueError for values that cannot be,
    for an output folder in use and for a resumed run with other settings; FileNotFoundError where
    there is nothing to resume.
    """
    parser = make_parser(description)
    args = parser.parse_args(argv)
    if args.resume is not None:
        args.out = args.resume
        return args, *read_resumed(parser, argv, args.resume)

    defaults = defaults_for(args.variant, args.data)
    variant = VARIANTS[args.variant or defaults["variant"]]
    settings = to_settings(args, {**defaults, "input_size": variant.input_size})
    if args.out is None:
        args.out = Path("runs") / f"{Path(settings.data or 'patterns').name}-{settings.variant}"
    if Checkpoints(args.out).last.exists() and not args.dry_run:
        raise ValueError(
            f"{args.out} holds a run already: go on with it by --resume {args.out}, or give "
            "another --out"
        )
    return args, settings, None


def defaults_for(variant: str | None, data: str | None) -> dict[str, Any]:
    """Return the settings of a run whose command line names this variant and this data only."""
    if variant is None:
        return EMBEDDED if data is None else SMALL_DATA
    pixels, recipe = VARIANTS[variant].pixels, VARIANTS[variant].recipe
    own = {"initial_weights": "variant", "dropout": 0.5, "augment": "paper"}
    own["mean"] = pixels.measured
    rest = SMALL_DATA.keys() - own.keys() - {"variant"}
    return {**own, **{name: getattr(recipe, name) for name in rest}}


def read_resumed(
    parser: Parser, argv: list[str] | None, folder: Path
) -> tuple[Settings, dict[str, Any]]:
    """Return the settings and the checkpoint of the run in `folder`.

    Its settings take the place of the defaults, so what differs was given on the command line.
    """
    path = Checkpoints(folder).last
    checkpoint = load_checkpoint(path)
    old = settings_in(checkpoint, path)
    parser.set_defaults(**asdict(old))
    new = to_settings(parser.parse_args(argv), {})
    changed = old.differences(new)
    listed = ", ".join(f"{n} {getattr(old, n)} then, {getattr(new, n)} now" for n in changed)
    if not set(changed) <= set(CHANGEABLE):
        raise ValueError(
            f"{folder} was started with other settings ({listed}): leave these options out to go "
            "on with it, or start a new run with another --out"
        )
    if new.epochs < checkpoint["state"]["epoch"]:
        raise ValueError(f"{folder} has {checkpoint['state']['epoch']} epochs behind it already")
    notes = {"threads": "the last digits may differ from those of an uninterrupted run"}
    if new.schedule in LONGER:
        notes["epochs"] = LONGER[new.schedule]
    if changed:
        print("; ".join([f"changed: {listed}", *(notes[n] for n in changed if n in notes)]))
    return new, checkpoint


def to_settings(args: argparse.Namespace, defaults: dict[str, Any]) -> Settings:
    """Return the settings in `args`, with `defaults` where an option was left out."""
    names = Settings.__dataclass_fields__
    values = {name: getattr(args, name) for name in names}
    values = {name: defaults.get(name) if v is None else v for name, v in values.items()}
    if values["data"] is not None:
        values["data"] = os.path.abspath(values["data"])
    return Settings(**values)
