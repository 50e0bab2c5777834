"""The training loop and the settings that it follows."""

import json
import math
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, Watcher, result, resumed, tiny_settings, trainer

import tinyalex as ta
from tinyalex.data import DataError
from tinyalex.data.image import central_square
from tinyalex.models import VARIANTS
from tinyalex.models.spec import Gaussian, Linear
from tinyalex.training import (
    Average,
    Checkpoints,
    DivergedError,
    Settings,
    StoppedError,
    evaluate,
    load_checkpoint,
    new_run,
    open_dataset,
    read_metrics,
)
from tinyalex.training.run import INITIAL_IMAGES, first_images

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"variant": "vgg"}, "variant must be one of paper"),
        ({"schedule": "sawtooth"}, "schedule must be one of constant"),
        ({"mean": "median"}, "mean must be one of image, colour"),
        ({"colour_noise": "loud"}, "colour-noise must be one of none, eigenvalues, deviations"),
        ({"augment": "mixup"}, "augment must be one of none"),
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"batch_size": -8}, "batch-size must be"),
        ({"workers": 0}, "workers must be"),
        ({"threads": 0}, "threads must be"),
        ({"image_cache": -1}, "image-cache must be a whole number of megabytes >= 0, got -1"),
        ({"seed": -1}, "seed must be"),
        ({"lr": math.nan}, "lr must be a finite number > 0, got nan"),
        ({"lr": -0.1}, "lr must be"),
        ({"lr": math.inf}, "lr must be"),
        ({"weight_decay": math.nan}, "weight-decay must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"input_size": 29}, "input-size must be 28 for the variant tiny"),
        ({"variant": "torchvision", "input_size": 62}, "input-size must be at least 63"),
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


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """Return the results of uninterrupted runs, on demand, one for each backend."""
    found = {}

    def get():
        backend = ta.current_backend()
        if backend not in found:
            out = tmp_path_factory.mktemp(backend)
            trainer(new_run(tiny_settings(photos)), out).train()
            found[backend] = result(out)
        return found[backend]

    return get


@pytest.mark.parametrize(
    "cuts",
    [[("epoch 1/3", 1)], [("epoch 2/3", 3)], [("epoch 3/3", 7)], [("validating", 1)],
     [("epoch 1/3", 4), ("epoch 1/3", 5), ("epoch 2/3", 7), ("epoch 3/3", 2)]],
    ids=["first step", "within an epoch", "last step", "validation", "four times"],
)  # fmt: skip
def test_resuming_is_as_never_stopping(photos, tmp_path, undisturbed, backend, cuts):
    expected = undisturbed()
    run = new_run(tiny_settings(photos))
    for cut in cuts:
        stop = Watcher(lambda *now, cut=cut: now == cut and os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError) as stopped:
            trainer(run, tmp_path, stop).train()
        assert stopped.value.exit_code == 143
        ta.manual_seed(99)  # whatever the new process draws first
        run = resumed(tmp_path)
    trainer(run, tmp_path).train()
    assert result(tmp_path) == expected


def test_a_resumed_run_has_the_mean_and_the_colours_it_began_with(photos, tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    trainer(new_run(tiny_settings(photos, **PAPERS)), tmp_path / "whole").train()
    stop = Watcher(lambda *now: now == ("epoch 2/3", 3) and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError):
        trainer(new_run(tiny_settings(photos, **PAPERS)), tmp_path / "cut", stop).train()
    monkeypatch.delattr("tinyalex.training.measuring.pixel_statistics")  # nothing is measured again
    trainer(resumed(tmp_path / "cut"), tmp_path / "cut").train()
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_what_is_drawn_between_two_steps_does_not_change_training(photos, tmp_path, undisturbed):
    def draw(title, done):
        ta.randn(3)
        ta.functional.dropout(ta.ones(5), 0.5)

    trainer(new_run(tiny_settings(photos)), tmp_path, Watcher(draw)).train()
    last, best, rows = result(tmp_path)
    assert rows == undisturbed()[2]
    assert (last["classifier"], best["classifier"]) == tuple(
        content["classifier"] for content in undisturbed()[:2]
    )


def test_a_killed_run_takes_up_an_older_checkpoint(photos, tmp_path, undisturbed):
    run = new_run(tiny_settings(photos))

    def copy(title, done):
        if (title, done) == ("epoch 2/3", 4):
            shutil.copy(Checkpoints(tmp_path).last, tmp_path / "older")

    trainer(run, tmp_path, Watcher(copy), seconds=0, share=math.inf).train()
    (tmp_path / "older").replace(Checkpoints(tmp_path).last)
    run = resumed(tmp_path)
    assert run.state.step == 11
    trainer(run, tmp_path).train()
    assert result(tmp_path) == undisturbed()


def test_metrics_reach_the_disk_before_the_checkpoint_that_counts_them(
    photos, tmp_path, monkeypatch
):
    calls = []
    fsync, replace_ = os.fsync, os.replace

    def record_fsync(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_replace(source, target):
        calls.append(("now called", Path(target).name))
        replace_(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    trainer(new_run(tiny_settings(photos, epochs=1)), tmp_path).train()
    assert calls.index("metrics.jsonl") < calls.index(("now called", "last.safetensors"))


def test_two_runs_are_equal_and_another_seed_is_not(photos, tmp_path, undisturbed):
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        trainer(new_run(tiny_settings(photos, seed=seed)), tmp_path / name).train()
    assert result(tmp_path / "same") == undisturbed()
    assert result(tmp_path / "other")[2] != undisturbed()[2]


def test_metrics_say_what_happened(photos, tmp_path):
    run = new_run(tiny_settings(photos, epochs=2))
    watcher = Watcher()
    trainer(run, tmp_path, watcher).train()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["step"] for row in steps] == [7, 10, 14]
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 7), (2, 14)]
    # The epoch's average is that of its rows: steps 8 to 10, and 11 to 14.
    assert epochs[1]["loss"] == pytest.approx((3 * steps[1]["loss"] + 4 * steps[2]["loss"]) / 7)
    scores = evaluate(run.classifier.model, run.val_data)
    assert epochs[1]["val_loss"] == scores.loss
    assert epochs[1]["val_top1"] == scores.top1
    assert run.state.best_top1 == max(row["val_top1"] for row in epochs)
    assert 0 < rows[0]["time"]["seconds"] < rows[-1]["time"]["seconds"] <= run.state.seconds + 5e-4
    assert 0 <= rows[-1]["time"]["data_share"] <= 1
    assert [line.partition(" in ")[0] for line in watcher.said] == ["epoch 1/2", "epoch 2/2"]


def test_training_learns(photos, tmp_path):
    run = new_run(tiny_settings(photos, epochs=12, schedule="constant"))
    before = evaluate(run.classifier.model, run.val_data)
    assert before.loss == pytest.approx(run.chance, rel=0.02)
    trainer(run, tmp_path).train()
    after = evaluate(run.classifier.model, run.val_data)
    assert after.top1 >= 0.8
    assert after.loss < 0.6 * run.chance


def test_the_paper_s_plateau_schedule_sees_the_validation_error(photos, tmp_path):
    run = new_run(tiny_settings(photos, lr=1e-6, epochs=4))  # nothing improves
    trainer(run, tmp_path).train()
    assert run.schedule.reductions == 3
    rates = [row["lr"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "step"]
    assert rates[0] == 1e-6
    assert rates[-1] == pytest.approx(1e-8)


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    parameter = run.classifier.model.weight_layers["conv1"].weight

    def poison(title, done):
        if (title, done) == ("epoch 2/3", 2):
            parameter.data[0, 0, 0, 0] = np.nan

    stopping = trainer(run, tmp_path, Watcher(poison), seconds=0, share=math.inf)
    with pytest.raises(DivergedError, match="the loss is nan"):
        stopping.train()
    last = load_checkpoint(stopping.checkpoints.last)
    assert last["state"]["step"] == 9
    assert np.isfinite(last["classifier"]["weights"]["features.0.weight"]).all()


def test_weights_that_overflow_without_a_loss_to_show_for_it_stop_the_run(photos, tmp_path):
    run = new_run(tiny_settings(photos))

    def poison(title, done):
        if (title, done) == ("validating", 2):  # after the last loss of the epoch
            run.classifier.model.weight_layers["fc3"].bias.data[0] = -np.inf

    expected = r"classifier\.3\.bias has values that are not finite in step 7 "
    with pytest.raises(DivergedError, match=expected):
        trainer(run, tmp_path, Watcher(poison), seconds=0, share=math.inf).train()
    assert load_checkpoint(Checkpoints(tmp_path).last)["state"]["step"] == 7
    assert not Checkpoints(tmp_path).best.exists()


def test_a_run_that_diverges_keeps_its_best_network(photos, tmp_path):
    run = new_run(tiny_settings(photos))

    def poison(title, done):
        if title == "epoch 2/3":
            run.classifier.model.weight_layers["conv1"].weight.data[0, 0, 0, 0] = np.nan

    stopping = trainer(run, tmp_path, Watcher(poison), share=1e-9)
    stopping.checkpoints.save(run)  # after which none is due for a long time
    with pytest.raises(DivergedError):
        stopping.train()
    assert load_checkpoint(stopping.checkpoints.best)["state"]["epoch"] == 1


def test_too_many_unreadable_images_stop_after_saving(photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path / "photos")
    run = new_run(tiny_settings(copy, image_cache=0))
    paths = run.train_data.dataset.paths

    def spoil(title, done):
        if (title, done) == ("epoch 1/3", 7):
            for path in paths:
                Path(path).write_bytes(b"")

    (tmp_path / "out").mkdir()
    stopping = trainer(run, tmp_path / "out", Watcher(spoil), share=1e-9)
    stopping.checkpoints.save(run)
    with pytest.raises(DataError, match="images cannot be read"):
        stopping.train()
    assert load_checkpoint(stopping.checkpoints.last)["state"]["step"] == 7


def test_a_full_disk_does_not_hide_unreadable_images(photos, tmp_path, disk):
    copy = shutil.copytree(photos, tmp_path / "photos")
    run = new_run(tiny_settings(copy, image_cache=0))
    for path in run.train_data.dataset.paths[8:]:
        Path(path).write_bytes(b"")
    disk(1000)
    stopping = trainer(run, tmp_path)
    with pytest.raises(DataError, match="images cannot be read"):
        stopping.train()
    assert "warning: no checkpoint at step 0 (File too large)" in stopping.progress.said[-1]


def test_a_better_network_from_before_is_not_replaced(photos, tmp_path):
    run = new_run(tiny_settings(photos, epochs=1))
    run.state.best_top1 = 0.99
    earlier = Checkpoints(tmp_path)
    earlier.keep_best(run)
    earlier.save_best()
    before = earlier.best.read_bytes()
    training = trainer(new_run(tiny_settings(photos, epochs=1)), tmp_path)
    training.train()
    assert earlier.best.read_bytes() == before
    assert f"{earlier.best} stays: its network was better than this" in training.progress.said


def test_no_checkpoint_is_written_twice(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    checkpoints = trainer(run, tmp_path, seconds=math.inf, share=math.inf)
    checkpoints.train()
    for path, step in ((Checkpoints(tmp_path).last, 21), (Checkpoints(tmp_path).previous, 14)):
        assert load_checkpoint(path)["state"]["step"] == step


def test_a_full_disk_is_no_reason_to_stop(photos, tmp_path, undisturbed, disk):
    def fill(title, done):
        if title.startswith("epoch 2") and done in (2, 5):
            disk(1000 if done == 2 else None)

    watcher = Watcher(fill)
    trainer(new_run(tiny_settings(photos)), tmp_path, watcher, seconds=0, share=math.inf).train()
    warnings = [line for line in watcher.said if line.startswith("warning")]
    assert "no checkpoint at step 10 (File too large); the one from before" in " ".join(warnings)
    assert result(tmp_path) == undisturbed()


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(photos, tmp_path, disk):
    watcher = Watcher(lambda title, done: disk(1000) if title == "epoch 3/3" else None)
    stopping = trainer(new_run(tiny_settings(photos)), tmp_path, watcher, seconds=0, share=math.inf)
    with pytest.raises(OSError, match="too large"):
        stopping.train()
    disk(None)
    assert load_checkpoint(stopping.checkpoints.last)["state"]["step"] == 15
    assert not list(tmp_path.glob(".*"))


def test_a_loss_that_stays_at_that_of_guessing_is_remarked_on_once(photos, tmp_path, monkeypatch):
    mute = replace(TINY, classifier=(*TINY.classifier[:-1], Linear(None, Gaussian(0.0))))
    monkeypatch.setitem(VARIANTS, "mute", mute)
    run = new_run(tiny_settings(photos, variant="mute", lr=1e-9, batch_size=1, epochs=4))
    watcher = Watcher()
    trainer(run, tmp_path, watcher).train()
    remarks = [line for line in watcher.said if "ln(classes) = 1.099 for 100 steps" in line]
    assert len(remarks) == 1
    assert "try --initial-weights data, another --lr (now 1e-09" in remarks[0]


def test_waiting_for_images_is_remarked_on(photos, tmp_path):
    run = new_run(tiny_settings(photos, epochs=2, batch_size=4))
    watcher = Watcher()
    training = trainer(run, tmp_path, watcher)
    for _ in range(20):
        training.pace.add(waited=1000.0, worked=1.0, result=Average(1.0, 1, 1))
    training.pace.start_epoch = lambda: None  # keep the above
    training.train()
    remarks = [line for line in watcher.said if "waiting for images: raise --workers" in line]
    assert len(remarks) == 1
    assert "--worker-processes" in remarks[0]
    assert "examples/prepare_images.py" in remarks[0]
    assert watcher.said.index(remarks[0]) == 0  # and not only once the epoch is over


def test_unreadable_images_are_named(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    name = os.fsdecode(b"extra\xff.jpg")  # no UTF-8
    (tmp_path / "photos/ash" / name).write_text("not an image")
    watcher = Watcher()
    (tmp_path / "out").mkdir()
    trainer(new_run(tiny_settings(tmp_path / "photos")), tmp_path / "out", watcher).train()
    named = [line for line in watcher.said if line.startswith("left out")]
    assert len(named) == 1
    assert "ash/extra�.jpg: not an image" in named[0]
    named[0].encode()


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


def test_evaluation_takes_each_image_once(photos):
    run = new_run(tiny_settings(photos, batch_size=4))  # 15 images: the last batch has 3
    scores = evaluate(run.classifier.model, run.val_data)
    assert scores.class_counts.tolist() == [5, 5, 5]
    dataset = run.val_data.dataset
    shares = run.classifier.probabilities([dataset.load(i) for i in range(15)])
    assert scores.loss == pytest.approx(-np.log(shares[np.arange(15), dataset.labels]).mean())
    assert scores.top1 == (shares.argmax(axis=1) == dataset.labels).mean()
    assert scores.top5 == 1


def test_state_is_plain_json(photos):
    state = new_run(tiny_settings(photos)).state
    assert json.loads(json.dumps(asdict(state))) == asdict(state)
