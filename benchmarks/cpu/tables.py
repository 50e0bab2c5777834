"""The tables of docs/cpu.md, from the files that bench_cpu.py wrote."""

from __future__ import annotations

import json
import statistics
from typing import Any

from cpu.cases import Case
from cpu.peers import COMPILED_TORCH, CONTESTANTS, ONE_THREAD, TINYALEX, TORCH, TUNED_TORCH
from shared import report
from shared.report import TIMES, Ratio, median

DOCUMENT = report.ROOT / "docs" / "cpu.md"
MODES = {"train": "training step", "infer": "inference"}
VARIANTS = ("paper", "torchvision")
FLOORS = ("direct", "winograd")
BATCH_SIZES = {
    "train": (32, 128),
    "infer": (1, 32, 128),
}  # what is measured by default
SIZES_BESIDE_OTHERS = {"train": (32,), "infer": (1,)}
BUSY = (1, 2)  # processes

Result = dict[str, Any]


def file_name(condition: str, case: Case) -> str:
    """Return the file name of a case's results under a condition."""
    return case.name if condition == "quiet" else case.name.replace("cpu-", f"cpu-{condition}-", 1)


def load(mode: str, variant: str) -> dict[int, Result]:
    """Return what was measured, by batch size."""
    files = report.RESULTS.glob(f"cpu-{mode}-{variant}-*.json")
    results = [json.loads(path.read_text()) for path in files]
    return {
        result["batch_size"]: result for result in sorted(results, key=lambda r: r["batch_size"])
    }


def numbers(result: Result, contestant: str, what: str) -> list[list[float]]:
    """Return a contestant's numbers: a list per round, a number per call."""
    return [run[what] for run in result["runs"][contestant]]


def rate(result: Result, contestant: str) -> float:
    """Return the images per second of the median call."""
    return result["batch_size"] / median(numbers(result, contestant, "seconds"))


def ratio(result: Result, contestant: str) -> Ratio:
    """Return the contestant's time relative to tinyalex's."""
    ours = numbers(result, TINYALEX, "seconds")
    return Ratio.of(numbers(result, contestant, "seconds"), ours)


def peak(result: Result, contestant: str) -> float:
    """Return the largest memory of the contestant in MiB."""
    return max(run["peak_bytes"] for run in result["runs"][contestant]) / 2**20


def floor_rate(result: Result, algorithm: str) -> float:
    """Return the images per second of matrix products at full speed.

    ``algorithm`` is "direct" or "winograd".
    """
    floor = result["floor"]
    per_second = floor["large_product"] / median([run["seconds"] for run in floor["runs"]])
    return result["batch_size"] * per_second / floor["operations"][algorithm]


def load_pauses(condition: str, mode: str, variant: str, size: int) -> dict[str, Result]:
    """Return what was measured under a condition other than quiet, by `_moment`."""
    result = report.load(file_name(condition, Case(mode, variant, size, 0)))
    return by_pause(result) if result else {}


def by_pause(result: Result) -> dict[str, Result]:
    """Divide a result into those of each length of pause."""
    return {
        _moment(result["busy"], int(pause)): {**result, "runs": runs}
        for pause, runs in result["pauses"].items()
    }


def _moment(busy: int, pause: int) -> str:
    when = f"after {pause} ms" if pause else "back to back"
    return f"{busy} busy, {when}" if busy else when


def table_of(result: Result) -> str:
    """Return the tables of a single case, under any condition."""
    if "pauses" in result:
        return times(by_pause(result))
    return tables({result["batch_size"]: result})


def times(results: dict[str, Result]) -> str:
    """Return a net's table in one mode, a column per pause."""
    if not results:
        return "Not measured yet."
    names = [*_measured(results), ONE_THREAD]
    first = next(iter(results.values()))
    head = f"{_what(first)}, batch {first['batch_size']}: ms (fastest .. slowest)"
    if not any(ONE_THREAD in result["runs"] for result in results.values()):
        names.remove(ONE_THREAD)
    return "\n".join([*_table(head, results, names, _time_cell), "", *_notes(results)])


