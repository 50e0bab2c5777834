"""Memory that is handed out again: when, and when not."""

import gc
import math
import random
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import run_python

from tinyalex import nn, no_grad, ones
from tinyalex.backends import memory

SIZE = 1 << 20  # bytes; twice this is a size of its own


@pytest.fixture(autouse=True)
def _nothing_cached():
    gc.collect()
    memory.empty_cache()


def block(size=SIZE):
    """Return an array of so many bytes."""
    return memory.empty((size,), np.uint8)


def address(array):
    """Return where an array begins."""
    return array.ctypes.data


def cached(size=SIZE):
    """Let a block go, and return where its array began."""
    return address(block(size))


# --- what it hands out ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, "float64", np.uint8, np.int64, np.dtype(bool)])
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (0, 5000, 9999), (3, 5, 7), (70_001,), (301, 1, 307), (2, 3, 999, 33)]
)
def test_an_array_is_as_numpy_makes_them(shape, dtype):
    array = memory.empty(shape, dtype)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    array[...] = 1
    assert array.sum() == math.prod(shape)
    assert array.size == 0 or address(array) % 64 == 0, "stores past the caches need it"


@pytest.mark.parametrize("smallest", [1, memory.SMALLEST])
def test_every_array_begins_at_a_cache_line(smallest):
    arrays = [block(size) for size in range(smallest, smallest + 2000, 13)]
    assert not any(address(array) % 64 for array in arrays)
    with memory._lock:  # as when another thread is at work: nothing is handed out again
        arrays = [block(size) for size in range(smallest, smallest + 2000, 13)]
    assert not any(address(array) % 64 for array in arrays)


def test_empty_like_is_contiguous():
    for shape in ((4, 5), (400, 500)):
        array = np.ones(shape, np.float32).T
        like = memory.empty_like(array)
        assert (like.shape, like.dtype) == (array.shape, array.dtype)
        assert like.flags.c_contiguous


# --- when it hands out memory again ---------------------------------------------------------------


