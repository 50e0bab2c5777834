"""All the sizes of one convolution: the Python twin of ``struct ConvShape``."""

from __future__ import annotations

from typing import NamedTuple

from tinyalex.backends.geometry import Padding, Pair, conv_output_size


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

    @classmethod
    def of(
        cls,
        input_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> ConvShape:
        """Return the sizes for images [N, C, H, W] and weights [K, C/groups, R, S]."""
        N, C, H, W = input_shape
        K, _, R, S = weight_shape
        Ho, Wo = conv_output_size((H, W), (R, S), stride, padding, dilation)
        (top, _), (left, _) = padding
        return cls(N, H, W, C, K, R, S, Ho, Wo, *stride, top, left, *dilation, groups)
