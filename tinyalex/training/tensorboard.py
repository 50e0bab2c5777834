"""The metrics of a run for TensorBoard, which draws them while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def require_tensorboard() -> None:
    """Raise ModuleNotFoundError where tensorboardX, which knows the file format, is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--tensorboard needs the package tensorboardX: pip install tensorboardX"
        ) from error


@contextmanager
def scalar_writer(folder: Path, first_step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Offer a function that writes the numbers in a row of metrics to a new file in `folder`.

    What older files there have after `first_step` is written again by a run that is resumed, and
    TensorBoard is told so. The function raises OSError where the disk refuses. tensorboardX's own
    SummaryWriter is not used: its thread dies of a full disk, and then whoever feeds it hangs.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    folder.mkdir(parents=True, exist_ok=True)
    # Or two runs that begin within a second would share a file.
    events = EventsWriter(str(folder / "events"), f".from-{first_step}")
    begin = SessionLog(status=SessionLog.START)
    events.write_event(Event(wall_time=time.time(), step=first_step + 1, session_log=begin))

    def write(row: dict[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        for name, value in {**numbers, **row.get("time", {})}.items():
            summary = scalar(f"{row['kind']}/{name}", value)
            events.write_event(Event(wall_time=time.time(), step=row["step"], summary=summary))
        events.flush()

    try:
        yield write
    finally:
        with suppress(OSError):  # said before
            events.close()