def test_memory_is_used_again_as_soon_as_its_array_is_gone():
    first = cached()
    assert [address(block()) for _ in range(3)] == [first] * 3
    again = memory.empty((SIZE // 8,), np.float64)
    assert address(again) == first, "whatever its dtype and shape"


VIEWS = {
    "a part": lambda x: x[1000:2000:3],
    "backwards": lambda x: x[::-1],
    "another shape": lambda x: x.reshape(4, -1).T,
    "another dtype": lambda x: x.view(np.float32),
    "a view of a view": lambda x: x.reshape(2, 2, -1)[1].T[5:],
    "broadcast": lambda x: np.broadcast_to(x[:1], (50, 50)),
    "a memoryview": memoryview,
    "a container": lambda x: {"array": [x]},
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_memory_is_kept_while_a_view_lives(view):
    array = block()
    first = address(array)
    kept = view(array)
    del array
    assert memory.cached_bytes() == 0
    assert address(block()) != first
    memory.empty_cache()
    del kept
    assert memory.cached_bytes() > 0
    assert address(block()) == first


def test_arrays_in_a_cycle_go_with_the_garbage_collector():
    cycle = [block()]
    first = address(cycle[0])
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert address(block()) == first


def test_a_block_may_be_larger_than_the_array_but_not_by_much(monkeypatch):
    monkeypatch.setattr(memory, "MOST_WASTE", 1.25)
    first = cached()
    for size, reused in ((SIZE, True), (0.82 * SIZE, True), (0.78 * SIZE, False)):
        array = block(int(size))
        assert (address(array) == first) is reused, size
        del array
        memory.empty_cache()
        first = cached()


def test_a_block_is_never_smaller_than_the_array():
    first = cached()
    assert address(block(SIZE + 1)) != first


def test_the_smallest_block_that_fits_and_of_those_the_last_one():
    arrays = [block(size) for size in (int(1.2 * SIZE), SIZE, SIZE, int(1.4 * SIZE))]
    places = [address(array) for array in arrays]
    for i in range(4):
        arrays[i] = None
        memory.cached_bytes()
    taken = [block() for _ in range(4)]
    assert [address(array) for array in taken] == [places[i] for i in (2, 1, 0, 3)]


def test_small_arrays_are_left_to_the_c_library():
    for _ in range(3):
        block(memory.SMALLEST - 1)
    assert memory.cached_bytes() == 0


# --- what it gives back to the system -------------------------------------------------------------


def test_cached_bytes_counts_what_is_not_in_use():
    array, other = block(), block(2 * SIZE)
    assert memory.cached_bytes() == 0
    del array
    assert SIZE <= memory.cached_bytes() < 1.01 * SIZE
    del other
    assert 3 * SIZE <= memory.cached_bytes() < 3.01 * SIZE
    array = block()
    assert 2 * SIZE <= memory.cached_bytes() < 2.01 * SIZE
    array[...] = 5
    memory.empty_cache()
    assert memory.cached_bytes() == 0
    assert (array == 5).all()


def test_a_block_that_nobody_wants_goes(monkeypatch):
    monkeypatch.setattr(memory, "STALE", 5)
    cached()
    assert memory.cached_bytes() > 0
    others = [block(9 * SIZE) for _ in range(5)]
    assert memory.cached_bytes() > 0
    others.append(block(9 * SIZE))
    assert memory.cached_bytes() == 0


def test_a_block_that_is_wanted_now_and_then_stays(monkeypatch):
    monkeypatch.setattr(memory, "STALE", 5)
    first, others = cached(), []
    for _ in range(4):
        others += [block(9 * SIZE) for _ in range(4)]
        assert address(block()) == first


SMALLEST = memory.SMALLEST
SIZES = {
    "ever larger": lambda choose, i: SMALLEST + 3000 * i,
    "ever smaller": lambda choose, i: SMALLEST + 3000 * (500 - i),
    "anything": lambda choose, i: int(SMALLEST * choose.uniform(0.5, 40)),
    "many small ones": lambda choose, i: choose.randrange(SMALLEST, 2 * SMALLEST),
    "huge now and then": lambda choose, i: (
        SMALLEST * (500 if i % 97 == 0 else choose.choice((1, 2)))
    ),
    "two kinds of steps": lambda choose, i: SMALLEST * (3 + i // 20 % 2 * i % 7),
}


@pytest.mark.parametrize("living", [1, 7])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_what_is_held_has_a_bound_at_every_moment(size, living, monkeypatch):
    monkeypatch.setattr(memory, "STALE", 30)
    choose, arrays, history = random.Random(1), [], []

    def in_use():
        return sum(array.nbytes for array in arrays if array.nbytes >= SMALLEST)

    def check():
        recent = max(history[-2 * memory.STALE :])
        assert in_use() + memory.cached_bytes() <= 2 * recent

    for i in range(500):
        arrays.append(block(size(choose, i)))
        history.append(in_use())
        check()
        while len(arrays) > choose.randrange(living):
            del arrays[choose.randrange(len(arrays))]
            check()


def test_after_a_huge_array_even_tiny_ones_give_it_back(monkeypatch):
    monkeypatch.setattr(memory, "STALE", 5)
    cached()
    for _ in range(7):
        block(10)
    assert memory.cached_bytes() == 0


def test_a_request_that_fails_changes_nothing():
    arrays = [block(), block()]
    with pytest.raises(MemoryError):
        block(1 << 60)
    sizes = [SIZE + SIZE // 4 * i for i in range(20)]
    for size in sizes:
        cached(size)
    assert 2 * SIZE + memory.cached_bytes() <= 2 * (2 * SIZE + sizes[-1])
    del arrays


def test_images_of_all_sizes_leave_no_more_behind_than_the_largest():
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))

    def kept_after(sizes):
        memory.empty_cache()
        with no_grad():
            for size in sizes:
                net(ones(1, 3, size, size))
        return memory.cached_bytes()

    assert kept_after(range(40, 200, 4)) <= 2 * kept_after([196])


# --- arrays that live at the same time do not overlap ---------------------------------------------


class Owner:
    """Takes and drops arrays at random; sees whether what it wrote stays there."""

    def __init__(self, seed):
        self.seed, self.random, self.arrays = seed, random.Random(seed), []

    def step(self):
        """Take an array or drop one, and check one."""
        choose = self.random
        if self.arrays and choose.random() < 0.5:
            array, mark = self.arrays.pop(choose.randrange(len(self.arrays)))
            assert (array == mark).all(), "another thread wrote into this array"
        if len(self.arrays) < 8:
            size = choose.choice((1, 1.3, 1.7)) * memory.SMALLEST
            array = memory.empty((int(size) // 8,), np.float64)
            mark = self.seed + choose.random()
            array[...] = mark
            self.arrays.append((array, mark))


def test_living_arrays_do_not_overlap():
    owner = Owner(1)
    for _ in range(500):
        owner.step()
        living = sorted((address(a), address(a) + a.nbytes) for a, _ in owner.arrays)
        ends = [end for _, end in living]
        assert all(end <= start for end, (start, _) in zip(ends, living[1:], strict=False))


@contextmanager
def at_every_line(action):
    """Within this block and this thread, do something before every line of the module."""

    def trace(frame, event, argument):
        if frame.f_code.co_filename != memory.__file__:
            return None
        if event == "line":
            action()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_threads_do_not_get_each_others_memory():
    """They take turns wherever they can."""
    failures = []

    def work(seed):
        owner = Owner(seed)
        try:
            with at_every_line(lambda: time.sleep(0)):
                for _ in range(100):
                    owner.step()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert memory.cached_bytes() <= 2 * len(threads) * 8 * 1.7 * memory.SMALLEST


def test_an_array_may_go_in_another_thread():
    array = block()
    first = address(array)
    arrays = [array]
    del array
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert address(block()) == first


def test_the_garbage_collector_may_run_at_any_moment():
    """Also while a request is being served: letting an array go must not wait for a lock."""
    written = run_python("""
import gc
import numpy as np
from tinyalex.backends import memory
gc.set_threshold(1)
for i in range(2000):
    cycle = [memory.empty((memory.SMALLEST + i % 7,), np.uint8)]
    cycle.append(cycle)
print(memory.cached_bytes() < 1000 * memory.SMALLEST)
""")
    assert written == "True\n"


@pytest.mark.timeout(30)
def test_a_signal_may_come_at_any_moment():
    """Its handler may want memory, before whatever line of a request that is being served.

    The request would get the smallest block that fits, but the handler takes it away.
    """
    lines, number = 1, 0
    while number < lines:
        arrays = [block(size) for size in (SIZE, SIZE // 2, SIZE // 3)]
        del arrays
        seen, stolen = [], []

        def handler(seen=seen, stolen=stolen, number=number):
            if len(seen) == number:
                stolen.append(block())
            seen.append(None)

        with at_every_line(handler):
            array = block()
        assert array.nbytes == SIZE
        assert not np.shares_memory(array, stolen[0])
        memory.empty_cache()
        lines, number = len(seen), number + 1


def test_arrays_that_live_to_the_end_go_quietly():
    code = """
import numpy as np
from tinyalex.backends import memory
class Keeper: pass
Keeper.itself, Keeper.array = Keeper, memory.empty((1000, 1000), np.float32)
everywhere = np.everywhere = [memory.empty((1000, 1000), np.float32).T for _ in range(3)]
"""
    assert run_python(code) == ""


# --- what it is for -------------------------------------------------------------------------------

TRAINING = """
import resource
import numpy as np
import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn
from tinyalex.backends import memory

net = nn.Sequential(
    nn.Conv2d(3, 32, 11, 4, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2),
    nn.Conv2d(32, 64, 3, 1, 1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),
    nn.Linear(64 * 6 * 6, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 10),
)
optimizer = ta.optim.SGD(net.parameters(), 0.01, momentum=0.9)
images, labels = ta.randn(32, 3, 111, 111), np.arange(32) % 10
blocks, take = set(), memory._take

def watched(size):
    block = take(size)
    if size >= memory.SMALLEST:
        blocks.add(block.ctypes.data)
    return block

memory._take = watched
def train(images=images, labels=labels):
    net.train()
    optimizer.zero_grad()
    F.cross_entropy(net(images), labels).backward()
    optimizer.step()

def evaluate():
    net.eval()
    with ta.no_grad():
        net(images)

def step():
    {step}

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(6):
    step()
before, known = page_faults(), len(blocks)
for _ in range(5):
    step()
print(page_faults() - before, known, len(blocks) - known)
"""


STEPS = {
    "training": "train()",
    "prediction": "evaluate()",
    "both in turn": "train(); evaluate()",
    "the last batch is smaller": "train(); train(); train(images[:5], labels[:5])",
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_steps_that_come_again_ask_the_system_for_no_memory(step):
    """Of 4 KB pages, a batch of these images alone is 1155, and a step without reuse takes 6000."""
    code = TRAINING.replace("{step}", step)
    faults, known, new = map(int, run_python(code).splitlines()[-1].split())
    assert known > 5
    assert new == 0
    assert faults < 200
