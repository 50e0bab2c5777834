"""Locks that a child process finds open, whatever its parent's other threads were doing."""

from __future__ import annotations

import os
import threading
from typing import Any


def _renewed(lock: Any) -> Any:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)
    return lock


def new_lock() -> threading.Lock:
    """Return a lock that no thread holds after a fork: only the thread that forks goes on there."""
    return _renewed(threading.Lock())


def new_rlock() -> Any:
    """Return such a lock, which a thread that holds it may take again."""
    return _renewed(threading.RLock())
