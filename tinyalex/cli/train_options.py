"""Settings of a run from the command line of `tinyalex train`."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinyalex.backends.devices import DeviceError, check
from tinyalex.calls import command_line
from tinyalex.cli.common import check_writable
from tinyalex.cli.parser import Parser, option
from tinyalex.cli.tensorboard import require_tensorboard
from tinyalex.cli.train_parser import make_parser
from tinyalex.data.folder import check_root
from tinyalex.data.layout import image_folders
from tinyalex.models import VARIANTS
from tinyalex.progress import say, warn
from tinyalex.text import counted, printable
from tinyalex.threads import get_num_threads, set_num_threads
from tinyalex.training.build import kind_of_mean, read_start
from tinyalex.training.checkpoint import Checkpoints, settings_in, state_in
from tinyalex.training.classifier import Classifier
from tinyalex.training.datasets import open_dataset
from tinyalex.training.run import Run
from tinyalex.training.settings import CHANGEABLE, CHANGEABLE_ON_REQUEST, Settings, check_settings

NOT_IN_2012 = {"first_size": None, "mixup": 0.0, "label_smoothing": 0.0, "average": 0.0}
"""Settings of what came later, switched off."""

SMALL_DATA: dict[str, Any] = {
    "variant": "torchvision",
    "initial_weights": "data",
    "input_size": 128,
    "dropout": 0.5,
    "augment": "strong",
    **NOT_IN_2012,
    "mixup": 0.2,
    "label_smoothing": 0.1,
    "mean": "colour",
    "colour_noise": "none",
    "epochs": 150,
    "batch_size": 32,
    "lr": 0.002,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}
"""Defaults without --variant, for thousands of photographs: see benchmarks/ingredients.py."""

WITH_WEIGHTS: dict[str, Any] = {
    **SMALL_DATA,
    **NOT_IN_2012,
    "initial_weights": "variant",
    "epochs": 60,
    "batch_size": 16,
    "lr": 0.0003,  # from 0.001 on, some networks give NaN
    "head_lr_factor": 10.0,
}
"""Defaults with --weights, for few images: benchmarks/transfer.py compares rates."""

EMBEDDED = {
    **SMALL_DATA,
    **NOT_IN_2012,
    "input_size": 224,
    "dropout": 0.0,  # few epochs: memorising is not what limits it
    "augment": "paper",
    "epochs": 5,
    "lr": 0.0015,
}
"""Defaults with neither --variant nor --data: less than 10 minutes on 2 cores."""

LONGER = {
    "step": "the schedule keeps the length that it was made for",
    "discrete_exponential": "the schedule keeps the length that it was made for",
    "cosine": "the cosine is stretched to the new length, so the rate jumps",
}
"""Effect of other --epochs on a resumed run; the other schedules have no length."""


Arguments = tuple[argparse.Namespace, Settings, Checkpoints, dict[str, Any] | None]
"""Arguments, settings, checkpoints, and the state to resume."""


def read_arguments(
    argv: list[str] | None, description: str | None = None, ranks: int = 1
) -> Arguments:
    """Return arguments, settings, checkpoints, and the state to resume.

    The last is None for a new run. Exits with code 2 for options that do not exist. Raises
    ValueError for values that cannot be, for an output folder in use and for a resumed run with
    other settings; OSError for a folder that cannot be written to, FileNotFoundError where there
    is nothing to resume, ModuleNotFoundError where tensorboardX is missing, DeviceError where the
    device is.
    """
    parser = make_parser(description)
    args = parser.parse_args(argv)
    args.start = None
    check(args.device)
    check_together(args, ranks)
    if args.tensorboard:
        require_tensorboard()
    if args.resume is not None:
        args.out = args.resume
        checkpoints = Checkpoints(args.out)
        settings, checkpoint = read_resumed(parser, argv, args, checkpoints)
        check_place(args.out, settings.data)
        check_parallel(settings, ranks)
        return args, settings, checkpoints, checkpoint

    check_settings(given(args))
    if args.out is not None:
        check_new(args, args.data)
    if args.weights is not None:
        if args.data is not None:
            check_root(Path(args.data))
        args.start = read_start(args.weights, args.variant)
        defaults = defaults_with(args.start)
    else:
        defaults = defaults_for(args.variant, args.data)
    settings = to_settings(args, {"shards": ranks, **defaults})
    check_parallel(settings, ranks)
    if args.weights is not None and args.batch_size is None:
        settings = replace(settings, batch_size=even_batch(settings))
    if args.out is None:
        args.out = Path("runs") / f"{Path(settings.data or 'patterns').name}-{settings.variant}"
        check_new(args, settings.data)
    return args, settings, Checkpoints(args.out), None


def defaults_with(start: Classifier) -> dict[str, Any]:
    """Return the default settings of a run that begins with weights."""
    own = {"mean": kind_of_mean(start), "input_size": start.input_size}
    return {**WITH_WEIGHTS, **own, "variant": start.model.variant.name}


def even_batch(settings: Settings) -> int:
    """Return the default batch size, or less to leave few out.

    Of 31 images, two batches of 15 leave one out, and one of 16 fifteen.
    """
    images, most = open_dataset(settings, "train"), settings.batch_size
    assert images is not None
    count = len(images)
    return min(most, max(1, count // math.ceil(count / most)), key=lambda size: count % size)


def check_together(args: argparse.Namespace, ranks: int) -> None:
    """Raise ValueError for options that would be ignored beside the others."""
    instead = [name for name in ("dry_run", "overfit", "summary") if getattr(args, name)]
    for name in ("steps", "time_limit", "tensorboard"):
        if instead and getattr(args, name):
            raise ValueError(f"{option(instead[0])} does not train: leave {option(name)} out")
    if instead and ranks > 1:
        raise ValueError(f"{option(instead[0])} is for one process: leave mpiexec out")
    if args.weights and args.resume is not None:
        raise ValueError("--resume continues with the run's own weights: leave --weights out")
    if args.overfit and args.resume is not None:
        raise ValueError("--overfit begins with fresh weights: leave --resume out")
    if args.allow_change and args.resume is None:
        raise ValueError("--allow-change is for --resume alone: leave it out")


def check_head(args: argparse.Namespace, run: Run) -> None:
    """Raise ValueError for a factor given for a last layer that stays."""
    usual = args.head_lr_factor in (None, 1.0, WITH_WEIGHTS["head_lr_factor"])
    if args.resume is None and not usual and run.origin.get("head") == "kept":
        raise ValueError(
            "--head-lr-factor is for a new last layer, and the classes are those of "
            f"{printable(args.weights)}, so its own is kept: leave --head-lr-factor out"
        )


def check_parallel(settings: Settings, ranks: int) -> None:
    """Raise ValueError where ranks cannot split the network so."""
    if settings.parallel == "towers" and ranks % 2:
        raise ValueError(
            f"--parallel towers is for an even number of ranks, got {ranks}: start them by "
            f"mpiexec -n {ranks + 1}, or say --parallel data"
        )


def check_new(args: argparse.Namespace, data: str | None) -> None:
    """Raise ValueError or OSError where a new run cannot have its folder."""
    if args.overfit or args.summary:  # which leave nothing there
        return
    check_place(args.out, data)
    checkpoints = Checkpoints(args.out)
    if checkpoints.found():
        resume = command_line(["--resume", args.out])
        resume = f"resume it by {resume}, or " if checkpoints.exist() else ""
        raise ValueError(f"{printable(args.out)} holds a run already: {resume}give another --out")
    check_writable(args.out)


def check_place(out: Path, data: str | None) -> None:
    """Raise ValueError for an output folder that looks like a class."""
    for folder in image_folders(Path(data)) if data else ():
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{printable(out)} lies in the folder of images {printable(folder)} and would be "
                "taken for a class: give an --out elsewhere (a run that is there can be moved)"
            )


def defaults_for(variant: str | None, data: str | None) -> dict[str, Any]:
    """Return the settings for this variant and data, without other options."""
    if variant is None:
        return dict(EMBEDDED if data is None else SMALL_DATA)
    pixels, recipe = VARIANTS[variant].pixels, VARIANTS[variant].recipe
    own = {**NOT_IN_2012, "initial_weights": "variant", "dropout": 0.5, "augment": "paper"}
    own |= {"mean": pixels.measured, "input_size": VARIANTS[variant].input_size}
    rest = SMALL_DATA.keys() - own.keys() - {"variant"}
    return {**own, **{name: getattr(recipe, name) for name in rest}}


def read_resumed(
    parser: Parser, argv: list[str] | None, args: argparse.Namespace, checkpoints: Checkpoints
) -> tuple[Settings, dict[str, Any]]:
    """Return settings and content of the checkpoints in `args.resume`.

    Its settings take the place of the defaults, so what differs was given on the command line.
    """
    folder = args.resume
    if not checkpoints.exist():
        which = (
            f"{printable(folder)} is a file"
            if folder.is_file()
            else f"there is no checkpoint in {printable(folder)}"
        )
        raise FileNotFoundError(f"{which}: give --resume the folder that was the --out of a run")
    if not args.summary:
        check_writable(folder, advice="give --resume a copy of it elsewhere")
    checkpoint, path = checkpoints.load(warn)
    old = settings_in(checkpoint, path)
    parser.set_defaults(**asdict(old))
    new = to_settings(parser.parse_args(argv), {})
    changed = old.differences(new)
    listed = ", ".join(
        f"{option(n)} {getattr(old, n)} then, {getattr(new, n)} now" for n in changed
    )
    on_request = set(changed) - set(CHANGEABLE)
    never = on_request - set(CHANGEABLE_ON_REQUEST)
    if never or (on_request and not args.allow_change):
        way_out = "start a new run with another --out" if never else "add --allow-change"
        raise ValueError(
            f"{printable(folder)} was started with other settings ({listed}): leave these options "
            f"out to resume it, or {way_out}"
        )
    behind = state_in(checkpoint, path)
    if on_request and behind.epoch == new.epochs:
        raise ValueError(
            f"{printable(folder)} is finished, with other settings ({listed}): add --epochs, more "
            f"than {behind.epoch}, to resume it with these"
        )
    if new.epochs < behind.epoch:
        raise ValueError(
            f"{printable(folder)} has {counted(behind.epoch, 'epoch')} behind it already"
        )
    if args.steps is not None and args.steps <= behind.step:
        raise ValueError(
            f"{printable(folder)} has {counted(behind.step, 'step')} behind it already"
        )
    try:
        check(new.device)
    except DeviceError as error:
        raise DeviceError(
            f"{error}; {printable(folder)} can also be resumed with another --device"
        ) from error
    try:
        set_num_threads(new.threads)
    except ValueError as error:
        raise ValueError(f"{error}: resume with --threads {get_num_threads()}") from error
    rounding = "the last digits may differ from those of an uninterrupted run"
    notes = {"threads": rounding, "device": rounding}
    if new.freeze:  # whose features may be kept in it
        notes["image_cache"] = rounding
    if new.schedule in LONGER:
        notes["epochs"] = LONGER[new.schedule]
    if new.first_size is not None:
        grown = "the images grow over the new length, and may be smaller again at first"
        notes["epochs"] = "; ".join(filter(None, [notes.get("epochs"), grown]))
    if changed:
        say("; ".join([f"changed: {listed}", *(notes[n] for n in changed if n in notes)]))
    return new, checkpoint


def to_settings(args: argparse.Namespace, defaults: dict[str, Any]) -> Settings:
    """Return the settings in `args`, with `defaults` for missing options."""
    return Settings(**{**defaults, **given(args)})


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings in `args` that have a value."""
    values = {name: getattr(args, name) for name in Settings.__dataclass_fields__}
    for name in ("data", "weights"):
        values[name] = values[name] and os.path.abspath(values[name])
    return {name: value for name, value in values.items() if value is not None}


def as_arguments(settings: Settings) -> list[str]:
    """Return the command-line arguments that spell out all of `settings`."""
    values = {name: value for name, value in asdict(settings).items() if value is not None}
    arguments = []
    for name, value in values.items():
        if isinstance(value, bool):
            arguments.append(option(name if value else f"no_{name}"))
        else:
            arguments += [option(name), str(value)]
    return arguments
