"""The tables of docs/gpu.md, from the files that bench_gpu.py wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from gpu import floors, journal, machine
from gpu.cases import CLASSES, Net
from gpu.journal import Result
from gpu.run import OURS
from gpu.timing import Times, compare
from shared import report
from shared.report import TIMES, Ratio

DOCUMENT = report.ROOT / "docs" / "gpu.md"
QUICK = "without PyTorch's search for kernels"
NOT_YET = "Not yet measured on hardware."
MODES = {"train": "training step", "infer": "inference"}
# How many times as fast as PyTorch's best setting of the same class, in the same run: batch 1, 128.
GOALS = {
    ("train", "A"): (1.0, 1.2),
    ("train", "B"): (1.0, 1.2),
    ("train", "C"): (1.0, 1.1),
    ("infer", "A"): (1.5, 1.0),
    ("infer", "B"): (1.5, 1.0),
    ("infer", "C"): (1.5, 1.0),
}
GOAL_SIZES = (1, 128)


def net_of(result: Result) -> str:
    """Return the name of the net of a result."""
    return Net(**result["case"]["net"]).name


def final(result: Result) -> dict[str, Times]:
    """Return the times of all contestants that took turns."""
    return {n: Times.of(c["turns"]) for n, c in result["contestants"].items() if "turns" in c}


def best(result: Result, ours: bool) -> str | None:
    """Return the fastest contestant of one side, None without times."""
    times = {n: t for n, t in final(result).items() if n.startswith(OURS) == ours}
    return min(times, key=lambda name: times[name].median, default=None)


def ratio(result: Result) -> Ratio | None:
    """Return the time of PyTorch's best relative to ours, within a class."""
    names = best(result, ours=True), best(result, ours=False)
    if None in names:
        return None
    ours, theirs = (result["contestants"][name]["turns"] for name in names)
    return compare(theirs, ours)


# --- whole nets -----------------------------------------------------------------------------------


