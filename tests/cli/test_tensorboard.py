"""The metrics of a run for TensorBoard."""

import builtins
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import TRAIN, assert_refused, run, tiny_settings, train_on, trainer

from tinyalex.calls import pip_install
from tinyalex.training import new_run, read_metrics

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def scalars(folder):
    """Return (step, name, value) of all scalars in event files: length, checksum, event, again."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            while head := file.read(12):
                event = Event.FromString(file.read(int.from_bytes(head[:8], "little")))
                file.read(4)
                found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_tensorboard_shows_the_metrics(photos, tmp_path):
    out = tmp_path / "run"
    assert train_on(photos, out, "--tensorboard", "--epochs", 1)[0] == 0
    assert run(TRAIN, "--resume", out, "--tensorboard", "--epochs", 2)[0] == 0
    shown = scalars(out / "tensorboard")
    rows = read_metrics(out / "metrics.jsonl")
    losses = [(row["step"], row["loss"]) for row in rows if row["kind"] == "step"]
    assert [(step, v) for step, name, v in shown if name == "step/loss"] == [
        (step, np.float32(loss)) for step, loss in losses
    ]
    assert [v for _, name, v in shown if name == "epoch/val_top1"] == [
        np.float32(row["val_top1"]) for row in rows if row["kind"] == "epoch"
    ]


def to_a_full_disk(row):
    Path("/dev/full").write_text("row")


def with_a_broken_package(row):
    raise TypeError("Descriptors cannot be created directly.\nTry again")


def to_a_file_to_be_read(row):
    with open(os.devnull, "rb", buffering=0) as file:
        file.write(b"row")  # an OSError without a number


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (to_a_full_disk, "No space left on device, there is no room for the file"),
        (to_a_file_to_be_read, "File not open for writing"),
        (
            with_a_broken_package,
            r"TypeError: Descriptors cannot be created directly.\nTry again",
        ),
    ],
)
def test_a_full_disk_ends_what_goes_to_tensorboard_alone(photos, tmp_path, write, reason):
    training = trainer(new_run(tiny_settings(photos)), tmp_path)
    training.on_row = write
    training.train()
    warnings = [line for line in training.progress.said if line.startswith("warning")]
    assert warnings == [f"warning: no more goes to TensorBoard ({reason})"]


def test_tensorboard_is_asked_for_by_name(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    code, _, complaints = train_on(photos, tmp_path / "run", "--tensorboard")
    assert_refused(code, complaints, f"tensorboardX is missing ({pip_install('tensorboardX')})")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [ImportError("numpy ABI"), AttributeError("x"), TypeError("Descriptors")]
)
def test_a_tensorboardx_that_is_broken_is_refused_before_training(
    photos, tmp_path, monkeypatch, error
):
    def fail(name, *arguments, **options):
        if name.startswith("tensorboardX"):
            raise error
        return found(name, *arguments, **options)

    found = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", fail)
    code, _, complaints = train_on(photos, tmp_path / "run", "--tensorboard")
    assert_refused(
        code, complaints, "--tensorboard cannot be used: tensorboardX does not work here"
    )
    assert not list(tmp_path.iterdir())
