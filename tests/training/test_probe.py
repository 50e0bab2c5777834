"""The linear probe: its optimum, span and folds; cached features."""

import importlib
import os

import images
import numpy as np
import pytest
from commands import TINY
from helpers import assert_close
from scipy.special import log_softmax, softmax

from tinyalex.data import DataError, ImageFolder, cache
from tinyalex.models import alexnet
from tinyalex.training import Classifier
from tinyalex.training.features import described
from tinyalex.training.probe import draw_folds, draw_shots, fit_probe, scaling

room = importlib.import_module("tinyalex.training.features")  # the package has a function so called


def problem(count=60, size=20, classes=3):
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(count) % classes)
    features = rng.standard_normal((count, size), np.float32) * rng.uniform(0.1, 3, size)
    features[:, :classes] += 1.5 * np.eye(classes)[labels]
    return np.maximum(features, 0), labels


def loss_and_gradient(probe, features, labels):
    """Return the objective at the probe's weights, in all D dimensions, and its gradient."""
    rows = (features - probe.mean) / probe.scale
    logits = rows @ probe.weight.T + probe.bias
    loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
    change = (softmax(logits, axis=1) - np.eye(len(probe.bias))[labels]) / len(labels)
    by_weight = change.T @ rows + probe.strength * probe.weight
    loss += probe.strength / 2 * (probe.weight**2).sum()
    return loss, np.concatenate([by_weight, change.sum(axis=0)[:, None]], axis=1)


@pytest.mark.parametrize("size", [20, 60, 300])  # fewer features than images, as many, more
@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
def test_the_gradient_over_all_features_is_zero_at_the_answer(size, strength):
    features, labels = problem(size=size)
    probe = fit_probe(features, labels, 3, strengths=[strength])
    assert probe.strength == strength
    _, gradient = loss_and_gradient(probe, features, labels)
    assert np.abs(gradient).max() < 1e-6


def test_the_answer_is_that_of_gradient_descent_over_all_features():
    """With more features than images, which the probe solves along the axes of their span."""
    features, labels = problem(size=90)
    probe = fit_probe(features, labels, 3, strengths=[0.05])
    rows = (features - probe.mean) / probe.scale
    weight, bias = np.zeros((3, 90)), np.zeros(3)
    for _ in range(6000):
        change = softmax(rows @ weight.T + bias, axis=1) - np.eye(3)[labels]
        weight -= change.T @ rows / len(rows) + 0.05 * weight
        bias -= change.mean(axis=0)
    np.testing.assert_allclose(probe.weight, weight, atol=1e-6)
    np.testing.assert_allclose(probe.bias, bias, atol=1e-6)
    np.testing.assert_allclose(probe.logits(features), rows @ weight.T + bias, atol=1e-6)


def test_scaled_rows_are_about_as_long_as_one_and_rare_features_are_not_blown_up():
    features, _ = problem(size=300)
    features[:, 7], features[:, 8] = 0, 5
    features[:, 9] = 0
    features[0, 9] = 1e-6
    mean, scale = scaling(features)
    rows = (features - mean) / scale
    assert 0.2 < (rows**2).sum(axis=1).mean() < 1
    assert np.abs(rows[:, 7:10]).max() < 1e-6
    assert np.isfinite(scaling(np.zeros((4, 3)))[1]).all()


@pytest.mark.parametrize(("counts", "parts"), [((7, 12), 5), ((3, 9), 3), ((1, 4), 1)])
def test_folds_have_as_many_of_each_class(counts, parts):
    labels = np.repeat([0, 1], counts)
    folds = draw_folds(labels, seed=0)
    assert set(folds) == set(range(parts))
    for label, count in enumerate(counts):
        sizes = np.bincount(folds[labels == label], minlength=parts)
        assert sizes.min() >= count // parts
        assert sizes.max() - sizes.min() <= 1
    assert (draw_folds(labels, seed=0) == folds).all()


def test_cross_validation_finds_the_strength_that_suits():
    features, labels = problem(count=90)
    noise = np.random.default_rng(2).permutation(labels)
    assert fit_probe(features, labels, 3).strength <= 0.1
    assert fit_probe(features, noise, 3).strength == 1
    assert fit_probe(features[:3], np.arange(3), 3).accuracy(features[:3], np.arange(3)) == 1


@pytest.mark.parametrize("count", [2, 8])
def test_equal_images_leave_nothing_to_learn_but_how_many_there_are(count):
    labels = np.arange(count) % 2
    probe = fit_probe(np.ones((count, 5)), labels, 2)
    assert_close(softmax(probe.logits(np.ones((1, 5))), axis=1), np.full((1, 2), 0.5))


