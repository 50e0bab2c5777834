"""Beginning of a run: a checkpoint resumed, and the first files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyalex.files import FileError, open_regular
from tinyalex.grad_mode import no_grad
from tinyalex.training.checkpoint import LAST, Checkpoints, load_checkpoint
from tinyalex.training.datasets import RunImages
from tinyalex.training.divergence import REPORT, STEP
from tinyalex.training.ending import OUTPUTS
from tinyalex.training.environment import environment
from tinyalex.training.evaluation import judge
from tinyalex.training.gpu_memory import check_memory
from tinyalex.training.lock import Lock, locked
from tinyalex.training.loop import Trainer
from tinyalex.training.metrics import METRICS, MetricsFile
from tinyalex.training.progress import Progress, one_sentence
from tinyalex.training.run import Run, new_run
from tinyalex.training.settings import CHANGEABLE_ON_REQUEST, Settings
from tinyalex.training.signals import StopRequest

DECISIVE = ("epochs", "threads", "device", *CHANGEABLE_ON_REQUEST)
"""What a run that goes on may change, and what then changes its losses."""

RECORD = "run.json"
LONGEST_RECORD = 2**24
"""Bytes of a record that are read."""


def old_run(settings: Settings, checkpoint: dict[str, Any], out: Path) -> Run:
    """Put together the run that the checkpoint is from, and bring it to where it was."""
    try:
        mean = checkpoint["classifier"]["mean"]
        images = RunImages(checkpoint, settings, out)
        images.check_there()
        run = new_run(settings, mean, checkpoint.get("colour_covariance"), kept=images.kept)
        run.set_state(checkpoint)
        run.look_at_files()
    except ValueError as error:
        raise FileError(f"the run in {out} cannot be resumed: {error}") from error
    return run


@contextmanager
def prepared(
    run: Run, checkpoints: Checkpoints, stop: StopRequest, again: str
) -> Iterator[Trainer]:
    """Judge a batch and write the first files, so that what will not do is found out now.

    `run` is new or was loaded from `checkpoints`; `again` is the command line that does all of it
    again. Within the block no other process writes into the folder, and signals are requests to
    `stop`, for by then there is something to go on from.
    """
    check_memory(run)
    run.classifier.model.eval()
    with no_grad():
        judge(run.classifier.model, next(run.val_data.epoch(0)))
    out, progress = checkpoints.folder, Progress()
    with ExitStack() as held:
        try:
            checkpoints.lock = held.enter_context(locked(out))
            folder = checkpoints.lock.folder
            folder.remove_temporaries(*OUTPUTS, REPORT, STEP)
            checkpoints.prepare(run, progress.say)
            metrics = MetricsFile(out / METRICS, run.state.rows, progress.say, folder)
            write_record(run, checkpoints.lock, again)
            held.enter_context(stop)
            if not folder.is_file(LAST):
                checkpoints.save(run)
                load_checkpoint(checkpoints.last)
        except OSError as error:
            raise OSError(f"cannot write to the folder {out}: {one_sentence(error)}") from error
        yield Trainer(run, checkpoints, metrics, progress)


def write_record(run: Run, lock: Lock, again: str) -> None:
    """Write all that it takes to do the run again; `sessions` gets an entry whenever it goes on."""
    sessions = _sessions(lock.where() / RECORD)
    here = environment(run.settings.device)
    decisive = {name: getattr(run.settings, name) for name in DECISIVE}
    sessions.append({"from_step": run.state.step, **here, **decisive})
    changed = [n for n in DECISIVE if any(s.get(n, decisive[n]) != decisive[n] for s in sessions)]
    note = f"settings were changed on the way, as sessions say: {', '.join(changed)}"
    record = {
        "again": again,
        **({"again_differs": note} if changed else {}),
        "settings": asdict(run.settings),
        "recipe": asdict(run.settings.recipe),
        "classes": run.classifier.classes,
        "mean": run.classifier.mean_colour,
        "environment": here,
        "sessions": sessions,
    }
    text = json.dumps(record, indent=2) + "\n"
    lock.folder.write(RECORD, lambda file: file.write(text.encode()))


def _sessions(path: Path) -> list[dict[str, Any]]:
    """Return the earlier parts of the run; none where the record is missing, or spoilt."""
    try:
        with open_regular(path) as file:
            sessions = json.loads(file.read(LONGEST_RECORD))["sessions"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return sessions if isinstance(sessions, list) and all(type(s) is dict for s in sessions) else []
