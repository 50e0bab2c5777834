"""The same work with one idea of the CPU backend switched off.

    python benchmarks/bench_ideas.py --table

All variants run in one process and take turns, so that a slow minute of the machine hits all of
them. Writes benchmarks/results/ideas.json, and with --table the table in docs/cpu.md.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from numba import njit

import tinyalex as ta
import tinyalex.functional as F
from shared import report
from tinyalex.backends import memory
from tinyalex.backends.cpu.conv import choose, winograd
from tinyalex.backends.cpu.gemm import gemm
from tinyalex.backends.cpu.microkernel import WIDTH, View, multiply
from tinyalex.nn import fusion

TILES, CHANNELS, KERNELS, POINTS = 49, 256, 384, 36  # a task of conv3 of `paper`


def _without(*names: str) -> Any:
    kept = [row for row in choose.ALGORITHMS if row[0].__name__.rpartition(".")[2] not in names]
    return mock.patch.object(choose, "ALGORITHMS", tuple(kept))


@contextlib.contextmanager
def _fresh_memory() -> Iterator[None]:
    with mock.patch.object(memory, "_take", memory._allocate):
        memory.empty_cache()
        yield


IDEAS: dict[str, Callable[[], Any]] = {
    "everything": contextlib.nullcontext,
    "no memory kept between steps": _fresh_memory,
    "no passes fused": lambda: mock.patch.object(fusion, "RUNS", ()),
    "no space to depth: conv1 by im2col": lambda: _without("strided"),
    "no Winograd at all: im2col and BLAS": lambda: _without("strided", "winograd"),
    "nothing kept of unchanged weights": lambda: mock.patch.object(
        winograd, "reuse", lambda weight, name, make: make()
    ),
}


def cases(variant: str) -> dict[str, Callable[[], None]]:
    """Return a training step, and predictions of one image and of many."""
    rng = np.random.default_rng(0)
    ta.manual_seed(0)
    model = ta.models.alexnet(variant)
    optimizer = ta.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)
    images = {n: ta.Tensor(rng.standard_normal((n, 3, 224, 224), np.float32)) for n in (1, 32)}
    labels = rng.integers(0, 1000, 32)

    def train() -> None:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(images[32]), labels).backward()
        optimizer.step()

    def predict(size: int) -> None:
        model.eval()
        with ta.no_grad():
            model(images[size])

    return {
        "training step, batch 32": train,
        "inference, batch 32": lambda: predict(32),
        "inference, batch 1": lambda: predict(1),
    }


def products() -> dict[str, Callable[[], None]]:
    """Return the products of one conv3 task, by register tiles and BLAS."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((POINTS, TILES + 16, CHANNELS), np.float32)
    right = rng.standard_normal((POINTS, CHANNELS, KERNELS), np.float32)
    panels = right.reshape(POINTS, CHANNELS, -1, WIDTH).transpose(0, 2, 1, 3).copy()
    result = np.empty((POINTS, TILES + 16, KERNELS), np.float32)

    @njit(nogil=True)
    def by_tiles(left: Any, panels: Any, result: Any) -> None:
        for k in range(POINTS):
            a = View(left, k * (TILES + 16) * CHANNELS, CHANNELS, 1)
            b = View(panels, k * CHANNELS * KERNELS, WIDTH, CHANNELS * WIDTH)
            c = View(result, k * (TILES + 16) * KERNELS, KERNELS, 1)
            multiply(a, b, c, TILES, KERNELS, CHANNELS, False)

    @njit(nogil=True)
    def by_blas(left: Any, right: Any, result: Any) -> None:
        for k in range(POINTS):
            gemm(left[k, :TILES], right[k], result[k, :TILES], False, False, False)

    by_tiles(left, panels, result)
    expected = left[:, :TILES] @ right
    np.testing.assert_allclose(result[:, :TILES], expected, atol=1e-3)
    return {
        "register tiles": lambda: by_tiles(left, panels, result),
        "BLAS": lambda: by_blas(left, right, result),
    }


def measure(rounds: int, variant: str) -> dict[str, Any]:
    """Return the seconds of every call: case -> idea -> list."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for case, run in cases(variant).items():
        calls = 20 if case.endswith("batch 1") else 3
        seconds[case] = {name: [] for name in IDEAS}
        for _ in range(rounds):
            for name, switch in IDEAS.items():
                with switch():
                    run()
                    run()  # what is kept of weights is kept from the second time on
                    seconds[case][name] += _times(run, calls)
        print(case, {name: f"{np.median(s):.4f} s" for name, s in seconds[case].items()})
    pair = products()
    multiplied: dict[str, list[float]] = {name: [] for name in pair}
    for _ in range(rounds):
        for name, run in pair.items():
            run()
            multiplied[name] += _times(run, 20)
    return {
        "machine": report.machine(),
        "variant": variant,
        "seconds": seconds,
        "products": multiplied,
    }


def _times(run: Callable[[], None], calls: int) -> list[float]:
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def table(result: dict[str, Any]) -> str:
    """Return how many times as long the work takes without each idea."""
    cases = list(result["seconds"])
    lines = [
        f"| `{result['variant']}` | " + " | ".join(cases) + " |",
        "|---" * (1 + len(cases)) + "|",
    ]
    for name in IDEAS:
        cells = []
        for case in cases:
            own, all_in = result["seconds"][case][name], result["seconds"][case]["everything"]
            ratio = np.median(own) / np.median(all_in)
            low, high = (np.percentile(own, q) / np.median(all_in) for q in (10, 90))
            cells.append(
                f"{np.median(own) * 1000:.0f} ms"
                if name == "everything"
                else f"{ratio:.2f}{report.TIMES} ({low:.2f} .. {high:.2f})"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    operations = 2 * POINTS * TILES * CHANNELS * KERNELS
    speeds = {
        name: f"{operations / np.median(seconds) / 1e9:.0f}"
        for name, seconds in result["products"].items()
    }
    sentence = (
        f"The products of one task of conv3 on one core: {speeds['register tiles']} billion "
        f"operations a second by register tiles, {speeds['BLAS']} by BLAS."
    )
    return "\n".join([*lines, "", sentence, "", report.one_line(result["machine"])])


def main() -> None:
    """Read the command line and run."""
    parser = report.parser(__doc__)
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="update docs/cpu.md")
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.variant)
    report.publish("ideas", result, table(result), arguments.table)


if __name__ == "__main__":
    main()
