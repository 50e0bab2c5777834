"""Layers that only move elements about: Flatten and ZeroPad2d."""

from __future__ import annotations

import tinyalex.functional as F
from tinyalex.nn.module import Module
from tinyalex.ops.arguments import integer
from tinyalex.tensor import Tensor


class Flatten(Module):
    """Join the axes from ``start_dim`` to ``end_dim`` into one: [N, C, H, W] becomes [N, C*H*W]."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with those axes joined."""
        return F._tensor(x, "x").flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """Show the arguments, as torch does."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class ZeroPad2d(Module):
    """Pad images with zeros: one width, or (left, right, top, bottom).

    Negative widths cut off. In front of a convolution, ``ZeroPad2d((0, 3, 0, 3))`` lets the last
    windows reach three pixels over the right and bottom edge: how the 2012 source rounds conv1 up
    to 55x55.
    """

    def __init__(self, padding: int | tuple[int, int, int, int]) -> None:
        sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
        if len(sides) != 4:
            raise ValueError(
                f"padding must be one width or (left, right, top, bottom), got {padding!r}"
            )
        left, right, top, bottom = (integer(side, "padding") for side in sides)
        self.padding = (left, right, top, bottom)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its border, [N, C, top + H + bottom, left + W + right]."""
        return F.pad(x, self.padding)

    def extra_repr(self) -> str:
        """Show the four widths, as torch does."""
        return f"{self.padding}"
