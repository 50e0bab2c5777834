"""The metrics of a run for TensorBoard, which draws them while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tinyalex.training.optional import PackageError, borrowed


def require_tensorboard() -> Any:
    """Return what is needed of tensorboardX, which knows the file format, or raise PackageError."""
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
def scalar_writer(folder: Path, first_step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Offer a function that writes the numbers in a row of metrics to a new file in `folder`.

    What older files there have after `first_step` is written again by a run that is resumed, and
    TensorBoard is told so. The function raises OSError where the disk refuses, and anything where
    tensorboardX fails. Its own SummaryWriter is not used: its thread dies of a full disk, and then
    whoever feeds it hangs.
    """
    board = require_tensorboard()
    folder.mkdir(parents=True, exist_ok=True)
    # Or two runs that begin within a second would share a file.
    events = board.EventsWriter(str(folder / "events"), f".from-{first_step}")
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
