"""Options of `tinyalex train`, in the order of the paper."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any

from tinyalex.backends.precision import PRECISIONS
from tinyalex.cli.common import add_device, add_layout, add_threads
from tinyalex.cli.parser import Parser, name_in, option, parser_of, path_in, positive, whole
from tinyalex.data.worker_threads import WORKERS
from tinyalex.distributed.plan import STRATEGIES
from tinyalex.models import VARIANTS
from tinyalex.models.provenance import recipe_table
from tinyalex.progress import columns, say
from tinyalex.training.settings import (
    AUGMENTATIONS,
    CHANGEABLE,
    CHANGEABLE_ON_REQUEST,
    COLOUR_NOISES,
    INITIAL_WEIGHTS,
    MEANS,
    SCHEDULES,
    STEPS_PER_ROW,
)

EXIT_CODES = (
    "0 done, or stopped and saved at a limit or by SIGUSR1; 1 failed on the way, or in --overfit; "
    "2 arguments or data that cannot be used; 3 the loss, a gradient or a weight was no longer a "
    "number"
)
STOPPED = "129, 130 and 143 stopped, and saved, by SIGHUP, Ctrl-C and SIGTERM"


class ShowRecipe(argparse.Action):
    """Option that prints the given variant's recipe and exits."""

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
        say(f"{variant.name}: {variant.title}\n")
        for setting, value, source in rows:
            say(f"{setting:{widths[0]}}  {value:{widths[1]}}  {source}")
        say(textwrap.fill(variant.provenance, min(99, columns()), initial_indent="\n"))
        parser.exit()


