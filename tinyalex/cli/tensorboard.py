"""Metrics of a run for TensorBoard, drawn while it trains."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from tinyalex.folders import Folder
from tinyalex.optional import PackageError, borrowed
from tinyalex.progress import one_sentence
from tinyalex.training.trainer import Trainer


def require_tensorboard() -> Any:
    """Import tensorboardX, which knows the file format, or raise PackageError."""
    try:
        with borrowed("tensorboardX"):
            import tensorboardX  # noqa: F401
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar
    except PackageError as error:
        raise PackageError(f"--tensorboard cannot be used: {error}") from error
    return SimpleNamespace(
        EventsWriter=EventsWriter, Event=Event, SessionLog=SessionLog, scalar=scalar
    )


@contextmanager
def shown_by_tensorboard(trainer: Trainer) -> Iterator[None]:
    """Send a run's metrics to TensorBoard too; report a folder that fails."""
    lock = trainer.checkpoints.lock
    with ExitStack() as held:
        try:
            assert lock is not None
            writer = scalar_writer(lock.folder, trainer.run.state.step)
            trainer.on_row = held.enter_context(writer)
        except Exception as error:  # of the disk, or of the package
            trainer.progress.say(f"warning: nothing goes to TensorBoard ({one_sentence(error)})")
        yield


@contextmanager
def scalar_writer(out: Folder, first_step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that writes a row's numbers to a new file.

    What older files there have after `first_step` is written again by a run that is resumed, and
    TensorBoard is told so. The function raises OSError where the disk refuses, and anything where
    tensorboardX fails. Its own SummaryWriter is not used: its thread dies of a full disk, and then
    the thread that feeds it hangs.
    """
    board = require_tensorboard()
    with out.inside("tensorboard") as folder:
        # A name that is new: two runs may begin within a second, and nothing is written over.
        name, new = str(folder.where().absolute() / "events"), os.urandom(4).hex()
        events = board.EventsWriter(name, f".from-{first_step}-{new}")
    begin = board.SessionLog(status=board.SessionLog.START)
    events.write_event(board.Event(wall_time=time.time(), step=first_step + 1, session_log=begin))

    def write(row: dict[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        for name, value in {**numbers, **row.get("time", {})}.items():
            value_of = board.scalar(f"{row['kind']}/{name}", value)
            event = board.Event(wall_time=time.time(), step=row["step"], summary=value_of)
            events.write_event(event)
        events.flush()

    try:
        yield write
    finally:
        with suppress(Exception):  # said before
            events.close()
