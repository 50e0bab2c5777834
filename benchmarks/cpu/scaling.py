"""The speed of tinyalex over the sizes of batches and images.

A part of bench_cpu.py (``--scaling``). Every turn has a new process, since all sizes together would
not fit into memory; the sizes take turns.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cpu.cases import Case, prepare
from cpu.peers import CONTESTANTS
from cpu.tables import DOCUMENT
from cpu.workers import Worker, run_alone
from shared import report
from shared.report import median

NAME = "cpu-scaling"
BATCH_SIZES = (8, 16, 31, 32, 33, 64, 127, 128, 256, 512)
IMAGE_SIZES = (160, 224, 320, 448)
IMAGES = 32  # in a batch where the image size varies
STEPS = 3


def measure(batch_sizes: list[int], rounds: int, steps: int | None) -> None:
    """Measure training over batch sizes and inference over image sizes."""
    training = [Case("train", "paper", size, 224) for size in batch_sizes or BATCH_SIZES]
    inference = [Case("infer", "torchvision", IMAGES, pixels) for pixels in IMAGE_SIZES]
    result = {
        "machine": report.machine(),
        "train": _in_turns(training, rounds, steps or STEPS),
        "infer": _in_turns(inference, rounds, steps or STEPS),
    }
    report.save(NAME, result)
    print("\n" + table(result))


def _in_turns(cases: list[Case], rounds: int, steps: int) -> list[dict[str, Any]]:
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    tinyalex = CONTESTANTS[cases[0].mode][0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_alone(prepare, cases[0], folder, ())  # the weights suit all sizes
        for turn in range(rounds):
            for case in cases:
                worker = Worker(tinyalex, case, folder)
                try:
                    worker.results(1)  # compiles and allocates
                    run = worker.measure(steps)
                finally:
                    worker.close()
                runs[case].append(run)
                rate = case.batch_size / median([run["seconds"]])
                what = f"batch {case.batch_size}, {case.pixels} pixels"
                print(f"  round {turn + 1}  {case.mode}  {what:24}{rate:8.1f} img/s", flush=True)
    return [
        {"batch_size": case.batch_size, "pixels": case.pixels, "runs": of_case}
        for case, of_case in runs.items()
    ]


def table(result: dict[str, Any]) -> str:
    """Return one table over batch sizes and one over image sizes."""
    lines = [
        "| training step, `paper`: batch | img/s (slowest .. fastest) | ms per image | memory |"
    ]
    lines.append("|---" * 4 + "|")
    for row in result["train"]:
        peak = max(run["peak_bytes"] for run in row["runs"]) / 2**20
        lines.append(
            f"| {row['batch_size']} | {_rates(row)} | {_seconds_per_image(row) * 1e3:.1f} "
            f"| {peak:.0f} MiB |"
        )
    head = f"| inference, `torchvision`, batch {IMAGES}: image |"
    lines += ["", f"{head} img/s (slowest .. fastest) | ns per pixel |", "|---" * 3 + "|"]
    for row in result["infer"]:
        pixels = row["pixels"]
        nanoseconds = _seconds_per_image(row) / pixels**2 * 1e9
        lines.append(f"| {pixels} x {pixels} | {_rates(row)} | {nanoseconds:.0f} |")
    return "\n".join([*lines, "", report.one_line(result["machine"])])


def _seconds(row: dict[str, Any]) -> list[list[float]]:
    return [run["seconds"] for run in row["runs"]]


def _seconds_per_image(row: dict[str, Any]) -> float:
    return median(_seconds(row)) / row["batch_size"]


def _rates(row: dict[str, Any]) -> str:
    calls = [second for seconds in _seconds(row) for second in seconds]
    slowest, fastest = (row["batch_size"] / limit(calls) for limit in (max, min))
    return f"{1 / _seconds_per_image(row):.1f} ({slowest:.1f} .. {fastest:.1f})"


def write() -> None:
    """Write the tables into the document, if there is a measurement."""
    if result := report.load(NAME):
        report.replace_table(DOCUMENT, NAME, table(result))
