"""Conv2d: the layer that owns a convolution's weights."""

from __future__ import annotations

from typing import Any

import numpy as np

import tinyalex.functional as F
from tinyalex.backends.geometry import Pair
from tinyalex.nn.init import reset_like_torch
from tinyalex.nn.module import Module, Parameter
from tinyalex.ops.arguments import flag, integer, pair
from tinyalex.ops.conv import resolve_padding
from tinyalex.tensor import Tensor


class Conv2d(Module):
    """Cross-correlate images [N, in_channels, H, W] with filters [out_channels, in/groups, R, S].

    ``padding`` is a number of zeros on each side (one int, or one each for height and width),
    "valid" for none, or "same" for an output of the input's size (stride 1 only). ``groups`` splits
    input and output channels into that many parts that do not see each other: the two towers of
    2012 are ``groups=2``. Weights and bias start as torch's, uniform on ±1/sqrt(fan_in).

    Raises ValueError or TypeError for arguments that describe no convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: str | int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        self.in_channels = integer(in_channels, "in_channels", minimum=1)
        self.out_channels = integer(out_channels, "out_channels", minimum=1)
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")
        self.groups = integer(groups, "groups", minimum=1)
        if isinstance(padding, str):
            resolve_padding(padding, self.kernel_size, self.stride, self.dilation)
            self.padding: str | Pair = padding
        else:
            self.padding = pair(padding, "padding", minimum=0)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide both channel counts, got groups={groups}, "
                f"in_channels={in_channels}, out_channels={out_channels}"
            )
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(np.empty(shape, dtype))
        self._register("bias", Parameter)  # without one, too
        self.bias = Parameter(np.empty(out_channels, dtype)) if flag(bias, "bias") else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as torch does."""
        reset_like_torch(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x``, [N, out_channels, H', W']."""
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """Show what differs from the defaults, as torch does."""
        text = f"{self.in_channels}, {self.out_channels}"
        text += f", kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"
