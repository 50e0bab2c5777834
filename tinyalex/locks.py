"""Locks that are open in a child process after a fork."""

from __future__ import annotations

import os
import threading
from typing import Any


def _renewed(lock: Any) -> Any:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)
    return lock


def new_lock() -> threading.Lock:
    """Return a lock that is released after a fork.

    In the child only the thread that forked exists.
    """
    return _renewed(threading.Lock())


def new_rlock() -> Any:
    """Return such a lock that its holder may acquire again."""
    return _renewed(threading.RLock())
