"""How many threads compute. One place decides for Numba and for BLAS.

The number is ``TINYALEX_NUM_THREADS`` if set, else the number of cores this process may use;
`set_num_threads` changes it. Results are reproducible bit for bit at a fixed number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def _available() -> int:
    if hasattr(
        os, "sched_getaffinity"
    ):  # respects containers and taskset, where the system can tell
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(count: object, source: str) -> int:
    try:
        number = int(count)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number = 0
    if number < 1 or (number != count and str(number) != count):
        raise ValueError(f"{source} must be a whole number >= 1, got {count!r}")
    return number


_chosen: int | None = None
_followers: list[Callable[[int], None]] = []


def get_num_threads() -> int:
    """Return the number of threads that kernels use."""
    if _chosen is not None:
        return _chosen
    setting = os.environ.get("TINYALEX_NUM_THREADS")
    if setting:
        return _checked(setting, "the environment variable TINYALEX_NUM_THREADS")
    return _available()


def set_num_threads(count: int) -> None:
    """Let kernels use ``count`` threads, at most as many as there are cores.

    Raises ValueError for anything but a whole number >= 1, or for more than the cores at hand.
    """
    global _chosen
    number = _checked(count, "the number of threads")
    if number > _available():
        raise ValueError(
            f"the number of threads must be at most {_available()}, the cores at hand; got {number}"
        )
    from threadpoolctl import threadpool_limits

    _chosen = number
    threadpool_limits(number, user_api="blas")
    for setter in _followers:
        setter(number)


def follow(setter: Callable[[int], None]) -> None:
    """Call ``setter`` with the number of threads, now and whenever `set_num_threads` changes it.

    This is for backends that have threads of their own.
    """
    _followers.append(setter)
    setter(get_num_threads())
