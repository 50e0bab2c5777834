"""Whole nets on the CPU against PyTorch, ONNX Runtime and OpenVINO.

    python benchmarks/bench_cpu.py --table             # everything: an hour on two cores
    python benchmarks/bench_cpu.py --mode train --variant paper --batch-size 128 --rounds 5
    python benchmarks/bench_cpu.py --idle --busy 1     # one image after pauses, and not alone
    python benchmarks/bench_cpu.py --against ../before # another checkout's tinyalex takes turns
    python benchmarks/bench_cpu.py --scaling --table   # tinyalex alone, over batch and image size
    python benchmarks/bench_cpu.py --table-only        # from the files of earlier runs

Every contestant has a process of its own, and they take turns (A B A B ...), so that a slow minute
of the machine hits all of them; meanwhile the others are stopped. All have the same weights and the
same batch, and their losses or logits must agree before a time counts. A large matrix product takes
its turn with them: it says what the machine could do in that very minute.

Besides back to back on a quiet machine (--quiet), calls come after pauses (--idle), and while N
processes loop without end (--busy N); without these options, under all conditions that the tables
have. Compiling is done before the first call that is timed.

Writes benchmarks/results/cpu-[idle-|busyN-]MODE-VARIANT-N.json, and with --table the tables and the
chart of docs/cpu.md. A peer that is not installed or fails is left out and named.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cpu import chart, gemm_floor, scaling, tables
from cpu.cases import QUIET, Case, Condition, busy, idle, prepare
from cpu.peers import (
    CONTESTANTS,
    LARGE_PRODUCT,
    ON_A_FREE_CORE,
    ONE_THREAD,
    TINYALEX,
    Contestant,
    checkout,
)
from cpu.workers import (
    ContestantError,
    Worker,
    busy_processes,
    run_alone,
    stop_cleanly_on_sigterm,
)
from shared import report

PIXELS = 224  # of both variants
FIRST_STEPS = 3  # whose losses must agree
# Of the largest value. Every step of training amplifies the rounding of the one before.
LOSS_TOLERANCE, LOGIT_TOLERANCE = 1e-3, 1e-4
PRODUCTS = 5  # large matrix products a turn
PROCESS_MIB = {"train": 1100, "infer": 700}  # about: libraries, weights, gradients and velocities
IMAGE_SHARE = {"paper": 1.0, "torchvision": 0.4}  # about, of a contestant's `mib_per_image`


def compare(
    case: Case, conditions: list[Condition], rounds: int, steps: int | None, only: list[str]
) -> dict[Condition, dict[str, Any]]:
    """Measure all contestants in turns, under each condition."""
    contestants, left_out = choose(case, only)
    extra = [LARGE_PRODUCT] if QUIET in conditions else []
    extra += [ON_A_FREE_CORE] if any(condition.busy for condition in conditions) else []
    left_out |= too_large(case, contestants)
    contestants = [c for c in contestants if c.name not in left_out]
    libraries = dict.fromkeys(library for c in contestants for library in c.needs)
    steps = steps or max(2 if case.batch_size > 32 else 3, 32 // case.batch_size)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        operations = run_alone(prepare, case, folder, libraries)
        workers = []
        for contestant in (*contestants, *extra):
            try:
                worker = Worker(contestant, case, folder)
            except ContestantError as error:
                if contestant.name in (TINYALEX, ONE_THREAD):
                    raise SystemExit(f"{contestant.name}: {error}") from None
                left_out[contestant.name] = str(error)
                print(f"  without {contestant.name}: {error}", flush=True)
                continue
            stack.callback(worker.close)
            workers.append(worker)
            print(f"  {worker.name}: {worker.settings}", flush=True)
        check_agreement(case, [w for w in workers if w.name != LARGE_PRODUCT.name])
        measured = {
            condition: take_turns(case, workers, condition, rounds, steps)
            for condition in conditions
        }
    common = {
        "machine": report.machine(*libraries),
        "mode": case.mode,
        "variant": case.variant,
        "batch_size": case.batch_size,
        "pixels": case.pixels,
        "settings": {worker.name: worker.settings for worker in workers},
        "left_out": left_out,
    }
    results: dict[Condition, dict[str, Any]] = {}
    for condition, runs in measured.items():
        if condition == QUIET:
            floor = {
                "operations": operations,
                "large_product": gemm_floor.SIZE_OPERATIONS,
                "runs": runs[0].pop(LARGE_PRODUCT.name),
            }
            results[condition] = {**common, "floor": floor, "runs": runs[0]}
        else:
            results[condition] = {
                **common,
                "busy": condition.busy,
                "pauses": {str(pause): of_pause for pause, of_pause in runs.items()},
            }
    return results


def choose(case: Case, only: list[str]) -> tuple[list[Contestant], dict[str, str]]:
    """Return the contestants, and why each other peer is left out."""
    contestants = [c for c in CONTESTANTS[case.mode] if not only or c.name in (*only, TINYALEX)]
    left_out = {
        c.name: f"{' and '.join(c.missing())} not installed" for c in contestants if c.missing()
    }
    for name, reason in left_out.items():
        print(f"  without {name}: {reason}")
    return [c for c in contestants if c.name not in left_out], left_out


def too_large(case: Case, contestants: list[Contestant]) -> dict[str, str]:
    """Return the contestants that do not fit into memory, with the reason.

    All processes stay alive until the end, so together they need the memory of all.
    """
    found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    images = case.batch_size * IMAGE_SHARE[case.variant]
    left, reasons = int(found.group(1)) / 1024 if found else math.inf, {}
    for contestant in contestants:
        left -= PROCESS_MIB[case.mode] + contestant.mib_per_image * images
        if left < 0:
            if contestant.name == TINYALEX:
                raise SystemExit(
                    f"{case.name}: tinyalex alone needs {-left / 1024:.1f} GiB more memory than "
                    "there is: end other programs, or take a smaller --batch-size"
                )
            reasons[contestant.name] = "the memory does not suffice for it beside the others"
            print(f"  without {contestant.name}: {reasons[contestant.name]}", flush=True)
    return reasons


def check_agreement(case: Case, workers: list[Worker]) -> None:
    """Stop unless all contestants calculate the same losses, or the same logits."""
    expected = None
    for worker in workers:
        # The first calls also compile, allocate and warm the caches.
        got = np.array(worker.results(FIRST_STEPS if case.training else 1), np.float64)
        expected = got if expected is None else expected
        error = np.abs(got - expected) / np.abs(expected).max()
        worst = np.unravel_index(np.argmax(error), error.shape)
        if not error[worst] <= (LOSS_TOLERANCE if case.training else LOGIT_TOLERANCE):
            raise SystemExit(
                f"{case.name}: {worker.name} calculates {got[worst]:.7g} where {workers[0].name} "
                f"calculates {expected[worst]:.7g}; no time counts"
            )


def take_turns(
    case: Case, workers: list[Worker], condition: Condition, rounds: int, steps: int
) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Return the measurements per pause and worker, one per round."""
    # Some take their turn before the busy processes begin: they tell of the machine.
    of_machine = (LARGE_PRODUCT.name, ONE_THREAD)
    first = [w for w in workers if w.name == of_machine[condition.busy > 0] and condition != idle()]
    others = [w for w in workers if w.name not in of_machine]
    runs: dict[int, dict[str, list[dict[str, Any]]]] = {
        pause: {worker.name: [] for worker in (*others, *first)} for pause in condition.pauses
    }

    def measure(turn: int, worker: Worker, pause: int) -> None:
        is_product = worker.name == LARGE_PRODUCT.name
        calls = min(steps, max(3, 1000 // pause)) if pause else steps
        run = worker.measure(PRODUCTS if is_product else calls, pause)
        runs[pause][worker.name].append(run)
        seconds = float(np.median(run["seconds"]))
        speed = f"{seconds * 1e3:8.1f} ms {case.batch_size / seconds:8.1f} img/s"
        if is_product:
            speed = f"{gemm_floor.SIZE_OPERATIONS / seconds / 1e9:8.1f} GFLOP/s"
        print(
            f"  round {turn + 1}  {condition.name} {pause:4} ms  {worker.name:30}{speed}",
            flush=True,
        )

    for turn in range(rounds):
        for pause in condition.pauses:
            for worker in first:
                measure(turn, worker, pause)
            with busy_processes(condition.busy):
                for worker in others:
                    measure(turn, worker, pause)
    return runs


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases that were asked for, or all."""
    all_sizes = arguments.quiet or not (arguments.idle or arguments.busy)
    sizes = tables.BATCH_SIZES if all_sizes else tables.SIZES_BESIDE_OTHERS
    return [
        Case(mode, variant, size, PIXELS)
        for mode in arguments.mode or (tables.MODES if all_sizes else ("infer",))
        for variant in arguments.variant or tables.VARIANTS
        for size in arguments.batch_size or sizes[mode]
    ]


def conditions(arguments: argparse.Namespace, case: Case) -> list[Condition]:
    """Return the conditions asked for, by default those of the tables."""
    asked = [QUIET] if arguments.quiet else []
    asked += [idle()] if arguments.idle else []
    asked += [busy(processes, case.training) for processes in arguments.busy]
    if asked:
        return asked
    if case.name == "cpu-train-paper-32":
        return [QUIET, busy(1, training=True)]
    if case.batch_size in tables.SIZES_BESIDE_OTHERS[case.mode] and not case.training:
        return [QUIET, idle(), *(busy(n, training=False) for n in tables.BUSY)]
    return [QUIET]


def measure_cases(arguments: argparse.Namespace) -> None:
    """Measure and save one case after the other."""
    for case in cases(arguments):
        print(f"{case.name}, {report.one_line(report.machine())}", flush=True)
        asked = conditions(arguments, case)
        results = compare(case, asked, arguments.rounds, arguments.steps, arguments.only)
        for condition, result in results.items():
            text = tables.table_of(result)
            print("\n" + text.replace("<br>", "; ") + "\n", flush=True)
            if not arguments.only:
                report.save(tables.file_name(condition.name, case), result)
    if arguments.only:
        print("not saved, since not all took part\n", flush=True)


def main() -> None:
    """Read the command line and run."""
    parser = report.parser(__doc__)
    several: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--mode", choices=tables.MODES, **several)
    parser.add_argument("--variant", choices=tables.VARIANTS, **several)
    parser.add_argument("--batch-size", type=int, **several)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contestant")
    parser.add_argument("--steps", type=int, help="timed calls per turn (default: 2 to 32)")
    names = sorted({c.name for group in CONTESTANTS.values() for c in group})
    parser.add_argument(
        "--only", choices=names, metavar="PEER", help=f"a quick look: {', '.join(names)}", **several
    )
    parser.add_argument(
        "--busy", type=int, metavar="N", help="beside N processes that are always busy", **several
    )
    parser.add_argument("--quiet", action="store_true", help="back to back, with nothing beside")
    parser.add_argument("--idle", action="store_true", help="single predictions after pauses")
    parser.add_argument("--against", metavar="CHECKOUT", help="beside the tinyalex in CHECKOUT")
    parser.add_argument("--scaling", action="store_true", help="tinyalex over batch and image size")
    parser.add_argument("--table", action="store_true", help="rewrite docs/cpu.md at the end")
    parser.add_argument("--table-only", action="store_true", help="rewrite it without measuring")
    arguments = parser.parse_args()
    stop_cleanly_on_sigterm()
    if arguments.against:
        before = checkout(arguments.against)
        CONTESTANTS.update({mode: (*group, before) for mode, group in CONTESTANTS.items()})
        arguments.only = [*arguments.only, before.name]
    if arguments.scaling and not arguments.table_only:
        scaling.measure(arguments.batch_size, arguments.rounds, arguments.steps)
    elif not arguments.table_only:
        # For all cases: what torch.compile finds out of the machine takes it half a minute.
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            measure_cases(arguments)
    if arguments.table or arguments.table_only:
        tables.write()
        scaling.write()
        chart.draw()


if __name__ == "__main__":
    main()
