"""Stand-in for NCCL: names, messages, and errors that it shows."""

import inspect
import re
import threading
import time
import warnings

import numpy as np
import pytest
from simt import memory, nccl, runtime

FLOAT = 7  # NCCL's number


@pytest.fixture
def pair(standin):
    """Yield a function that calls another on two ranks, in threads."""
    ident, found, made = nccl.get_unique_id(), {}, []

    def both(work, same_gpu=False):
        def rank(number):
            memory.Device(0 if same_gpu else number).use()
            stream = runtime.Stream()
            try:
                with stream:
                    ranks = nccl.NcclCommunicator(2, ident, number)
                    made.append(ranks)
                    found[number] = work(number, ranks, stream, standin)
            except (AssertionError, nccl.NcclError) as error:
                found[number] = str(error)

        threads = [threading.Thread(target=rank, args=(n,), daemon=True) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        return [found.get(number) for number in (0, 1)]

    yield both
    for ranks in made:
        ranks.abort()


def swapped(number, ranks, stream, xp, grouped=True, count=3, patience=5.0):
    """Send three numbers to the other rank and receive its own."""
    mine, theirs = xp.asarray(np.full(3, number, np.float32)), xp.empty(3, np.float32)
    if grouped:
        nccl.groupStart()
    ranks.send(mine.data.ptr, 4 * count, 1, 1 - number, stream.ptr)
    ranks.recv(theirs.data.ptr, 12, 1, 1 - number, stream.ptr)
    if grouped:
        nccl.groupEnd()
    end, deadline = stream.record(), time.monotonic() + patience
    before = theirs._host.tolist()  # which an honest program cannot see
    while not end.done:
        ranks.check_async_error()
        if time.monotonic() > deadline:
            return "never"
    return before, theirs.get().tolist()


def test_bytes_land_when_something_waits(pair):
    for number, (before, after) in enumerate(pair(swapped)):
        assert np.isnan(before).all()
        assert after == [1 - number] * 3


def test_two_sends_that_wait_for_each_other_never_end(pair):
    assert pair(lambda *rank: swapped(*rank, grouped=False, patience=0.3)) == ["never"] * 2


def test_ranks_on_one_gpu_are_refused(pair):
    assert pair(swapped, same_gpu=True) == ["NCCL_ERROR_INVALID_USAGE: simulated"] * 2


def send(change, number, ranks, stream, xp):
    """Let rank 0 send something, and change its mind; rank 1 receives."""
    x = xp.asarray(np.full(3, number, np.float32))
    if number:
        ranks.recv(x.data.ptr, 3, FLOAT, 0, stream.ptr)
        return x.get().tolist()
    return change(ranks, stream, xp, x)


def too_much(ranks, stream, xp, x):
    ranks.send(x.data.ptr, 4, FLOAT, 1, stream.ptr)


def of_the_host(ranks, stream, xp, x):
    ranks.send(np.ones(3, np.float32).ctypes.data, 3, FLOAT, 1, stream.ptr)


def to_itself(ranks, stream, xp, x):
    ranks.send(x.data.ptr, 3, FLOAT, 0, stream.ptr)


def used_before(ranks, stream, xp, x):
    with runtime.Stream():
        x += 1
    ranks.send(x.data.ptr, 3, FLOAT, 1, stream.ptr)


def used_meanwhile(ranks, stream, xp, x):
    ranks.send(x.data.ptr, 3, FLOAT, 1, stream.ptr)
    with runtime.Stream():
        x += 1


def changed_meanwhile(ranks, stream, xp, x):
    ranks.send(x.data.ptr, 3, FLOAT, 1, stream.ptr)
    time.sleep(0.1)
    x._host += 1
    stream.synchronize()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (too_much, "are not memory of the device"),
        (of_the_host, "are not memory of the device"),
        (to_itself, "NCCL_ERROR_INVALID_ARGUMENT"),
        (used_before, "another stream may still be using"),
        (used_meanwhile, "no wait for the end"),
        (changed_meanwhile, "written to before the end"),
    ],
)
def test_errors_that_a_gpu_would_not_show(pair, change, expected):
    def work(number, *rest):
        if number and change not in (used_meanwhile, changed_meanwhile):
            return None
        return send(change, number, *rest)

    assert expected in pair(work)[0]


def test_sizes_must_agree(pair):
    found = pair(lambda *rank: swapped(*rank, count=2 + rank[0]))
    assert "NCCL_ERROR_INVALID_ARGUMENT: simulated" in found


def test_names_and_arguments_are_those_of_cupy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("cupy.cuda.nccl")
    if not theirs.available:
        pytest.skip("CuPy has NCCL's names only where NCCL is")
    ours = nccl.make()
    for name, value in vars(ours).items():
        if name.startswith("__") or name == "available":
            continue
        assert hasattr(theirs, name), name
        if isinstance(value, int):
            assert value == getattr(theirs, name), name
    methods = {n: m for n, m in vars(nccl.NcclCommunicator).items() if not n.startswith("_")}
    for name, method in methods.items():
        listed = getattr(theirs.NcclCommunicator, name).__doc__.split("\n")[0]
        words = re.search(r"\((.*)\)", listed)[1].split(", ")
        assert [word.split()[-1] for word in words] == list(inspect.signature(method).parameters)
    assert "NcclCommunicator(int ndev, bytes commId, int rank" in theirs.NcclCommunicator.__doc__
    assert len(theirs.get_unique_id()) == len(nccl.get_unique_id()) == 128