def seconds_in(text: str) -> float:
    """Return the seconds of a time such as 2h or 1h30m.

    >>> seconds_in("1h30m"), seconds_in("90s")
    (5400.0, 90.0)
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    seconds = 0.0
    if found:
        for number, unit in zip(found.groups("0"), (3600, 60, 1), strict=True):
            seconds += float(number) * unit
    if seconds == 0:
        raise argparse.ArgumentTypeError(f"expected a time like 2h, 1h30m or 90s, got {text!r}")
    return seconds


def make_parser(description: str | None = None) -> Parser:
    """Return the parser; groups are ordered like the paper's sections."""
    parser = parser_of("train", description, EXIT_CODES, STOPPED)
    parser.usage = "%(prog)s [OPTION ...]"

    group = parser.add_argument_group("data (paper sections 2 and 4.1)")
    group.add_argument(
        "--data",
        type=name_in,
        metavar="DIR",
        help="folder with one folder of images per class, or with train/ and val/ of such, test/ "
        "or both (default: ten patterns, drawn on the fly)",
    )
    add_layout(group)
    group.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        help="none: the centre of each image; paper: random crops and reflections; strong: crops "
        "of random size and shape, and random colours (default: strong for --data without "
        "--variant, else paper)",
    )
    group.add_argument(
        "--mixup",
        type=float,
        metavar="ALPHA",
        help="blend each image and label with another by a share from Beta(ALPHA, ALPHA); training "
        "accuracy counts the larger part's label (default: 0.2 for --data without --variant or "
        "--weights, else 0)",
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
        help="one shift of all colours per image, along principal axes: by eigenvalues (the paper) "
        "or standard deviations (2012 source; default: the variant's)",
    )
    group.add_argument(
        "--workers", type=int, default=WORKERS, metavar="N", help="threads that load images"
    )
    group.add_argument(
        "--worker-processes",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="load images in processes instead of threads",
    )
    group.add_argument(
        "--image-cache",
        type=int,
        default=1000,
        metavar="MB",
        help="memory for decoded images of each split (default: %(default)s; 0 for none)",
    )
    group.add_argument(
        "--index-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep mean and colours of a large folder for later runs",
    )

    group = parser.add_argument_group("model (paper sections 3 and 4.2)")
    group.add_argument(
        "--variant",
        choices=VARIANTS,
        metavar="NAME",
        help=f"which AlexNet, with its initial weights and input scale: {', '.join(VARIANTS)}; "
        "naming one brings its own recipe as well, made for ImageNet (default: torchvision, with a "
        "recipe for thousands of images)",
    )
    group.add_argument(
        "--show-recipe",
        choices=VARIANTS,
        action=ShowRecipe,
        metavar="VARIANT",
        help="print a variant's settings and where each is from, then stop",
    )
    group.add_argument(
        "--initial-weights",
        choices=INITIAL_WEIGHTS,
        help="data: scaled to suit a few training images, so that small data sets suffice "
        "(default without --variant); variant: as the variant draws them",
    )
    group.add_argument(
        "--dropout",
        type=float,
        metavar="P",
        help="share of fully connected inputs dropped (default: 0.5; 0 without --data)",
    )
    group.add_argument(
        "--input-size",
        type=int,
        metavar="PIXELS",
        help="side of the square that the network sees; only torchvision takes others than its own "
        "(default: 128 for --data without --variant or --weights)",
    )
    group.add_argument(
        "--first-size",
        type=int,
        metavar="PIXELS",
        help="its side in the first epoch; it grows over the first three quarters of the epochs "
        "(default: no other)",
    )

    group = parser.add_argument_group(
        "weights of others (60 epochs of up to 16 images at lr 0.0003 by default)"
    )
    group.add_argument(
        "--weights",
        type=path_in,
        metavar="FROM",
        help="begin with a run's, or a file of other people's: variant, sizes and mean are "
        "theirs, and the last layer is new for other classes",
    )
    group.add_argument(
        "--freeze",
        metavar="LAYER",
        help="last layer that learns nothing: conv5; quickest with --augment none",
    )
    group.add_argument(
        "--unfreeze-after", type=int, metavar="N", help="epochs until all layers learn"
    )
    group.add_argument(
        "--head-lr-factor", type=float, metavar="F", help="on a new last layer's rate (default: 10)"
    )
    group.add_argument(
        "--layer-lr-decay",
        type=float,
        default=1.0,
        metavar="D",
        help="factor from a layer's rate to the one below (default: %(default)g)",
    )

    group = parser.add_argument_group(
        "recipe (paper section 5; defaults without --variant, which brings its own)"
    )
    group.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the training images (default: 150; 5 without --data)",
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="images per step (default: 32)")
    group.add_argument(
        "--lr",
        type=float,
        metavar="RATE",
        help="learning rate at the start (default: 0.002; 0.0015 without --data)",
    )
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="how the rate falls: plateau is the paper's, discrete_exponential the 2012 source's, "
        "cosine for small data sets (default)",
    )
    group.add_argument(
        "--weight-decay",
        type=float,
        metavar="RATE",
        help="pull of the weights towards zero (default: 5e-4)",
    )
    group.add_argument(
        "--label-smoothing",
        type=float,
        metavar="SHARE",
        help="share of the target for all classes (default: 0.1 or 0, as for --mixup)",
    )
    group.add_argument(
        "--average",
        type=float,
        metavar="SHARE",
        help="validate and keep averages of the last SHARE of the steps (default: 0)",
    )

    group = parser.add_argument_group("run")
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="equal seeds, equal results, bit for bit, with equal threads",
    )
    add_threads(group)
    add_device(group)
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="highest",
        metavar="WORD",
        help="products on a GPU: %(default)s (float32), high (TF32) or medium (bfloat16)",
    )
    group.add_argument(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="record a step on a GPU once, then replay it: quicker, and the same bits",
    )
    group.add_argument(
        "--read-loss-every",
        type=int,
        default=STEPS_PER_ROW,
        metavar="K",
        help="steps that a GPU takes without being waited for, 1 to %(default)s",
    )
    group.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="parts of a batch for up to N ranks of mpiexec (default: their number)",
    )
    group.add_argument(
        "--parallel",
        choices=STRATEGIES,
        default="data",
        metavar="WAY",
        help="what ranks share: data, towers or hybrid (default: %(default)s)",
    )
    group.add_argument(
        "--exchange-timeout",
        type=positive,
        default=300.0,
        metavar="S",
        help="end all ranks after S seconds without a word of one (default: %(default)g)",
    )
    group.add_argument(
        "--check-sync",
        type=whole(0),
        default=100,
        metavar="N",
        help="compare the weights of ranks every N steps (default: %(default)s; 0: never)",
    )
    place = group.add_mutually_exclusive_group()
    place.add_argument(
        "--out",
        type=path_in,
        metavar="DIR",
        help="where checkpoints, metrics and pictures go (default: runs/DATA-VARIANT)",
    )
    place.add_argument(
        "--resume",
        type=path_in,
        metavar="DIR",
        help="resume the run in DIR with its settings, bit for bit; may change "
        + ", ".join(option(name)[2:] for name in CHANGEABLE),
    )
    group.add_argument(
        "--allow-change",
        action="store_true",
        help="and may change " + ", ".join(option(name)[2:] for name in CHANGEABLE_ON_REQUEST),
    )
    group.add_argument(
        "--steps",
        type=whole(),
        metavar="N",
        help="save and stop after N steps in all, to resume later",
    )
    group.add_argument(
        "--time-limit",
        type=seconds_in,
        metavar="TIME",
        help="save and stop before 2h, 30m, 90s or the like are over, to resume later",
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="write metrics for TensorBoard to DIR/tensorboard (needs tensorboardX)",
    )
    group.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write report.html, a page on the run, at its end",
    )
    instead = parser.add_argument_group(
        "instead of training; nothing stays on the disk but what --index-cache keeps"
    ).add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="check data, network, two steps, a validation batch and a checkpoint",
    )
    instead.add_argument(
        "--overfit",
        type=whole(),
        metavar="N",
        help="memorise N images, for what cannot do that has a mistake in it",
    )
    instead.add_argument("--summary", action="store_true", help="print the table of layers")
    return parser