def tables(by_size: dict[int, Result]) -> str:
    """Return a net's tables in one mode, a column per batch size."""
    if not by_size:
        return "Not measured yet."
    results = {f"batch {size}": result for size, result in by_size.items()}
    names = _measured(results)
    what = _what(next(iter(results.values())))
    speed = _table(f"{what}: img/s (slowest .. fastest)", results, names, _speed_cell)
    speed += [_row(f"all products at full speed, {a}", results, a, _floor_cell) for a in FLOORS]
    memory = _table(f"{what}: memory, and of one call", results, names, _memory_cell)
    return "\n".join([*speed, "", *memory, "", *_notes(results)])


def _measured(results: dict[str, Result]) -> list[str]:
    """Return the names of the measured contestants, in their usual order."""
    measured = {name for result in results.values() for name in result["runs"]}
    mode = next(iter(results.values()))["mode"]
    return [c.name for c in CONTESTANTS[mode] if c.name in measured]


def _what(result: Result) -> str:
    return f"{MODES[result['mode']]}, `{result['variant']}`"


def _notes(results: dict[str, Result]) -> list[str]:
    left_out = {f"{k}: {v}" for r in results.values() for k, v in r["left_out"].items()}
    notes = [f"Left out: {text}." for text in sorted(left_out)]
    return [*notes, *report.machines({}, results.values())]


def _table(head: str, results: dict[str, Result], names: list[str], cell: Any) -> list[str]:
    lines = [f"| {head} | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    return lines + [_row(name, results, name, cell) for name in names]


def _row(head: str, results: dict[str, Result], key: str, cell: Any) -> str:
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


def _time_cell(result: Result, name: str) -> str:
    milliseconds = [s * 1e3 for seconds in numbers(result, name, "seconds") for s in seconds]
    middle = statistics.median(milliseconds)
    text = f"{middle:.1f} ({min(milliseconds):.1f} .. {max(milliseconds):.1f})"
    if name == ONE_THREAD:
        return f"{text}<br>tinyalex takes {slowdown(result)}"
    return f"**{text}**" if name == TINYALEX else f"{text}<br>{ratio(result, name)}"


def slowdown(result: Result) -> Ratio:
    """Return tinyalex's time relative to one thread on a free core."""
    return Ratio.of(*(numbers(result, name, "seconds") for name in (TINYALEX, ONE_THREAD)))


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
    (
        "training against torch at its best",
        "train",
        "paper",
        TUNED_TORCH + COMPILED_TORCH,
        {32: 2.5, 128: 2.8},
    ),
    ("training against torch as installed", "train", "torchvision", TORCH, {32: 1.8, 128: 2.0}),
    *(
        (
            "inference against the best peer",
            "infer",
            variant,
            PREDICTORS,
            {1: one, 32: 1.5, 128: 1.8},
        )
        for variant, one in zip(VARIANTS, (1.15, 1.05), strict=True)
    ),
)
# Of the README: what, mode, and the peers of which the fastest counts.
SPEED_ROWS = (
    ("training, PyTorch as installed", "train", TORCH),
    ("training, PyTorch at its best", "train", TORCH + TUNED_TORCH + COMPILED_TORCH),
    ("inference, the best of PyTorch, ONNX Runtime and OpenVINO", "infer", PREDICTORS),
)
# What, condition, busy processes, mode, the peers, and by milliseconds of pause the same again.
MOMENTS = (0, 100, 1000)
MOMENT_GOALS = (
    ("one image, quiet", "idle", 0, "infer", PREDICTORS, {100: 1.0, 1000: 1.0}),
    ("one image, one process busy", "busy1", 1, "infer", PREDICTORS, {0: 1.0, 100: 1.0}),
    ("one image, two processes busy", "busy2", 2, "infer", PREDICTORS, {0: 1.0, 100: 1.0}),
)
TRAINING_GOAL = (
    "training step of 32 images, one process busy",
    "busy1",
    1,
    "train",
    TORCH,
    {0: 2.5},
)
SLOWDOWN_GOAL = 1.3  # of one thread on a free core, where processes are busy
MEMORY_GOAL = {32: 1.0, 128: 0.7}  # of the peak of torch, in its layout that takes the least


