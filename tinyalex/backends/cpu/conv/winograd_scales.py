"""Powers of two that scale a batch's images to one magnitude.

A transform of Winograd's convolution mixes all pixels of its tile, and rounds relative to the
largest. Where a tile belongs to two images, one that is a million times larger would leave nothing
but its rounding errors in the other. So each is multiplied on the way in by a power of two, which
is exact, and by its inverse on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinyalex.backends.cpu.runtime import kernel
from tinyalex.backends.cpu.vectors import (
    INTEGER,
    LANES,
    VECTOR,
    address,
    constant,
    element,
    load,
    pointer,
)

LEAST, MOST = -126, 126  # exponents: these powers and their inverses are normal float32 numbers
_BITS = ir.VectorType(ir.IntType(32), LANES)


def _largest(masked: bool) -> Callable[..., float]:
    """Return code for the largest |x|, where ``mask`` allows it if ``masked``.

    Its arguments: the two addresses and the length, a multiple of `LANES`. A NaN does not count.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, mask, length = arguments
        x, mask = pointer(builder, x), pointer(builder, mask)
        largest = cgutils.alloca_once_value(builder, constant(0))

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        with cgutils.for_range_slice(builder, INTEGER(0), length, INTEGER(LANES)) as (i, _):
            bits = load(builder, element(builder, x, (i, 1)), _BITS)
            unsigned = builder.and_(bits, constant(0x7FFFFFFF, _BITS))
            size = builder.bitcast(unsigned, VECTOR)
            if masked:
                where = load(builder, element(builder, mask, (i, 1)))
                hidden = builder.fcmp_ordered("<=", where, constant(0))
                size = builder.select(hidden, constant(0), size)
            builder.store(larger(size, builder.load(largest)), largest)
        lanes = builder.load(largest)
        result = builder.extract_element(lanes, INTEGER(0))
        for lane in range(1, LANES):
            result = larger(builder.extract_element(lanes, INTEGER(lane)), result)
        return result

    @intrinsic
    def largest(typing: Any, x: Any, mask: Any, length: Any) -> Any:
        return types.float32(*[types.intp] * 3), generate

    return largest


_largest_of_all, _largest_of_seen = _largest(False), _largest(True)


@kernel
def find_scales(images, mask, canvas, first, lines, scales):
    """Compute the scales of the images under these lines of tiles.

    scales [2, N]: the power of two that brings the image's largest |x| below 1, and its inverse.
    Tasks that share a canvas all write the same numbers; where every image has a canvas of its own,
    none does. ``mask`` is as in `_gather`. An image of zeros counts as very small, so that in the
    weights' gradient, where the inverse goes to the image's output gradient, little is left of what
    zeros are multiplied with.
    """
    N, H, W, C = images.shape
    share = canvas.down * canvas.across
    if share == 1:
        return
    size = H * W * C
    after = (first + lines - 1) // canvas.lines + 1
    for n in range(first // canvas.lines * share, min(N, after * share)):
        start = address(images, n * size)
        if mask.size:
            peak = _largest_of_seen(start, address(mask, n * size), size)
        else:
            peak = _largest_of_all(start, start, size)
        exponent = math.frexp(peak)[1] if peak > 0 else LEAST
        exponent = max(LEAST, min(MOST, exponent))
        scales[0, n] = math.ldexp(1.0, -exponent)
        scales[1, n] = math.ldexp(1.0, exponent)
