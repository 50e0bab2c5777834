"""The commands of tinyalex, and a network that trains in seconds.

As a script, this file is one of the commands in a process of its own, saving after every step:
``python commands.py train --variant tiny ...``.
"""

import contextlib
import hashlib
import importlib
import io
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import tinyalex as ta
from tinyalex.cli import train_options
from tinyalex.interrupts import STOP_SIGNALS
from tinyalex.models import VARIANTS, Recipe, Variant
from tinyalex.models.spec import LRN, Conv, Dropout, Gaussian, Linear, PixelScale, Pool, ReLU
from tinyalex.training import (
    Checkpoints,
    MetricsFile,
    Progress,
    Settings,
    Trainer,
    load_checkpoint,
    new_run,
    read_metrics,
)

ROOT = Path(__file__).parents[2]
TRAIN = "train"

TINY = Variant(
    name="tiny",
    title="for the tests",
    provenance="none",
    input_size=28,
    in_channels=3,
    features=(Conv(8, 5, stride=2, init=Gaussian(0.05)), ReLU(), Pool()),
    classifier=(Linear(64, Gaussian(0.02)), ReLU(), Dropout(), Linear(None, Gaussian(0.01))),
    pixels=PixelScale(mean=None, std=(60.0, 60.0, 60.0)),
    recipe=Recipe(
        lr=0.02,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=8,
        epochs=3,
        schedule="plateau",
        schedule_options={"patience": 0},
    ),
)

TWINS = replace(
    TINY,
    name="twins",
    features=(
        *(Conv(8, 5, stride=2, init=Gaussian(0.05)), LRN(1e-4, 2, groups=2), ReLU(), Pool()),
        *(Conv(12, 3, padding=1, groups=2), ReLU(), Conv(12, 3, padding=1), ReLU(), Pool()),
    ),
    classifier=(Dropout(), Linear(32), ReLU(), *TINY.classifier),
)
"""TINY as two towers."""


def copy_sources(part, folder):
    """Copy a folder of the repository without bytecode, which other tests may be writing."""
    shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))


@contextlib.contextmanager
def tiny_variant():
    """Offer TINY and TWINS under their names, on the backend that needs no compiling."""
    VARIANTS.update(tiny=TINY, twins=TWINS)
    try:
        with ta.use_backend("reference"):
            yield
    finally:
        del VARIANTS["tiny"], VARIANTS["twins"]


def load(name):
    """Import the module of a command."""
    return importlib.import_module(f"tinyalex.cli.{name}")


def run(name, *arguments):
    """Run a command in this process; return its exit code and what it wrote to either stream."""
    out, err = io.StringIO(), io.StringIO()
    arguments = hurried(name, arguments)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = load(name).main(arguments)
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def hurried(name, arguments):
    """Return a command's arguments: training writes no report unless it is asked to."""
    wanted = name != TRAIN or "--report" in arguments
    return [*map(str, arguments), *(() if wanted else ["--no-report"])]


def train_on(photos, out, *arguments):
    """Train the tiny network on `photos`, as `run` does."""
    return run(TRAIN, "--variant", "tiny", "--data", photos, "--out", out, *arguments)


def assert_refused(code, complaints, expected):
    """Fail unless a command ended with code 2 and one sentence that has `expected` in it."""
    assert code == 2, complaints
    assert complaints.count("\n") == 1, complaints
    assert expected in complaints, complaints
    assert "Traceback" not in complaints


def contents(folder):
    """Return every file below a folder with its size and time."""
    return sorted((p, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


def hear_signals():
    """Ignore and block no signal here, nor in what is started, however this process was started.

    `nohup` has SIGHUP ignored, `&` in a script SIGINT; every child inherits that. `nohup` still
    holds for this process itself: a handler that does nothing is not inherited.
    """
    for signum in (*STOP_SIGNALS, signal.SIGCHLD):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, HEARD.get(signum, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


HEARD = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: lambda *_: None}


def start(name, *arguments, before=(), **options):
    """Start a command in a process of its own, perhaps by another that comes `before`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*before, sys.executable, __file__, name, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, **options
    )


def finish(process):
    """Wait for a process; return its exit code and what it wrote to either stream."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def result(folder):
    """Return all that a run left behind and that must not depend on how it got there."""
    last = load_checkpoint(Checkpoints(folder).last)
    best = load_checkpoint(Checkpoints(folder).best)
    for content in (last, best):
        del content["state"]["seconds"]
    rows = read_metrics(folder / "metrics.jsonl")
    for row in rows:
        row.pop("time", None)
    return _digest(last), _digest(best), rows


def _digest(content):
    """Replace every array by the SHA-256 of its bytes."""
    if isinstance(content, dict):
        return {key: _digest(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_digest(value) for value in content]
    if isinstance(content, np.ndarray):
        return hashlib.sha256(content.tobytes()).hexdigest()
    return content


def draw_photos(root, count=24):
    """Write `count` noisy pictures of each of three colours that are hard to tell apart."""
    rng = np.random.default_rng(7)
    colours = {"ash": (140, 120, 120), "birch": (120, 140, 120), "elm": (120, 120, 120)}
    for name, colour in colours.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.normal(colour, 70, (36, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


INSTALLED = "import sys\nfrom tinyalex.cli.main import main\nsys.exit(main())\n"
"""The command `tinyalex` as pip writes it."""


def put(place, *keys, value):
    """Put a value where the keys lead to."""
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value


def tiny_settings(photos, **changes):
    """Return the settings of a run of TINY's recipe on `photos`."""
    values = {
        "variant": "tiny",
        "data": str(photos),
        "epochs": 3,
        "batch_size": 8,
        "lr": 0.02,
        "weight_decay": 5e-4,
        "schedule": "plateau",
        "input_size": 28,
    }
    return Settings(**{**values, **changes})


class Watcher(Progress):
    """Shows nothing, remembers what was said, and calls `act(title, done)` at every update."""

    def __init__(self, act=lambda title, done: None):
        super().__init__(silent=True)
        self.act = act
        self.said = []

    def start(self, title, total, done=0):
        self.title = title

    def update(self, done, text):
        self.act(self.title, done)

    def say(self, text):
        self.said.append(text)


def trainer(run, out, progress=None, **options):
    """Return a Trainer that writes into `out`; options are those of Checkpoints."""
    progress = progress or Watcher()
    checkpoints = Checkpoints(out, **options)
    checkpoints.prepare(run, progress.say)
    metrics = MetricsFile(out / "metrics.jsonl", run.state.rows, progress.say)
    return Trainer(run, checkpoints, metrics, progress)


def resumed(out, **changes):
    """Return the run in `out` as a new process would build it from the last checkpoint."""
    content = load_checkpoint(Checkpoints(out).last)
    settings = Settings(**{**content["settings"], **changes})
    run = new_run(settings, before=content)
    run.set_state(content)
    return run


def run_and_save_always(name, arguments, errors=None):
    """Run a command with a checkpoint after every step; stderr goes to a file, if one is given."""
    command = load(name)
    train_options.Checkpoints = lambda folder: Checkpoints(folder, seconds=0, share=math.inf)
    if errors is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    with tiny_variant():
        sys.exit(command.main(hurried(name, arguments)))


if __name__ == "__main__":
    run_and_save_always(sys.argv[1], sys.argv[2:])
