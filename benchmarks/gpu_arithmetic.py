"""Time of a step and a prediction on an H200, by arithmetic.

    python benchmarks/gpu_arithmetic.py            # print it
    python benchmarks/gpu_arithmetic.py --table    # and write it into docs/gpu.md

Nothing here is measured, and no GPU is needed. A pass on tensor cores takes what `tiles.estimate`
says of the tile and the splits that `tiles.plan` chooses, or its bytes from memory, if they take
longer; all else takes its bytes from memory; and each launch takes `GAP` more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from gpu import floors, tables
from gpu.cases import Case, Net
from gpu.contestant_tinyalex import WORDS
from gpu.floors import FORWARD, INPUT, WEIGHT, Step
from shared import report
from tinyalex import nn
from tinyalex.backends.cuda.bias_grad import ranges
from tinyalex.backends.cuda.conv import tiles
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import IMAGES, MMA_SYNC, WGMMA, Kernels, Pass, Plan, Wgmma
from tinyalex.backends.cuda.linear import FEW
from tinyalex.backends.geometry import ConvOptions
from tinyalex.backends.layout import in_fours

MULTIPROCESSORS, MOST_SHARED = 132, 227 << 10  # of an H200
CLOCK = 1.755e9  # cycles per second
BANDWIDTH = 4.3e12  # bytes per second of a large copy
GAP = 2e-6  # seconds from a kernel's end to the next one's full rate, in a CUDA graph
# PyTorch's milliseconds at its best setting, from experience with such GPUs, not measured either.
PYTORCH = {
    ("train", "A"): (17.0, 20.0),
    ("train", "B"): (5.2, 5.2),
    ("train", "C"): (3.2, 3.9),
    ("infer", "A"): (0.19, 0.22),
    ("infer", "B"): (0.19, 0.22),
    ("infer", "C"): (0.15, 0.18),
}
GPU = MULTIPROCESSORS, MOST_SHARED
PARTS: dict[str, Pass] = {FORWARD: "forward", INPUT: "input_grad", WEIGHT: "weight_grad"}


@dataclass(frozen=True)
class Line:
    """Costs of one pass in one class, with more of tensor cores."""

    name: str
    operations: float
    memory: float  # bytes
    launches: int
    cycles: float = 0.0
    cache: float = 0.0  # bytes through the L2 cache
    kernels: Kernels | None = None
    plan: Plan | None = None
    waves: float = 0.0

    @property
    def seconds(self) -> float:
        """Return the time with all launches."""
        return max(self.cycles / CLOCK, self.memory / BANDWIDTH) + self.launches * GAP

    def cell(self) -> str:
        """Return what a table says of it beside flop and memory."""
        took = f"{self.seconds * 1e6:.0f} us"
        if self.plan is None:
            return took
        (rows, columns), splits = self.plan[:2]
        kind = "wgmma " if isinstance(self.kernels, Wgmma) else ""
        parts = f" / {splits}" if splits > 1 else ""
        fill = self.waves / math.ceil(self.waves)
        return (
            f"{kind}{rows} x {columns}{parts}, {self.cache / 1e6:.0f} MB, {self.waves:.2f} waves "
            f"({fill:.0%}), {took}"
        )


def lines(case: Case) -> Iterator[Line]:
    """Yield all passes of a step or a prediction."""
    net, images, precision = case.net, case.images, case.precision
    steps, halves = _steps(net, images), precision == "C" and images > FEW  # bfloat16 in memory
    size = 2 if halves else 4
    for work in floors.works(net, images, case.training):
        name, step = f"{work.layer} {work.part}", steps.get(work.layer)
        moved = work.bytes("C" if halves and work.layer != "loss" else "B")
        if halves and work.part == WEIGHT:
            moved += 2 * step.layer.weight.size  # the gradient is float32
        plain = name, work.operations, moved
        if step is None or not isinstance(step.layer, floors.WEIGHTED):
            # A loss narrows its labels, has a kernel for rows and one for their sum; the gradient
            # begins as 1, and has a kernel.
            yield Line(*plain, 5 if work.layer == "loss" else 1)
        elif isinstance(step.layer, nn.Linear) and images <= FEW and work.part == FORWARD:
            yield Line(*plain, 1)
        else:
            yield _tensor(plain, step, PARTS[work.part], precision, halves)
    if halves:
        # Of the images with the room beside them, all weights, the logits, and their gradient.
        weights = [s.layer.weight.size for s in steps.values() if hasattr(s.layer, "weight")]
        pixels = images * net.pixels**2
        logits = (1 + case.training) * images * net.classes
        count = 2 + len(weights) + case.training
        moved = 6 * (4 * pixels + sum(weights) + logits)
        yield Line("from float32 to bfloat16, and back", 0.0, moved, count)
    pooled = steps["pool5"].y
    passes = (1 + case.training) * (pooled[2:] != (1, 1))  # one pixel has no order to change
    yield Line("pool5 to PyTorch's order", 0.0, passes * 2 * size * math.prod(pooled), passes)
    if case.training:
        moved, launches = _masks_and_biases(list(steps.values()))
        yield Line("ReLU and bias gradients", 0.0, size * moved, launches)


def _masks_and_biases(steps: list[Step]) -> tuple[int, int]:
    """Return numbers moved, and launches, for gradients of ReLUs and biases.

    A convolution's are masked and summed in one launch, or while pooling, by rows of the images.
    """
    moved = launches = 0
    for number, step in enumerate(steps):
        if not isinstance(step.layer, floors.WEIGHTED):
            continue
        first, second = [*steps[number + 1 :], step, step][:2]
        masked = isinstance(step.layer, nn.Linear) and isinstance(first.layer, nn.ReLU)
        pooled = isinstance(second.layer, nn.LocalResponseNorm)
        terms = math.prod(step.y[:1] + step.y[2 : 3 if pooled else 4])
        moved += 0 if pooled else 3 * math.prod(step.y)
        launches += masked + 1 + (ranges(terms) > 1)
    return moved, launches


@lru_cache
def _steps(net: Net, images: int) -> dict[str, Step]:
    return {step.name: step for step in floors.shapes(net, images)}


def _tensor(
    plain: tuple[str, float, int], step: Step, which: Pass, precision: str, halves: bool
) -> Line:
    shape = _shape(step)
    product = tiles.sizes(shape, which)
    kinds: list[Kernels] = [MMA_SYNC[WORDS[precision]]]
    if halves:
        kinds = [IMAGES if shape.C == 4 else WGMMA["bfloat16"]]
    elif precision == "B" and which != "weight_grad":
        kinds.append(WGMMA["float32"])
    plans = {k: tiles.plan_for(which, product, k, tiles.CHOSEN, *GPU) for k in kinds}
    kernels, plan = min(plans.items(), key=lambda item: item[1].cycles)
    blocks = tiles.blocks(product, plan.tile) * plan.splits
    slots = MULTIPROCESSORS * kernels.blocks_that_fit(plan.tile, MOST_SHARED)
    summed = plan.splits > 1 and which not in kernels.add_parts
    transposed = which == "input_grad" and kernels.along_k(plan.tile)
    cycles = plan.cycles - (summed + transposed) * tiles.LAUNCH  # here every launch has its gap
    # The weight gets a fourth channel, or loses it; in bfloat16 it has it from the beginning.
    widened = step.x[1] % 4 != 0 and not (halves and which == "forward")
    return Line(
        *plain,
        1 + summed + transposed + widened,
        cycles,
        blocks * plan.split_k_tiles * 128 * sum(plan.tile),
        kernels,
        plan,
        blocks / slots,
    )


def _shape(step: Step) -> ConvShape:
    layer = step.layer
    if isinstance(layer, nn.Linear):
        outputs, inputs = layer.weight.shape
        return ConvShape.of((step.x[0], inputs, 1, 1), (outputs, inputs, 1, 1), ConvOptions())
    N, C, H, W = step.x
    K, _, R, S = layer.weight.shape
    top, left = layer.padding
    sides = (top, top), (left, left)
    options = ConvOptions(layer.stride, sides, layer.dilation, layer.groups)
    C = in_fours(C)
    return ConvShape.of((N, C, H, W), (K, C // layer.groups, R, S), options)


def table(mode: str, images: int, net: Net) -> str:
    """Return the table of a step or a prediction, with sums."""
    columns = {precision: list(lines(Case(net, mode, images, precision))) for precision in WORDS}
    text = [
        f"| {tables.MODES[mode]}, batch {images} | GFLOP | memory, MB: A, B | C | A | B | C |",
        "|---" * 7 + "|",
    ]
    named = [{line.name: line for line in column} for column in columns.values()]
    for name in dict.fromkeys(name for lines in named for name in lines):
        of_all = [lines.get(name) for lines in named]
        cells = [line.cell() if line else "-" for line in of_all]
        moved = [f"{line.memory / 1e6:.1f}" if line else "-" for line in of_all[1:]]
        operations = of_all[-1].operations / 1e9
        text.append(f"| {name} | {operations:.1f} | {' | '.join([*moved, *cells])} |")
    sums = {p: 1e3 * sum(line.seconds for line in column) for p, column in columns.items()}
    launches = [str(sum(line.launches for line in column)) for column in columns.values()]
    theirs = [PYTORCH[mode, precision] for precision in WORDS]
    ratios = [(low / sums[p], high / sums[p]) for p, (low, high) in zip(sums, theirs, strict=True)]
    size = tables.GOAL_SIZES.index(images)
    rows = {
        "**launches**": launches,
        "**ours, ms**": [f"{ms:.3g}" for ms in sums.values()],
        "PyTorch, ms (experience)": [_span(*pair) for pair in theirs],
        "**ratio**": [f"{_span(*pair)}{report.TIMES}" for pair in ratios],
        "wanted": [f"{tables.GOALS[mode, p][size]}{report.TIMES}" for p in WORDS],
    }
    text += [f"| {name} | | | | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(text)


def _span(low: float, high: float) -> str:
    texts = dict.fromkeys(f"{number:.3g}" for number in (low, high))
    return " to ".join(texts)


def block() -> str:
    """Return what docs/gpu.md has of it."""
    return "\n\n".join(table(*case, Net()) for case in (("train", 128), ("infer", 1)))


def main(words: list[str] | None = None) -> None:
    """Read the command line, print, and write."""
    parser = report.parser(__doc__)
    parser.add_argument("--table", action="store_true", help=f"write into {tables.DOCUMENT.name}")
    arguments = parser.parse_args(words)
    text = block()
    print(text)
    if arguments.table:
        report.replace_table(tables.DOCUMENT, "gpu-arithmetic", text)


if __name__ == "__main__":
    main()
