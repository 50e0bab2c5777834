"""Batches made by processes, bit for bit those of threads."""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyalex.backends import memory
from tinyalex.data import worker_processes
from tinyalex.data.worker_processes import Work, Workers


class BatchProcesses:
    """Processes with one loader each; pixels return through shared memory."""

    def __init__(
        self,
        loader: Callable[..., Any],
        options: dict[str, Any],
        workers: int,
        empty: Callable[[tuple[int, ...], Any], np.ndarray] = memory.empty,
    ) -> None:
        self.shape = (options["batch_size"], *options["transform"].shape)
        self.dtype, self._empty = options["transform"].dtype, empty
        self._stuck: dict[int, str] = {}
        try:
            self._workers = Workers(
                workers,
                _batch_maker,
                loader,
                options,
                patience=worker_processes.PATIENCE,
                shared_bytes=self.dtype.itemsize * math.prod(self.shape),
            )
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise TypeError(
                f"processes need a data set and a transform that can be pickled: {error}"
            ) from error

    def batch(
        self,
        epoch: int,
        chosen: np.ndarray,
        stop: threading.Event,
        give_up: Callable[[int, float], str],
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Return images [N, *transform.shape], their indices, and what cannot be read.

        There are no images once `stop` is set. Where a process is stuck at an image,
        `give_up(index, seconds)` gives the reason, and another process makes the batch without it.
        Raises WorkerError for a process that has ended or says nothing.
        """

        def without(
            task: Any, index: int, seconds: float
        ) -> tuple[int, np.ndarray, dict[int, str]]:
            self._stuck[index] = give_up(index, seconds)
            return epoch, chosen, dict(self._stuck)

        with self._workers.idle() as worker:
            found = worker.ask((epoch, chosen, dict(self._stuck)), stop, without)
            indices, bad = found if found is not None else (np.empty(0, np.int64), {})
            images = self._empty((len(indices), *self.shape[1:]), self.dtype)
            images[...] = _images(worker.memory, self.shape, self.dtype)[: len(indices)]
        return images, indices, bad

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def kill(self) -> None:
        """End the processes at once, stuck or not."""
        self._workers.kill()


def _images(shared: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(shared, dtype).reshape(shape)


def _batch_maker(shared: Any, loader_class: Callable[..., Any], options: dict[str, Any]) -> Work:
    """Return what makes batches in a process."""
    loader = loader_class(**options)
    transform = options["transform"]
    images = _images(shared, (options["batch_size"], *transform.shape), transform.dtype)

    def make(
        task: tuple[int, np.ndarray, dict[int, str]], alive: Callable[..., object]
    ) -> tuple[np.ndarray, dict[int, str]]:
        epoch, chosen, stuck = task
        loader.leave_out(stuck)
        batch = loader.make_batch(epoch, chosen, alive, images)
        return batch.indices, loader.bad_from(chosen)

    return make
