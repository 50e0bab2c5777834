"""The number of threads, in one place for Numba and BLAS.

The number is ``TINYALEX_NUM_THREADS`` if set, else the number of cores this process may use;
`set_num_threads` changes it. Results are reproducible bit for bit at a fixed number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def _available() -> int:
    """Return how many threads there can be: the cores at hand, or fewer if Numba starts fewer."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # respects containers and taskset
        cores = len(os.sched_getaffinity(0))
    pool = os.environ.get("NUMBA_NUM_THREADS")
    limits = [most for _, most in _followers]
    if pool and not limits:  # Numba reads it when it is imported
        limits = [_whole(pool, "the environment variable NUMBA_NUM_THREADS")]
    return min([cores, *limits])


def _whole(count: object, source: str) -> int:
    try:
        number = int(count)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number = 0
    if number < 1 or (number != count and str(number) != count):
        raise ValueError(f"{source} must be a whole number >= 1, got {count!r}")
    return number


def _checked(count: object, source: str) -> int:
    number = _whole(count, source)
    if number > _available():
        raise ValueError(
            f"{source} must be at most {_available()}, the cores at hand (or NUMBA_NUM_THREADS, "
            f"where that is less); got {number}"
        )
    return number


_chosen: int | None = None
_followers: list[tuple[Callable[[int], None], int]] = []
_kinds: list[str] = []


def get_num_threads() -> int:
    """Return the number of threads that kernels use.

    Raises ValueError where ``TINYALEX_NUM_THREADS`` is none that `set_num_threads` would take.
    """
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
    try:
        from threadpoolctl import threadpool_limits
    except Exception as error:
        raise ImportError(
            f"threadpoolctl, which sets the threads of BLAS, does not work here ({error}): "
            "pip install --force-reinstall threadpoolctl"
        ) from error
    _chosen = number
    threadpool_limits(number, user_api="blas")
    for setter, _ in _followers:
        setter(number)


def start() -> None:
    """Fix the number of threads, for BLAS as well, before the first kernel runs."""
    if _chosen is None:
        set_num_threads(get_num_threads())


def description() -> str:
    """Return how many threads compute and, once a kernel has run, of which pool they are."""
    kind = f" ({', '.join(_kinds)})" if _kinds else ""
    return f"{get_num_threads()} threads{kind}"


def follow(setter: Callable[[int], None], most: int, kind: str | None = None) -> None:
    """Call ``setter`` with the number of threads, now and whenever `set_num_threads` changes it.

    This is for backends that have threads of their own, ``most`` of them, of some ``kind``.
    """
    global _chosen
    _followers.append((setter, most))
    _kinds.extend([kind] if kind else [])
    _chosen = min(get_num_threads(), most)
    setter(_chosen)
