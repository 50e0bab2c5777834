"""The loader: same batches for any workers and start, no thread left."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from helpers import run_python

from tinyalex.data import (
    DataError,
    EvalTransform,
    ImageError,
    Loader,
    TrainTransform,
    WorkerError,
    mean_colour,
    worker_processes,
)


class Noise:
    """A data set of random images, which can be slow or broken."""

    def __init__(self, size=50, on_load=lambda index: None):
        self.classes = ["a", "b", "c"]
        self.labels = np.arange(size, dtype=np.int64) % 3
        self.on_load = on_load
        self.loads = 0

    def __len__(self):
        return len(self.labels)

    def load(self, index):
        self.loads += 1
        self.on_load(index)
        return np.random.default_rng(index).integers(0, 256, (12, 14, 3), np.uint8)

    def describe(self, index):
        return f"image {index}"


class Draws(EvalTransform):
    """A transform that remembers the first number of every image's generator."""

    def __init__(self):
        super().__init__(10)
        self.draws = []

    def __call__(self, image, rng, out=None):
        self.draws.append(rng.random())
        return super().__call__(image, rng, out)


def running_threads():
    return [t for t in threading.enumerate() if t.name.startswith("tinyalex-data")]


def assert_no_threads():
    deadline = time.monotonic() + 5
    while running_threads():
        assert time.monotonic() < deadline, "threads still run"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _no_thread_survives():
    yield
    assert_no_threads()


def assert_same(batches, expected):
    for one, other in zip(batches, expected, strict=True):
        for field in ("images", "labels", "indices"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_batches_are_what_the_engine_takes():
    loader = Loader(Noise(50), 16, TrainTransform(10))
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 3
    for batch in batches:
        assert batch.images.shape == (16, 3, 10, 10)
        assert batch.images.dtype == np.float32
        assert batch.images.transpose(0, 2, 3, 1).flags.c_contiguous  # channels last
        assert batch.labels.dtype == batch.indices.dtype == np.int64
        assert (batch.labels == batch.indices % 3).all()


def test_evaluation_sees_every_image_once_in_order():
    dataset = Noise(50)
    loader = Loader(dataset, 16, EvalTransform(10), shuffle=False)
    batches = list(loader.epoch(0))
    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    assert len(loader) == 4
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(50))
    np.testing.assert_array_equal(
        batches[2].images[5].transpose(1, 2, 0), dataset.load(37)[1:11, 2:12]
    )


def test_every_epoch_has_its_own_order():
    loader = Loader(Noise(48), 16, TrainTransform(10))
    orders = [np.concatenate([b.indices for b in loader.epoch(e)]).tolist() for e in range(3)]
    assert all(sorted(order) == list(range(48)) for order in orders)
    assert len({tuple(order) for order in (*orders, range(48))}) == 4


@pytest.mark.parametrize("start_batch", [0, 1, 2, 3])
@pytest.mark.parametrize("workers", [1, 4])
def test_any_start_and_any_number_of_threads_give_the_same_batches(start_batch, workers):
    expected = list(Loader(Noise(), 16, TrainTransform(10), seed=7).epoch(5))
    loader = Loader(Noise(), 16, TrainTransform(10), seed=7, workers=workers, prefetch=5)
    assert_same(loader.epoch(5, start_batch), expected[start_batch:])


def test_draws_belong_to_the_image_and_not_to_its_place():
    """The same epoch in batches of another size shows every image in the same view."""

    def views(batch_size, **options):
        loader = Loader(Noise(48), batch_size, TrainTransform(10), **options)
        batches = list(loader.epoch(3))
        return {
            int(index): image.tobytes()
            for batch in batches
            for index, image in zip(batch.indices, batch.images, strict=True)
        }

    assert views(8) == views(24) == views(8, shuffle=False)
    differ = [views(8)[i] != views(8, seed=1)[i] for i in range(48)]
    assert np.mean(differ) > 0.8


def test_every_image_has_its_own_draw():
    transform = Draws()
    list(Loader(Noise(200), 50, transform, workers=1).epoch(0))
    assert len(set(transform.draws)) == len(transform.draws) == 200


