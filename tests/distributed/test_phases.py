"""Faults and signals in every phase of training on several ranks.

A test run has a few of each; with ``--hypothesis-profile=campaign`` it is all.
"""

import os
import re
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
from commands import ROOT, draw_photos, finish
from hypothesis import settings
from phases import PHASES
from test_train_ranks import MPIEXEC, OPTIONS, train

from tinyalex.training import Checkpoints, load_checkpoint

LIMIT = 2
"""Seconds of silence until the other rank gives up."""

SILENT = r"nothing came for 2 s from rank {rank}\n"
FAULTS = {
    "raise ZeroDivisionError": r"rank {rank} \(.*\): ZeroDivisionError",
    "sys.exit(3)": r"rank {rank} \(.*\): exit code 3\n",
    "os._exit(0)": r"rank {rank} \(.*\) has ended before",
    "os.kill(os.getpid(), signal.SIGKILL)": r"rank {rank} \(.*\) has ended before",
    "os.kill(os.getpid(), signal.SIGSTOP)": SILENT,
    "time.sleep(100)": SILENT,
}
FIRST_ALONE = ("checkpoint", "final test")
CAMPAIGN = settings.default.max_examples > 100
WAYS = {
    "data": (2, "--parallel", "data"),
    "towers": (2, "--variant", "twins", "--parallel", "towers"),
    "hybrid": (4, "--parallel", "hybrid"),  # of three classes
}
CASES = [
    ("set-up", 1, "os.kill(os.getpid(), signal.SIGSTOP)", "data"),
    ("checkpoint", 0, "time.sleep(100)", "data"),
    ("final test", 0, "os.kill(os.getpid(), signal.SIGKILL)", "data"),
    ("training", 1, "os.kill(os.getpid(), signal.SIGSTOP)", "towers"),
    ("training", 3, "sys.exit(3)", "hybrid"),
]
if CAMPAIGN:
    CASES = [
        (phase, rank, fault, way)
        for phase, fault, way in product(PHASES, FAULTS, WAYS)
        for rank in range(1 if phase in FIRST_ALONE else WAYS[way][0])
    ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of photographs."""
    return draw_photos(tmp_path_factory.mktemp("data") / "photos", 12)


def start(photos, out, phase, rank, code, *options, count=2):
    """Start training on ranks that run code in a phase."""
    script = Path(__file__).with_name("phases.py")
    words = (phase, rank, code, "--data", photos, *OPTIONS, *options, "--out", out)
    return subprocess.Popen(
        [MPIEXEC, "-n", str(count), sys.executable, str(script), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(job):
    """Wait until a rank comes to its code."""
    while job.stdout.readline() != "ready\n":
        assert job.poll() is None, finish(job)


@pytest.mark.parametrize(("phase", "rank", "fault", "way"), CASES)
def test_a_fault_in_any_phase_ends_the_job(photos, tmp_path, phase, rank, fault, way):
    out, (count, *options) = tmp_path / "run", WAYS[way]
    options += ["--exchange-timeout", LIMIT]
    job = start(photos, out, phase, rank, fault, *options, count=count)
    wait_until_ready(job)
    begun = time.monotonic()
    code, _, complaints = finish(job)
    assert time.monotonic() - begun < LIMIT + 2
    assert re.search(FAULTS[fault].format(rank=rank), complaints), complaints
    assert code != 0
    if phase != "set-up":
        assert finish(train(0, "--resume", out, "--parallel", "data"))[0] == 0


def test_a_rank_that_works_is_waited_for(photos, tmp_path):
    words = ("--exchange-timeout", "1.5", "--steps", "1")
    code, _, complaints = finish(start(photos, tmp_path / "run", "set-up", 1, "work(4)", *words))
    assert (code, complaints) == (0, "")


ALTER = """
weight = next(args[0]._model.parameters()).data
weight.reshape(-1).view("int32")[-1] ^= 1
"""


@pytest.mark.parametrize(
    ("count", "rank", "options", "advice"),
    [
        (3, 1, (), "its machine computes otherwise"),
        (2, 1, (), "one of these machines computes otherwise"),
        (4, 2, ("--variant", "twins", "--parallel", "towers"), "one of these machines"),
    ],
)
def test_one_bit_of_one_rank_ends_the_job(photos, tmp_path, count, rank, options, advice):
    """The checkpoint is from before: each step is saved, and the second altered and compared."""
    out = tmp_path / "run"
    code, _, complaints = finish(start(photos, out, "training", rank, ALTER, *options, count=count))
    assert code == 1
    assert complaints.count("error:") == complaints.count(f"the weights of rank {rank} ") == 1
    assert advice in complaints
    assert f"mpiexec -n {count}" in complaints
    assert load_checkpoint(Checkpoints(out).last)["state"]["step"] == 1
    assert finish(train(count, "--resume", out))[0] == 0


ONCE = """
def spoil(module, args, output):
    hook.remove()
    return output * np.float32("nan")
hook = args[0]._model.register_forward_hook(spoil)
"""
SPOIL = "args[0].run.classifier.model.register_forward_hook(lambda *a: a[2] * np.float32('nan'))"
PLANTS = {
    "an image of rank 1": (
        ("training", 1, "args[1].images[:1] = float('nan')", ()),
        r"on rank 1, forward in the images, one of .* finite; because of /\S+png; /",
    ),
    "a weight of all": (
        ("training", -1, "next(args[0]._model.parameters()).data[0] = float('nan')", ()),
        r"\): forward in conv1, whose weight .* finite; the images of rank 0 are /\S+png, ",
    ),
    "the first logits of rank 1": (
        ("training", 1, ONCE, ()),
        r"not again when the step was repeated, by each rank with its own images; .* rank 0 are /",
    ),
    "an image of two towers": (
        ("training", 1, "args[1].images[:1] = float('nan')", WAYS["towers"][1:]),
        r"on rank 1, forward in the images, one of .* finite; because of /\S+png; /",
    ),
    "the validation of rank 1": (
        ("validation", 1, SPOIL, ()),
        r"validation loss .*: on rank 1, forward in the loss, which is nan; the images of rank 1 ",
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_divergence_is_explained_by_the_rank_that_saw_it(photos, tmp_path, plant):
    (phase, rank, code, options), expected = PLANTS[plant]
    out = tmp_path / "run"
    code, _, complaints = finish(start(photos, out, phase, rank, code, *options))
    assert code == 3, complaints
    assert complaints.count("error:") == 1
    assert re.search(expected, complaints), complaints
    assert f"{out / 'diverged.json'} has the report of rank 0" in complaints


CODES = {"SIGUSR1": 0, "SIGTERM": 143, "SIGINT": 130}
SIGNALS = [
    *(("set-up", "SIGUSR1"), ("set-up", "SIGINT")),
    *(("validation", "SIGTERM"), ("final test", "SIGTERM")),
]


@pytest.mark.parametrize(("phase", "name"), list(product(PHASES, CODES)) if CAMPAIGN else SIGNALS)
def test_a_signal_in_any_phase_is_that_of_one_process(photos, tmp_path, phase, name):
    out = tmp_path / "run"
    rank = 0 if phase in FIRST_ALONE else -1
    job = start(photos, out, phase, rank, "work(1)")
    wait_until_ready(job)
    time.sleep(0.3)
    job.send_signal(getattr(signal, name))
    code, said, complaints = finish(job)
    assert code == CODES[name], complaints
    if phase == "set-up":
        assert complaints.strip() == f"stopped by {name}, with nothing to save"
        assert not out.exists()
    else:
        assert complaints.count("finishing this step, then saving") == 1
        after = "once training was over and saved" if phase == "final test" else "and saved at step"
        assert f"stopped by {name} {after}" in said
        assert Checkpoints(out).last.exists()
