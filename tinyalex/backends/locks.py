"""Locks that a child process finds open, whatever its parent's other threads were doing."""

from __future__ import annotations

import os
import threading


def new_lock() -> threading.Lock:
    """Return a lock that no thread holds after a fork: only the thread that forks goes on there."""
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock
