"""ReLU, dropout and the finiteness check, for any memory layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.gpu import contiguous, cupy, multiprocessors
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

BLOCK = 256  # threads
FOUR = 4  # elements of a thread
EACH = FOUR * BLOCK  # of a block
BLOCKS_EACH = 8  # of 256 threads, that a multiprocessor has room for
WARP = 32


def _as_lines(first: Array, *others: Array) -> tuple[list[Array], Callable[[Array], Array]]:
    """Return 1-D views in the first array's memory order, and the inverse.

    Arrays that lie otherwise are copied. The result of a kernel lies as the first array does.
    """
    arrays = (first, *others)
    if first.ndim == 4 and not first.flags.c_contiguous:
        N, C, H, W = first.shape
        lines = [channels_last(a).reshape(-1) for a in arrays]
        return lines, lambda line: as_nchw(line.reshape(N, H, W, C))
    return [contiguous(a).reshape(-1) for a in arrays], lambda line: line.reshape(first.shape)


def _blocks(count: int, each: int) -> int:
    return -(-count // each)


def relu(x: Array) -> Array:
    """Return max(x, 0); NaN stays NaN."""
    (line,), restore = _as_lines(x)
    y = cupy().empty(line.shape, line.dtype)
    entry = f"relu<{type_name(x.dtype)}>"
    launch("relu.cu", entry, (_blocks(y.size, EACH),), (BLOCK,), (line, y, y.size))
    return restore(y)


def relu_input_grad(grad: Array, y: Array) -> Array:
    """Return dx = dy where y > 0, else 0; dx = dy where y is NaN.

    y > 0 exactly where x > 0.
    """
    (output, gradient), restore = _as_lines(y, grad)
    dx = cupy().empty(gradient.shape, gradient.dtype)
    entry = f"relu_input_grad<{type_name(grad.dtype)}>"
    args = (gradient, output, dx, dx.size)
    launch("relu.cu", entry, (_blocks(dx.size, EACH),), (BLOCK,), args)
    return restore(dx)


def dropout(x: Array, p: float, key: int, first: int = 0) -> Array:
    """Zero each element with probability ``p``, scale the others by 1 / (1 - p).

    ``first`` is the position of the first element, where ``x`` is a part of something longer.
    Philox4x32-10 of (key, position in the order of the shape) decides, so the mask is never stored:
    the gradient is the same function of the gradient, with the same key. The draw differs from that
    of the CPU's backends. A `SlotKey` is read from the device's memory when the kernel runs.
    """
    # The position counts in the order of the shape, so that layouts do not change the draw.
    line, begin = contiguous(x).reshape(-1), first % FOUR
    if begin:  # in the middle of four elements, which share a random word
        line = cupy().concatenate([cupy().zeros(begin, x.dtype), line])
    y = cupy().empty(line.shape, line.dtype)
    scale = 1 / (1 - p) if p < 1 else 0
    drawn = getattr(key, "slot", None), int(key), int(p * 2**24 + 0.5), scale
    arguments = (line, y, y.size, *drawn, first // FOUR)
    entry = f"dropout<{type_name(x.dtype)}>"
    launch("dropout.cu", entry, (_blocks(y.size, EACH),), (BLOCK,), arguments)
    return y[begin:].reshape(x.shape)


def philox_words(counters: Array, keys: Array) -> Array:
    """Return four random words per counter, int32 [count, 4], and key.

    Words are 32 bits, to be read as unsigned; the source is named in ``kernels/philox.cuh``.
    """
    words = cupy().empty(counters.shape, counters.dtype)
    args = (contiguous(counters), contiguous(keys), words, len(keys))
    launch("dropout.cu", "philox_words", (_blocks(len(keys), BLOCK),), (BLOCK,), args)
    return words


def all_finite(x: Array) -> bool:
    """Return whether all elements are finite; this waits for the GPU."""
    return bool(all_finite_many([x]))


def all_finite_many(arrays: Sequence[Array]) -> Array:
    """Return, as a device array without axes, whether all elements are finite.

    Reading the result waits for the GPU; this function does not.
    """
    most = BLOCKS_EACH * multiprocessors()
    blocks = [min(_blocks(x.size, EACH), most) for x in arrays]
    flags = cupy().empty(sum(blocks) * BLOCK // WARP, "int32")
    begin = 0
    for x, count in zip(arrays, blocks, strict=True):
        (line,), _ = _as_lines(x)
        end = begin + count * BLOCK // WARP
        entry = f"not_finite<{type_name(x.dtype)}>"
        launch("all_finite.cu", entry, (count,), (BLOCK,), (line, line.size, flags[begin:end]))
        begin = end
    return ~flags.any()
