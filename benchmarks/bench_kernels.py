"""CPU kernels layer by layer: NumPy, im2col, tinyalex's choice and PyTorch.

    python benchmarks/bench_kernels.py --table
    python benchmarks/bench_kernels.py --variant torchvision --batch-size 128

All calculate in this one process, in turns, on the activations of a real forward pass; each result
must agree with the reference backend's before a time counts. PyTorch has both memory layouts, and
the faster one counts. The reference backend is slow and gets few turns.

Writes benchmarks/results/kernels-VARIANT-N.json, and with --table the table in docs/cpu.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cpu.kernel_rows import Row, rows
from shared import report
from shared.report import Ratio, median

DOCUMENT = report.ROOT / "docs" / "cpu.md"
TOLERANCE = 1e-4  # of the largest value
PAUSE = 0.15  # seconds; OpenMP's threads in torch spin for up to 0.1 after their work
REFERENCE_ROUNDS = 2


def check(row: Row) -> None:
    """Stop unless all results agree with the reference backend's."""
    expected = _array(row.calls["reference"]())
    largest = np.abs(expected).max()
    for name, call in row.calls.items():
        if name == "reference" or (name.startswith("torch") and not row.comparable):
            continue
        error = np.abs(_array(call()) - expected).max() / largest
        if not error <= TOLERANCE:
            raise SystemExit(
                f"{row.layer}, {row.work}: {name} is off by {error:.1e} of the largest value, "
                f"more than {TOLERANCE:.0e}; no time counts"
            )


def _array(result: Any) -> np.ndarray:
    first = result[0] if isinstance(result, tuple) else result  # a pooling also returns its taps
    return np.array(first)


def measure(row: Row, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every call; the calls take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in row.calls}
    for turn in range(rounds):
        for name, call in row.calls.items():
            if name != "reference" or turn < REFERENCE_ROUNDS:
                time.sleep(PAUSE)
                call()  # after the others had the caches
                seconds[name].append(_time(call))
    return seconds


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result  # giving the memory back is not part of the work
    return elapsed


def table(result: dict[str, Any]) -> str:
    """Return the medians as a Markdown table, in milliseconds."""
    head = f"`{result['variant']}`, batch {result['batch_size']}, ms"
    lines = [f"| {head} | reference | im2col | tinyalex | torch | tinyalex is |", "|---" * 6 + "|"]
    for row in result["rows"]:
        seconds = row["seconds"]
        best = _best_torch(seconds)
        cells = [_milliseconds(seconds, name) for name in ("reference", "im2col", "tinyalex", best)]
        if row["algorithm"]:
            cells[2] += f" ({row['algorithm']})"
        ours = [[second] for second in seconds["tinyalex"]]
        speed = str(Ratio.of([[s] for s in seconds[best]], ours)) if best else "-"
        lines.append(f"| {row['layer']} {row['work']} | {' | '.join(cells)} | {speed} |")
    return "\n".join([*lines, "", report.one_line(result["machine"])])


def _best_torch(seconds: dict[str, list[float]]) -> str:
    names = [name for name in seconds if name.startswith("torch")]
    return min(names, key=lambda name: median([seconds[name]]), default="")


def _milliseconds(seconds: dict[str, list[float]], name: str) -> str:
    return f"{median([seconds[name]]) * 1e3:.2f}" if name in seconds else "-"


def run(variant: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Check and measure all kernels of a net."""
    measured = []
    for row in rows(variant, batch_size):
        check(row)
        seconds = measure(row, rounds)
        facts = {"layer": row.layer, "work": row.work, "algorithm": row.algorithm}
        measured.append({**facts, "seconds": seconds})
        best = {name: f"{min(times) * 1e3:.2f}" for name, times in seconds.items()}
        print(f"{row.layer} {row.work}, best ms: {best}", flush=True)
    return {
        "machine": report.machine(*(["torch"] if _best_torch(seconds) else [])),
        "variant": variant,
        "batch_size": batch_size,
        "rows": measured,
    }


def main() -> None:
    """Read the command line and run."""
    parser = report.parser(__doc__)
    parser.add_argument("--variant", choices=("paper", "torchvision"), default="paper")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--table", action="store_true", help="update the table in docs/cpu.md")
    parser.add_argument("--table-only", action="store_true", help="update it without measuring")
    arguments = parser.parse_args()
    name = f"kernels-{arguments.variant}-{arguments.batch_size}"
    if arguments.table_only:
        result = report.load(name)
    else:
        print(report.one_line(report.machine()))
        result = run(arguments.variant, arguments.batch_size, arguments.rounds)
        report.save(name, result)
    print("\n" + table(result))
    if arguments.table or arguments.table_only:
        report.replace_table(DOCUMENT, f"kernels-{arguments.variant}", table(result))


if __name__ == "__main__":
    main()
