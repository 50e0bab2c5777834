"""Batches made on the device, against the transforms on the host."""

import numpy as np
from helpers import assert_close

from simt.exercises import exercise, to_device, to_host
from tinyalex.backends.cuda import batch
from tinyalex.backends.geometry import BatchOptions
from tinyalex.backends.layout import with_room
from tinyalex.data import EvalTransform

N, H, W, CROP = 2, 28, 31, 22  # 22 x 3 numbers are more than the 64 threads of a block
TOPS, LEFTS, FLIPS = (0, 5), (9, 2), (False, True)


def draw(rng, channels=3, size=(H, W)):
    return rng.integers(0, 256, (N, *size, channels), np.uint8)


def on_host(images, transform, noise=None):
    """Return the views that the transform cuts, [N, channels, crop, crop]."""
    views = []
    for n in range(N):
        pixels, mean = transform._cut(images[n], TOPS[n], LEFTS[n], FLIPS[n])
        views.append(transform._normalise(pixels, mean, None, None if noise is None else noise[n]))
    return np.stack(views).transpose(0, 3, 1, 2)


def on_device(images, transform, offsets=None, **channels):
    options = BatchOptions(transform.crop, transform.mean, transform.std, **channels)
    y = batch.prepare(to_device(images), TOPS, LEFTS, FLIPS, options, offsets)
    room = to_host(with_room(y))
    assert room.shape == (N, CROP, CROP, 4)
    assert not room[..., y.shape[1] :].any()
    return to_host(y)


@exercise("batch.cu")
def a_batch_has_the_bits_of_the_transforms(rng):
    colours = EvalTransform(CROP, (124.0, 116.5, 104.1), (58.4, 57.1, 57.3))
    plain = EvalTransform(CROP)
    noise = rng.normal(0, 20, (N, 3))
    for transform in (colours, plain):
        images = draw(rng)
        np.testing.assert_array_equal(on_device(images, transform), on_host(images, transform))
        np.testing.assert_array_equal(
            on_device(images, transform, offsets=noise), on_host(images, transform, noise)
        )


@exercise("batch.cu")
def a_batch_minus_the_mean_image(rng):
    images = draw(rng, size=(W, W))  # the transforms know square mean images only
    transform = EvalTransform(CROP, rng.uniform(90, 130, (W, W, 3)), 2.5)
    np.testing.assert_array_equal(on_device(images, transform), on_host(images, transform))
    noise = rng.normal(0, 20, (N, 3))
    found = on_device(images, transform, offsets=noise)
    np.testing.assert_array_equal(found, on_host(images, transform, noise))


@exercise("batch.cu")
def a_batch_for_grey_networks(rng):
    grey = draw(rng, 1)
    found = on_device(grey, EvalTransform(CROP, 120.0, 50.0, channels=1))
    wanted = [
        grey[n, TOPS[n] : TOPS[n] + CROP, LEFTS[n] : LEFTS[n] + CROP, 0][
            :, :: -1 if FLIPS[n] else 1
        ]
        for n in range(N)
    ]
    assert_close(found[:, 0], (np.stack(wanted) - 120.0) / 50, 1e-6)
    images = draw(rng, size=(W, W))
    for mean in ((124.0, 116.5, 104.1), rng.uniform(90, 130, (W, W, 3))):
        transform = EvalTransform(CROP, mean, 50.0, channels=1)
        found = on_device(images, transform, channels=1)
        assert_close(found, on_host(images, transform), 1e-6)


@exercise("batch.cu")
def a_batch_of_nothing(rng):
    nothing = np.zeros((0, H, W, 3), np.uint8)
    transform = EvalTransform(CROP)
    options = BatchOptions(CROP, transform.mean, transform.std)
    y = batch.prepare(to_device(nothing), (), (), (), options)
    assert y.shape == (0, 3, CROP, CROP)
