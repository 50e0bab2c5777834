"""The arithmetic of sliding windows, shared by every backend and by the ops that call them."""

from __future__ import annotations

from functools import lru_cache

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # ((top, bottom), (left, right))


@lru_cache
def conv_output_size(
    input_size: Pair, kernel_size: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> Pair:
    """Return (height, width) of a convolution's output.

    ``floor((input + padding - (dilation * (kernel - 1) + 1)) / stride) + 1`` along each axis.
    """
    height, width = (
        (input_size[i] + sum(padding[i]) - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width


@lru_cache
def pool_output_size(
    input_size: Pair,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Pair:
    """Return (height, width) of a pooling's output, in torch's convention.

    With ``ceil_mode`` the division rounds up, but a last window that would begin in the right or
    bottom padding (or beyond it) is dropped: it would see no element of the input.
    """
    sizes = []
    for i in range(2):
        span = input_size[i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1
        size = (-(-span // stride[i]) if ceil_mode else span // stride[i]) + 1
        if ceil_mode and (size - 1) * stride[i] >= input_size[i] + padding[i]:
            size -= 1
        sizes.append(size)
    return sizes[0], sizes[1]


def window_slice(offset: int, count: int, stride: int) -> slice:
    """Return the slice that visits ``count`` positions, ``stride`` apart, beginning at ``offset``.

    With ``offset = tap * dilation`` it selects, on a padded axis, the element that this tap of the
    kernel reads at every output position.
    """
    return slice(offset, offset + (count - 1) * stride + 1, stride)
