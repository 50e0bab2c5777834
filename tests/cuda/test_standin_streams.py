"""Streams, captures and pools of the stand-in, and CUDA's silent errors."""

import gc

import numpy as np
import pytest

from tinyalex.backends.cuda.transfer import Uploads

pytestmark = pytest.mark.usefixtures("standin")


@pytest.fixture
def pool(standin):
    """Return a pool with room for a thousand numbers."""
    pool = standin.cuda.MemoryPool()
    with standin.cuda.using_allocator(pool.malloc):
        standin.empty(1000)
    return pool


@pytest.fixture
def capture(standin, pool):
    """Return a function that captures a function, with memory from `pool`."""

    def captured(function):
        with standin.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                with standin.cuda.using_allocator(pool.malloc):
                    function()
            finally:
                graph = stream.end_capture()
        return graph

    return captured


# --- streams


def copied(standin, wait):
    """Copy numbers on another stream; return what is there once `wait(stream, event)` is over."""
    source, target = np.arange(5.0), standin.empty(5)
    stream = standin.cuda.Stream(non_blocking=True)
    stream.wait_event(standin.cuda.get_current_stream().record())
    target.data.copy_from_host_async(source.ctypes.data, source.nbytes, stream)
    wait(stream, stream.record())
    return target.get()


@pytest.mark.parametrize(
    "wait",
    [lambda stream, event: stream.synchronize(), lambda stream, event: event.synchronize()],
    ids=["stream", "event"],
)
def test_a_copy_lands_when_it_is_waited_for(standin, wait):
    assert np.array_equal(copied(standin, wait), np.arange(5.0))


def test_the_hosts_memory_is_copied_before_it_is_let_go():
    uploads = Uploads()
    for _ in range(3):  # the third takes the place of the first
        uploads.send(np.zeros(4, np.uint8))
    assert uploads._stream.position_done == 1


def test_a_copy_lands_for_a_stream_that_waits(standin):
    wait = lambda stream, event: standin.cuda.get_current_stream().wait_event(event)  # noqa: E731
    assert np.array_equal(copied(standin, wait), np.arange(5.0))


def test_a_copy_that_nobody_waits_for_does_not_land(standin):
    assert np.isnan(copied(standin, lambda stream, event: None)).all()


def test_a_copy_to_what_may_be_in_use_is_refused(standin):
    source, target = np.zeros(5), standin.empty(5)
    stream = standin.cuda.Stream(non_blocking=True)
    now = standin.cuda.get_current_stream()

    def copy():
        target.data.copy_from_host_async(source.ctypes.data, source.nbytes, stream)

    stream.wait_event(now.record())
    copy()
    target + 1.0
    with pytest.raises(AssertionError, match="another stream may still be using"):
        copy()
    stream.wait_event(now.record())
    copy()


# --- captures


def test_a_capture_computes_nothing_until_it_is_launched(standin, capture):
    x, y, total = standin.ones(3), standin.zeros(3), standin.empty((3,))

    def work():
        z = standin.zeros(3)
        z += x
        y[...] = z * 2.0
        standin.add(x, z.reshape(3, 1)[:, 0], out=total)

    graph = capture(work)
    assert y.get().tolist() == [0, 0, 0]
    assert np.isnan(total.get()).all()
    graph.launch()
    assert y.get().tolist() == total.get().tolist() == [2, 2, 2]
    x[...] = 5.0
    graph.launch()
    assert y.get().tolist() == total.get().tolist() == [10, 10, 10]


def test_what_python_computed_is_frozen(standin, capture):
    y, rate = standin.zeros(1), [2.0]

    def work():
        y[...] = y + rate[0]

    graph = capture(work)
    rate[0] = 7.0
    graph.launch()
    assert y.get().tolist() == [2]


FORBIDDEN = {
    "to the host": lambda xp, x: x.get(),
    "as a number": lambda xp, x: float(x[0]),
    "from the host": lambda xp, x: xp.asarray(np.zeros(3)),
    "set": lambda xp, x: x.set(np.zeros(3)),
    "wait for the stream": lambda xp, x: xp.cuda.get_current_stream().synchronize(),
    "wait for an event": lambda xp, x: xp.cuda.get_current_stream().record().synchronize(),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_capture_neither_copies_nor_waits(standin, capture, what):
    x = standin.zeros(3)
    with pytest.raises(standin.cuda.runtime.CUDARuntimeError, match="when stream is capturing"):
        capture(lambda: FORBIDDEN[what](standin, x))


def test_the_default_stream_cannot_be_captured(standin):
    with pytest.raises(standin.cuda.runtime.CUDARuntimeError, match="default stream"):
        standin.cuda.Stream.null.begin_capture()


# --- the memory of a capture


def test_memory_of_the_default_pool(standin):
    with standin.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(AssertionError, match="with the default pool"):
            standin.empty(3)
        stream.end_capture()


def test_a_pool_that_would_have_to_grow(standin, capture):
    with pytest.raises(AssertionError, match="makes its pool grow"):
        capture(lambda: standin.empty(1001))


def test_what_is_free_again_may_be_used_in_the_same_capture(standin, capture):
    def work():
        for _ in range(5):
            standin.zeros(400) + 1.0

    capture(work).launch()


def test_a_pool_that_others_use(standin, capture, pool):
    graph = capture(lambda: standin.zeros(3))
    with standin.cuda.using_allocator(pool.malloc):
        with pytest.raises(AssertionError, match="used by others"):
            standin.empty(3)
        del graph
        standin.empty(3)


def test_a_pool_that_is_gone(standin):
    def captured():
        pool = standin.cuda.MemoryPool()
        with standin.cuda.using_allocator(pool.malloc), standin.cuda.Stream() as stream:
            standin.empty(3)
            stream.begin_capture()
            standin.zeros(3)
            return stream.end_capture()

    graph = captured()
    gc.collect()
    with pytest.raises(AssertionError, match="pool of the graph is gone"):
        graph.launch()
