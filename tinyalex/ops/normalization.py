"""Response normalisation: across channels (paper section 3.3), and within each (2012 source)."""

from __future__ import annotations

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends.geometry import NormOptions
from tinyalex.backends.types import Array
from tinyalex.ops import arguments


class LocalResponseNorm(Function):
    """``y_c = x_c / (k + alpha / size * sum of x_j ** 2 over size neighbour channels) ** beta``.

    Only the input is kept; backward computes the denominators again, which costs less than reading
    them back from memory. Inputs are [N, C, ...] with any number of further axes.
    """

    takes_bfloat16 = True

    def forward(self, x: Array, *, options: NormOptions) -> Array:
        check(x, options.groups)
        self.options = options
        self.save(x)
        if x.size == 0:  # in whatever axis: no energy to sum
            return x
        return backends.of(x).local_response_norm(_as_images(x), options).reshape(x.shape)

    def backward(self, grad: Array) -> Array:
        (x,) = self.saved
        if x.size == 0:
            return grad
        kernel = backends.of(grad).local_response_norm_input_grad
        return kernel(_as_images(grad), _as_images(x), self.options).reshape(x.shape)


class WithinChannelResponseNorm(Function):
    """``y = x / (k + alpha / size ** 2 * sum of x ** 2 around it) ** beta``, x [N, C, H, W].

    As with `LocalResponseNorm`, only the input is kept.
    """

    def forward(self, x: Array, *, options: NormOptions) -> Array:
        arguments.floating("within_channel_response_norm", x)
        if x.ndim != 4:
            raise ValueError(
                "within_channel_response_norm expects shape [N, C, H, W] or [C, H, W], got "
                f"{x.shape}"
            )
        self.options = options
        self.save(x)
        return backends.of(x).within_channel_response_norm(x, options)

    def backward(self, grad: Array) -> Array:
        (x,) = self.saved
        kernel = backends.of(grad).within_channel_response_norm_input_grad
        return kernel(grad, x, self.options)


def check(x: Array, groups: int) -> None:
    """Raise ValueError or TypeError unless ``x`` can have so many groups."""
    arguments.floating("local_response_norm", x)
    if x.ndim < 3:
        raise ValueError(
            f"local_response_norm expects shape [N, C, ...] of 3 or more axes, got {x.shape}"
        )
    if x.shape[1] % groups:
        raise ValueError(
            f"local_response_norm: groups must divide the channels ({x.shape[1]}), got {groups}"
        )


def _as_images(x: Array) -> Array:
    """Return ``x`` with exactly two axes after the channels."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], -1, 1)
