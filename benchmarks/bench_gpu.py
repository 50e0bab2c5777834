"""Whole nets and single layers on a GPU, against PyTorch.

    python benchmarks/bench_gpu.py --quick --table     # eight minutes: 128 images and one
    python benchmarks/bench_gpu.py --table             # everything, as far as --minutes allows
    python benchmarks/bench_gpu.py --profile           # first: which kernels PyTorch takes
    python benchmarks/bench_gpu.py --mode train --images 128 --precision B --rounds 9
    python benchmarks/bench_gpu.py --table-only        # from the files of earlier runs

One process: the contestants take turns (A B A B ...) on the same GPU with the same weights and the
same batch, so that its clock and its heat hit all of them. What they calculate is compared with
float64 before any time counts. Three classes of precision are never mixed: A (float32), B (TF32),
C (bfloat16); and every switch is read back and printed. A contestant that fails is listed with its
error, and the others stay. The speed of a large copy and of large products is measured in the same
run; no net can be faster than its floor (gpu/floors.py) at those.

Writes benchmarks/results/gpu.jsonl, a line whenever more of a case is known; a case that the same
program has measured on the same GPU is left out the next time (--again measures it anew).
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any

from gpu import layers, run, tables
from gpu.cases import CLASSES, Case, Net
from gpu.run import Campaign
from gpu.timing import Protocol
from shared import report

SIZES = (128, 1, 256, 64, 16, 512)
QUICK_SIZES = (128, 1)
QUICK_MINUTES = 8.0
MODES = ("train", "infer")


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases, the most telling first: time may run out."""
    sizes = arguments.images or (QUICK_SIZES if arguments.quick else SIZES)
    quick_net = arguments.quick and not arguments.groups and not arguments.norm
    nets = [
        Net(groups, norm == "on", arguments.thin, arguments.pixels, arguments.classes)
        for norm, groups in product(arguments.norm or ("on", "off"), arguments.groups or (1, 2))
    ][: 1 if quick_net else None]
    return [
        Case(net, mode, images, precision)
        for images, net, mode, precision in product(
            sizes, nets, arguments.mode or MODES, arguments.precision or CLASSES
        )
        if precision != "as shipped" or images == sizes[0]
    ]


def prepare(arguments: argparse.Namespace) -> Campaign:
    """Return the campaign that the command line asks for."""
    minutes = arguments.minutes or (QUICK_MINUTES if arguments.quick else float("inf"))
    until = time.monotonic() + minutes * 60
    protocol = Protocol(
        rounds=arguments.rounds,
        window=arguments.window,
        warm_up=arguments.warm_up,
        calls=arguments.calls,
    )
    path = arguments.results / "gpu.jsonl"
    return run.campaign(path, protocol, arguments.quick, arguments.only, until, arguments.thin)


def measure(arguments: argparse.Namespace) -> None:
    """Measure and save one case after the other, then the single layers."""
    campaign = prepare(arguments)
    if arguments.profile:
        from gpu import profile

        profile.run(campaign, Net(thin=arguments.thin, pixels=arguments.pixels))
        return
    if not arguments.layers_only:
        for case in cases(arguments):
            measure_case(case, campaign, arguments.again)
    if not arguments.no_layers:
        images = (arguments.images or SIZES)[0]
        nets = [case.net for case in cases(arguments)]
        layers.measure(nets[0], images, arguments.precision or ["A", "B", "C"], campaign)


def measure_case(case: Case, campaign: Campaign, again: bool) -> None:
    """Measure one case, unless it is done or time is up."""
    if not again and (result := run.measured_already(case.name, campaign)):
        print(f"{case.name}: measured already", flush=True)
        run.remember_favourites(result, campaign)
        return
    if campaign.time_is_up():
        print(f"{case.name}: not begun, the time is up", flush=True)
        return
    print(f"{case.name}: {CLASSES[case.precision]}", flush=True)
    result = run.run(case, campaign)
    run.show(result)
    run.remember_favourites(result, campaign)
    if campaign.only:
        print("  not saved, since not all took part", flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = report.parser(__doc__)
    several: dict[str, Any] = {"action": "append", "default": []}
    add = made.add_argument
    add(
        "--quick",
        action="store_true",
        help="one net, 128 images and one, PyTorch's likely best settings",
    )
    add("--minutes", type=float, help="begin nothing new after so many (--quick: 8)")
    add("--profile", action="store_true", help="only save which kernels run, and for how long")
    add("--mode", choices=MODES, **several)
    add("--images", type=int, help=f"in a batch; default: {SIZES}", **several)
    add("--precision", choices=CLASSES, **several)
    add("--groups", type=int, choices=(1, 2), help="towers", **several)
    add("--norm", choices=("on", "off"), help="response normalisation", **several)
    add("--rounds", type=int, default=5, help="turns of every contestant")
    add("--warm-up", type=int, default=10, help="steps before anything is timed")
    add("--window", type=float, default=0.05, help="seconds that are timed at once, at least")
    add("--calls", type=int, default=20, help="of a single layer's pass in a turn")
    add("--only", metavar="WORD", help="contestants with this in their names; no file", **several)
    add("--again", action="store_true", help="measure what was measured before, too")
    add("--no-layers", action="store_true", help="whole nets only")
    add("--layers-only", action="store_true", help="single layers only")
    add("--results", type=Path, default=report.RESULTS, metavar="FOLDER")
    add("--document", type=Path, default=tables.DOCUMENT, help="where the tables go")
    add("--table", action="store_true", help="rewrite the tables at the end")
    add("--table-only", action="store_true", help="rewrite them without measuring")
    add("--thin", type=int, default=1, help="to try this script: divide all widths")
    add("--pixels", type=int, default=224, help="to try this script: smaller images")
    add("--classes", type=int, default=1000, help="to try this script: fewer outputs")
    return made


def main(words: list[str] | None = None) -> None:
    """Read the command line and run."""
    arguments = parser().parse_args(words)
    if not arguments.table_only:
        measure(arguments)
    if arguments.table or arguments.table_only:
        tables.write(arguments.results, arguments.document)


if __name__ == "__main__":
    main()
