"""Checkpoints: when they are written, what they hold, what is refused."""

import math
import os
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import put, tiny_settings, train_on

import tinyalex as ta
from tinyalex.files import FileError
from tinyalex.training import (
    Average,
    Checkpoints,
    State,
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
    with pytest.raises(FloatingPointError, match=r"features\.0\.weight has values that are not fi"):
        checkpoints.save(run)
    assert checkpoints.last.read_bytes() == before


def test_the_last_two_are_kept(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    checkpoints = Checkpoints(tmp_path)
    assert not checkpoints.exist()
    for step in (1, 2, 3):
        run.state.step = step
        checkpoints.save(run)
    assert load_checkpoint(checkpoints.last)["state"]["step"] == 3
    assert load_checkpoint(checkpoints.previous)["state"]["step"] == 2
    checkpoints.last.unlink()
    assert checkpoints.exist()


def test_what_was_saved_elsewhere_or_before_is_saved_again(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    here, elsewhere = (Checkpoints(tmp_path / name) for name in ("here", "elsewhere"))
    for checkpoints in (elsewhere, here):
        run.state.step += 1
        checkpoints.folder.mkdir()
        checkpoints.save(run)
    assert [one.up_to_date(run) for one in (elsewhere, here)] == [False, True]
    again = Checkpoints(here.folder)
    assert not again.up_to_date(run)
    again.load()
    assert again.up_to_date(run)
    run.settings = tiny_settings(photos, workers=1)
    assert not again.up_to_date(run)


@pytest.fixture
def two(photos, tmp_path):
    """Return the checkpoints of step 0 and of step 1 of a run."""
    run = new_run(tiny_settings(photos))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(run)
    run.state.step = 1
    checkpoints.save(run)
    return checkpoints


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def make_unreadable(path):
    path.unlink()
    path.symlink_to("/proc/self/mem")  # opens, and fails on the first read as a dying disk does


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (halve, "last.safetensors is damaged"),
        (Path.unlink, "there is no checkpoint"),
        (make_a_folder, "last.safetensors cannot be read (Is a directory)"),
        (make_unreadable, "last.safetensors cannot be read (Input/output error)"),
    ],
)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(photos, two, spoil, reason):
    said = []
    assert two.load(said.append)[1] == two.last
    assert not said
    spoil(two.last)
    two = Checkpoints(two.folder)
    content, path = two.load(said.append)
    assert (content["state"]["step"], path) == (0, two.previous)
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert reason in said[0]
    assert said[0].endswith(f"resuming from {two.previous}, of step 0")
    two.prepare(new_run(tiny_settings(photos)))
    assert two.load(said.append)[1] == two.last
    assert not two.previous.exists()
    aside = two.folder / "last.safetensors.unreadable"  # perhaps it can be read another time
    assert aside.exists() == (spoil is not Path.unlink)


def test_two_damaged_checkpoints_are_both_named(two):
    halve(two.last)
    halve(two.previous)
    with pytest.raises(FileError, match=r"last\.safetensors is .*previous\.safetensors is dam"):
        two.load()


def renamed(state):
    state["classifier"]["weights"]["extra"] = state["classifier"]["weights"].pop("features.0.bias")


def of_another_dtype(state):
    weights = state["classifier"]["weights"]
    weights["classifier.0.weight"] = weights["classifier.0.weight"].astype(np.float64)


def too_few(state):
    state["optimizer"]["velocity"].pop()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (renamed, "differs in extra, features.0.bias"),
        (of_another_dtype, "classifier.0.weight must be float32 of shape"),
        (
            lambda state: put(state, "optimizer", "velocity", 1, value=np.zeros(3, np.float32)),
            "the velocity of classifier.0.weight must be float32 of shape (64, ",
        ),
        (
            lambda state: put(state, "optimizer", "velocity", 0, (0, 0, 0, 1), value=np.nan),
            "the velocity of features.0.weight has values that are not finite",
        ),
        (too_few, "differs in the velocities"),
        (
            lambda state: put(state, "schedule", "schedule", value="Sawtooth"),
            "this is a Plateau schedule, the state is of Sawtooth",
        ),
        (
            lambda state: put(state, "optimizer", "param_groups", 0, "lr", value=-1),
            "lr must be a finite number from 0 to 1e+38, got -1",
        ),
        (
            lambda state: put(state, "state", "batch", value=8),
            "the state is 8 batches into an epoch of 7",
        ),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_touched(photos, spoil, reason):
    other = new_run(tiny_settings(photos, seed=1))
    for parameter in other.classifier.model.parameters():
        parameter.grad = np.ones_like(parameter.data)
    other.optimizer.step()
    state = other.get_state() | {"settings": asdict(tiny_settings(photos))}
    run = new_run(tiny_settings(photos))
    state |= {name: run.get_state()[name] for name in ("data", "split")}
    before = ta.random.get_state(), run.classifier.model.state_dict(), asdict(run.state)
    spoil(state)
    with pytest.raises(ValueError, match=re.escape(reason)):
        run.set_state(state)
    np.testing.assert_equal((ta.random.get_state(), run.classifier.model.state_dict(),
                             asdict(run.state)), before)  # fmt: skip
    assert run.optimizer._velocity == [None] * 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra": 1}, "unexpected keyword argument 'extra'"),
        ({"epoch": "x"}, "epoch must be a whole number >= 0, got 'x'"),
        ({"rows": -1}, "rows must be a whole number >= 0, got -1"),
        ({"step": True}, "step must be a whole number >= 0, got True"),
        ({"best_top1": math.nan}, "best_top1 must be a finite number from -1 to 1, got nan"),
        ({"since_row": 3}, "since_row must be a dict, got 3"),
        (
            {"since_epoch": asdict(Average()) | {"count": 0.5}},
            "count must be a whole number >= 0, got 0.5",
        ),
    ],
)
def test_a_state_that_no_run_can_be_in_is_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        State.from_dict(asdict(State()) | change)


