"""The tables of docs/cpu.md, from the files that bench_cpu.py wrote."""

from __future__ import annotations

import json
import statistics
from typing import Any

import report
from peers import CONTESTANTS, TINYALEX, TORCH, TUNED_TORCH
from report import TIMES, Ratio, median

DOCUMENT = report.ROOT / "docs" / "cpu.md"
MODES = {"train": "training step", "infer": "inference"}
VARIANTS = ("paper", "torchvision")
FLOORS = ("direct", "winograd")
BATCH_SIZES = {
    "train": (32, 128),
    "infer": (1, 32, 128),
}  # what is measured by default

Result = dict[str, Any]


def load(mode: str, variant: str) -> dict[int, Result]:
    """Return what was measured, by batch size."""
    files = report.RESULTS.glob(f"cpu-{mode}-{variant}-*.json")
    results = [json.loads(path.read_text()) for path in files]
    return {
        result["batch_size"]: result for result in sorted(results, key=lambda r: r["batch_size"])
    }


def numbers(result: Result, contestant: str, what: str) -> list[list[float]]:
    """Return what a contestant measured: a list for each round, with a number for each call."""
    return [run[what] for run in result["runs"][contestant]]


def rate(result: Result, contestant: str) -> float:
    """Return the images per second of the median call."""
    return result["batch_size"] / median(numbers(result, contestant, "seconds"))


def ratio(result: Result, contestant: str) -> Ratio:
    """Return how many times as long the contestant takes as tinyalex."""
    ours = numbers(result, TINYALEX, "seconds")
    return Ratio.of(numbers(result, contestant, "seconds"), ours)


def peak(result: Result, contestant: str) -> float:
    """Return the largest memory of the contestant in MiB."""
    return max(run["peak_bytes"] for run in result["runs"][contestant]) / 2**20


def floor_rate(result: Result, algorithm: str) -> float:
    """Return the images per second if there were only matrix products, at the speed of a large one.

    ``algorithm`` is "direct" or "winograd".
    """
    floor = result["floor"]
    per_second = floor["large_product"] / median([run["seconds"] for run in floor["runs"]])
    return result["batch_size"] * per_second / floor["operations"][algorithm]


def tables(results: dict[int, Result]) -> str:
    """Return the tables of one net in one mode, with a column for each batch size."""
    if not results:
        return "Not measured yet."
    first = next(iter(results.values()))
    measured = {name for result in results.values() for name in result["runs"]}
    names = [c.name for c in CONTESTANTS[first["mode"]] if c.name in measured]
    what = f"{MODES[first['mode']]}, `{first['variant']}`"
    speed = _table(f"{what}: img/s (slowest .. fastest)", results, names, _speed_cell)
    speed += [_row(f"all products at full speed, {a}", results, a, _floor_cell) for a in FLOORS]
    memory = _table(f"{what}: memory, and of one call", results, names, _memory_cell)
    left_out = {f"{k}: {v}" for r in results.values() for k, v in r["left_out"].items()}
    notes = [f"Left out: {text}." for text in sorted(left_out)]
    notes += dict.fromkeys(report.one_line(result["machine"]) for result in results.values())
    return "\n".join([*speed, "", *memory, "", *notes])


def _table(head: str, results: dict[int, Result], names: list[str], cell: Any) -> list[str]:
    sizes = " | ".join(f"batch {size}" for size in results)
    lines = [f"| {head} | {sizes} |", "|---" * (len(results) + 1) + "|"]
    return lines + [_row(name, results, name, cell) for name in names]


def _row(head: str, results: dict[int, Result], key: str, cell: Any) -> str:
    cells = [
        cell(result, key) if key in FLOORS or key in result["runs"] else "-"
        for result in results.values()
    ]
    return f"| {head} | {' | '.join(cells)} |"


def _speed_cell(result: Result, name: str) -> str:
    calls = [s for seconds in numbers(result, name, "seconds") for s in seconds]
    size = result["batch_size"]
    text = f"{rate(result, name):.1f} ({size / max(calls):.1f} .. {size / min(calls):.1f})"
    return f"**{text}**" if name == TINYALEX else f"{text}<br>{ratio(result, name)}"


