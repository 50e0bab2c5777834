"""Checkpoints: when they are written, what they hold, what is refused."""

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

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def test_checkpoints_are_due_in_time_and_not_too_often(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    patient = Checkpoints(tmp_path, seconds=60, share=1.0)
    patient.save(run)
    assert not patient.due()
    assert not patient.due(epoch_ends=True)  # not before as much time went by as saving took
    eager = Checkpoints(tmp_path, seconds=0, share=math.inf)
    eager.save(run)
    assert eager.due()
    assert Checkpoints(tmp_path, seconds=60).due(epoch_ends=True)


def test_a_failed_save_is_not_tried_again_at_once(photos, tmp_path, disk):
    checkpoints = Checkpoints(tmp_path, seconds=0, share=1e-9)
    run = new_run(tiny_settings(photos))
    disk(1000)
    with pytest.raises(OSError, match="too large"):
        checkpoints.save(run)
    assert not checkpoints.due(epoch_ends=True)


def test_the_best_network_is_the_one_of_its_epoch(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    weights = run.classifier.model.state_dict()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep_best(run)
    for parameter in run.classifier.model.parameters():
        parameter.data += 1
    assert not checkpoints.best.exists()
    checkpoints.save(run)
    for name, array in load_classifier(checkpoints.best).model.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])
        np.testing.assert_array_equal(
            load_checkpoint(checkpoints.last)["classifier"]["weights"][name], weights[name] + 1
        )


def test_the_best_network_is_written_before_the_state_that_knows_of_it(photos, tmp_path, disk):
    run = new_run(tiny_settings(photos))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep_best(run)
    for parameter in run.classifier.model.parameters():
        parameter.grad = np.zeros_like(parameter.data)
    run.optimizer.step()  # velocity makes the last checkpoint twice the size of the best
    disk(80_000)
    with pytest.raises(OSError, match="too large"):
        checkpoints.save(run)
    disk(None)
    assert load_classifier(checkpoints.best).classes == run.classifier.classes
    assert not checkpoints.last.exists()


@pytest.mark.parametrize("place", ["weight", "velocity"])
def test_weights_that_are_not_finite_are_not_saved(photos, tmp_path, place):
    run = new_run(tiny_settings(photos))
    if place == "velocity":
        for parameter in run.classifier.model.parameters():
            parameter.grad = np.zeros_like(parameter.data)
        run.optimizer.step()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(run)
    before = checkpoints.last.read_bytes()
    if place == "weight":
        next(run.classifier.model.parameters()).data.flat[5] = np.inf
    else:
        run.optimizer._velocity[0].flat[5] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        checkpoints.save(run)
    assert checkpoints.last.read_bytes() == before


def test_room_on_the_disk_is_looked_for_first(photos, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(OSError, match="0 MB free, the checkpoints need"):
        Checkpoints(tmp_path).prepare(new_run(tiny_settings(photos)))


def test_what_a_killed_run_left_half_written_is_swept_away(photos, tmp_path):
    (tmp_path / ".last.safetensors.x1.tmp").write_bytes(b"half")
    Checkpoints(tmp_path).prepare(new_run(tiny_settings(photos)))
    assert not list(tmp_path.iterdir())


def test_a_classifier_survives_the_disk(photos, trained, tmp_path):
    classifier = load_classifier(trained)
    images = [np.asarray(Image.open(path)) for path in sorted(photos.glob("*/0*.png"))]
    shares = classifier.probabilities(images, batch_size=7)
    assert shares.shape == (30, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    again = Classifier.from_state(classifier.get_state())
    np.testing.assert_array_equal(again.probabilities(images, batch_size=7), shares)
    assert classifier.probabilities([]).shape == (0, 3)


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
