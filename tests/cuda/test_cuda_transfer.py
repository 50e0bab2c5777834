"""Batches on a GPU: equal to the CPU's, copied during computation."""

import numpy as np
import pytest
from helpers import assert_close

from tinyalex.backends.devices import device_of, move
from tinyalex.backends.layout import with_room
from tinyalex.data import (
    ColourNoise,
    DataError,
    EvalTransform,
    GPULoader,
    ImageError,
    Loader,
    TenCropTransform,
    TrainTransform,
)

pytestmark = pytest.mark.usefixtures("cuda")

COLOUR = (120.0, 110.0, 100.0)


class Pictures:
    """Random pixels in memory; those of a place in `unreadable` cannot be read."""

    classes = ("a", "b", "c")

    def __init__(self, count=11, sizes=((9, 9),), unreadable=()):
        rng = np.random.default_rng(5)
        shapes = [(*sizes[i % len(sizes)], 3) for i in range(count)]
        self.images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
        self.labels = rng.integers(0, 3, count)
        self.unreadable = unreadable

    def __len__(self):
        return len(self.images)

    def load(self, index):
        if index in self.unreadable:
            raise ImageError(self.describe(index), "torn")
        return self.images[index]

    def describe(self, index):
        return f"picture {index}"


def mean_image(rng):
    return rng.uniform(90, 150, (9, 9, 3)).astype(np.float32)


def noise(rng, kind):
    samples = rng.uniform(0, 255, (50, 3))
    return ColourNoise.of_kind(kind, np.cov(samples.T))


TRANSFORMS = {
    "validation": lambda rng: EvalTransform(6, COLOUR, (60.0, 61.0, 62.0)),
    "validation, mean image": lambda rng: EvalTransform(6, mean_image(rng)),
    "paper": lambda rng: TrainTransform(6, COLOUR, (60.0, 61.0, 62.0)),
    "paper, mean image": lambda rng: TrainTransform(6, mean_image(rng)),
    "paper, noise": lambda rng: TrainTransform(6, COLOUR, colour_noise=noise(rng, "eigenvalues")),
    "paper, both": lambda rng: TrainTransform(
        6, mean_image(rng), 2.0, colour_noise=noise(rng, "deviations")
    ),
    "none": lambda rng: TrainTransform(6, COLOUR, random_crop=False, flip=False),
    "strong": lambda rng: TrainTransform(6, COLOUR, scale=(0.35, 1.0), jitter=0.3),
    "ten crops": lambda rng: TenCropTransform(6, COLOUR),
}


def batches(make, transform, dataset, epochs=(0, 1), start=0, **options):
    """Return images, labels and indices of batches, on the host."""
    loader = make(dataset, 3, transform, seed=7, **options)
    all_of_them = [batch for epoch in epochs for batch in loader.epoch(epoch, start)]
    loader.close()
    found = [(move(batch.images, "cpu"), batch.labels, batch.indices) for batch in all_of_them]
    return found, loader.bad


def assert_equal(found, expected, tolerance):
    assert len(found) == len(expected)
    for (images, *rest), (wanted, *wanted_rest) in zip(found, expected, strict=True):
        assert_close(images, wanted, tolerance)
        for one, other in zip(rest, wanted_rest, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_batches_are_those_of_the_cpu(rng, name):
    transform = TRANSFORMS[name](rng)
    expected = batches(Loader, transform, Pictures())[0]
    # The arithmetic is the host's, operation by operation.
    assert_equal(batches(GPULoader, transform, Pictures())[0], expected, tolerance=0)


@pytest.mark.parametrize("mean", [COLOUR, "image"])
def test_grey_batches_are_those_of_the_cpu(rng, mean):
    mean = mean_image(rng) if mean == "image" else mean
    transform = TrainTransform(6, mean, channels=1, colour_noise=noise(rng, "eigenvalues"))
    expected = batches(Loader, transform, Pictures())[0]
    # Three products are added up in another order: 1e-6 of a luma of up to 255.
    assert_equal(batches(GPULoader, transform, Pictures())[0], expected, tolerance=1e-6)


@pytest.mark.parametrize("name", ["paper", "paper, mean image"])
def test_images_of_many_sizes(rng, name):
    transform, data = TRANSFORMS[name](rng), Pictures(sizes=((9, 9), (9, 13), (20, 9)))
    assert_equal(batches(GPULoader, transform, data)[0], batches(Loader, transform, data)[0], 0)


def test_processes_make_the_same_batches(rng):
    transform, data = TRANSFORMS["paper, both"](rng), Pictures()
    found, _ = batches(GPULoader, transform, data, processes=True, workers=1)
    assert_equal(found, batches(Loader, transform, data)[0], 0)


def test_an_epoch_can_be_taken_up_anywhere(rng):
    transform, data = TRANSFORMS["paper"](rng), Pictures()
    found, _ = batches(GPULoader, transform, data, epochs=(2,), start=1)
    assert_equal(found, batches(Loader, transform, data, epochs=(2,))[0][1:], 0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_unreadable_images_are_replaced_or_left_out(rng, shuffle):
    transform, data = TRANSFORMS["paper"](rng), Pictures(unreadable=(4,))
    options = {"shuffle": shuffle, "max_bad": 0.5}
    found, bad = batches(GPULoader, transform, data, **options)
    expected, expected_bad = batches(Loader, transform, data, **options)
    assert_equal(found, expected, 0)
    assert bad == expected_bad == [("picture 4", "torn")]


def test_an_error_comes_in_the_place_of_its_batch(rng):
    data = Pictures(unreadable=(7, 8, 9, 10))

    def count(make):
        epoch = make(data, 3, TRANSFORMS["none"](rng), shuffle=False).epoch(0)
        for seen in range(99):
            try:
                next(epoch)
            except DataError:
                return seen

    assert count(GPULoader) == count(Loader) == 2


def test_bytes_travel_where_only_crops_are_made(rng):
    def bytes_of(name):
        transform = GPULoader(Pictures(), 3, TRANSFORMS[name](rng)).transform
        return transform.dtype.itemsize * int(np.prod(transform.shape))

    numbers = 3 * 4 + 3 * 8  # top, left, mirrored; the noise
    assert bytes_of("paper") == bytes_of("validation") == 6 * 6 * 3 + numbers
    assert bytes_of("paper, mean image") == 9 * 9 * 3 + numbers
    assert bytes_of("strong") == 4 * 6 * 6 * 3


@pytest.mark.parametrize("name", ["paper", "strong"])
def test_the_next_batch_is_under_way_while_one_is_computed_on(rng, name, monkeypatch):
    """On the stand-in copies happen as late as they may, and too early ones are refused."""
    sent = []
    loader = GPULoader(Pictures(), 3, TRANSFORMS[name](rng))
    send = loader._send
    monkeypatch.setattr(loader, "_send", lambda batch: sent.append(batch) or send(batch))
    for number, batch in enumerate(loader.epoch(0), start=1):
        assert device_of(batch.images) == "cuda:0"
        assert with_room(batch.images).shape == (len(batch), 6, 6, 4)
        assert len(sent) == min(number + 1, len(loader))
        before = move(batch.images, "cpu")
        (batch.images * 2.0).sum()
        assert np.array_equal(move(batch.images, "cpu"), before)


def test_batches_go_to_the_device_that_was_asked_for(rng, cuda):
    last = f"cuda:{cuda.cuda.runtime.getDeviceCount() - 1}"
    loader = GPULoader(Pictures(), 3, TRANSFORMS["paper"](rng), device=last)
    assert {device_of(batch.images) for batch in loader.epoch(0)} == {last}