def _floor_cell(result: Result, algorithm: str) -> str:
    limit = floor_rate(result, algorithm)
    return f"{limit:.1f}<br>tinyalex reaches {rate(result, TINYALEX) / limit:.0%}"


def _memory_cell(result: Result, name: str) -> str:
    faults = statistics.median(f for run in numbers(result, name, "faults") for f in run)
    system = median(numbers(result, name, "system_seconds"))
    return (
        f"{peak(result, name):.0f} MiB<br>{faults:,.0f} page faults, {system:.2f} s in the system"
    )


# --- goals ----------------------------------------------------------------------------------------

PREDICTORS = tuple(c.name for c in CONTESTANTS["infer"] if c.name != TINYALEX)
# What, mode, variant, the peers of which the fastest counts, and by batch size how many times as
# fast tinyalex means to be.
SPEED_GOALS = (
    ("training against torch as installed", "train", "paper", TORCH, {32: 3.5, 128: 4.5}),
    ("training against tuned torch", "train", "paper", TUNED_TORCH, {32: 2.5, 128: 2.8}),
    ("training against torch as installed", "train", "torchvision", TORCH, {32: 1.8, 128: 2.0}),
    *(
        (
            "inference against the best peer",
            "infer",
            variant,
            PREDICTORS,
            {1: 1.1, 32: 1.5, 128: 1.8},
        )
        for variant in VARIANTS
    ),
)
MEMORY_GOAL = {32: 1.0, 128: 0.7}  # of the peak of torch, in its layout that takes the least


def goals_table() -> str:
    """Return the table of goals, with what was measured and whether it is enough."""
    sizes = BATCH_SIZES["infer"]
    head = " | ".join(f"batch {size}" for size in sizes)
    lines = [f"| goal, and what is measured | {head} |", "|---" * 4 + "|"]
    for what, mode, variant, peers, goals in SPEED_GOALS:
        results = load(mode, variant)
        cells = [_speed_goal(results.get(size), peers, goals.get(size)) for size in sizes]
        lines.append(f"| {what}, `{variant}` | {' | '.join(cells)} |")
    results = load("train", "paper")
    cells = [_memory_goal(results.get(size), MEMORY_GOAL.get(size)) for size in sizes]
    lines.append(f"| peak memory of training against torch, `paper` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed_goal(result: Result | None, peers: tuple[str, ...], goal: float | None) -> str:
    if goal is None:
        return "-"
    asked = f"goal: at least {goal}{TIMES}"
    found = [name for name in peers if result and name in result["runs"]]
    if result is None or not found:
        return f"{asked}<br>not measured"
    best = max(found, key=lambda name: rate(result, name))
    measured = ratio(result, best)
    text = f"{measured.middle:.2f}{TIMES} ({measured.lowest:.2f} .. {measured.highest:.2f})"
    return f"{asked}<br>{text}, {best}: {_verdict(measured.middle >= goal)}"


def _memory_goal(result: Result | None, goal: float | None) -> str:
    if goal is None:
        return "-"
    asked = f"goal: at most {goal}{TIMES}"
    found = [name for name in TORCH if result and name in result["runs"]]
    if result is None or not found:
        return f"{asked}<br>not measured"
    share = peak(result, TINYALEX) / min(peak(result, name) for name in found)
    return f"{asked}<br>{share:.2f}{TIMES}: {_verdict(share <= goal)}"


def _verdict(met: bool) -> str:
    return "**met**" if met else "**missed**"


def write() -> None:
    """Write all tables into the document."""
    for document in (DOCUMENT, report.ROOT / "README.md"):
        report.replace_table(document, "goals", goals_table())
    for mode in MODES:
        for variant in VARIANTS:
            text = tables(load(mode, variant))
            report.replace_table(DOCUMENT, f"cpu-{mode}-{variant}", text)