def test_room_on_the_disk_is_looked_for_first(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="0 MB free, the checkpoints need"):
        Checkpoints(tmp_path).prepare(new_run(tiny_settings(photos)))


@pytest.mark.parametrize(
    ("before", "now", "better"),
    [
        ((-1.0, math.inf), (0.0, 2.0), True),
        ((0.5, 2.0), (0.5, 1.9), True),
        ((0.5, 2.0), (0.5, 2.0), False),
        ((0.5, 2.0), (0.6, 9.0), True),
        ((0.5, 2.0), (0.4, 0.1), False),
        ((0.5, math.nan), (0.5, 0.1), False),  # from before losses were remembered
        ((0.5, math.nan), (0.6, 0.1), True),
    ],
)
def test_of_equal_accuracies_the_lower_loss_is_the_best(before, now, better):
    state = State(best_top1=before[0], best_loss=before[1])
    assert state.is_best(*now) == better
    values = asdict(State())
    assert State.from_dict(values) == State()
    del values["best_loss"]
    assert math.isnan(State.from_dict(values).best_loss)


def test_the_best_network_on_the_disk_is_compared_by_its_loss_as_well(photos, tmp_path):
    run = new_run(tiny_settings(photos))
    run.state.best_top1 = 0.5
    for loss, kept in ((2.0, True), (2.5, False), (1.5, True)):
        run.state.best_loss = loss
        checkpoints = Checkpoints(tmp_path)
        assert checkpoints.keep_best(run) == kept
        checkpoints.save_best()
    assert load_checkpoint(checkpoints.best)["state"]["best_loss"] == 1.5


@pytest.mark.parametrize("free", [0, OSError(38, "Function not implemented")])
def test_a_mount_that_does_not_say_how_much_room_it_has_is_tried(
    photos, tmp_path, monkeypatch, free
):
    def usage(folder):
        if free:
            raise free
        return SimpleNamespace(free=free)

    monkeypatch.setattr("shutil.disk_usage", usage)
    said = []
    Checkpoints(tmp_path).prepare(new_run(tiny_settings(photos)), said.append)
    assert said == [f"warning: {tmp_path} does not say how much room there is: it may not suffice"]


def test_a_folder_that_cannot_be_synced_is_said_once(photos, tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise PermissionError(1, "Operation not permitted")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    code, said, complaints = train_on(photos, tmp_path / "run", "--epochs", 1)
    assert (code, complaints) == (0, "")
    assert said.count("does not know fsync for folders") == 1
