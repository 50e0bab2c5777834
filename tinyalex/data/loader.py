"""Batches, prepared while the network computes, the same for the same seed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyalex.backends import memory
from tinyalex.backends.types import Array
from tinyalex.data.batch_processes import BatchProcesses
from tinyalex.data.dataset import CachedDataset, DataError, Dataset, ImageError, Unreadable
from tinyalex.data.transforms import Transform
from tinyalex.data.worker_processes import WorkerError
from tinyalex.data.worker_threads import WORKERS, Task, Threads
from tinyalex.text import counted

Empty = Callable[[tuple[int, ...], Any], np.ndarray]
"""Function that returns uninitialised memory of a shape and a dtype."""


Rows = Callable[[int], slice]
"""Function that returns which rows of a batch to make, given their number."""


@dataclass(frozen=True)
class Batch:
    """`images` float32 [N, C, H, W], channels last in memory; `labels`, `indices` int64 [N].

    Where the transform makes V views of an image, `images` is [N, V, C, H, W]. Those of a
    `GPULoader` lie on the GPU.
    """

    images: Array
    labels: np.ndarray
    indices: np.ndarray
    targets: np.ndarray | None = None
    """Class probabilities float32 [N, C] to learn in place of the labels."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


class Loader:
    """Batches of a data set, epoch by epoch.

    The order of an epoch is drawn from (seed, epoch) and every augmentation from (seed, epoch,
    image), so it does not matter which thread does the work or where an epoch is taken up:
    `epoch(e, start_batch=k)` gives exactly the batches that `epoch(e)` gives from its k-th on.

    `shuffle` is for training. `drop_last` (by default the same as `shuffle`) makes every batch
    full: what remains at the end of an epoch is left for another, and the next readable image
    takes the place of an unreadable one. Without it the last batch is shorter and each readable
    image appears once, as an evaluation wants.

    Unreadable images are listed in `bad`. More of them than the share `max_bad` of the data set
    (where that is above 0, one is always allowed) end the epoch with DataError.
    `wait_seconds` adds up the time for which the consumer waited. Up to `cache_bytes` of decoded
    images stay in memory for the next epochs.

    `workers` threads do the work: decoding and resizing in Pillow release the interpreter's lock.
    With `processes` that many processes do, each with its own share of `cache_bytes`, and the
    batches are the same; data set and transform are pickled. They start with the first epoch and
    end with `close()`, with the loader, or with WorkerError. `prefetch` batches are in work or
    waiting at any time, by default one more than there are workers. They lie in memory from
    `empty`.

    Where several processes share the batches, `rows` returns which rows of a batch of so many
    images are this one's. They are made whatever happens to the others, and may be none.

    An image that a worker is at for 8 seconds, as on a disk that does not answer, counts as
    unreadable; another worker makes the batch anew, without it. Where there are four in an epoch,
    or more than `max_bad` allows, WorkerError comes in the place of a batch. So it does, within 10
    seconds, when a process is killed. A process that says nothing while it starts is waited for
    longer, a minute.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        transform: Transform,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool | None = None,
        workers: int = WORKERS,
        prefetch: int | None = None,
        max_bad: float = 0.01,
        cache_bytes: int = 0,
        processes: bool = False,
        empty: Empty = memory.empty,
        rows: Rows | None = None,
    ) -> None:
        prefetch = workers + 1 if prefetch is None else prefetch
        if batch_size < 1 or workers < 1 or prefetch < 1:
            raise ValueError(
                "batch_size, workers and prefetch must be at least 1, "
                f"got {batch_size}, {workers} and {prefetch}"
            )
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}")
        if seed < 0 or not 0 <= max_bad <= 1:
            raise ValueError(f"need seed >= 0 and 0 <= max_bad <= 1, got {seed} and {max_bad}")
        self.dataset = dataset
        self._source = CachedDataset(dataset, cache_bytes)
        self.batch_size = batch_size
        self.transform = transform
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = shuffle if drop_last is None else drop_last
        self.workers = workers
        self.prefetch = prefetch
        self.processes = processes
        self.wait_seconds = 0.0
        self.rows = rows
        self._cache_bytes = cache_bytes
        self._empty = empty
        self._batches: BatchProcesses | None = None
        self._unreadable = Unreadable(dataset, max_bad)
        if len(self) == 0:
            raise DataError(
                f"a batch of {batch_size} needs more than the "
                f"{counted(len(dataset), 'image there is', 'images there are')}"
                + (": take smaller batches" if len(dataset) else "")
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(path, reason) of each unreadable image so far, in order."""
        return self._unreadable.listed()

    def use(self, transform: Transform) -> None:
        """Make the batches of the next epochs with another transform."""
        self.close()
        self.transform = transform

    @property
    def bad_for_good(self) -> bool:
        """True if no image in `bad` is unreadable for the disk's sake."""
        return self._unreadable.lasting

    def close(self) -> None:
        """End the processes, if there are any; another epoch starts new ones."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def epoch(
        self, epoch: int, start_batch: int = 0, every: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield the batches of one epoch, from `start_batch` on, or only some.

        With `every` they are that one and each `every`-th behind it.
        An error in a thread is raised here, in the place of its batch. Closing the iterator, or
        leaving the loop over it by an exception, stops the threads.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch must be 0 to {len(self)}, got {start_batch}")
        order = self._order(epoch)
        numbers = iter(range(start_batch, len(self), every))
        pending: deque[Task] = deque()
        if self.processes and self._batches is None:
            self._batches = self._start_processes()
        self._unreadable.stuck = 0
        threads = Threads(self.workers)
        try:
            try:
                while True:
                    while len(pending) < self.prefetch and (k := next(numbers, None)) is not None:
                        chosen = order[k * self.batch_size : (k + 1) * self.batch_size]
                        if self.rows is not None:
                            chosen = chosen[self.rows(len(chosen))]
                        pending.append(self._submit(threads, epoch, chosen))
                    if not pending:
                        return
                    start = time.perf_counter()
                    batch = threads.result(pending.popleft(), self._unreadable.give_up)
                    self.wait_seconds += time.perf_counter() - start
                    if len(batch) or self.rows is not None:
                        yield batch
            finally:
                threads.close()
        except WorkerError:
            if self._batches is not None:
                self._batches.kill()  # some are stuck, and would not end by themselves
                self._batches = None
            raise

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return self._generator(epoch, 0).permutation(len(self.dataset))

    def _generator(self, epoch: int, draw: int) -> np.random.Generator:
        """Return the generator of one draw.

        Draw 0 is the order of the epoch, draw 1 + i is for image i.

        The same seed begins other streams, too. The streams of (seed, label), which splits a class
        of a folder, and of (seed, label, 0), the order of epoch `label`, are the same; so are those
        of (seed, split, i), which draws a pattern, and (seed, epoch, draw). Nothing but the numbers
        is alike: each draws something else from them.
        """
        return np.random.default_rng((self.seed, epoch, draw))

    def _submit(self, threads: Threads, epoch: int, chosen: np.ndarray) -> Task:
        if self.processes:
            return threads.submit(self._batch_of_process, epoch, chosen, threads.stop)
        return threads.submit(self._batch, epoch, chosen)

    def _batch(self, begin: Callable[[int], object], epoch: int, chosen: np.ndarray) -> Batch:
        images = self._empty((len(chosen), *self.transform.shape), self.transform.dtype)
        return self.make_batch(epoch, chosen, begin, images)

    def _start_processes(self) -> BatchProcesses:
        options = {
            "dataset": self.dataset,
            "batch_size": self.batch_size,
            "transform": self.transform,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "max_bad": self._unreadable.max_bad,
            "cache_bytes": self._cache_bytes // self.workers,
        }
        return BatchProcesses(Loader, options, self.workers, self._empty)

    def _batch_of_process(
        self,
        begin: Callable[[int], object],
        epoch: int,
        chosen: np.ndarray,
        stop: threading.Event,
    ) -> Batch:
        """Return a batch from the processes, which skip stuck images themselves."""
        assert self._batches is not None
        give_up = self._unreadable.give_up
        images, indices, bad = self._batches.batch(epoch, chosen, stop, give_up)
        for index in bad.keys() - self._unreadable.reasons.keys():
            self._unreadable.add(index, bad[index])
        return Batch(_channels_first(images), self.dataset.labels[indices], indices)

    def batch_of(self, chosen: np.ndarray) -> Batch:
        """Return a batch of the images `chosen`, as in `epoch(0)`."""
        threads = Threads(1)
        try:
            batch: Batch = threads.result(
                threads.submit(self._batch, 0, chosen), self._unreadable.give_up
            )
            return batch
        finally:
            threads.close()

    def make_batch(
        self, epoch: int, chosen: np.ndarray, begin: Callable[[int], object], images: np.ndarray
    ) -> Batch:
        """Return a batch of the images `chosen`, in the memory `images`.

        `begin` is called with the index of each image before it is read; where it returns something
        true, the batch ends. `images` is [at least len(chosen), *transform.shape].
        """
        indices: list[int] = []
        for wanted in chosen.tolist():
            found = self._read(wanted, begin)
            if found is not None:
                index, image = found
                rng = self._generator(epoch, 1 + wanted)
                self.transform(image, rng, out=images[len(indices)])
                indices.append(index)
        filled = _channels_first(images[: len(indices)])
        return Batch(filled, self.dataset.labels[indices], np.array(indices, np.int64))

    def _read(self, wanted: int, begin: Callable[[int], object]) -> tuple[int, np.ndarray] | None:
        """Return image `wanted`, or with `drop_last` the next readable one."""
        size = len(self.dataset)
        for index in range(wanted, wanted + size if self.drop_last else wanted + 1):
            index %= size
            if index in self._unreadable.reasons:
                continue
            if begin(index):
                break
            try:
                return index, self._source.load(index)
            except ImageError as error:
                self._unreadable.add(index, error.reason, error.lasting)
        return None

    @property
    def unreadable(self) -> dict[int, str]:
        """Reason of each unreadable image so far, by index."""
        return dict(self._unreadable.reasons)

    def leave_out(self, reasons: dict[int, str]) -> None:
        """Count images as unreadable from now on, for these reasons by index."""
        self._unreadable.reasons.update(reasons)

    def check_left_out(self, count: int) -> None:
        """Raise DataError if so many unreadable images are too many."""
        self._unreadable.check(count)

    def bad_from(self, chosen: np.ndarray) -> dict[int, str]:
        """Return index and reason of unreadable images in a batch of `chosen`."""
        found: dict[int, str] = {}
        reasons = self._unreadable.reasons
        for index in chosen.tolist():
            while index in reasons and index not in found:
                found[index] = reasons[index]
                index = (index + 1) % len(self.dataset)
        return found


def _channels_first(images: np.ndarray) -> np.ndarray:
    """Return [..., H, W, C] as [..., C, H, W]; what `Deferred` makes has no such axes."""
    return np.moveaxis(images, -1, -3) if images.ndim > 1 else images
