"""Settings, and the run that is put together from them."""

import json
import math
import os
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
from commands import Watcher, result, resumed, tiny_settings, trainer

from tinyalex.data.image import central_square
from tinyalex.models import VARIANTS
from tinyalex.training import (
    Settings,
    StoppedError,
    new_run,
    open_dataset,
)
from tinyalex.training.build import INITIAL_IMAGES, first_images

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"variant": "vgg"}, "variant must be one of paper"),
        ({"schedule": "sawtooth"}, "schedule must be one of constant"),
        ({"mean": "median"}, "mean must be one of image, colour"),
        ({"colour_noise": "loud"}, "colour_noise must be one of none, eigenvalues, deviations"),
        ({"augment": "mixup"}, "augment must be one of none"),
        ({"epochs": 0}, "epochs must be a whole number from 1 to 1000000000, got 0"),
        ({"batch_size": -8}, "batch_size must be"),
        ({"workers": 0}, "workers must be"),
        ({"threads": 0}, "threads must be"),
        ({"image_cache": -1}, "image_cache must be a whole number of megabytes >= 0, got -1"),
        ({"seed": -1}, "seed must be"),
        ({"lr": math.nan}, "lr must be a finite number > 0, got nan"),
        ({"lr": -0.1}, "lr must be"),
        ({"lr": math.inf}, "lr must be"),
        ({"weight_decay": math.nan}, "weight_decay must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"input_size": 29}, "input_size must be 28 for the variant tiny"),
        ({"variant": "torchvision", "input_size": 62}, "input_size must be at least 63"),
    ],
)
def test_settings_that_cannot_be(photos, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny_settings(photos, **change)


def test_schedules_that_count_epochs_stretch_with_the_run(photos):
    short = tiny_settings(photos, variant="torchvision", input_size=63, schedule="step", epochs=12)
    assert short.recipe.schedule_options == {"epochs": 4, "gamma": 0.1}  # 30 of 90
    steps = new_run(replace(short, variant="tiny", input_size=28)).schedule.step_size
    assert steps == 4 * 7
    assert tiny_settings(photos, schedule="step", epochs=1).recipe.schedule_options["epochs"] == 1
    long = tiny_settings(photos, schedule="discrete_exponential", epochs=5)
    assert new_run(long).schedule.total_steps == 5 * 7


def test_pixel_mean_is_measured_once_and_kept(photos):
    run = new_run(tiny_settings(photos))
    assert run.classifier.mean == pytest.approx((125, 125, 120), abs=3)
    assert new_run(tiny_settings(photos), mean=(1.0, 2.0, 3.0)).classifier.mean == (1.0, 2.0, 3.0)


PAPERS = {"mean": "image", "colour_noise": "deviations"}


def test_mean_image_and_colours_are_measured_on_the_training_set(photos):
    settings = tiny_settings(photos, **PAPERS)
    watcher = Watcher()
    seen = []
    watcher.act = lambda *now: seen.append(now)
    run = new_run(settings, progress=watcher)
    train = open_dataset(settings, "train")
    assert seen == [("measuring the mean and the colours of the training images", len(train))]
    stack = np.stack([central_square(train.load(i), 32) for i in range(len(train))])
    np.testing.assert_allclose(run.classifier.mean, stack.mean(axis=0, dtype=np.float64), rtol=1e-6)
    covariance = np.cov(stack.reshape(-1, 3), rowvar=False, bias=True)
    np.testing.assert_allclose(run.colour_covariance, covariance, rtol=1e-9)
    assert run.classifier.mean_colour == pytest.approx((125, 125, 120), abs=3)
    batch = next(run.train_data.epoch(0))
    assert abs(batch.images.mean()) < 0.1  # of values of standard deviation about 1
    assert new_run(tiny_settings(photos, mean="image")).colour_covariance is None
    noisy = new_run(tiny_settings(photos, colour_noise="deviations"))
    assert noisy.classifier.mean == pytest.approx(run.classifier.mean_colour, rel=1e-6)
    assert noisy.colour_covariance is not None


def test_training_images_have_the_noise(photos):
    plain, noisy = (
        next(new_run(tiny_settings(photos, colour_noise=kind)).train_data.epoch(0)).images
        for kind in ("none", "deviations")
    )
    shifts = 60 * (1.1 * noisy - plain)  # back from TINY's scale of pixels to 0..255
    np.testing.assert_allclose(np.ptp(shifts, axis=(2, 3)), 0, atol=1e-3)
    assert 1 < shifts[:, :, 0, 0].std() < 20  # a tenth of the pixels' 70


def test_validation_has_the_mean_image_but_no_noise(photos):
    run = new_run(tiny_settings(photos, **PAPERS))
    batch = next(run.val_data.epoch(0))
    image = central_square(run.val_data.dataset.load(0), 32)[2:30, 2:30]
    expected = (image - run.classifier.mean[2:30, 2:30]) / 60
    np.testing.assert_allclose(batch.images[0].transpose(1, 2, 0), expected, atol=1e-5)


def test_a_variant_s_own_mean_colour_is_not_measured(photos):
    settings = tiny_settings(photos, variant="torchvision", input_size=63)
    assert new_run(settings).classifier.mean == VARIANTS["torchvision"].pixels.mean


def test_initial_weights_can_be_fitted_to_the_data(photos):
    run = new_run(tiny_settings(photos, initial_weights="data"))
    images = first_images(run.train_data, INITIAL_IMAGES)
    logits = run.classifier.model.eval()(images).detach().numpy()
    np.testing.assert_allclose(logits.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(logits.std(axis=0), 0.5, rtol=1e-3)


def test_embedded_images_come_in_the_size_that_is_asked_for():
    small = Settings("torchvision", 1, 8, 0.01, 0, "constant", input_size=63)
    assert open_dataset(small, "test").load(0).shape == (72, 72, 3)
    assert open_dataset(replace(small, input_size=224), "train").load(0).shape == (256, 256, 3)


def test_a_resumed_run_has_the_mean_and_the_colours_it_began_with(photos, tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    trainer(new_run(tiny_settings(photos, **PAPERS)), tmp_path / "whole").train()
    stop = Watcher(lambda *now: now == ("epoch 2/3", 3) and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError):
        trainer(new_run(tiny_settings(photos, **PAPERS)), tmp_path / "cut", stop).train()
    monkeypatch.delattr(
        "tinyalex.data.training_statistics.pixel_statistics"
    )  # nothing is measured again
    trainer(resumed(tmp_path / "cut"), tmp_path / "cut").train()
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_a_run_goes_on_with_the_data_it_began_with_only(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    state = run.get_state()
    with pytest.raises(ValueError, match="the data set is not the one"):
        run.set_state({**state, "data": "other"})
    assert new_run(tiny_settings(photos, seed=1)).data_digest() == run.data_digest()
    fewer = new_run(tiny_settings(photos))
    fewer.train_data.dataset.labels = fewer.train_data.dataset.labels[1:]
    assert fewer.data_digest() != run.data_digest()
    del state["optimizer"]
    with pytest.raises(ValueError, match="lacks \\['optimizer'\\]"):
        run.set_state(state)


def test_state_is_plain_json(photos):
    state = new_run(tiny_settings(photos)).state
    assert json.loads(json.dumps(asdict(state))) == asdict(state)
