"""Option records of the kernels, and the arithmetic of sliding windows."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from tinyalex.backends.types import Array

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # ((top, bottom), (left, right))


class ConvOptions(NamedTuple):
    """Options of a convolution."""

    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1


class PoolOptions(NamedTuple):
    """Options of a pooling."""

    kernel_size: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


class NormOptions(NamedTuple):
    """Options of a response normalisation; within channels there is one group."""

    size: int
    alpha: float
    beta: float
    k: float
    groups: int = 1


class SGDOptions(NamedTuple):
    """Options of one SGD step; ``form`` is "torch" or "paper"."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    form: str


class BatchOptions(NamedTuple):
    """Crop, mean and standard deviation for all photographs of a batch.

    ``mean`` is one number, one per channel, or an image [H, W, channels]; ``std`` one number or
    one per channel; None means as many ``channels`` as the photographs have.
    """

    crop: int
    mean: Array
    std: Array
    channels: int | None = None


@lru_cache
def conv_output_size(input_size: Pair, kernel_size: Pair, options: ConvOptions) -> Pair:
    """Return (height, width) of a convolution's output.

    ``floor((input + padding - (dilation * (kernel - 1) + 1)) / stride) + 1`` along each axis.
    """
    stride, padding, dilation, _ = options
    height, width = (
        (input_size[i] + sum(padding[i]) - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width


@lru_cache
def pool_output_size(input_size: Pair, options: PoolOptions, ceil_mode: bool = False) -> Pair:
    """Return (height, width) of a pooling's output, in torch's convention.

    With ``ceil_mode`` the division rounds up, but a last window that would begin in the right or
    bottom padding (or beyond it) is dropped: it would see no element of the input.
    """
    kernel_size, stride, padding, dilation = options
    sizes = []
    for i in range(2):
        span = input_size[i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1
        size = (-(-span // stride[i]) if ceil_mode else span // stride[i]) + 1
        if ceil_mode and (size - 1) * stride[i] >= input_size[i] + padding[i]:
            size -= 1
        sizes.append(size)
    return sizes[0], sizes[1]


class Window(NamedTuple):
    """A window as kernels take it: tap row r reads row ``i * stride_h + r * dilation_h - top``."""

    height: int
    width: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int


def conv_window(kernel_size: Pair, options: ConvOptions) -> Window:
    """Return the window of a convolution."""
    stride, ((top, _), (left, _)), dilation, _ = options
    return Window(*kernel_size, *stride, top, left, *dilation)


def pool_window(options: PoolOptions) -> Window:
    """Return the window of a pooling."""
    kernel_size, stride, padding, dilation = options
    return Window(*kernel_size, *stride, *padding, *dilation)


def window_slice(offset: int, count: int, stride: int) -> slice:
    """Return the slice that visits ``count`` positions, ``stride`` apart, beginning at ``offset``.

    With ``offset = tap * dilation`` it selects, on a padded axis, the element that this tap of the
    kernel reads at every output position.
    """
    return slice(offset, offset + (count - 1) * stride + 1, stride)
