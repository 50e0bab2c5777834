"""Classifiers on the disk: what travels with the weights, what is refused."""

import math

import numpy as np
import pytest
from commands import tiny_settings
from PIL import Image

import tinyalex as ta
from tinyalex.files import FileError
from tinyalex.training import (
    Checkpoints,
    Classifier,
    load_checkpoint,
    load_classifier,
    new_run,
)
from tinyalex.training.datasets import RunImages

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def test_a_classifier_survives_the_disk(photos, trained, tmp_path):
    classifier = load_classifier(trained)
    images = [np.asarray(Image.open(path)) for path in sorted(photos.glob("*/0*.png"))]
    shares = classifier.probabilities(images, batch_size=7)
    assert shares.shape == (30, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    again = Classifier.from_state(classifier.get_state())
    np.testing.assert_array_equal(again.probabilities(images, batch_size=7), shares)
    assert classifier.probabilities([]).shape == (0, 3)


def test_the_order_of_colours_and_the_shorter_side_travel_with_the_weights(trained):
    classifier = load_classifier(trained)
    state = classifier.get_state()
    assert (state["channels"], state["shorter_side"]) == ("RGB", 32)
    assert Classifier.from_state(state | {"shorter_side": 40}).shorter_side == 40
    with pytest.raises(ValueError, match=r"these weights expect pixels in 'BGR', here .* 'RGB'"):
        Classifier.from_state(state | {"channels": "BGR"})
    del state["channels"], state["shorter_side"]  # as files once were
    assert Classifier.from_state(state).shorter_side == 32


def test_held_out_images_have_the_shorter_side_of_the_weights(photos):
    settings = tiny_settings(photos)
    dataset = RunImages(new_run(settings).get_result(), settings, "a run").held_out(40)
    assert min(dataset.load(0).shape[:2]) == 40


def test_the_mean_image_travels_with_the_weights(photos, tmp_path):
    run = new_run(tiny_settings(photos, mean="image"))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep_best(run)
    checkpoints.save(run)
    classifier = load_classifier(checkpoints.best)
    assert classifier.mean.shape == (32, 32, 3)
    np.testing.assert_array_equal(classifier.mean, run.classifier.mean)
    images = [np.asarray(Image.open(path)) for path in sorted(photos.glob("*/0*.png"))]
    shares = classifier.probabilities(images)
    np.testing.assert_array_equal(shares, run.classifier.probabilities(images))
    classifier.mean = classifier.mean + np.linspace(-99, 99, 32, dtype=np.float32)[:, None, None]
    assert (classifier.probabilities(images) != shares).any()


def with_a_mean_of_another_size(path, content):
    path.write_bytes(content)
    checkpoint = load_checkpoint(path)
    checkpoint["classifier"]["mean"] = np.zeros((33, 33, 3), np.float32)
    ta.save(checkpoint, path)


def with_a_mean_that_is_no_number(path, content):
    path.write_bytes(content)
    checkpoint = load_checkpoint(path)
    checkpoint["classifier"]["mean"] = [100.0, math.nan, 100.0]
    ta.save(checkpoint, path)


def damaged(path, content):
    path.write_bytes(content[: len(content) // 2])


def flipped(path, content):
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def of_unknown_variant(path, content):
    path.write_bytes(content)
    checkpoint = load_checkpoint(path)
    checkpoint["classifier"]["variant"] = "vgg"
    ta.save(checkpoint, path)


def of_another_network(path, content):
    path.write_bytes(content)
    checkpoint = load_checkpoint(path)
    checkpoint["classifier"]["variant"] = "torchvision"
    ta.save(checkpoint, path)


def something_else(path, content):
    ta.save({"weights": np.zeros(3)}, path)


def text(path, content):
    path.write_text("not a checkpoint")


@pytest.mark.parametrize(
    "spoil",
    [
        damaged,
        flipped,
        of_unknown_variant,
        of_another_network,
        with_a_mean_of_another_size,
        with_a_mean_that_is_no_number,
        something_else,
        text,
    ],
)
def test_a_file_that_cannot_be_used_is_named(trained, tmp_path, spoil):
    path = tmp_path / "spoilt.safetensors"
    spoil(path, Checkpoints(trained).best.read_bytes())
    with pytest.raises(FileError, match=r"spoilt\.safetensors"):
        load_classifier(path)


def test_best_is_taken_from_a_folder_and_last_where_there_is_none(trained, tmp_path):
    assert load_classifier(trained).classes == ["ash", "birch", "elm"]
    (tmp_path / "last.safetensors").write_bytes(Checkpoints(trained).last.read_bytes())
    assert load_classifier(tmp_path).classes == ["ash", "birch", "elm"]
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_classifier(tmp_path / "gone")
