"""Classifiers on the disk: what travels with the weights, what is refused."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from commands import tiny_settings
from PIL import Image

import tinyalex as ta
from tinyalex.files import FileError
from tinyalex.interop import Weights, reading
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


def test_the_rule_of_resizing_travels_with_the_weights(trained):
    state = load_classifier(trained).get_state()
    assert state["resize"] == "shorter_side"
    warped = Classifier.from_state(state | {"resize": "warp"})
    assert Classifier.from_state(warped.get_state()).resize == "warp"
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :20] = 255  # a quarter from the left, which a central square does not have
    squares = (Classifier.from_state(state).inputs([image]), warped.inputs([image]))
    assert [len(np.unique(square)) > 3 for square in squares] == [False, True]
    with pytest.raises(ValueError, match=r"resize must be one of shorter_side, warp, got 'crop'"):
        Classifier.from_state(state | {"resize": "crop"})
    del state["resize"]
    assert Classifier.from_state(state).resize == "shorter_side"


@pytest.mark.parametrize("mean", [(1.0, 2.0, 3.0), np.full((40, 40, 3), 7, np.float32)])
def test_a_classifier_becomes_weights_and_back(trained, mean):
    state = load_classifier(trained).get_state()
    sizes = {"shorter_side": 40, "input_size": 28, "resize": "warp"}
    classifier = Classifier.from_state(state | sizes | {"mean": mean})
    weights = classifier.weights("a test")
    assert weights.arrays.keys() >= {"conv1.weight", "fc2.bias", "fc3.weight"}
    again = Classifier.from_weights(weights)
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    np.testing.assert_array_equal(*(c.probabilities([image]) for c in (classifier, again)))
    assert (again.classes, again.resizing) == (classifier.classes, (40, "warp"))


def test_what_weights_do_not_say_is_the_variants(trained):
    arrays = load_classifier(trained).weights().arrays
    classifier = Classifier.from_weights(Weights(arrays, "tiny", "a test"))
    assert classifier.classes == ["class 0", "class 1", "class 2"]
    assert (classifier.input_size, classifier.resizing) == (28, (32, "shorter_side"))
    assert classifier.mean == (123.675, 116.28, 103.53)  # of ImageNet, for the variant measures it
    assert classifier.std == (60, 60, 60)
    named = Classifier.from_weights(Weights(arrays, "tiny", "a test"), ["ash", "elm", "oak"])
    assert named.classes == ["ash", "elm", "oak"]
    with pytest.raises(ValueError, match="has 3 classes, got 2 names"):
        Classifier.from_weights(Weights(arrays, "tiny", "a test"), ["ash", "elm"])


def test_a_weight_file_is_a_classifier(trained, tmp_path, monkeypatch):
    expected = load_classifier(trained)

    def read(request):
        found = expected.weights(request.file.read().decode())
        return replace(found, classes=None, mean=(1.0, 2.0, 3.0), notes=(str(request.mean),))

    monkeypatch.setattr(reading, "FORMATS", [reading.Format("x", b"weights".__eq__, "a_test")])
    monkeypatch.setitem(sys.modules, "tinyalex.interop.a_test", SimpleNamespace(read=read))
    path = tmp_path / "weights.safetensors"
    path.write_text("weights")
    found = load_classifier(path, expected.classes)
    assert (found.classes, found.mean) == (expected.classes, (1, 2, 3))
    for mine, its in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        np.testing.assert_array_equal(mine.data, its.data)


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


def where(key, value):
    """Return a function that writes the checkpoint with another value of its classifier."""

    def spoil(path, content):
        path.write_bytes(content)
        checkpoint = load_checkpoint(path)
        checkpoint["classifier"][key] = value
        ta.save(checkpoint, path)

    return spoil


SPOILT = {
    "damaged": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "a bit flipped": lambda path, content: path.write_bytes(
        content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    ),
    "an unknown variant": where("variant", "vgg"),
    "another network": where("variant", "torchvision"),
    "a mean of another size": where("mean", np.zeros((33, 33, 3), np.float32)),
    "a mean that is no number": where("mean", [100.0, math.nan, 100.0]),
    "something else": lambda path, content: ta.save({"weights": np.zeros(3)}, path),
    "text": lambda path, content: path.write_text("not a checkpoint"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_file_that_cannot_be_used_is_named(trained, tmp_path, spoil):
    path = tmp_path / "spoilt.safetensors"
    spoil(path, Checkpoints(trained).best.read_bytes())
    with pytest.raises(FileError, match=r"spoilt\.safetensors"):
        load_classifier(path)


def test_best_is_taken_from_a_folder_and_last_where_there_is_none(trained, tmp_path):
    assert load_classifier(trained).classes == ["ash", "birch", "elm"]
    (tmp_path / "last.safetensors").write_bytes(Checkpoints(trained).last.read_bytes())
    assert load_classifier(tmp_path).classes == ["ash", "birch", "elm"]
    with pytest.raises(FileNotFoundError, match="gone: give a file of weights"):
        load_classifier(tmp_path / "gone")