def goals_table(results: Iterable[Result]) -> str:
    """Return the table of goals, and what was measured."""
    found = {_key(r): r for r in results}
    sizes = " | ".join(f"batch {size}" for size in GOAL_SIZES)
    lines = [f"| against PyTorch's best | {sizes} |", "|---" * 3 + "|"]
    for (mode, precision), goals in GOALS.items():
        cells = [
            _goal(goal, found.get((mode, "g1-lrn", size, precision)))
            for goal, size in zip(goals, GOAL_SIZES, strict=True)
        ]
        lines.append(f"| {MODES[mode]}, class {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _key(result: Result) -> tuple[str, str, int, str]:
    case = result["case"]
    return case["mode"], net_of(result), case["images"], case["precision"]


def _goal(goal: float, result: Result | None) -> str:
    wanted = f"goal: more than {goal}{TIMES}<br>"
    measured = ratio(result) if result else None
    if measured is None:
        return wanted + NOT_YET.lower().rstrip(".")
    verdict = "**met**" if measured.lowest > goal else "**missed**"
    verdict = verdict if result["complete"] else "cut short, which decides nothing"
    quick = f" ({QUICK})" if result.get("quick") else ""
    return f"{wanted}{measured}, {best(result, ours=False)}{quick}: {verdict}"


def nets_table(results: list[Result]) -> str:
    """Return a table per mode and class."""
    if not results:
        return NOT_YET
    parts = []
    for mode, what in MODES.items():
        for precision, meaning in CLASSES.items():
            chosen = [r for r in results if (_key(r)[0], _key(r)[3]) == (mode, precision)]
            if chosen:
                parts += [f"**{what}, class {precision}** ({meaning})", "", _speeds(chosen), ""]
    return "\n".join([*parts, *_feet(results)])


def _speeds(results: list[Result]) -> str:
    lines = [
        "| net | batch | contestant | ms (of the rounds) | wall | img/s | of the floor's speed "
        "| tinyalex is |",
        "|---" * 8 + "|",
    ]
    for result in results:
        images, floor = result["case"]["images"], result["floor_seconds"]
        ours = best(result, ours=True)
        for name, times in sorted(final(result).items(), key=lambda item: item[1].median):
            turns = result["contestants"][name]["turns"]
            share = f"{floor / times.median:.0%}" if floor else "-"
            against = "-"
            if ours and not name.startswith(OURS):
                against = str(compare(turns, result["contestants"][ours]["turns"]))
            lines.append(
                f"| {net_of(result)} | {images} | {name} | {times.median * 1e3:.3f} "
                f"({times.least * 1e3:.3f} .. {times.most * 1e3:.3f}) | "
                f"{Times.of(turns, 'wall').median * 1e3:.3f} | {images / times.median:,.0f} | "
                f"{share} | {against} |"
            )
    return "\n".join(lines)


def errors_table(results: list[Result]) -> str:
    """Return errors against float64, memory and switches of all contestants."""
    if not results:
        return NOT_YET
    lines = [
        "| case | contestant | result | gradient | worst gradient | update | peak | alone, ms |",
        "|---" * 8 + "|",
    ]
    for result in results:
        for name, found in result["contestants"].items():
            keys = ("result", "gradient", "worst gradient", "update")
            cells = [f"{found['errors'][k]:.1e}" if k in found["errors"] else "-" for k in keys]
            lines.append(
                f"| {'-'.join(map(str, _key(result)))} | {name} | {' | '.join(cells)} | "
                f"{found['peak_bytes'] / 2**20:.0f} MiB | {found['alone'] * 1e3:.3f} |"
            )
    failures = [
        f"{'-'.join(map(str, _key(r)))}, {n}: {why}"
        for r in results
        for n, why in r["failed"].items()
    ]
    if failures:
        lines += ["", "Did not take part:", "", *(f"- {text}" for text in failures)]
    switches = {
        f"- {name.split(' as ')[0]}, class {_key(result)[3]}: `{json.dumps(found['settings'])}`"
        for result in results
        for name, found in result["contestants"].items()
    }
    return "\n".join([*lines, "", "Switches, as read back:", "", *sorted(switches)])


# --- layers and floors ----------------------------------------------------------------------------


def layers_table(results: list[Result]) -> str:
    """Return each layer's passes: ours, PyTorch's best, floor and errors."""
    if not results:
        return NOT_YET
    parts: dict[tuple[str, int, str], list[str]] = {}
    for row in results:
        rows = parts.setdefault((row["net"], row["images"], row["cache"]), [])
        rows.append(_layer(row))
    text = []
    for (net, images, cache), rows in parts.items():
        text += [
            f"| `{net}`, {images} images, us | class | floor | tinyalex | by name "
            "| PyTorch's best | of the floor's speed | tinyalex is | off by |",
            "|---" * 9 + "|",
            *rows,
            *("", f"Caches: {cache}.", ""),
        ]
    return "\n".join([*text, *_feet(results)])


def _layer(row: Result) -> str:
    middle = {
        name: statistics.median(statistics.median(t) for t in rounds)
        for name, rounds in row["times"].items()
    }
    others = [name for name in middle if not name.startswith(OURS)]
    theirs = min(others, key=middle.__getitem__, default=None)
    named = [f"{n[len(OURS) :]} {_us(t)}" for n, t in middle.items() if n.startswith(f"{OURS} ")]
    floor = row["floor_seconds"]
    shares = [
        f"{floor / middle[name]:.0%}" if floor and name in middle else "-"
        for name in (OURS, theirs)
    ]
    speed = "-"
    if theirs and OURS in middle:
        speed = str(Ratio.of(row["times"][theirs], row["times"][OURS]))
    failed = "; ".join(f"{name}: {reason}" for name, reason in row["failed"].items())
    return (
        f"| {row['layer']} {row['part']} | {row['precision']} | {_us(floor)} | "
        f"{_us(middle.get(OURS))} | {','.join(named) or '-'} | "
        f"{_us(middle.get(theirs))} {theirs or ''} | "
        f"{' / '.join(shares)} | {speed} | "
        + ", ".join(f"{name} {error:.0e}" for name, error in row["errors"].items())
        + (f"; {failed}" if failed else "")
        + " |"
    )


def _us(seconds: float | None) -> str:
    return f"{seconds * 1e6:.1f}" if seconds is not None else "-"


def floors_table() -> str:
    """Return the floors at 128 images by an H100's data sheet."""
    net, tower = Net(), Net(groups=2)
    lines = [
        "| layer and pass | GFLOP | MB (A, B) | A, us | B, us | C, us | B, two towers |",
        "|---" * 7 + "|",
    ]
    pairs = zip(floors.works(net, 128, True), floors.works(tower, 128, True), strict=True)
    for work, other in pairs:
        times = [_us(work.seconds(floors.H100, precision)) for precision in "ABC"]
        lines.append(
            f"| {work.layer} {work.part} | {work.operations / 1e9:.1f} | "
            f"{work.bytes('B') / 1e6:.1f} | {' | '.join(times)} | "
            f"{_us(other.seconds(floors.H100, 'B'))} |"
        )
    for training, what in ((True, "**training step**"), (False, "**inference**")):
        gigaflop = sum(w.operations for w in floors.works(net, 128, training)) / 1e9
        megabytes = sum(w.bytes("B") for w in floors.works(net, 128, training)) / 1e6
        columns = ((net, "A"), (net, "B"), (net, "C"), (tower, "B"))
        times = [
            _us(floors.floor(n, 128, training, floors.H100, precision)) for n, precision in columns
        ]
        lines.append(f"| {what} | {gigaflop:.1f} | {megabytes:.0f} | {' | '.join(times)} |")
    return "\n".join(lines)


def checks_table(results: list[Result]) -> str:
    """Return the ends and last notes of gpu_quarter.py's steps."""
    notes = {r["of"]: r for r in results if "note" in r}
    ends = sorted((r for r in results if "end" in r), key=lambda r: r["at"])
    if not ends:
        return NOT_YET
    lines = ["| step | end | s | found | on |", "|---" * 5 + "|"]
    for r in ends:
        note = notes.get(r["of"])
        found = (note["note"], machine.one_line(note["facts"])) if note else ("-", "-")
        lines.append(f"| {r['of']} | {r['end']} | {r['seconds']:.0f} | {' | '.join(found)} |")
    return "\n".join(lines)


def _feet(results: list[Result]) -> list[str]:
    feet = {}
    for r in results:
        rates = machine.rates(r["ceilings"])
        clocks = f"; clock {' to '.join(map(str, r['clock']))}" if "clock" in r else ""
        quick = f"; {QUICK}" if r.get("quick") else ""
        line = f"{machine.one_line(r['facts'])}; {rates}{clocks}{quick}."
        feet.setdefault(line, None)
    return [text for line in feet for text in (line, "")][:-1]


def write(folder: Path, document: Path) -> None:
    """Write all tables into the document."""
    every = list(journal.load(folder).values())
    results = sorted((r for r in every if "case" in r), key=lambda r: r["case"]["images"])
    layers = [r for r in every if "layer" in r]
    checks = [r for r in every if "of" in r]
    tables: dict[str, Callable[[], str]] = {
        "gpu-goals": lambda: goals_table(results),
        "gpu-floors": floors_table,
        "gpu-nets": lambda: nets_table(results),
        "gpu-errors": lambda: errors_table(results),
        "gpu-layers": lambda: layers_table(layers),
        "gpu-checks": lambda: checks_table(checks),
    }
    for name, table in tables.items():
        report.replace_table(document, name, table())
