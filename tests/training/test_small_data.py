"""Soft targets, averaged weights and images that grow."""

from dataclasses import replace

import numpy as np
import pytest
from commands import TINY, result, resumed, run, tiny_settings, trainer

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn
from tinyalex.data import Batch
from tinyalex.models import VARIANTS
from tinyalex.models.spec import AdaptivePool
from tinyalex.training import Checkpoints, StoppedError, StopRequest, load_checkpoint, new_run
from tinyalex.training.average import EVERY, WeightAverage
from tinyalex.training.mixing import mixed, with_soft_targets

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

ALL = {
    "variant": "any_size",
    "augment": "strong",
    "first_size": 20,
    "input_size": 36,
    "mixup": 0.4,
    "label_smoothing": 0.1,
    "average": 0.3,
    "schedule": "cosine",
}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    features = (*TINY.features, AdaptivePool(3))
    monkeypatch.setitem(VARIANTS, "any_size", replace(TINY, name="any_size", features=features))


def some_batch(rng, count=5):
    images = np.moveaxis(rng.standard_normal((count, 6, 7, 3)).astype(np.float32), -1, 1)
    return Batch(images, rng.integers(0, 4, count), rng.permutation(100)[:count])


@pytest.mark.parametrize("count", [1, 4, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixup_is_that_of_the_formula(rng, count, smoothing):
    batch = some_batch(rng, count)
    found = with_soft_targets(batch, 4, smoothing, 0.3, seed=7, epoch=2)
    for i, index in enumerate(batch.indices):
        j = min(i ^ 1, count - 1)
        b = np.random.default_rng((7, 2, 1 + index, 1)).beta(0.3, 0.3)
        share = max(b, 1 - b)
        image = share * batch.images[i].astype(np.float64) + (1 - share) * batch.images[j]
        target = [smoothing / 4] * 4
        target[batch.labels[i]] += (1 - smoothing) * share
        target[batch.labels[j]] += (1 - smoothing) * (1 - share)
        np.testing.assert_allclose(found.images[i], image, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.targets[i], target, rtol=0, atol=1e-6)
    assert found.images.strides == batch.images.strides  # channels last, as before
    assert found.labels is batch.labels
    if count > 1:
        assert (found.targets.argmax(axis=1) == batch.labels).all()


def test_shares_are_drawn_for_each_image_of_each_epoch(rng):
    batch = some_batch(rng, 4)
    turned = Batch(*(array[::-1] for array in (batch.images, batch.labels, batch.indices)))
    _, shares = mixed(batch, 0.3, seed=7, epoch=2)
    assert (mixed(turned, 0.3, seed=7, epoch=2)[1] == shares[::-1]).all()
    for seed, epoch in ((7, 3), (8, 2)):
        assert (mixed(batch, 0.3, seed, epoch)[1] != shares).all()


def test_nothing_to_mix_and_to_smooth_leaves_the_batch_alone(rng):
    batch = some_batch(rng)
    assert with_soft_targets(batch, 4, 0.0, 0.0, seed=7, epoch=2) is batch


def test_label_smoothing_is_that_of_cross_entropy(rng):
    batch = some_batch(rng)
    logits = ta.Tensor(rng.standard_normal((5, 4)))
    soft = with_soft_targets(batch, 4, 0.1, 0.0, seed=7, epoch=2)
    expected = F.cross_entropy(logits, ta.Tensor(batch.labels), label_smoothing=0.1)
    found = F.cross_entropy(logits, ta.Tensor(soft.targets.astype(np.float64)))
    assert found.item() == pytest.approx(expected.item(), rel=1e-7)  # targets are float32
    assert soft.images is batch.images


def test_the_average_is_that_of_the_formula(rng):
    model = nn.Linear(3, 2)
    expected = {name: p.data.astype(np.float64) for name, p in model.named_parameters()}
    average = WeightAverage(model, share=0.5)
    for step in range(1, 7 * EVERY):
        for parameter in model.parameters():
            parameter.data[...] = rng.standard_normal(parameter.shape)
        average.after_step(step)
        if step % EVERY == 0:
            gain = min(1, EVERY / (0.5 * step))
            for name, parameter in model.named_parameters():
                expected[name] += gain * (parameter.data - expected[name])
    learning = model.state_dict()
    with average.in_use():
        for name, array in model.state_dict().items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6)
    assert all((array == learning[name]).all() for name, array in model.state_dict().items())


def test_the_average_of_the_first_steps_is_their_last_weights():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, share=1.0)
    for step in range(1, EVERY + 1):
        for parameter in model.parameters():
            parameter.data[...] = step
        average.after_step(step)
        with average.in_use():
            assert all((array == step).all() for array in model.state_dict().values())


