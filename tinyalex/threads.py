"""The number of threads, in one place for Numba and BLAS.

The number is ``TINYALEX_NUM_THREADS`` if set, else that of `available_cores`; `set_num_threads`
changes it. Results are reproducible bit for bit at a fixed number of threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tinyalex.calls import pip_install


def available_cores() -> int:
    """Return the number of cores this process may use (affinity and quota).

    A quota of 1.5 cores makes 2: two threads use it up, one would leave a third of it.
    """
    return math.ceil(min(_cores(), cpu_quota()))


def cpu_quota(root: str | Path = "/") -> float:
    """Return the cores that control groups grant; infinity for no limit.

    The smallest ``cpu.max``, or ``cpu.cfs_quota_us`` of version 1, of the group that this process
    is in and of those around it. `root` is the folder of /proc and /sys.
    """
    return min(_quotas(Path(root)), default=math.inf)


def _quotas(root: Path) -> Iterator[float]:
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    own = {name: path for group in groups for _, names, path in [group.split(":", 2)]
           for name in names.split(",")}  # fmt: skip
    for mount in mounts:
        where, _, what = mount.partition(" - ")
        *_, top, place = where.split()[:5]
        kind, *_, options = what.split()
        name = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if name not in own or (name and name not in options.split(",")):
            continue
        inside = Path(os.path.relpath(own[name], top))
        if ".." in inside.parts:  # a namespace hides where the group lies: the mount shows it
            inside = Path()
        for folder in (inside, *inside.parents):
            yield from _quota_in(root / place.lstrip("/") / folder)


def _quota_in(group: Path) -> Iterator[float]:
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):  # not this version, no such limit, or the limit "max"
            quota, period = " ".join((group / file).read_text() for file in files).split()
            if int(quota) > 0:
                yield int(quota) / int(period)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # respects cpusets and taskset
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _most() -> int:
    """Return the largest number of threads: all cores, or Numba's own limit."""
    pool = os.environ.get("NUMBA_NUM_THREADS")
    limits = [most for _, most in _followers]
    if pool and not limits:  # Numba reads it when it is imported
        limits = [_whole(pool, "the environment variable NUMBA_NUM_THREADS")]
    return min([_cores(), *limits])


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
    if number > _most():
        raise ValueError(
            f"{source} must be at most {_most()}, the cores at hand (or NUMBA_NUM_THREADS, "
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
    return min(_most(), available_cores())


def set_num_threads(count: int) -> None:
    """Let kernels use ``count`` threads, at most the number of cores.

    Raises ValueError for anything but a whole number >= 1, or for more than the cores at hand.
    """
    global _chosen
    number = _checked(count, "the number of threads")
    try:
        from threadpoolctl import threadpool_limits
    except Exception as error:
        raise ImportError(
            f"threadpoolctl, which sets the threads of BLAS, does not work here ({error}): "
            f"{pip_install('--force-reinstall', 'threadpoolctl')}"
        ) from error
    _chosen = number
    threadpool_limits(number, user_api="blas")
    for setter, _ in _followers:
        setter(number)


def start() -> None:
    """Fix the number of threads, BLAS included, before the first kernel runs."""
    if _chosen is None:
        set_num_threads(get_num_threads())


def description() -> str:
    """Return the number of threads and, once known, their pool.

    A CPU quota below the number of cores is named, too.
    """
    notes, quota = list(_kinds), cpu_quota()
    if quota < _cores():
        notes.append(f"CPU quota {quota:g} of {_cores()} cores")
    number = get_num_threads()
    return f"{number} thread{'s' * (number > 1)}" + (f" ({', '.join(notes)})" if notes else "")


def follow(setter: Callable[[int], None], most: int, kind: str | None = None) -> None:
    """Call ``setter`` with the number of threads, now and at every change.

    This is for backends that have threads of their own, ``most`` of them, of some ``kind``.
    """
    global _chosen
    _followers.append((setter, most))
    _kinds.extend([kind] if kind else [])
    _chosen = min(get_num_threads(), most)
    setter(_chosen)
