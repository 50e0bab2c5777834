"""Training steps of a batch in shards against the whole batch.

    python benchmarks/bench_shards.py --variant torchvision --batch-size 128 --shards 8 --threads 1

With --table the result joins those of benchmarks/results/shards.json, in docs/cluster.md.

Both run in this one process on one rank, in turns, and peaks of memory are those of the library's
own blocks. With one thread it is processor time that counts, so that other processes do not matter
much; with several it is time, and the machine should be idle.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tinyalex as ta
import tinyalex.functional as F
from shared import report
from tinyalex import models, optim, threads
from tinyalex.backends import memory
from tinyalex.backends.sharded import sharded
from tinyalex.backends.shards import Part, part_of


def step_of(variant: str, count: int) -> Callable[[Part | None], None]:
    """Return a training step on random images."""
    model = models.alexnet(variant, 1000, 0.5).train()
    size = models.VARIANTS[variant].input_size
    rng = np.random.default_rng(0)
    images = np.moveaxis(rng.standard_normal((count, size, size, 3), np.float32), -1, 1)
    labels = rng.integers(0, 1000, count)
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(part: Part | None) -> None:
        optimizer.zero_grad()
        with sharded(part):
            F.cross_entropy(model(ta.Tensor(images)), ta.Tensor(labels)).backward()
        optimizer.step()

    return step


def peak_of(step: Callable[[Part | None], None], part: Part | None) -> int:
    """Return the most bytes in use at once during a step."""
    memory.empty_cache()
    step(part)
    memory.cached_bytes()  # which counts what has been given back
    return max(memory._peaks)


def main() -> None:
    """Measure, and print what came of it."""
    parser = report.parser(__doc__)
    parser.add_argument("--variant", default="torchvision", choices=models.VARIANTS)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="write docs/cluster.md's table")
    options = parser.parse_args()
    threads.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    step = step_of(options.variant, options.batch_size)
    whole, parts = None, part_of(options.batch_size, options.shards, (0, options.shards))
    peaks = [peak_of(step, part) / 1e6 for part in (whole, parts)]  # which warms up, too
    seconds: list[list[float]] = []
    for _ in range(options.rounds):
        seconds.append([])
        for part in (whole, parts):
            begin = clock()
            step(part)
            seconds[-1].append(clock() - begin)
    medians = [statistics.median(times) for times in zip(*seconds, strict=True)]
    ratios = sorted(sharded / plain for plain, sharded in seconds)
    row = {
        "variant": options.variant,
        "batch": options.batch_size,
        "shards": options.shards,
        "threads": options.threads,
        "seconds": medians,
        "peaks": peaks,
        "ratio": [statistics.median(ratios), ratios[0], ratios[-1]],
    }
    found = {"rows": [], **report.load("shards")}
    if found.get("machine") != report.machine():  # of another machine, day or version
        found = {"rows": [], "machine": report.machine()}
    rows = {key(old): old for old in [*found["rows"], row]}
    found["rows"] = list(rows.values())
    print(table(found if options.table else {**found, "rows": [row]}))
    if options.table:
        report.save("shards", found)
        report.replace_table(report.ROOT / "docs" / "cluster.md", "shards", table(found))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells one measurement from another."""
    return row["variant"], row["batch"], row["shards"], row["threads"]


def table(found: dict[str, Any]) -> str:
    """Return a table in Markdown."""
    lines = [
        "| variant, batch, threads | whole | in shards | ratio (lowest .. highest) |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        whole, parts = (
            f"{seconds:.2f} s, {peak:.0f} MB"
            for seconds, peak in zip(row["seconds"], row["peaks"], strict=True)
        )
        middle, lowest, highest = row["ratio"]
        lines.append(
            f"| {row['variant']}, {row['batch']}, {row['threads']} | {whole} | "
            f"{row['shards']}: {parts} | {middle:.3f} ({lowest:.3f} .. {highest:.3f}) |"
        )
    return "\n".join([*lines, "", report.one_line(found["machine"])])


if __name__ == "__main__":
    main()
