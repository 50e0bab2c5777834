"""Ladder of the CUDA kernels: each version's idea, registers, error and time.

    python benchmarks/kernel_ladder.py --table              # into kernels/README.md; needs no GPU
    python benchmarks/kernel_ladder.py --measure --table    # on a GPU, the times as well

Errors are measured by executing the kernels on the CPU (tests/simt), registers and spills are
those of NVRTC and ptxas for sm_90. Times are of an H100 or the like, from gpu-ladder.json.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import gpu_arithmetic
from gpu.cases import distance
from gpu.floors import Work
from gpu.layer_rows import double
from shared import report
from tinyalex.backends import cpu
from tinyalex.backends.cuda.conv.tiles import L2_BYTES
from tinyalex.backends.geometry import (
    ConvOptions,
    NormOptions,
    PoolOptions,
    pool_output_size,
)

sys.path += [str(report.ROOT / "tests"), str(report.ROOT / "tests/support")]
from simt import resources, standin  # the real cupy is imported first, for its NVRTC

DOCUMENT = report.ROOT / "kernels" / "README.md"
NAME, MARK = "gpu-ladder", "kernel-ladder"
LRN, WINDOW = NormOptions(5, 5e-4, 0.75, 2.0), PoolOptions((3, 3), (2, 2))
SMALL = {"images": (2, 16, 9, 9), "filters": 32, "groups": 2, "rows": (2, 144, 24)}
# The paper's conv3, and its fc6 on one image.
FULL = {"images": (128, 256, 13, 13), "filters": 384, "groups": 1, "rows": (1, 9216, 4096)}
SMALL_TEXT = (
    "2 images of 9 x 9 pixels with 16 channels, 32 filters of 3 x 3 in two groups, and a linear "
    "layer of 144 inputs and 24 outputs"
)
FULL_TEXT = (
    "128 images of 13 x 13 pixels with 256 channels, 384 filters of 3 x 3: conv3; a linear layer: "
    "fc6, one image"
)
HEAD = "| kernel | idea | off by | registers | spilled | shared | time | of the floor's speed |"
# Bytes per second of an H100's L2 cache, an estimate.
L2_RATE = L2_BYTES * gpu_arithmetic.MULTIPROCESSORS * gpu_arithmetic.CLOCK


def arguments(kernel: str, sizes: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of an operation: normal numbers, float32."""
    rng = np.random.default_rng(2012)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    x, filters, groups = normal(*sizes["images"]), sizes["filters"], sizes["groups"]
    N, C, H, W = x.shape
    weight = normal(filters, C // groups, 3, 3)
    convolution = ConvOptions(padding=((1, 1), (1, 1)), groups=groups)
    small = pool_output_size((H, W), WINDOW)
    within = NormOptions(5, 1e-3, 0.75, 1.0)
    pooled = normal(N, C, *small)
    rows, inputs, outputs = sizes["rows"]
    taps = cpu.max_pool2d(x, WINDOW, small)[1]
    return {
        "conv2d": (x, weight, normal(filters), convolution),
        "conv2d_input_grad": (normal(N, filters, H, W), weight, x.shape, convolution),
        "conv2d_weight_grad": (normal(N, filters, H, W), x, weight.shape, convolution),
        "conv2d_bias_grad": (x,),
        "local_response_norm": (x, LRN),
        "local_response_norm_input_grad": (normal(*x.shape), x, LRN),
        "max_pool2d": (x, WINDOW, small),
        "max_pool2d_input_grad": (pooled, taps, x.shape, WINDOW),
        "norm_max_pool2d": (x, LRN, WINDOW, small),
        "norm_max_pool2d_input_grad": (pooled, taps, x, LRN, WINDOW),
        "within_channel_response_norm": (x, within),
        "within_channel_response_norm_input_grad": (normal(*x.shape), x, within),
        "linear": (normal(rows, inputs), normal(outputs, inputs), normal(outputs)),
        "relu": (x,),
        "relu_input_grad": (normal(*x.shape), x),
    }[kernel]


def exact(kernel: str, values: tuple[Any, ...]) -> np.ndarray:
    """Return the result in float64."""
    return np.asarray(_first(getattr(cpu, kernel)(*map(double, values))))


def _first(result: Any) -> Any:
    """Return the result itself, without the taps of a pooling."""
    return result[0] if isinstance(result, tuple) else result


def work(kernel: str, values: tuple[Any, ...], result: np.ndarray) -> Work:
    """Return what the operation must move and multiply."""
    arrays = [a for a in values if isinstance(a, np.ndarray)]
    taps = sum(a.size for a in arrays if a.dtype == np.uint8)
    taps += result.size if kernel in ("max_pool2d", "norm_max_pool2d") else 0
    numbers = sum(a.size for a in arrays if a.dtype == np.float32) + result.size
    operations = 0.0
    if kernel.startswith("conv2d") and kernel != "conv2d_bias_grad":
        # Each number of x, or of the output's gradient, meets nine taps of all on the other side.
        others = FULL["filters"] if kernel == "conv2d" else FULL["images"][1]
        operations = 2.0 * 9 * others * values[0].size
    return Work(kernel, "", operations, numbers, taps)


@contextmanager
def played() -> Iterator[None]:
    """Let the stand-in play the GPU, and put back what was there."""
    names = standin.modules()
    before = {name: sys.modules.get(name) for name in names}
    standin.install()
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def errors() -> dict[str, float]:
    """Return each version's error against float64, by its first entry.

    Which of a version's entries runs is its own choice; all of them compute the same way.
    """
    from gpu import layers
    from gpu.rungs import RUNGS

    found = {}
    for rung in RUNGS:
        if rung.call is not None:
            values = arguments(rung.kernel, SMALL)
            got = rung.call(*map(layers.placed, values))
            found[rung.entries[0]] = distance(layers.host(_first(got)), exact(rung.kernel, values))
    return found


def usage() -> dict[str, resources.Usage]:
    """Return registers and memory of every entry on sm_90."""
    return {u.entry: u for u in resources.all_usage() if u.architecture.startswith("sm_90")}


def measure(folder: Path, rounds: int) -> None:
    """Time every version on the GPU with cold caches, and save."""
    from gpu import layers, machine
    from gpu.rungs import RUNGS

    facts = machine.facts()
    ceilings = machine.ceilings()
    result: dict[str, Any] = {
        "facts": facts,
        "ceilings": asdict(ceilings),
        "rungs": {},
    }
    flush = machine.cupy().empty(layers.FLUSHED // 4, np.float32)
    for rung in RUNGS:
        if rung.call is None:
            continue
        try:
            values = arguments(rung.kernel, FULL)
            placed = [layers.placed(v) for v in values]
            expected = exact(rung.kernel, values)
            times = [
                layers.cold(lambda r=rung, p=placed: r.call(*p), flush, 10) for _ in range(rounds)
            ]
            off = distance(layers.host(_first(rung.call(*placed))), expected)
            floor = work(rung.kernel, values, expected).seconds(ceilings, rung.precision)
            found = {"times": times, "off": off, "floor_seconds": floor}
        except Exception as error:  # a version that fails does not hide the others
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        result["rungs"][rung.entries[0]] = found
        report.save(NAME, result, folder)
        print(f"{rung.entries[0]}: {_time(found)}", flush=True)


def _middle(found: dict[str, Any]) -> float:
    return statistics.median(statistics.median(times) for times in found["times"])


def _time(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not yet measured on hardware | -"
    if "failed" in found:
        return f"{found['failed']} | -"
    share = f"{found['floor_seconds'] / _middle(found):.0%}" if found["floor_seconds"] else "-"
    return f"{_middle(found) * 1e6:.1f} us | {share}"


def names_of(rung: Any) -> str:
    """Return the names of a version's entries, what they share written once."""
    sizes = re.compile(r", (\d+), (\d+)")
    if found := [sizes.search(entry) for entry in rung.entries if "," in entry]:
        tiles = dict.fromkeys(f"{each[1]} x {each[2]}" for each in found if each)
        return f"`{sizes.sub(', M, N', rung.entries[0], 1)}` ({', '.join(tiles)})"
    names = dict.fromkeys(re.sub(r"<\w+>", "<T>", entry) for entry in rung.entries)
    kinds = dict.fromkeys(re.findall(r"<(\w+)>", " ".join(rung.entries)))
    return ", ".join(f"`{name}`" for name in names) + f" ({', '.join(kinds)})" * bool(kinds)


def table(folder: Path) -> str:
    """Return the ladder, family by family."""
    used = usage()
    with played():
        from gpu.rungs import FAMILIES

        off = errors()
    measured = report.load(NAME, folder) or {"rungs": {}}
    lines = []
    for family, rungs in FAMILIES.items():
        numbered = bool(rungs[0].number)
        head = "| rung | flop per byte of L2 " * numbered + HEAD
        lines += [f"**{family}**", "", head, "|---" * (8 + 2 * numbered) + "|"]
        for rung in rungs:
            entry = rung.entries[0]
            takes = used[entry]
            error = f"{off[entry]:.0e}" if entry in off else "-"
            time = _time(measured["rungs"].get(entry)) if rung.call else "- | -"
            ratios = " to ".join(f"{ratio:.3g}" for ratio in rung.flop_per_byte())
            place = f"| {rung.number} | {ratios} " * numbered
            lines.append(
                f"{place}| [{rung.file}]({rung.file}): {names_of(rung)} | {rung.idea} | {error} | "
                f"{takes.registers} | {takes.spills} | {takes.shared} | {time} |"
            )
        lines.append("")
    bound = 32 * L2_RATE / 1e12
    lines.append(
        f"Flop per byte of L2: a block reads M + N numbers for M x N multiply-adds. At 32 and "
        f"{L2_RATE / 1e12:.2f} TB/s, an estimate of an H100's L2 cache, that bounds the speed at "
        f"{bound:.0f} TFLOP/s, whatever multiplies: larger tiles are the way up. Off by: "
        f"||y - y64|| / ||y64||, executed on the CPU on {SMALL_TEXT}. Registers per "
        f"thread, bytes spilled and bytes of static shared memory: ptxas for sm_90 "
        f"(rungs 6 and 7: sm_90a), of the kernel named first. Times: {FULL_TEXT}, with cold caches"
    )
    if "facts" in measured:
        from gpu import machine

        lines[-1] += f"; {machine.one_line(measured['facts'])}."
    else:
        lines[-1] += ", when they are measured."
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    """Read the command line and run."""
    parser = report.parser(__doc__)
    parser.add_argument("--measure", action="store_true", help="time every version on this GPU")
    parser.add_argument("--table", action="store_true", help="rewrite the ladder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=report.RESULTS, metavar="FOLDER")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    arguments = parser.parse_args(words)
    if arguments.measure:
        measure(arguments.results, arguments.rounds)
    if arguments.table:
        report.replace_table(arguments.document, MARK, table(arguments.results))


if __name__ == "__main__":
    main()