def goals_table() -> str:
    """Return the table of goals, measurements and verdicts."""
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
    head = " | ".join(_moment(0, pause) for pause in MOMENTS)
    lines += ["", f"| goal, against the fastest of the peers | {head} |", "|---" * 4 + "|"]
    lines += [_moment_goals(*goal, variant) for variant in VARIANTS for goal in MOMENT_GOALS]
    return "\n".join([*lines, _moment_goals(*TRAINING_GOAL, "paper")])


def speed_table() -> str:
    """Return the README's table: how many times as long a peer takes."""
    sizes = BATCH_SIZES["infer"]
    head = " | ".join(f"batch {size}" for size in sizes)
    lines, machines = [f"| | {head} |", "|---" * 4 + "|"], set()
    for variant in VARIANTS:
        for what, mode, peers in SPEED_ROWS:
            results, cells = load(mode, variant), []
            machines |= {report.one_line(result["machine"]) for result in results.values()}
            for result in map(results.get, sizes):
                found = [name for name in peers if result and name in result["runs"]]
                best = _fastest(result, found) if result and found else None
                cells.append(str(ratio(result, best)) if result and best else "-")
            lines.append(f"| `{variant}`, {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{max(machines, key=len)}."])  # with the most libraries


def _moment_goals(
    what: str, condition: str, busy: int, mode: str, peers: tuple[str, ...],
    goals: dict[int, float], variant: str,
) -> str:  # fmt: skip
    """Return the row of one condition."""
    results = load_pauses(condition, mode, variant, SIZES_BESIDE_OTHERS[mode][0])
    cells = []
    for pause in MOMENTS:
        result = results.get(_moment(busy, pause))
        cell = _speed_goal(result, peers, goals.get(pause))
        if result and pause in goals and mode == "infer" and busy:
            longer = slowdown(result).middle
            cell += f"<br>{longer:.2f}{TIMES} one thread on a free core, goal: at most "
            cell += f"{SLOWDOWN_GOAL}{TIMES}: {_verdict(longer <= SLOWDOWN_GOAL)}"
        cells.append(cell)
    return f"| {what}, `{variant}` | {' | '.join(cells)} |"


def _speed_goal(result: Result | None, peers: tuple[str, ...], goal: float | None) -> str:
    if goal is None:
        return "-"
    asked = f"goal: at least {goal}{TIMES}"
    found = [name for name in peers if result and name in result["runs"]]
    if result is None or not found:
        return f"{asked}<br>not measured"
    best = _fastest(result, found)
    measured = ratio(result, best)
    met = (1 if measured.equal else measured.middle) >= goal
    return f"{asked}<br>{measured}, {best}: {_verdict(met)}{_of_compiling(result, found)}"


def _of_compiling(result: Result, peers: list[str]) -> str:
    """Say what torch.compile changes: the ratio without it, or its own."""
    compiled = [name for name in peers if name in COMPILED_TORCH]
    others = [name for name in peers if name not in COMPILED_TORCH]
    if not compiled or not others:
        return ""
    if _fastest(result, peers) in compiled:
        best = _fastest(result, others)
        return f"<br>without torch.compile: {ratio(result, best)}, {best}"
    return f"<br>torch.compile: {ratio(result, _fastest(result, compiled))}"


def _fastest(result: Result, names: list[str]) -> str:
    return max(names, key=lambda name: rate(result, name))


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
    """Write all tables into the document, and one into the README."""
    report.replace_table(DOCUMENT, "goals", goals_table())
    report.replace_table(report.ROOT / "README.md", "speed", speed_table())
    for mode in MODES:
        for variant in VARIANTS:
            text = tables(load(mode, variant))
            report.replace_table(DOCUMENT, f"cpu-{mode}-{variant}", text)
    for variant in VARIANTS:
        report.replace_table(DOCUMENT, f"cpu-beside-{variant}", _beside_others(variant))


def _beside_others(variant: str) -> str:
    """Return the tables of a net after pauses and beside busy processes."""
    groups = [
        ("infer", ("idle",)),
        *((mode, [f"busy{n}" for n in BUSY]) for mode in ("infer", "train")),
    ]
    texts = []
    for mode, conditions in groups:
        size = SIZES_BESIDE_OTHERS[mode][0]
        found = [load_pauses(condition, mode, variant, size) for condition in conditions]
        results = {moment: result for part in found for moment, result in part.items()}
        if results or mode == "infer":
            texts.append(times(results))
    return "\n\n".join(texts)
