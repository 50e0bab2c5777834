"""Folder of a run: its files, lock, and record of sessions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyalex.folders import FolderLock, locked, open_regular
from tinyalex.grad_mode import no_grad
from tinyalex.interrupts import StopRequest
from tinyalex.progress import Progress, one_sentence, unwritable
from tinyalex.training.checkpoint import (
    LAST,
    Checkpoints,
    load_checkpoint,
)
from tinyalex.training.divergence import REPORT, STEP
from tinyalex.training.environment import environment
from tinyalex.training.evaluation import logits_and_loss
from tinyalex.training.gpu_memory import check_memory
from tinyalex.training.metrics import METRICS, MetricsFile
from tinyalex.training.run import Run
from tinyalex.training.settings import CHANGEABLE_ON_REQUEST
from tinyalex.training.trainer import Trainer

OUTPUTS = {
    "best.safetensors": "the network of the epoch with the best validation, to be used",
    "last.safetensors": "the whole state of the run, to resume with more --epochs",
    "previous.safetensors": "the one before, in case the last is damaged",
    "metrics.jsonl": "losses and accuracies, one line of JSON each",
    "run.json": "settings, versions and commands",
    "filters.png": "the filters of the first layer (Figure 3 of the paper)",
    "curves.png": "loss and accuracy over the epochs",
    "report.html": "the run on one page, for a browser",
}

DECISIVE = ("epochs", "threads", "device", *CHANGEABLE_ON_REQUEST)
"""Settings that a resumed run may change, and that change its losses."""

RECORD = "run.json"

LONGEST_RECORD = 2**24
"""Bytes of a record that are read."""


@contextmanager
def open_run_folder(
    run: Run, checkpoints: Checkpoints, stop: StopRequest, again: str
) -> Iterator[Trainer]:
    """Evaluate a batch and create the run's files, before training.

    `run` is new or was loaded from `checkpoints`; `again` is the command line that repeats it.
    Within the block no other process writes into the folder, and signals are requests to `stop`,
    for by then there is a state to resume from.
    """
    check_memory(run)
    run.classifier.model.eval()
    with no_grad():
        logits_and_loss(run.classifier.model, next(run.val_data.epoch(0)))
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
            raise OSError(unwritable(out, one_sentence(error))) from error
        yield Trainer(run, checkpoints, metrics, progress)


def write_record(run: Run, lock: FolderLock, again: str) -> None:
    """Write everything that repeats the run; `sessions` grows by one per resume."""
    sessions = read_record(lock.where())["sessions"]
    here = environment(run.settings.device)
    decisive = {name: getattr(run.settings, name) for name in DECISIVE}
    ranks = {"hosts": list(run.ranks.link.hosts)} if run.ranks.link.size > 1 else {}
    sessions.append({"from_step": run.state.step, **here, **decisive, **ranks})
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


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a run, empty if missing or spoilt.

    "sessions" is a list of dicts, perhaps an empty one.
    """
    record: Any = None
    with suppress(OSError, ValueError, RecursionError), open_regular(folder / RECORD) as file:
        record = json.loads(file.read(LONGEST_RECORD))
    record = record if isinstance(record, dict) else {}
    found = record.get("sessions")
    whole = isinstance(found, list) and all(type(session) is dict for session in found)
    return {**record, "sessions": found if whole else []}