def test_views_differ_between_epochs():
    loader = Loader(Noise(48), 48, TrainTransform(10), shuffle=False)
    (first,), (second,) = loader.epoch(0), loader.epoch(1)
    differ = (first.images != second.images).any(axis=(1, 2, 3))
    assert differ.mean() > 0.8


@pytest.mark.parametrize("workers", [2, 8])
def test_threads_work_side_by_side(workers):
    """The loads of different batches wait for each other: fewer threads would block."""
    barrier = threading.Barrier(workers, timeout=10)
    dataset = Noise(16, on_load=lambda index: barrier.wait())
    assert len(list(Loader(dataset, 1, EvalTransform(10), workers=workers).epoch(0))) == 16


def test_prefetching_is_bounded():
    dataset = Noise(1000)
    iterator = Loader(dataset, 10, EvalTransform(10), prefetch=3).epoch(0)
    next(iterator)
    time.sleep(0.3)
    assert dataset.loads <= 40
    next(iterator)
    time.sleep(0.3)
    assert dataset.loads == 40
    iterator.close()


def leave(how, batches):
    """Stop half-way through `batches`."""
    for number, _ in enumerate(batches):
        if number == 1:
            if how is not None:
                raise how
            break


@pytest.mark.parametrize("how", [None, RuntimeError, KeyboardInterrupt])
def test_leaving_early_stops_the_threads(how):
    """In the middle of a batch, too: those after the second take 5 seconds each."""
    dataset = Noise(2000, on_load=lambda index: time.sleep(0.01 if index >= 1000 else 0))
    batches = Loader(dataset, 500, EvalTransform(10), shuffle=False).epoch(0)
    if how is None:
        leave(how, batches)
        assert running_threads()
    else:
        with pytest.raises(how):
            leave(how, batches)
    start = time.monotonic()
    batches.close()
    assert_no_threads()
    assert time.monotonic() - start < 2


def test_an_iterator_that_is_dropped_stops_its_threads():
    leave(None, Loader(Noise(1000), 10, EvalTransform(10)).epoch(0))
    assert_no_threads()


def test_an_error_in_a_thread_reaches_the_consumer_in_its_place():
    def fail(index):
        if index == 25:
            raise RuntimeError("the disk is gone")

    batches = Loader(Noise(50, fail), 10, EvalTransform(10), shuffle=False).epoch(0)
    assert next(batches).indices[0] == 0
    assert next(batches).indices[0] == 10
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(batches)


def test_an_error_holds_no_batch_longer_than_it_lives():
    batch = []

    def fail(index):
        memory = np.empty(1)
        batch.append(weakref.ref(memory))
        raise RuntimeError("the disk is gone")

    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            next(Loader(Noise(50, fail), 10, EvalTransform(10)).epoch(0))
        assert [memory() for memory in batch] == [None] * len(batch)
    finally:
        gc.enable()


def test_waiting_is_measured():
    slow_data = Loader(Noise(20, lambda index: time.sleep(0.01)), 10, EvalTransform(10), workers=1)
    list(slow_data.epoch(0))
    assert slow_data.wait_seconds > 0.15

    dataset = Noise(60)
    slow_network = Loader(dataset, 10, EvalTransform(10), workers=1, prefetch=6)
    batches = slow_network.epoch(0)
    next(batches)
    while dataset.loads < 60:  # all but the last batch are there now
        time.sleep(0.01)
    waited = slow_network.wait_seconds
    for _ in range(4):
        time.sleep(0.1)
        next(batches)
    assert slow_network.wait_seconds - waited < 0.2
    batches.close()


@pytest.fixture
def answer(monkeypatch):
    """Return the event for which stuck images wait, with little patience for each."""
    assert worker_processes.PATIENCE == 8
    monkeypatch.setattr(worker_processes, "PATIENCE", 0.6)
    event = threading.Event()
    yield event
    event.set()


