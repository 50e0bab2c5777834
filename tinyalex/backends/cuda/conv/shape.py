"""Sizes of a convolution: the Python twin of ``struct ConvShape``."""

from __future__ import annotations

from typing import NamedTuple

from tinyalex.backends.geometry import ConvOptions, conv_output_size
from tinyalex.backends.types import Shape


class ConvShape(NamedTuple):
    """The fields of ``ConvShape`` in ``kernels/convolution.cuh``, in its order."""

    N: int
    H: int
    W: int
    C: int
    K: int
    R: int
    S: int
    Ho: int
    Wo: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    groups: int
    filled: int

    @classmethod
    def of(cls, input_shape: Shape, weight_shape: Shape, options: ConvOptions) -> ConvShape:
        """Return the sizes for images [N, C, H, W] and weights [K, C/groups, R, S]."""
        N, C, H, W = input_shape
        K, _, R, S = weight_shape
        Ho, Wo = conv_output_size((H, W), (R, S), options)
        stride, ((top, _), (left, _)), dilation, groups = options
        return cls(N, H, W, C, K, R, S, Ho, Wo, *stride, top, left, *dilation, groups, C)

    @property
    def channels(self) -> int:
        """Channels of a group."""
        return self.C // self.groups

    @property
    def filters(self) -> int:
        """Filters of a group."""
        return self.K // self.groups
