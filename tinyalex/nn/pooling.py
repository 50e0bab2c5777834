"""Pooling layers: the maximum or the mean of each window."""

from __future__ import annotations

import tinyalex.functional as F
from tinyalex.backends.geometry import Pair
from tinyalex.nn.module import Module
from tinyalex.ops.arguments import flag, half_at_most, pair
from tinyalex.tensor import Tensor


class MaxPool2d(Module):
    """The maximum of each window; the paper's are 3x3, stride 2 (section 3.4).

    ``stride`` is the kernel size unless given. Padding never wins. With ``ceil_mode`` a last window
    may reach over the right or bottom edge. ``return_indices=True`` is not supported (ValueError).
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.return_indices = return_indices
        _no_indices(return_indices)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode
        _check(self.kernel_size, self.stride, padding)
        pair(dilation, "dilation")

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima, [N, C, H', W']."""
        _no_indices(self.return_indices)
        return F.max_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def extra_repr(self) -> str:
        """Show all arguments, as torch does."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(Module):
    """The mean of each window; ``stride`` is the kernel size unless given.

    Padding counts as zeros unless ``count_include_pad`` is False; ``divisor_override`` divides by
    that number instead of the window's.
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override
        _check(self.kernel_size, self.stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return the means, [N, C, H', W']."""
        return F.avg_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        """Show the window, as torch does."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(Module):
    """The mean over each cell of an ``output_size`` grid."""

    def __init__(self, output_size: int | tuple[int | None, int | None] | None) -> None:
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """Return the means, [N, C, *output_size]."""
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        """Show the size of the grid."""
        return f"output_size={self.output_size}"


def _no_indices(return_indices: bool) -> None:
    if flag(return_indices, "return_indices"):
        raise ValueError("MaxPool2d(return_indices=True) is not supported: leave it out")


def _check(kernel_size: int | Pair, stride: int | Pair, padding: int | Pair) -> None:
    kernel, _ = pair(kernel_size, "kernel_size"), pair(stride, "stride")
    half_at_most(pair(padding, "padding", minimum=0), kernel)