def test_shots_are_drawn_of_each_class():
    labels = np.repeat([0, 1, 2], [5, 30, 9])
    drawn = draw_shots(labels, 5, np.random.default_rng(0))
    assert np.bincount(labels[drawn]).tolist() == [5, 5, 5]
    assert (draw_shots(labels, 5, np.random.default_rng(1)) != drawn).any()
    assert len(draw_shots(labels, 99, np.random.default_rng(0))) == len(labels)


@pytest.fixture
def splits(tmp_path, monkeypatch):
    """Return both splits of a small folder, with a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images.folder(tmp_path / "photos", ash=8, elm=8)
    return {split: open_split(tmp_path, split) for split in ("train", "val")}


def open_split(folder, split):
    return ImageFolder(folder / "photos", split, shorter_side=32)


@pytest.fixture
def classifier():
    """Return an untrained one."""
    return Classifier(alexnet(TINY, 2), ["ash", "elm"], (120.0,), (60.0,), 28, 32)


@pytest.fixture
def passes(monkeypatch):
    """Return the titles of the passes over images from now on."""
    seen, computed = [], room.computed

    def counted(compute, loader, progress, title):
        seen.append(title)
        return computed(compute, loader, progress, title)

    monkeypatch.setattr(room, "computed", counted)
    return seen


def same(one, other):
    return all(
        (one[split].vectors[name] == other[split].vectors[name]).all()
        for split in one
        for name in one[split].vectors
    )


def test_features_are_computed_once(classifier, splits, passes):
    first = described(classifier, "fc2", splits)
    assert passes == ["features, train", "features, val"]
    assert {name: vectors.shape for name, vectors in first["val"].vectors.items()} == {
        "network": (4, 64),
        "random": (4, 64),
        "pixels": (4, 3 * 28 * 28),
    }
    assert same(first, described(classifier, "fc2", splits))
    assert len(passes) == 2
    assert same(first, described(classifier, "fc2", splits, cache=False))
    assert len(passes) == 4


def change_an_image(classifier, tmp_path):
    images.write(tmp_path / "photos/ash/000.png", colour=(9, 9, 9))


def change_a_weight(classifier, tmp_path):
    classifier.model.weight_layers["conv1"].weight.data[0, 0, 0, 0] += 1


def change_the_pixels(classifier, tmp_path):
    classifier.std = (50.0,)


def damage(classifier, tmp_path):
    (file,) = (tmp_path / "cache/tinyalex").iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def empty(classifier, tmp_path):
    (file,) = (tmp_path / "cache/tinyalex").iterdir()
    os.truncate(file, 10)


@pytest.mark.parametrize(
    "change", [change_an_image, change_a_weight, change_the_pixels, damage, empty]
)
def test_what_is_cached_counts_only_as_long_as_all_is_the_same(
    change, classifier, splits, passes, tmp_path
):
    described(classifier, "fc2", splits)
    change(classifier, tmp_path)
    found = described(classifier, "fc2", splits)
    assert len(passes) == 4
    assert same(found, described(classifier, "fc2", splits, cache=False))


def test_another_layer_and_another_seed_are_other_features(classifier, splits, passes):
    first = described(classifier, "fc2", splits)
    assert described(classifier, "pool1", splits)["val"].vectors["network"].shape == (4, 8 * 25)
    other = described(classifier, "fc2", splits, seed=1)
    assert_close(other["val"].vectors["network"], first["val"].vectors["network"])
    assert not same(first, other)
    assert len(passes) == 6


def test_the_oldest_features_make_room(classifier, splits, monkeypatch, tmp_path):
    described(classifier, "fc2", splits)
    (first,) = (tmp_path / "cache/tinyalex").iterdir()
    os.utime(first, (1, 1))
    monkeypatch.setattr(room, "CACHED_BYTES", int(1.5 * first.stat().st_size))
    described(classifier, "fc2", splits, seed=1)
    (second,) = (tmp_path / "cache/tinyalex").iterdir()
    assert second != first


def test_without_a_home_nothing_is_cached(classifier, splits, monkeypatch, passes):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache.cache_file("a", "features") is None
    described(classifier, "fc2", splits)
    described(classifier, "fc2", splits)
    assert len(passes) == 4


def test_unreadable_images_are_left_out_and_remembered(classifier, splits, passes, tmp_path):
    (tmp_path / "photos/ash/000.png").write_text("no image")
    found = described(classifier, "fc2", splits)
    bad = [name for part in found.values() for name, _ in part.bad]
    assert bad == [str(tmp_path / "photos/ash/000.png")]
    assert sum(len(part.indices) for part in found.values()) == 15
    again = described(classifier, "fc2", splits)
    assert len(passes) == 2
    assert [again[split].bad for split in again] == [found[split].bad for split in found]
    for name in ("001.png", "002.png", "003.png", "004.png", "005.png", "006.png"):
        (tmp_path / "photos/ash" / name).write_text("no image")
    with pytest.raises(DataError, match="cannot be read"):
        described(classifier, "fc2", splits)
