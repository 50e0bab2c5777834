"""Plan a training on several computers or GPUs, before there are any.

tinyalex plan --measure --link 1                           on computers like this one, at 1 Gbit/s
tinyalex plan --rate 40000 --link 400 --latency 2 --batch-per-rank 128   on GPUs
tinyalex plan --variant source2012 --rate 100 --ranks 2,4,8              with the towers of 2012

Each process of such a training is a rank: it has a computer or a GPU of its own, and a link to the
others. A step learns from one batch of images, which the ranks share, in one of three ways. data:
each has the whole network and some of the images, and gradients are summed. towers: two ranks have
half of each layer and exchange activations where the towers meet, as in 2012; more ranks are more
such pairs. hybrid: convolutions as data, linear layers as parts of all images. They are those of
tinyalex train --parallel. The result is arithmetic (tinyalex/distributed/plan.py says which, and
what it leaves out), not a measurement.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from tinyalex.backends.devices import check
from tinyalex.cli.common import add_device, add_threads, command
from tinyalex.cli.parser import Parser, parser_of, positive, whole
from tinyalex.data import Batch
from tinyalex.distributed import plan
from tinyalex.distributed.plan import Cost, Layer, Machine
from tinyalex.interrupts import DONE
from tinyalex.models import VARIANTS, Variant, alexnet
from tinyalex.progress import folded, say
from tinyalex.tensor import Tensor
from tinyalex.threads import set_num_threads
from tinyalex.training import train_step

EXIT_CODES = "0 done; 1 failed on the way; 2 arguments that cannot be used"
MOST_RANKS = 1024
BOUNDS = {
    "compute": "its arithmetic",
    "link": "the bytes on its link",
    "latency": "the number of its messages",
}
MEASURED = (32, 128)
"""Images of the steps that are measured: two sizes tell what a step costs without any."""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.cores and not args.measure:
        parser.error("--cores is for --measure: --rate is that of all cores of a rank")
    variant = VARIANTS[args.variant]
    pixels = args.input_size or variant.input_size
    layers = plan.layers_of(variant, args.num_classes, pixels)
    machine = Machine(args.rate or 0, args.link, args.latency / 1e6, per_byte=args.byte_cost / 1e9)
    if args.measure:
        machine = measured(machine, variant, pixels, args)
    batches = {
        ranks: args.batch_per_rank * ranks
        if args.batch_per_rank
        else args.batch_size or variant.recipe.batch_size
        for ranks in args.ranks
    }
    costs = [
        plan.cost(layers, strategy, ranks, batch, machine)
        for ranks, batch in batches.items()
        for strategy in plan.STRATEGIES
        if strategy != "towers" or (plan.has_towers(variant) and ranks % 2 == 0)
    ]
    alone = machine.alone(args.batch_per_rank or max(batches.values()))
    weights = sum(sum(layer.parameters) for layer in layers)
    header = (
        f"{variant.name}, {args.num_classes:,} classes, {pixels} pixels: {weights:,} weights, "
        f"{plan.FLOAT * weights / 1e6:.1f} MB\n"
        f"a rank trains {alone:,.1f} images/s alone; its link has {args.link:g} Gbit/s each way, "
        f"and a message costs {args.latency:g} µs beside its bytes\n"
        "images and sent: per rank and step; link: how long it is busy; hidden: share of that "
        "during which the rank computes; speed-up: over one rank, and per rank (eff.); bound: "
        "what takes most of the step\n"
    )
    say(folded(header, 2))
    print_table(costs, alone)
    say("")
    for line in findings(costs, variant, layers):
        say(folded(line, 2))
    return DONE


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("plan", __doc__, EXIT_CODES)
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="torchvision",
        metavar="NAME",
        help=f"which AlexNet: {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--num-classes", type=whole(1, 10**6), default=1000, metavar="N", help="outputs of fc8"
    )
    parser.add_argument(
        "--input-size",
        type=whole(1, 3584),
        metavar="N",
        help="side of the images in pixels (default: the variant's)",
    )
    speed = parser.add_mutually_exclusive_group(required=True)
    speed.add_argument(
        "--rate", type=positive, metavar="N", help="images per second that one rank trains alone"
    )
    speed.add_argument(
        "--measure",
        action="store_true",
        help=f"train here for seconds, in steps of {' and '.join(map(str, MEASURED))} images, to "
        "find the rate",
    )
    parser.add_argument(
        "--cores",
        type=whole(1, 10**4),
        metavar="N",
        help="with --measure: cores of a rank, as if the rate grew with them (default: --threads)",
    )
    add_threads(parser)
    add_device(parser)
    parser.add_argument(
        "--link", type=positive, default=1.0, metavar="GBIT", help="Gbit/s of a rank's link"
    )
    parser.add_argument(
        "--latency",
        type=positive,
        default=20.0,
        metavar="US",
        help="microseconds of a message beside its bytes, such as 20 through TCP, 2 on InfiniBand",
    )
    parser.add_argument(
        "--byte-cost",
        type=positive,
        default=0.0,
        metavar="NS",
        help="nanoseconds of the cores that compute, for each byte that is sent, got and added: "
        "docs/cluster.md measures it for TCP (default: 0, as where other hardware does it)",
    )
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument(
        "--batch-size",
        type=whole(1, 10**7),
        metavar="N",
        help="images of a step, of all ranks together (default: the recipe's)",
    )
    batch.add_argument(
        "--batch-per-rank", type=whole(1, 10**4), metavar="N", help="images of a step for each rank"
    )
    parser.add_argument(
        "--ranks",
        type=ranks_in,
        default="2,8,64",
        metavar="N,N",
        help=f"numbers of ranks, up to {MOST_RANKS:,}",
    )
    return parser


def ranks_in(text: str) -> list[int]:
    """Return numbers of ranks, ascending."""
    return sorted({whole(1, MOST_RANKS)(word.strip()) for word in text.split(",")})


def measured(machine: Machine, variant: Variant, pixels: int, args: argparse.Namespace) -> Machine:
    """Return the machine with the speed of this one, found by training."""
    check(args.device)
    set_num_threads(args.threads)
    model = alexnet(variant, args.num_classes).to(args.device)
    optimizer = replace(variant.recipe, lr=0.0).optimizer(model)
    rng = np.random.default_rng(0)
    seconds = {}
    for count in MEASURED:
        shape = (count, variant.in_channels, pixels, pixels)
        images = Tensor(rng.standard_normal(shape, np.float32)).to(args.device).data
        labels = rng.integers(args.num_classes, size=count)
        times = []
        for _ in range(3):  # the first compiles
            start = time.perf_counter()
            train_step(model, optimizer, Batch(images, labels, labels))
            times.append(time.perf_counter() - start)
        seconds[count] = min(times)
    say(f"measured here: {', '.join(f'{t:.3g} s for {n} images' for n, t in seconds.items())}")
    return fitted(machine, seconds, (args.cores or args.threads) / args.threads)


def fitted(machine: Machine, seconds: dict[int, float], faster: float) -> Machine:
    """Return the machine with the speed of two measured steps."""
    (few, many), mean = seconds, seconds[max(seconds)] / max(seconds)
    # A busy machine may spoil either: of a step, none is fixed at least, and half at most.
    per_image = min(max((seconds[many] - seconds[few]) / (many - few), mean / 2), mean)
    fixed = seconds[many] - many * per_image
    return replace(machine, rate=faster / per_image, fixed=fixed / faster)


def print_table(costs: list[Cost], alone: float) -> None:
    """Print a row per cost."""
    say("ranks images  way     sent, MB  link, s  hidden  step, s speed-up  eff.  bound")
    for cost in costs:
        speed_up = cost.speed_up(alone)
        say(
            f"{cost.ranks:5}{cost.batch / cost.ranks:7.4g}  {cost.strategy:6}"
            f"{cost.sent / 1e6:10,.1f}{cost.exchange:9.3g}{cost.hidden:8.0%}{cost.step:9.3g}"
            f"{speed_up:9.1f}{speed_up / cost.ranks:6.0%}  {cost.bound}"
        )


def findings(costs: list[Cost], variant: Variant, layers: list[Layer]) -> list[str]:
    """Return sentences on what the table shows."""
    lines = []
    largest = {cost.strategy: cost for cost in costs}
    for strategy, cost in largest.items():
        lines.append(
            f"{strategy} on {cost.ranks:,} ranks is bound by {BOUNDS[cost.bound]}: each computes "
            f"for {cost.compute:.3g} s of a step and waits for {cost.wait:.3g} s"
        )
    if "towers" not in largest:
        known = ", ".join(name for name, other in VARIANTS.items() if plan.has_towers(other))
        lines.append(f"towers take an even number of ranks, and a network of two towers: {known}")
    best = max(costs, key=lambda cost: cost.batch / cost.step)
    lines.append(
        f"fastest is {best.strategy} on {best.ranks:,} ranks, {best.batch / best.step:,.1f} "
        f"images/s; hybrid sends less than data in steps of fewer than "
        f"{plan.hybrid_below(layers):,.0f} images"
    )
    for cost in costs[-1:]:
        if cost.batch < cost.ranks:
            lines.append(f"{cost.ranks - cost.batch:,} of {cost.ranks:,} ranks get no image")
    return [*lines, learning_rate(max(cost.batch for cost in costs), variant)]


def learning_rate(batch: int, variant: Variant) -> str:
    """Return a sentence on the recipe for such a batch."""
    recipe = variant.recipe
    if batch > plan.LARGEST_SGD:
        return (
            f"a batch of {batch:,} images needs LARS, which tinyalex lacks: a learning rate in "
            f"proportion to the batch served AlexNet up to {plan.LARGEST_SGD:,} (Krizhevsky 2014, "
            f"arXiv 1404.5997), with LARS up to {plan.LARGEST_LARS:,} (You, Gitman, Ginsburg 2017, "
            "arXiv 1708.03888)"
        )
    text = f"a batch of {batch:,} images needs no LARS (beyond {plan.LARGEST_SGD:,} it would)"
    if batch == recipe.batch_size:
        return f"{text}, and no other learning rate than the recipe's {recipe.lr:g}"
    lr = recipe.lr * batch / recipe.batch_size
    return f"{text}; a learning rate in proportion to it is {lr:.3g} (Krizhevsky 2014)"
