"""Every version of every CUDA kernel: entries, idea, and a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinyalex.backends import cuda
from tinyalex.backends.bfloat16 import bfloat16
from tinyalex.backends.cuda import lrn, lrn_pool, pool, within_norm
from tinyalex.backends.cuda.conv import im2col, naive, products, tiled
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import IMAGES, MMA_SYNC, TILES, WGMMA, Pass, Tile
from tinyalex.backends.cuda.linear import few_rows
from tinyalex.backends.layout import as_nchw, channels_last

Call = Callable[..., Any]


@dataclass(frozen=True)
class Rung:
    """One version: its entries in ``file``, for all types and tiles.

    ``kernel`` is the operation, under the name of the CPU's kernel that computes what ``call`` is
    held against; without it the version is no operation of its own, and its exercises check it.
    ``precision`` is the class whose floor is the measure. Of convolutions, ``number`` is the place
    on the ladder, and ``tiles`` what a block computes at once: rows and columns of the product,
    from numbers of ``itemsize`` bytes.
    """

    file: str
    entries: tuple[str, ...]
    idea: str
    kernel: str = ""
    call: Call | None = None
    precision: str = "A"
    number: int = 0
    tiles: tuple[Tile, ...] = ()
    itemsize: int = 4

    def flop_per_byte(self) -> list[float]:
        """Return the operations per byte of the least and largest tile."""
        ratios = sorted(2 * m * n / (self.itemsize * (m + n)) for m, n in self.tiles)
        return sorted({*ratios[:1], *ratios[-1:]})


HALVES = "float", "bfloat16"
ACTIVATIONS = "float", "double", "bfloat16"


def _typed(*names: str, kinds: tuple[str, ...] = ("float", "double")) -> tuple[str, ...]:
    return tuple(f"{name}<{kind}>" for name in names for kind in kinds)


# --- versions under the arguments of the table of kernels -----------------------------------------


def _forward(version: Call, x: Any, weight: Any, bias: Any, options: Any) -> Any:
    shape = ConvShape.of(x.shape, weight.shape, options)
    return as_nchw(version(channels_last(x), channels_last(weight), bias, shape))


def _input_grad(version: Call, grad: Any, weight: Any, input_shape: Any, options: Any) -> Any:
    shape = ConvShape.of(input_shape, weight.shape, options)
    return as_nchw(version(channels_last(grad), channels_last(weight), shape))


def _weight_grad(version: Call, grad: Any, x: Any, weight_shape: Any, options: Any) -> Any:
    shape = ConvShape.of(x.shape, weight_shape, options)
    return as_nchw(version(channels_last(grad), channels_last(x), shape))


PASSES: tuple[tuple[Pass, str, Call, Call], ...] = (
    ("forward", "conv2d", _forward, products.forward),
    ("input_grad", "conv2d_input_grad", _input_grad, products.input_grad),
    ("weight_grad", "conv2d_weight_grad", _weight_grad, products.weight_grad),
)
TENSOR = (
    ("highest", "A", "each float32 as the sum of two TF32 numbers, three products each"),
    ("high", "B", "`mma.sync` on operands rounded to TF32, copied ahead by `cp.async`"),
    ("medium", "C", "operands rounded to bfloat16 on their way to the tensor cores"),
)
WARPGROUPS = (
    ("float32", "B", "`wgmma`: four warps multiply from shared memory; TF32 by cutting bits off"),
    ("bfloat16", "C", "the same on numbers that are bfloat16 in memory: half the bytes"),
)


def _convolution(name: Pass, kernel: str, wrap: Call, tensor: Call) -> list[Rung]:
    file = f"conv_{name}.cu"
    rungs = [
        Rung(
            file,
            _typed(f"conv_{name}_naive"),
            "one thread per element, the formula and nothing else",
            kernel,
            partial(wrap, getattr(naive, name)),
            number=1,
            tiles=((1, 1),),
        ),
    ]
    for number, (precision, letter, idea) in enumerate(TENSOR, 3):
        kernels, tiles = MMA_SYNC[precision], TILES[name]
        version = partial(tensor, kernels=kernels)
        entries = tuple(kernels.instance(name, tile) for tile in tiles)
        call = partial(wrap, version)
        rungs.append(Rung(kernels.file, entries, idea, kernel, call, letter, number, tiles))
    for number, (dtype, letter, idea) in enumerate(WARPGROUPS, 6):
        kernels = WGMMA[dtype]
        if tiles := kernels.tiles.get(name):
            images = IMAGES.tiles.get(name, ()) if dtype == "bfloat16" else ()
            entries = tuple(kernels.instance(name, tile) for tile in tiles)
            entries += tuple(IMAGES.instance(name, tile) for tile in images)
            version = partial(tensor, kernels=kernels)
            call = partial(wrap, version if dtype == "float32" else partial(_in_bfloat16, version))
            sizes = number, tiles, kernels.itemsize
            rungs.append(Rung(kernels.file, entries, idea, kernel, call, letter, *sizes))
    return rungs


def _in_bfloat16(version: Call, first: Any, second: Any, *rest: Any) -> Any:
    factors = (array.astype(bfloat16()) for array in (first, second))
    return version(*factors, *rest).astype("float32")


def _pair(
    file: str, entry: str, kernel: str, module: Any, second: str, naive: tuple[str, ...] = ()
) -> list[Rung]:
    """Return both versions: one element, and four channels, per thread."""
    one, four = _typed(entry, kinds=ACTIVATIONS), _typed(f"{entry}_quads", kinds=HALVES)
    if module is within_norm:  # which no network has in bfloat16
        one, four = _typed(entry), (f"{entry}_quads",)
    return [
        Rung(
            file,
            (*one, *naive),
            "one thread per element of the result",
            kernel,
            partial(getattr(module, kernel), quads=False),
        ),
        Rung(file, four, second, kernel, getattr(module, kernel)),
    ]


FORWARD = _convolution(*PASSES[0])
FAMILIES: dict[str, list[Rung]] = {
    "Convolution, forward": [
        FORWARD[0],
        Rung(
            "conv_forward.cu",
            ("conv_forward_tiled",),
            "a tiled product without ever writing the windows down (implicit GEMM)",
            "conv2d",
            partial(_forward, tiled.forward),
            number=2,
            tiles=((tiled.TILE, tiled.TILE),),
        ),
        *FORWARD[1:],
    ],
    "Convolution, input gradient": _convolution(*PASSES[1]),
    "Convolution, weight gradient": _convolution(*PASSES[2]),
    "Convolution by columns, and what the passes share": [
        Rung(
            "im2col.cu",
            _typed("im2col", "col2im"),
            "windows as rows of a matrix, for cuBLAS: for float64, and float32 not in fours",
            "conv2d",
            partial(_forward, im2col.forward),
        ),
        Rung(
            "transpose_filters.cu",
            _typed("transpose_filters", kinds=HALVES),
            "weights with the filters innermost, for the input's gradient by `wgmma`",
        ),
        Rung(
            "split_sum.cu",
            ("split_sum",),
            "adds up the parts of a gradient's split sum, in order",
        ),
        Rung(
            "pad_channels.cu",
            _typed("pad_channels", kinds=HALVES),
            "weights and images of three channels get a fourth",
        ),
        Rung(
            "bias_grad.cu",
            _typed("bias_grad", "relu_bias_grad", kinds=ACTIVATIONS),
            "sums a channel in ranges, then the ranges; masks by a ReLU on the way",
            "conv2d_bias_grad",
            cuda.conv2d_bias_grad,
        ),
    ],
    "Linear layers of few rows": [
        Rung(
            "few_rows.cu",
            _typed("few_rows"),
            "weights read once, 16 bytes per lane and step; bias and ReLU on the way",
            "linear",
            few_rows,
        ),
    ],
    "Local response normalisation": [
        *_pair(
            "local_response_norm.cu",
            "local_response_norm",
            "local_response_norm",
            lrn,
            "four channels per thread; the window from shared memory",
        ),
        *_pair(
            "local_response_norm.cu",
            "local_response_norm_grad",
            "local_response_norm_input_grad",
            lrn,
            "each term of the sum is computed once and shared",
        ),
    ],
    "Max-pooling": [
        *_pair(
            "max_pool.cu",
            "max_pool",
            "max_pool2d",
            pool,
            "four channels per thread, a row of results per block",
            _typed("max_pool_large", kinds=ACTIVATIONS),
        ),
        *_pair(
            "max_pool.cu",
            "max_pool_grad",
            "max_pool2d_input_grad",
            pool,
            "each pixel looks through the windows over it, four channels at a time",
            _typed("max_pool_grad_large", kinds=ACTIVATIONS),
        ),
    ],
    "Normalisation and pooling in one pass": [
        *_pair(
            "norm_pool.cu",
            "norm_max_pool",
            "norm_max_pool2d",
            lrn_pool,
            "normalises the pixels under a tile of windows into shared memory, and pools there",
        ),
        *_pair(
            "norm_pool.cu",
            "norm_max_pool_grad",
            "norm_max_pool2d_input_grad",
            lrn_pool,
            "gathers and normalises backwards row by row, through shared memory",
        ),
        Rung(
            "norm_pool.cu",
            _typed("norm_max_pool_relu_grad_quads", kinds=HALVES),
            "the same with the ReLU before it, and the sums of the bias's gradient",
        ),
    ],
    "Normalisation within a channel": [
        *_pair(
            "within_channel_norm.cu",
            "within_channel_norm",
            "within_channel_response_norm",
            within_norm,
            "four channels per thread",
        ),
        Rung(
            "within_channel_norm.cu",
            _typed("within_channel_products", "within_channel_grad"),
            "the gradient in two passes: a product for each pixel, then its window's sum",
            "within_channel_response_norm_input_grad",
            partial(within_norm.within_channel_response_norm_input_grad, quads=False),
        ),
        Rung(
            "within_channel_norm.cu",
            ("within_channel_products_quads", "within_channel_grad_quads"),
            "the same, four channels per thread",
            "within_channel_response_norm_input_grad",
            within_norm.within_channel_response_norm_input_grad,
        ),
    ],
    "One pass over memory: nothing to climb": [
        Rung(
            "relu.cu",
            _typed("relu", kinds=ACTIVATIONS),
            "four elements per thread",
            "relu",
            cuda.relu,
        ),
        Rung(
            "relu.cu",
            _typed("relu_input_grad", kinds=ACTIVATIONS),
            "from the output, which is zero where the input was not positive",
            "relu_input_grad",
            cuda.relu_input_grad,
        ),
        Rung(
            "dropout.cu",
            (*_typed("dropout", kinds=ACTIVATIONS), "philox_words"),
            "draws by Philox from a key and a position: no mask is stored",
        ),
        Rung(
            "cross_entropy.cu",
            _typed("row_losses", "total_loss", "row_grads"),
            "a warp per row, then one block for all; and the gradient from what forward found",
        ),
        Rung(
            "sgd.cu",
            _typed("sgd_steps"),
            "all parameters of a net in one launch, described by a table in memory",
        ),
        Rung("all_finite.cu", _typed("not_finite"), "looks for NaN and infinity"),
        Rung("batch.cu", ("prepare_rows",), "bytes to a batch: crop, mirror, normalise"),
        Rung("step_report.cu", ("report_step",), "notes loss and hits of a step, unread"),
    ],
}
RUNGS = [rung for rungs in FAMILIES.values() for rung in rungs]
