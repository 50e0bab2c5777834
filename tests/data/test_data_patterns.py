"""The embedded data set: seeded, disjoint splits, not solved by colours."""

import numpy as np
import pytest
from PIL import Image

from tinyalex.data import Loader, Patterns, TrainTransform, mean_colour
from tinyalex.data.patterns import draw
from tinyalex.training.datasets import PATTERN_SIZES


def pixels(dataset, indices):
    return [dataset.load(i).tobytes() for i in indices]


def test_looks_like_a_folder_of_images():
    dataset = Patterns("test", size=40)
    assert len(dataset) == 40
    assert len(dataset.classes) == 10
    assert dataset.classes == sorted(dataset.classes)
    assert np.bincount(dataset.labels).tolist() == [4] * 10
    assert dataset.labels.dtype == np.int64
    assert dataset.load(3).shape == (256, 256, 3)
    assert dataset.load(3).dtype == np.uint8
    assert dataset.describe(3) == "crosses 3 of Patterns('test', size=40, seed=0)"
    assert all(80 < value < 170 for value in mean_colour(dataset, samples=40))
    (batch,) = Loader(dataset, 40, TrainTransform(224)).epoch(0)
    assert batch.images.shape == (40, 3, 224, 224)


def test_the_default_is_what_is_trained_on():
    assert len(Patterns()) == PATTERN_SIZES["train"]


def test_images_depend_on_seed_split_and_index_alone():
    first = pixels(Patterns("train", size=30), range(30))
    assert pixels(Patterns("train", size=20), reversed(range(20))) == first[19::-1]
    assert first[7] == Patterns("train", size=30).load(7).tobytes()


def test_the_class_changes_what_the_mask_shows_and_nothing_else():
    for seed in range(12):
        image, mask = draw("checks", np.random.default_rng(seed))
        other, same = draw("zigzag", np.random.default_rng(seed))
        np.testing.assert_array_equal(mask, same)
        changed = (image != other).any(axis=2)
        assert not changed[~mask].any()
        assert changed[mask].mean() > 0.3
    dataset = Patterns("val", 20)
    masks = [dataset.mask(i) for i in range(20)]
    assert all(mask.shape == (256, 256) and 0.2 < mask.mean() < 0.95 for mask in masks)
    expected = draw(dataset.classes[7], np.random.default_rng((0, 1, 7)))[1]
    np.testing.assert_array_equal(masks[7], expected)


def test_no_image_appears_twice():
    """Within a split, across splits and across seeds."""
    datasets = [Patterns(split, 60, seed) for split in ("train", "val", "test") for seed in (0, 1)]
    seen = [image for dataset in datasets for image in pixels(dataset, range(60))]
    assert len(set(seen)) == len(seen) == 360


def test_a_linear_classifier_on_pixels_fails():
    """Ridge regression learns the training images and stays near chance (10 %) on others."""

    def thumbnails(dataset):
        small = [Image.fromarray(dataset.load(i)).resize((32, 32)) for i in range(len(dataset))]
        return np.stack([np.asarray(image, np.float32).ravel() for image in small]) / 255

    def accuracy(scores, dataset):
        return np.mean(scores.argmax(axis=1) == dataset.labels)

    train, test = Patterns("train", size=1500), Patterns("test", size=500)
    x, unseen = thumbnails(train), thumbnails(test)
    unseen -= x.mean(axis=0)
    x -= x.mean(axis=0)
    targets = np.eye(10)[train.labels]
    found = []
    for ridge in (1.0, 30.0, 1000.0):
        dual = np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), targets)
        found.append((accuracy(x @ (x.T @ dual), train), accuracy(unseen @ (x.T @ dual), test)))
    assert max(seen for seen, _ in found) > 0.95
    assert max(held_out for _, held_out in found) < 0.25


@pytest.mark.parametrize("options", [{"split": "all"}, {"size": 0}, {"seed": -1}])
def test_refuses_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Patterns(**options)
