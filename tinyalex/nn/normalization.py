"""Response normalisation: across channels (the paper's) and within a channel."""

from __future__ import annotations

import tinyalex.functional as F
from tinyalex.nn.module import Module
from tinyalex.ops.arguments import integer
from tinyalex.tensor import Tensor


class LocalResponseNorm(Module):
    """``y_c = x_c / (k + alpha / size * sum of x_j**2 over size neighbouring channels) ** beta``.

    That is torch's and Caffe's convention, and the 2012 source's; the paper (section 3.3) writes
    alpha without the division, so its 1e-4 with size 5 is 5e-4 here. With ``groups`` the channels
    fall into that many parts and no window reaches into the next one, as in the towers of 2012.
    """

    def __init__(
        self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, groups: int = 1
    ) -> None:
        self.size = integer(size, "size", minimum=1)
        self.alpha, self.beta, self.k = alpha, beta, k
        self.groups = integer(groups, "groups", minimum=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` normalised, in the same shape."""
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.groups)

    def extra_repr(self) -> str:
        """Show the constants, as torch does."""
        text = f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
        return text if self.groups == 1 else text + f", groups={self.groups}"


class WithinChannelResponseNorm(Module):
    """``y = x / (k + alpha / size**2 * sum of x**2 over a size x size window of its map) ** beta``.

    The 2012 source has one after conv2's LRN (type ``rnorm``); the paper does not mention it.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = integer(size, "size", minimum=1)
        self.alpha, self.beta, self.k = alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` normalised, in the same shape."""
        return F.within_channel_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """Show the constants."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
