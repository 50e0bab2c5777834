"""Steps of a command that succeed on all ranks or on none."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TypeVar

from tinyalex.cli.common import EXPECTED_ERRORS, complain
from tinyalex.distributed.communicator import CommunicationError, Communicator
from tinyalex.distributed.mpi_thread import GRACE
from tinyalex.interrupts import LeftError
from tinyalex.progress import show
from tinyalex.text import printable

Result = TypeVar("Result")


def jointly(link: Communicator, work: Callable[[], Result | int]) -> Result | int:
    """Do the same work on all ranks; return the result.

    Where it fails on any, all return the exit code of the first that failed, and that one says why,
    with its number unless it fails on all alike.
    """
    if link.size == 1:
        return work()
    words = io.StringIO()
    with redirect_stderr(words):
        try:
            found = work()
        except EXPECTED_ERRORS as error:
            found = complain(error)
        except LeftError:  # by a signal, as the other ranks
            raise
        except CommunicationError:  # where another failed, that one says why and ends all
            time.sleep(GRACE)
            raise
        except SystemExit as error:
            found = error.code if isinstance(error.code, int) else 1
    said = words.getvalue()
    code = found if isinstance(found, int) else None
    try:
        everything = link.share("the start", [code, said]).wait()
    except CommunicationError:  # others are at work that this rank could not come to
        if code is None:
            raise
        link.abort(said.strip(), code)
    failed = [rank for rank, (code, _) in enumerate(everything) if code is not None]
    speaks = failed[0] if failed else 0
    if link.rank == speaks:
        host = printable(link.hosts[link.rank])
        alike = not failed or all(text == said for _, text in everything)
        show(said if alike else f"rank {link.rank} ({host}): {said}", sys.stderr)
    return int(everything[speaks][0]) if failed else found
