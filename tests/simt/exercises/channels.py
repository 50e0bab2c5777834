"""Zeros beside channels, sums of parts, and conversions to and from bfloat16."""

import numpy as np
from helpers import assert_close, normal

from simt.exercises import BFLOAT16, HALVES, assert_same, exercise, to_device, to_host
from tinyalex.backends.cuda.bias_grad import bias_grad
from tinyalex.backends.cuda.channels import widened
from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import as_nchw, copy_with_room


@exercise("pad_channels.cu")
def zeros_beside_channels(rng):
    for shape, wanted in (
        ((2, 3, 9, 15), 4),
        ((2, 5, 3, 7), 8),
        ((1, 3, 1, 1), 4),
        ((0, 3, 2, 2), 4),
    ):
        x = normal(rng, shape, np.float32)
        planar, roomy = to_device(x), copy_with_room(to_device(x))
        roomy.base[..., shape[1] :] = np.nan
        lines = as_nchw(to_device(np.ascontiguousarray(x.transpose(0, 2, 3, 1))))
        for dtype in HALVES:
            expected = np.zeros((shape[0], *shape[2:], wanted), dtype)
            expected[..., : shape[1]] = x.transpose(0, 2, 3, 1)  # rounds to nearest, too
            for images in (planar, lines, roomy, planar.astype(dtype)):
                wide = widened(images, wanted, dtype)
                assert wide.dtype == dtype
                assert_same(wide, expected)
            same = widened(planar.astype(dtype), shape[1])
            assert same.dtype == dtype
            assert_same(same, expected[..., : shape[1]])


# Of a float's upper half: every sign and exponent, with the mantissa's ends; and of the lower one.
UPPER = (np.arange(512, dtype=np.uint32)[:, None] << 23 | np.uint32([0, 1, 126, 127]) << 16).ravel()
LOWER = np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])


@exercise("pad_channels.cu")
def floats_to_bfloat16(rng):
    """To nearest, ties to even: of what is too small to be normal too; to infinity; NaN to NaN."""
    floats = (UPPER[:, None] | LOWER).view(np.float32).reshape(1, 3, 64, 64)
    rounded = to_host(widened(to_device(floats), 4, BFLOAT16))[..., :3].transpose(0, 3, 1, 2)
    numbers = ~np.isnan(floats)
    expected = floats[numbers].astype(BFLOAT16)
    assert rounded[numbers].tobytes() == expected.tobytes()
    assert np.isnan(rounded[~numbers]).all()


@exercise("bias_grad.cu")
def bfloat16_to_floats(rng):
    """The upper half of a float, the sum of nothing else; a GPU takes what is not normal for 0."""
    floats = UPPER[(UPPER >> 23 & 0xFF) > 0].view(np.float32)
    floats = floats[~np.isnan(floats)]
    assert_same(bias_grad(to_device(floats[None].astype(BFLOAT16))), floats)


@exercise("split_sum.cu")
def parts_of_a_sum(rng):
    """In order; what is not finite goes through."""
    parts = normal(rng, (3, 517), np.float32)
    parts[:, :3] = [[1, np.nan, np.inf], [2**-8, 0, 1], [2**-24, 0, 0]]
    y = cupy().empty(517, np.float32)
    launch("split_sum.cu", "split_sum", (3,), (256,), (to_device(parts), y, 3, 517))
    assert_same(y, parts[0] + parts[1] + parts[2])
    assert_close(to_host(y), parts.astype(np.float64).sum(axis=0))