def test_images_grow_to_their_full_size(photos):
    settings = tiny_settings(photos, **{**ALL, "epochs": 8})
    assert [settings.size_at(epoch) for epoch in range(8)] == [20, 20, 32, 32, 32, 32, 36, 36]
    assert replace(settings, first_size=None).size_at(0) == 36
    run = new_run(settings)
    for epoch in (0, 6, 2):  # a resumed run begins with any
        batch = next(run.batches(epoch))
        side = settings.size_at(epoch)
        assert batch.images.shape == (8, 3, side, side)


@pytest.mark.parametrize("input_size", [25, 36, 37, 41, 57])
def test_no_image_grows_beyond_the_full_size(photos, input_size):
    settings = tiny_settings(photos, **{**ALL, "input_size": input_size, "epochs": 50})
    sizes = [settings.size_at(epoch) for epoch in range(50)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1], max(sizes)) == (20, input_size, input_size)


def test_processes_make_images_that_grow(photos):
    run, other = (
        new_run(tiny_settings(photos, **ALL, worker_processes=processes, workers=1))
        for processes in (True, False)
    )
    try:
        for epoch in (0, 2):
            found, expected = next(run.batches(epoch)), next(other.batches(epoch))
            assert (found.images == expected.images).all()
            assert (found.targets == expected.targets).all()
    finally:
        run.train_data.close()


@pytest.mark.parametrize("change", [{}, {"worker_processes": True, "workers": 1}])
def test_resuming_with_all_of_it_changes_no_bit(photos, tmp_path, change):
    settings = tiny_settings(photos, **ALL)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        out.mkdir()
    trainer(new_run(settings), whole).train()
    run = new_run(replace(settings, **change))
    for step in (3, 8, 17):  # within each of three epochs; the average begins with step 8
        with pytest.raises(StoppedError):
            trainer(run, parts).train(StopRequest(step))
        run.train_data.close()
        ta.manual_seed(99)  # whatever the new process draws first
        run = resumed(parts, worker_processes=False)
    trainer(run, parts).train()
    found, expected = result(parts), result(whole)
    for one, other in zip(found[:2], expected[:2], strict=True):
        one["settings"] = other["settings"]
    assert found == expected


def test_the_averages_are_validated_and_kept(photos, tmp_path):
    run = new_run(tiny_settings(photos, **ALL))
    trainer(run, tmp_path).train()
    content = load_checkpoint(Checkpoints(tmp_path).last)
    kept, learning = content["classifier"]["weights"], content["learning"]
    with run.averaged():
        assert all(
            (array == kept[n]).all() for n, array in run.classifier.model.state_dict().items()
        )
    for name, array in run.classifier.model.state_dict().items():
        assert (array == learning[name]).all()
        assert (array != kept[name]).any()


def test_a_damaged_learning_weight_is_named(photos, tmp_path):
    run = new_run(tiny_settings(photos, **ALL))
    state = run.get_state()
    name = next(iter(state["learning"]))
    broken = {
        "has values that are not finite": {name: state["learning"][name] * np.nan},
        "must be float32 of shape": {name: state["learning"][name][:1]},
        "it differs in other": {"other": np.zeros(1, np.float32)},
    }
    for complaint, change in broken.items():
        with pytest.raises(ValueError, match=complaint):
            run.set_state({**state, "learning": {**state["learning"], **change}})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mixup": -0.1}, "mixup must be"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"average": 1.5}, "average must be"),
        ({"first_size": 37}, "first_size must be .* to the input size 36, beside --augment strong"),
        ({"first_size": 4}, "first_size must be"),
        ({"augment": "paper"}, "first_size must be .* beside --augment strong, got 20"),
        ({"variant": "tiny", "input_size": 28}, "first_size must be 28 to the input size 28"),
    ],
)
def test_settings_that_cannot_be(photos, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny_settings(photos, **{**ALL, **change})


def test_the_accuracy_of_mixed_images_says_so(photos, tmp_path):
    options = ("--mixup", 0.2, "--label-smoothing", 0.1, "--average", 0.1, "--epochs", 1)
    where = ("--variant", "tiny", "--data", photos, "--out", tmp_path / "run")
    code, said, complaints = run("train", *where, *options)
    assert (code, complaints) == (0, "")
    assert " (mixed images, by their larger part);" in said
    assert "mixup 0.2, label smoothing 0.1, average of the last 0.1" in said
