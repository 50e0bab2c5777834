"""Threads for ``prange`` on a machine that also does something else.

A parallel loop is cut into more pieces than there are threads, and a thread takes the next piece
when it has done one. The caller takes pieces like all others: a thread that the system holds back,
or has yet to wake, is not waited for unless it has a piece in hand. Threads that find nothing to do
look for more for `SPIN`, the time from one kernel to the next, and then sleep: the system favours a
thread that has slept over one that used up its share.

Numba's loops call a function by the name of ``numba_parallel_for``, and `runtime` has those of our
kernels find `SYMBOLS` here. The pool has one loop at a time. A second Python thread that comes with
a loop meanwhile runs all of it itself.

Results are the same bits whichever thread does what: the number of threads alone decides on the
pieces, and a kernel must not depend on `thread_id` but for scratch memory (nor reduce with a scalar
over ``prange``, where Numba has one sum for each thread).
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

import llvmlite.binding
import numpy as np
from numba import types

from tinyalex.backends.cpu.atomics import (
    call,
    load,
    pause,
    replace,
    store,
    subtract,
    symbol,
    word,
)
from tinyalex.backends.cpu.runtime import callback, kernel

SPIN, JOIN = 100_000, 50_000  # nanoseconds that a thread, and the caller at the end, do not sleep
PIECES = 16  # for each thread, of a loop that has so many rounds
MOST = 1024  # threads, and processors in the system's masks
LINE = 128  # bytes: what others write must not be in the cache lines that a waiting thread reads

# A loop, in memory: pieces that are open, and from bit 32 the number of threads that may take them;
# pieces that are not done; then what Numba says of it.
OPEN, PENDING = 0, LINE
FUNCTION, ARGS, SIZES, STEPS, DATA, DIMENSIONS, ARRAYS, COUNT = range(2 * LINE, 2 * LINE + 64, 8)
LOOP = 3 * LINE
COUNTER = (1 << 32) - 1
# The pool begins with the loop that it is at. Then: whether there is one; whether its caller
# sleeps; how many threads have begun, by what key each knows its number, the function that it runs,
# and how many threads a loop may have; masks of the processors that the caller may use, and of
# those without the one it is on; masks of the signals that threads leave to the main thread, and
# those that their parent had left to others before.
BUSY, CALLER, STARTED = LOOP, LOOP + LINE, LOOP + 2 * LINE
KEY, WORK, THREADS = STARTED + 8, STARTED + 16, STARTED + 24
ALLOWED, ELSEWHERE, SIGNALS, BLOCKED = range(LOOP + 3 * LINE, LOOP + 7 * LINE, LINE)
# Each thread has a seat: whether it sleeps; its number at the system and in the C library; a time.
SEATS, SEAT = LOOP + 8 * LINE, 2 * LINE
ASLEEP, NUMBER, HANDLE, CLOCK = 0, LINE, LINE + 8, LINE + 16

_words = np.zeros((SEATS + MOST * SEAT + LINE) // 8, np.int64)
# Never freed: threads read and write it until the process ends, after Python has.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_words))
ADDRESS = -(-_words.ctypes.data // LINE) * LINE
llvmlite.binding.add_symbol("tinyalex_pool", ADDRESS)
_pool = symbol("tinyalex_pool")

# Linux's numbers: futex, sched_setaffinity, sched_getaffinity, gettid.
CALLS = {"x86_64": (202, 203, 204, 186), "aarch64": (98, 122, 123, 178)}
FUTEX, SET_AFFINITY, GET_AFFINITY, GET_NUMBER = CALLS[platform.machine()]
WAIT, WAKE = 128, 129  # of futex, within one process
BLOCK, SET_MASK = 0, 2  # of pthread_sigmask
FAULTS = 4, 5, 6, 7, 8, 11  # signals that come of what a thread does, SIGILL to SIGSEGV
MONOTONIC = 1

_syscall: Any = types.ExternalFunction("syscall", word(*[word] * 5))
_create: Any = types.ExternalFunction("pthread_create", types.int32(*[word] * 4))
_sigmask: Any = types.ExternalFunction("pthread_sigmask", types.int32(types.int32, word, word))
_set_seat: Any = types.ExternalFunction("pthread_setspecific", types.int32(types.int32, word))
_get_seat: Any = types.ExternalFunction("pthread_getspecific", word(types.int32))
_get_time: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, word))
_get_cpu: Any = types.ExternalFunction("sched_getcpu", types.int32())


@kernel
def _now(seat):
    _get_time(MONOTONIC, seat + CLOCK)
    return load(seat + CLOCK) * 1_000_000_000 + load(seat + CLOCK + 8)


@kernel
def _is_open(loop, number):
    """Return whether there are pieces that thread ``number`` may take."""
    now = load(loop + OPEN)
    return now & COUNTER > 0 and number < now >> 32


@kernel
def _take(loop, number):
    """Take a piece; return how many were left, 0 for none."""
    while True:
        now = load(loop + OPEN)
        left = now & COUNTER
        if number >= now >> 32 or left == 0:
            return 0
        if replace(loop + OPEN, now, now - 1):
            return left


@kernel
def _help(loop, number):
    """Run pieces until none is left; return the number of unfinished ones."""
    left = _take(loop, number)
    if left == 0:
        return -1
    # While this thread has a piece in hand, the loop cannot end, and what describes it stays.
    count, steps = load(loop + COUNT), load(loop + STEPS)
    arrays = np.empty(load(loop + ARRAYS), np.intp)
    sizes = np.empty(load(loop + DIMENSIONS) + 1, np.intp)
    sizes[0] = 1
    for d in range(1, sizes.size):
        sizes[d] = load(load(loop + SIZES) + 8 * d)
    done = 0
    while left > 0:
        for a in range(arrays.size):
            arrays[a] = load(load(loop + ARGS) + 8 * a) + load(steps + 8 * a) * (count - left)
        call(load(loop + FUNCTION), arrays.ctypes.data, sizes.ctypes.data, steps, load(loop + DATA))
        done += 1
        left = _take(loop, number)
    return subtract(loop + PENDING, done)


# --- threads --------------------------------------------------------------------------------------


@kernel
def _sleep(pool, seat, number):
    """Wait for `_wake`, unless there is a loop already."""
    store(seat + ASLEEP, 1)
    while load(seat + ASLEEP) == 1 and not _is_open(pool, number):
        _syscall(FUTEX, seat + ASLEEP, WAIT, 1, 0)
    store(seat + ASLEEP, 0)
    _syscall(SET_AFFINITY, 0, MOST // 8, pool + ALLOWED, 0)  # undo what `_wake` did


@callback(word(word))
def _work(number):
    """Live as thread ``number`` of the pool."""
    pool = _pool()
    seat = pool + SEATS + number * SEAT
    _set_seat(load(pool + KEY), number)
    store(seat + NUMBER, _syscall(GET_NUMBER, 0, 0, 0, 0))
    while True:
        begin, rounds = _now(seat), 0
        while not _is_open(pool, number):
            pause()
            rounds += 1
            if rounds % 16 == 0 and _now(seat) - begin > SPIN:
                _sleep(pool, seat, number)
                begin = _now(seat)
        if _help(pool, number) == 0 and replace(pool + CALLER, 1, 0):
            _syscall(FUTEX, pool + CALLER, WAKE, 1, 0)


@kernel
def _wake(pool, seat):
    """End a thread's sleep, on another processor than the caller's.

    Linux may wake a thread where its waker runs, and on a virtual machine it does so after every
    pause. (It takes processors that have nothing to do for such as their host has taken away.) The
    thread would then wait for the caller to end, and the loop take as long as with one thread.
    """
    if _syscall(GET_AFFINITY, 0, MOST // 8, pool + ALLOWED, 0) > 0:
        here, others = _get_cpu(), 0
        for i in range(MOST // 64):
            mask = load(pool + ALLOWED + 8 * i)
            if i == here // 64:
                mask &= ~(1 << (here % 64))
            store(pool + ELSEWHERE + 8 * i, mask)
            others |= mask
        if others != 0:
            _syscall(SET_AFFINITY, load(seat + NUMBER), MOST // 8, pool + ELSEWHERE, 0)
    if replace(seat + ASLEEP, 1, 0):
        _syscall(FUTEX, seat + ASLEEP, WAKE, 1, 0)
    else:  # it ended its sleep by itself, perhaps before it was kept off this processor
        _syscall(SET_AFFINITY, load(seat + NUMBER), MOST // 8, pool + ALLOWED, 0)


@kernel
def _begin(pool, seat, number):
    """Start a thread; return whether the system let us."""
    store(seat + ASLEEP, 0)
    _sigmask(BLOCK, pool + SIGNALS, pool + BLOCKED)  # a thread begins with its parent's mask
    failed = _create(seat + HANDLE, 0, load(pool + WORK), number)
    _sigmask(SET_MASK, pool + BLOCKED, 0)
    return failed == 0


# --- what Numba's loops call ----------------------------------------------------------------------


@kernel
def _describe(loop, function, args, sizes, steps, data, dimensions, arrays, threads):
    store(loop + FUNCTION, function)
    store(loop + ARGS, args)
    store(loop + SIZES, sizes)
    store(loop + STEPS, steps)
    store(loop + DATA, data)
    store(loop + DIMENSIONS, dimensions)
    store(loop + ARRAYS, arrays)
    store(loop + COUNT, load(sizes))
    store(loop + PENDING, load(sizes))
    store(loop + OPEN, threads << 32 | load(sizes))


@kernel
def _alone(room, function, args, sizes, steps, data, dimensions, arrays):
    # The caller holds ``room``: Numba would free an array of our own after its last mention here.
    loop = room.ctypes.data
    _describe(loop, function, args, sizes, steps, data, dimensions, arrays, 1)
    _help(loop, 0)


@kernel
def _join(pool):
    """Wait for pieces that other threads run; soon yield the processor."""
    begin, rounds = _now(pool + SEATS), 0
    while load(pool + PENDING) > 0:
        pause()
        rounds += 1
        if rounds % 16 == 0 and _now(pool + SEATS) - begin > JOIN:
            store(pool + CALLER, 1)
            if load(pool + PENDING) > 0:
                _syscall(FUTEX, pool + CALLER, WAIT, 1, 0)
            store(pool + CALLER, 0)


@callback(types.void(*[word] * 8))
def _parallel_for(function, args, sizes, steps, data, dimensions, arrays, threads):
    """Run ``function`` for all pieces of a loop, ``sizes[0]`` of them."""
    pool, threads = _pool(), min(threads, load(sizes), MOST)
    if threads <= 1 or not replace(pool + BUSY, 0, 1):
        _alone(
            np.empty(LOOP // 8, np.int64), function, args, sizes, steps, data, dimensions, arrays
        )
        return
    _describe(pool, function, args, sizes, steps, data, dimensions, arrays, threads)
    for number in range(1, threads):
        seat = pool + SEATS + number * SEAT
        if load(pool + STARTED) < number:
            if not _begin(pool, seat, number):
                break
            store(pool + STARTED, number)
        elif load(seat + ASLEEP) == 1:
            _wake(pool, seat)
    _help(pool, 0)
    _join(pool)
    store(pool + BUSY, 0)


@callback(word(word, word, word, word))
def _pieces(threads, dimensions, starts, stops):
    """Return the number of pieces of a loop; its range includes ``stops``."""
    rounds = 1
    for d in range(dimensions):
        rounds *= load(stops + 8 * d) - load(starts + 8 * d) + 1
    return max(1, min(rounds, threads * PIECES if threads > 1 else 1))


@callback(word())
def _threads():
    """Return how many threads a loop may have."""
    return load(_pool() + THREADS)


@callback(word())
def _thread_id():
    """Return the number of this thread, 0 for a thread of the user's."""
    return _get_seat(load(_pool() + KEY))


