"""Fill docs/winograd.md with matrices, counts, errors, times and pictures.

    python docs/winograd_page.py              # all but the times, which it takes from --measure
    python docs/winograd_page.py --measure    # on a quiet machine

Each block of the page stands between <!-- winograd-NAME --> and <!-- /winograd-NAME -->. Times are
kept in benchmarks/results/winograd-time.json.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view

from tinyalex.backends import cpu
from tinyalex.backends.cpu.conv import im2col, winograd
from tinyalex.backends.cpu.conv import winograd_transforms as transforms
from tinyalex.backends.cpu.conv.winograd_scales import find_scales
from tinyalex.backends.cpu.conv.winograd_tiles import (
    input_columns,
    input_rows,
    lay_out,
    output_columns,
    output_rows,
)
from tinyalex.backends.cpu.microkernel import ROWS, WIDTH, View, multiply
from tinyalex.backends.cpu.runtime import num_threads
from tinyalex.backends.cpu.vectors import LANES
from tinyalex.backends.geometry import (
    ConvOptions,
    PoolOptions,
    conv_output_size,
    pool_output_size,
)
from tinyalex.backends.layout import as_nchw
from tinyalex.models import VARIANTS, spec

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))
from shared import report  # noqa: E402

PAGE = ROOT / "docs" / "winograd.md"
IMAGES = ROOT / "docs" / "images"

BATCH = 32  # images, where a count depends on it
M, PAIRS = transforms.TILE, transforms.PAIRS
WHOLE = {3: (1, 2), 5: (1, 2, 3)}  # pairs to compare with ours: the smallest whole numbers
VALID, SAME = (ConvOptions(padding=((p, p), (p, p))) for p in (0, 1))


def _machine() -> dict[str, Any]:
    """Return those facts of `report.machine` that matter here."""
    facts = report.machine()
    facts["versions"].pop("torch", None)
    return facts


# --- the algorithm, as the page prints it ---------------------------------------------------------


def convolve(x, w, B_t, A_t, G):
    """Correlate x [N, C, H, W] with w [K, C, r, r] by Winograd."""
    (N, C, H, W), K, r, (m, n) = x.shape, len(w), w.shape[-1], A_t.shape
    Ho, Wo = H - r + 1, W - r + 1
    down, across = -(-Ho // m), -(-Wo // m)  # tiles that cover the outputs
    x = np.pad(x, ((0, 0), (0, 0), (0, down * m - Ho), (0, across * m - Wo)))
    d = sliding_window_view(x, (n, n), axis=(2, 3))[:, :, ::m, ::m]  # N, C, down, across, n, n
    V = B_t @ d @ B_t.T
    U = G @ w @ G.T
    V = V.transpose(4, 5, 0, 2, 3, 1).reshape(n, n, -1, C)
    P = V @ U.transpose(2, 3, 1, 0)  # at each of n x n points: [tiles, C] @ [C, K]
    P = P.reshape(n, n, N, down, across, K).transpose(2, 5, 3, 4, 0, 1)
    y = A_t @ P @ A_t.T
    return y.swapaxes(3, 4).reshape(N, K, down * m, across * m)[:, :, :Ho, :Wo]


def matrices(taps: int, pairs: Sequence[float]) -> transforms.Matrices:
    """Return the matrices for other points than ours."""
    with mock.patch.dict(PAIRS, {taps: tuple(pairs)}):
        return transforms.matrices(taps)


# --- matrices and counts --------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its numbers aligned to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def exact(number: float) -> str:
    """Return the simple fraction that ``number`` is the nearest float64 of."""
    return str(Fraction(float(number)).limit_denominator(10**6))


def points(pairs: Sequence[float]) -> list[str]:
    """Return the names of the points, in the order of `winograd_transforms.matrices`."""
    return ["0", *(sign + exact(a) for a in pairs for sign in ("", "-")), "inf"]


def matrix_text(name: str, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Return a labelled matrix in exact fractions."""
    cells = [[name, *columns]]
    cells += [[label, *map(exact, row)] for label, row in zip(rows, matrix, strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join(f"{label} |  {'  '.join(line)}" for label, *line in lines)


def matrices_block(taps: int) -> str:
    """Return B^T, G and A^T of a filter of `taps`."""
    B_t, A_t, G = transforms.matrices(taps)
    names = points(PAIRS[taps])
    inputs = matrix_text("B^T", B_t, names, [f"d{i}" for i in range(len(B_t))])
    weights = matrix_text("G", G, names, [f"w{i}" for i in range(taps)])
    outputs = matrix_text("A^T", A_t, [f"y{i}" for i in range(M)], names)
    both = zip(inputs.splitlines(), weights.splitlines(), strict=True)
    upper = "\n".join(f"{left}    {right}" for left, right in both)
    return f"```text\n{upper}\n\n{outputs}\n```"


class Layer(NamedTuple):
    """A convolution as the model has it, for one group."""

    name: str
    channels: int
    kernels: int
    groups: int
    taps: int
    stride: int
    size: tuple[int, int]  # of the output

    @property
    def at_stride_1(self) -> tuple[int, int]:
        """Channels and taps after space-to-depth."""
        return self.channels * self.stride**2, -(-self.taps // self.stride)

    @property
    def pixels(self) -> int:
        """Outputs of one kernel for an image."""
        return self.size[0] * self.size[1]

    @property
    def tiles(self) -> float:
        """Tiles an image, in a batch of `BATCH`."""
        canvas = lay_out(BATCH, self.size, self.at_stride_1[1])
        canvases = -(-BATCH // (canvas.down * canvas.across))
        return canvases * canvas.lines * canvas.tiles / BATCH

    @property
    def direct(self) -> int:
        """Products for an output, by the definition."""
        return self.channels * self.taps**2

    @property
    def winograd(self) -> float:
        """Products for an output, those for outputs that are dropped included."""
        channels, taps = self.at_stride_1
        return channels * (M + taps - 1) ** 2 * self.tiles / self.pixels


def layers(variant: str = "paper") -> Iterator[Layer]:
    """Yield the convolutions of a variant."""
    model = VARIANTS[variant]
    channels, size = model.in_channels, (model.input_size, model.input_size)
    numbers = count(1)
    for layer in model.features:
        match layer:
            case spec.Conv(kernels, taps, stride, p, groups):
                options = ConvOptions((stride, stride), ((p, p), (p, p)))
                size = conv_output_size(size, (taps, taps), options)
                name = f"conv{next(numbers)}"
                yield Layer(name, channels // groups, kernels, groups, taps, stride, size)
                channels = kernels
            case spec.Pool(window, step):
                size = pool_output_size(size, PoolOptions((window, window), (step, step)))


def counts_block() -> str:
    """Return the table of products, layer by layer."""
    rows, direct, winograd = [], 0.0, 0.0
    for layer in layers():
        _, taps = layer.at_stride_1
        outputs = layer.kernels * layer.pixels
        direct += outputs * layer.direct
        winograd += outputs * layer.winograd
        rows.append(
            [
                f"{layer.name}, {' x '.join(map(str, layer.size))}",
                f"{layer.taps}x{layer.taps}x{layer.channels}",
                f"F({M}, {taps})",
                f"{layer.tiles:g}",
                f"{1 - layer.pixels / (layer.tiles * M * M):.1%}",
                f"{layer.direct}",
                f"{layer.winograd:.0f}",
                f"{layer.direct / layer.winograd:.2f}",
            ]
        )
    total = f"{direct / 1e6:.0f}", f"{winograd / 1e6:.0f}", f"{direct / winograd:.2f}"
    rows.append(["all, million products an image", "", "", "", "", *total])
    head = ["layer, outputs", "kernel", "as", "tiles an image", "dropped outputs"]
    return table([*head, "products an output: direct", "Winograd", "ratio"], rows)


def arithmetic(layer: Layer, batch: int) -> dict[str, tuple[float, float]]:
    """Return the multiply-adds of each step, and how many numbers it writes.

    A transform counts one for every number of its matrix that is not 0; the true kernel shares
    some between +a and -a and between neighbouring tiles.
    """
    B_t, A_t, G = transforms.matrices(layer.taps)
    m, n = A_t.shape
    tiles, C, K = layer.tiles * batch, layer.channels * layer.groups, layer.kernels
    weights = layer.channels * K

    def effort(matrix: np.ndarray) -> int:
        return np.count_nonzero(matrix) * sum(matrix.shape)  # columns, then rows

    return {
        "`U = G w G^T`": (weights * effort(G), weights * n * n),
        "`V = B^T d B`": (tiles * C * effort(B_t), tiles * C * n * n),
        f"{n * n} products": (tiles * weights * n * n, tiles * K * n * n),
        "`Y = A^T P A`": (tiles * K * effort(A_t), tiles * K * m * m),
    }


def conv3() -> Layer:
    """Return the layer that the page walks through."""
    return next(layer for layer in layers() if layer.name == "conv3")


def arithmetic_block() -> str:
    """Return the table of one layer's arithmetic, step by step."""
    layer = conv3()
    direct = layer.direct * layer.kernels * layer.pixels * BATCH
    steps = arithmetic(layer, BATCH)
    total = sum(products for products, _ in steps.values())
    rows = [
        [name, f"{products / 1e6:.0f}", f"{products / total:.1%}", f"{numbers / 1e6:.1f}"]
        for name, (products, numbers) in steps.items()
    ]
    rows.append(["all", f"{total / 1e6:.0f}", "100%", ""])
    rows.append(["direct", f"{direct / 1e6:.0f}", f"{direct / total:.2f} times as many", ""])
    head = [f"conv3, batch {BATCH}", "million multiply-adds", "share", "million numbers written"]
    return table(head, rows)


def code_block() -> str:
    """Return `convolve`, ready to be run."""
    imports = "import numpy as np\nfrom numpy.lib.stride_tricks import sliding_window_view\n"
    return f"```python\n{imports}\n{inspect.getsource(convolve)}```"


def blocks() -> dict[str, str]:
    """Return the parts of the page that no machine changes."""
    return {
        **{f"winograd-matrices-{taps}": matrices_block(taps) for taps in sorted(PAIRS)},
        "winograd-counts": counts_block(),
        "winograd-code": code_block(),
        "winograd-arithmetic": arithmetic_block(),
    }


# --- errors ---------------------------------------------------------------------------------------


def amplification(taps: int, pairs: Sequence[float]) -> np.ndarray:
    """Return the growth of rounding errors in each output, [m, m].

    For inputs and weights from N(0, 1) the product at point i has the standard deviation
    ``|B^T[i]| |G[i]|``, and ``A^T[j, i]`` times as much of its error ends up in output j, which
    itself has the standard deviation ``sqrt(r)``. In two dimensions both factors count.
    """
    B_t, A_t, G = matrices(taps, pairs)
    deviation = np.linalg.norm(B_t, axis=1) * np.linalg.norm(G, axis=1)
    line = np.linalg.norm(A_t * deviation, axis=1) / np.sqrt(taps)
    return np.outer(line, line)


def root_mean_square(values: np.ndarray) -> float:
    """Return sqrt(mean(values**2))."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


class Error(NamedTuple):
    """Relative float32 error of an algorithm; None: not predicted."""

    layer: str
    way: str
    amplification: float | None
    expected: float | None
    typical: float  # root mean square, of the errors and of the outputs
    largest: float


def relative(result: np.ndarray, exactly: np.ndarray) -> tuple[float, float]:
    """Return the typical and the largest error."""
    error = result - exactly
    typical = root_mean_square(error) / root_mean_square(exactly)
    return typical, float(np.abs(error).max() / np.abs(exactly).max())


def errors() -> list[Error]:
    """Measure float32 errors at the depths of conv3 and conv2."""
    chosen = [
        next(layer for layer in layers() if layer.name == name) for name in ("conv3", "conv2")
    ]
    return [error for layer in chosen for error in errors_at(layer)]


def errors_at(layer: Layer) -> Iterator[Error]:
    """Yield the errors at one layer, with fewer kernels."""
    rng = np.random.default_rng(0)
    name, taps, C, K = layer.name, layer.taps, layer.channels, 64
    x = rng.standard_normal((8, C, *(s + taps - 1 for s in layer.size)), np.float32)
    w = rng.standard_normal((K, C, taps, taps), np.float32)
    y = im2col.forward(x.astype(float), w.astype(float), None, VALID)
    a, b = rng.standard_normal((1024, C), np.float32), rng.standard_normal((C, K), np.float32)
    depth, _ = relative(a @ b, a.astype(float) @ b)  # what a sum over the channels costs

    yield Error(name, "im2col", None, None, *relative(im2col.forward(x, w, None, VALID), y))
    yield Error(name, "our kernel", None, None, *relative(cpu.conv2d(x, w, None, VALID), y))
    for pairs in (PAIRS[taps], WHOLE[taps]):
        way = f"F({M}, {taps}), 0 " + " ".join(f"±{exact(a)}" for a in pairs) + " inf"
        float32 = (matrix.astype(np.float32) for matrix in matrices(taps, pairs))
        factor = root_mean_square(amplification(taps, pairs))
        yield Error(name, way, factor, factor * depth, *relative(convolve(x, w, *float32), y))


def errors_block(found: Sequence[Error]) -> str:
    """Return the table of errors."""
    rows = [
        [
            f"{e.layer}: {e.way}",
            "" if e.amplification is None else f"{e.amplification:.1f}",
            "" if e.expected is None else f"{e.expected:.1e}",
            f"{e.typical:.1e}",
            f"{e.largest:.1e}",
        ]
        for e in found
    ]
    head = ["layer, algorithm, points", "amplification", "expected error", "measured error"]
    numbers = table([*head, "largest error / largest output"], rows)
    return f"{numbers}\n\n{report.one_line(_machine())}."


# --- times ----------------------------------------------------------------------------------------


@njit(nogil=True)
def _transform_rows(half, tiles, V):
    for k in range(half.shape[1]):
        input_rows(half, k, tiles, V)


@njit(nogil=True)
def _products(V, U, M, tiles):
    n, _, _, panels, C, _ = U.shape
    K = M.shape[1] // n
    for point in range(n * n):
        left = View(V, point % n * C, V.shape[1], 1)
        right = View(U, point * panels * C * WIDTH, WIDTH, C * WIDTH)
        multiply(left, right, View(M, point % n * K, M.shape[1], 1), tiles, K, C, False)


@njit(nogil=True)
def _transform_products(M, half_done):
    for k in range(half_done.shape[1]):
        output_rows(M, half_done, k)


def steps_of_a_task() -> dict[str, Callable[[], Any]]:
    """Return the steps of `winograd._convolve` for one task of conv3."""
    layer = conv3()
    tile = transforms.TILE
    C, K, n = layer.channels, layer.kernels, tile + 2
    canvas = lay_out(4, layer.size, 3)
    size = canvas.lines * canvas.tiles
    width = canvas.tiles * tile + n - tile
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((4, *layer.size, channels), np.float32) for channels in (C, K))
    rows, half = np.empty((n, width, C), np.float32), np.empty((7, n, width, C), np.float32)
    V, M = (np.zeros((size + ROWS[-1], n * channels + LANES), np.float32) for channels in (C, K))
    half_done = np.empty((size, n, tile, K), np.float32)
    outputs, bias = np.empty((tile, tile * K), np.float32), np.zeros(tile * K, np.float32)
    U = np.zeros((n, n, 1, K // WIDTH, C, WIDTH), np.float32)
    scales, spoilt = np.ones((2, 4), np.float32), np.zeros(4, np.bool_)

    def read() -> None:
        find_scales(x, winograd.NOTHING, canvas, 0, canvas.lines, scales)
        input_columns(x, winograd.NOTHING, scales[0], canvas, (1, 1), 0, rows, half)

    return {
        "reading inputs and transforming their columns": read,
        "transforming their rows": lambda: _transform_rows(half, canvas.tiles, V),
        "products": lambda: _products(V, U, M, size),
        "transforming the products' rows": lambda: _transform_products(M, half_done),
        "transforming their columns and writing outputs": lambda: output_columns(
            half_done, outputs, canvas, 0, bias, False, scales[1], y, spoilt
        ),
    }


def measure(batch: int, rounds: int) -> dict[str, Any]:
    """Time conv3 forward by im2col and Winograd, and its steps."""
    layer = conv3()
    C, K = layer.channels, layer.kernels
    rng = np.random.default_rng(0)
    x = as_nchw(rng.standard_normal((batch, *layer.size, C), np.float32))  # as the layers leave it
    w = rng.standard_normal((K, C, 3, 3), np.float32)
    calls: dict[str, Callable[[], Any]] = {
        "im2col": lambda: im2col.forward(x, w, None, SAME),
        "chosen": lambda: cpu.conv2d(x, w, None, SAME),
        **steps_of_a_task(),
    }
    results = {name: call() for name, call in calls.items()}  # compiles, too
    if np.array_equal(results["chosen"], results["im2col"]):
        raise SystemExit(f"for {batch} images im2col is chosen: nothing to compare")
    scale = np.abs(results["im2col"]).max()
    np.testing.assert_allclose(results["chosen"], results["im2col"], rtol=0, atol=2e-5 * scale)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {
        "machine": _machine(),
        "threads": num_threads(),
        "batch": batch,
        "multiply_adds": {
            "im2col": layer.direct * K * layer.pixels * batch,
            "chosen": sum(products for products, _ in arithmetic(layer, batch).values()),
        },
        "seconds": seconds,
    }


def _shares(result: dict[str, Any]) -> str:
    """Say where the time of a task goes."""
    seconds = {name: np.median(result["seconds"][name]) for name in steps_of_a_task()}
    total = sum(seconds.values())
    shares = [f"{name} {time / total:.0%}" for name, time in seconds.items()]
    return f"Of a task's time on one core: {', '.join(shares)}."


def time_block() -> str:
    """Return the table of times, or how to get it."""
    result = report.load("winograd-time")
    if not result:
        return "Not measured yet: `python docs/winograd_page.py --measure`."
    median = {name: statistics.median(values) for name, values in result["seconds"].items()}
    rows = []
    for title, name in (("im2col", "im2col"), ("Winograd", "chosen")):
        values, products = result["seconds"][name], result["multiply_adds"][name]
        spread = f"{1e3 * min(values):.1f} .. {1e3 * max(values):.1f}"
        rate = f"{products / median[name] / 1e9:.0f}"
        rows.append([title, f"{products / 1e6:.0f}", f"{1e3 * median[name]:.1f} ({spread})", rate])
    head = [f"conv3 forward, batch {result['batch']}", "million multiply-adds"]
    lines = [table([*head, "ms (min .. max)", "billion a second"], rows), ""]
    fewer = result["multiply_adds"]["im2col"] / result["multiply_adds"]["chosen"]
    faster = median["im2col"] / median["chosen"]
    lines += [
        f"{fewer:.2f} times fewer multiply-adds, {faster:.2f} times as fast. {_shares(result)}",
        "",
        f"{report.one_line(result['machine'])}; threads: {result['threads']}; in turns, medians.",
    ]
    return "\n".join(lines)


# --- the page -------------------------------------------------------------------------------------


def main() -> None:
    """Read the command line and fill the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="time conv3 first")
    parser.add_argument("--batch", type=int, default=BATCH, help="images to time it with")
    parser.add_argument("--rounds", type=int, default=21, help="how often each takes its turn")
    arguments = parser.parse_args()
    if arguments.measure:
        report.save("winograd-time", measure(arguments.batch, arguments.rounds))

    import winograd_pictures  # this folder's; needs matplotlib

    found = errors()
    everything = {**blocks(), "winograd-errors": errors_block(found), "winograd-time": time_block()}
    for name, text in everything.items():
        report.replace_table(PAGE, name, text)
    winograd_pictures.tile(convolve, transforms.matrices(3), IMAGES / "winograd-tile.png")
    winograd_pictures.errors(found, amplification, PAIRS[3], IMAGES / "winograd-errors.png")
    print(f"wrote {PAGE} and its pictures")


if __name__ == "__main__":
    main()