def test_a_stuck_image_is_left_out_and_named(answer):
    """The patience is for one image, and not for a batch of many."""
    dataset = Noise(20, lambda index: answer.wait(60) if index == 15 else time.sleep(0.1))
    loader = Loader(dataset, 10, EvalTransform(10), shuffle=False)
    start = time.monotonic()
    batches = list(loader.epoch(0))
    assert time.monotonic() - start < 6  # two batches of 1 s, one of them twice, and the patience
    assert [index for batch in batches for index in batch.indices] == [*range(15), *range(16, 20)]
    assert loader.bad == [("image 15", "not read within 1 s")]


def test_a_stuck_image_is_replaced_as_an_unreadable_one_is(answer):
    def fail(index):
        if index == 15:
            raise ImageError("image 15", "torn")

    options = {"batch_size": 8, "transform": TrainTransform(10), "workers": 3}
    stuck = Loader(Noise(40, lambda index: answer.wait(60) if index == 15 else None), **options)
    assert_same(stuck.epoch(0), Loader(Noise(40, fail), **options).epoch(0))
    assert_same(stuck.epoch(1), Loader(Noise(40, fail), **options).epoch(1))


def test_a_disk_that_does_not_answer_is_an_error(answer):
    """Whatever is allowed, it does not take a patience for each of its images."""
    dataset = Noise(1000, lambda index: answer.wait(60) if index >= 10 else None)
    batches = Loader(dataset, 10, EvalTransform(10), shuffle=False, max_bad=0.5).epoch(0)
    assert len(next(batches)) == 10
    start = time.monotonic()
    with pytest.raises(WorkerError, match="4 images were not read within 1 s, the last one image"):
        list(batches)
    assert time.monotonic() - start < 8
    few = Loader(Noise(10, lambda index: answer.wait(60)), 5, EvalTransform(10))
    with pytest.raises(WorkerError, match="2 images were not read within 1 s"):  # 1 is allowed
        list(few.epoch(0))


def test_the_mean_colour_does_without_a_stuck_image(answer):
    dataset = Noise(6, lambda index: answer.wait(60) if index == 2 else None)
    expected = np.mean([dataset.load(i).mean(axis=(0, 1)) for i in (0, 1, 3, 4, 5)], axis=0)
    np.testing.assert_allclose(mean_colour(dataset), expected)


def test_nobody_waits_for_a_stuck_thread_at_the_end():
    code = """
import threading, time
import numpy as np
from tinyalex.data import EvalTransform, Loader, Patterns

class Stuck(Patterns):
    def load(self, index):
        return threading.Event().wait() if index == 3 else super().load(index)

batches = Loader(Stuck(), 2, EvalTransform(9), shuffle=False).epoch(0)
next(batches)
start = time.monotonic()
batches.close()
print(time.monotonic() - start)
"""
    assert float(run_python(code)) < 5


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match=r"a batch of 1 needs more than the 0 images there are$"):
        Loader(Noise(0), 1, EvalTransform(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 51}, "take smaller batches"),
        ({"workers": 0}, "workers"),
        ({"prefetch": 0}, "prefetch"),
        ({"seed": -1}, "seed"),
        ({"max_bad": 1.5}, "max_bad"),
        ({"cache_bytes": -1}, "cache_bytes"),
    ],
)
def test_loader_refuses_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Loader(Noise(50), **{"batch_size": 10, "transform": EvalTransform(10), **options})


@pytest.mark.parametrize("start_batch", [-1, 6])
def test_loader_refuses_a_start_outside_the_epoch(start_batch):
    with pytest.raises(ValueError, match="start_batch must be 0 to 5"):
        next(Loader(Noise(50), 10, EvalTransform(10)).epoch(0, start_batch))


@pytest.mark.parametrize(("cache_bytes", "loads"), [(0, 150), (10 * 12 * 14 * 3, 130), (10**6, 50)])
def test_what_fits_into_memory_is_decoded_once(cache_bytes, loads):
    dataset = Noise()
    loader = Loader(dataset, 10, EvalTransform(10), cache_bytes=cache_bytes)
    fresh = Loader(Noise(), 10, EvalTransform(10))
    for epoch in range(3):
        for batch, same in zip(loader.epoch(epoch), fresh.epoch(epoch), strict=True):
            np.testing.assert_array_equal(batch.images, same.images)
    assert dataset.loads == loads