SYMBOLS = {
    "numba_parallel_for": _parallel_for,
    "get_sched_size": _pieces,
    "get_num_threads": _threads,
    "get_thread_id": _thread_id,
}


# --- beginning ------------------------------------------------------------------------------------


def _put(place: int, value: int) -> None:
    _words[(ADDRESS - _words.ctypes.data + place) // 8] = value


def _forget() -> None:
    """Reset in a child process, which has none of its parent's threads."""
    for place in (OPEN, PENDING, BUSY, CALLER, STARTED):
        _put(place, 0)


def set_num_threads(count: int) -> None:
    """Let loops have ``count`` threads."""
    _put(THREADS, count)


def prepare(count: int) -> dict[str, int]:
    """Return the addresses that our kernels' loops need, under Numba's names."""
    key = ctypes.c_uint()
    ctypes.CDLL(None).pthread_key_create(ctypes.byref(key), None)
    _put(KEY, key.value)
    _put(WORK, _work.address)
    _put(THREADS, count)
    for place in range(SIGNALS, SIGNALS + LINE, 8):
        _put(place, -1)
    _put(SIGNALS, ~sum(1 << (number - 1) for number in FAULTS))
    os.register_at_fork(after_in_child=_forget)
    return {name: function.address for name, function in SYMBOLS.items()}
