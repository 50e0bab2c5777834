"""The training loop where numbers, images or the disk fail."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, Watcher, tiny_settings, trainer

from tinyalex.data import DataError
from tinyalex.models import VARIANTS
from tinyalex.models.spec import Gaussian, Linear
from tinyalex.training import (
    Average,
    Checkpoints,
    DivergedError,
    load_checkpoint,
    new_run,
)

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


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
        training.throughput.add(waited=1000.0, worked=1.0, results=[Average(1.0, 1, 1)])
    training.throughput.start_epoch = lambda: None  # keep the above
    training.train()
    remarks = [line for line in watcher.said if "waiting for images: raise --workers" in line]
    assert len(remarks) == 1
    assert "--worker-processes" in remarks[0]
    assert f"tinyalex prepare {photos} CLEAN" in remarks[0]
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
    assert "ash/extra\\xff.jpg: not an image" in named[0]
    named[0].encode()
