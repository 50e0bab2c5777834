"""tinyalex as a contestant: from Python, and as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import tinyalex as ta
import tinyalex.functional as F
from gpu import cases
from gpu.cases import LR, MOMENTUM, WEIGHT_DECAY, Case
from gpu.contestants import Arrays, Contestant
from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.cuda.sgd import Piece, StepTable
from tinyalex.backends.gpu import cupy, download
from tinyalex.backends.layout import copy_with_room

WORDS = {"A": "highest", "B": "high", "C": "medium"}  # of `set_float32_matmul_precision`


class Tinyalex(Contestant):
    """A training step, or a prediction, called as any user calls it."""

    name = "tinyalex"

    def __init__(self, case: Case) -> None:
        ta.set_float32_matmul_precision(WORDS[case.precision])
        self.case = case
        self.settings = {
            "float32_matmul_precision": ta.get_float32_matmul_precision(),
        }
        xp = cupy()
        # A pool of its own: what it holds is this contestant's, and a graph's memory is safe.
        self._pool = _watched_pool()
        self.stream = xp.cuda.Stream(non_blocking=True)
        images, labels = cases.batch(case.net, case.images)
        with self._here():
            self._model = case.net.build().to("cuda")
            # As the loader places a batch; PyTorch has its layout beforehand, too.
            self._x = ta.Tensor(copy_with_room(ta.Tensor(images).to("cuda").data))
            self._labels = ta.Tensor(labels).to("cuda")
            self._parameters = dict(self._model.named_parameters())
            self._first = {name: p.data.copy() for name, p in self._parameters.items()}
            self._optimizer = ta.optim.SGD(
                self._parameters.values(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY
            )
            with ta.no_grad():
                stored = self._model.features(self._x).dtype
        self.settings["stored numbers"] = stored.name
        self._model.train(case.training)
        self._call: Callable[[], None] = self._train if case.training else self._predict
        self._output: Any = None
        with self._here():
            self._call()  # compiles, and makes the velocities
            self._pool.watching = True
            self._call()
            self._pool.watching = False
        self.stream.synchronize()
        self.peak_bytes = self._pool.highest or self._pool.total_bytes()

    @contextmanager
    def _here(self) -> Iterator[None]:
        """Take memory from the own pool, and queue on the own stream."""
        with cupy().cuda.using_allocator(self._pool.malloc), self.stream:
            yield

    def step(self) -> None:
        """Queue one training step, or one prediction."""
        with self._here():
            self._call()

    def _gradients(self) -> None:
        self._optimizer.zero_grad()
        self._output = F.cross_entropy(self._model(self._x), self._labels)
        self._output.backward()

    def _train(self) -> None:
        self._gradients()
        self._optimizer.step()

    def _predict(self) -> None:
        with ta.no_grad():
            self._output = self._model(self._x)

    # What follows is not part of a step, and takes no memory from the own pool.

    def restore(self) -> None:
        """Give the net the weights that it began with."""
        with self.stream:
            for name, parameter in self._parameters.items():
                parameter.data[...] = self._first[name]

    def poison(self) -> None:
        """Fill the memory of the gradients and the result with NaN."""
        with self.stream:
            self._output.data[...] = np.nan
            for parameter in self._parameters.values():
                if parameter.grad is not None:
                    parameter.grad[...] = np.nan

    def results(self) -> Arrays:
        """Return the last step's ``loss`` and gradients, or the ``logits``."""
        self.stream.synchronize()
        output = download(as_float32(self._output.data))
        if not self.case.training:
            return {"logits": output}
        return {"loss": output, **self._of_all(lambda p: p.grad)}

    def weights(self) -> Arrays:
        """Return the weights as they are now."""
        return self._of_all(lambda p: p.data)

    def _of_all(self, array: Callable[[Any], Any]) -> Arrays:
        self.stream.synchronize()
        with self.stream:
            return {name: download(array(p)) for name, p in self._parameters.items()}

    def velocities(self) -> Arrays:
        """Return the velocities of SGD."""
        self.stream.synchronize()
        return dict(zip(self._parameters, self._optimizer.state_dict()["velocity"], strict=True))

    def close(self) -> None:
        """Give all memory back."""
        for name in ("_model", "_x", "_labels", "_parameters", "_first", "_optimizer", "_output"):
            setattr(self, name, None)
        self._pool.free_all_blocks()


def _watched_pool() -> Any:
    """Return a memory pool that records its peak use while ``watching``."""

    class Pool(cupy().cuda.MemoryPool):
        watching = False
        highest = 0

        def malloc(self, size: int) -> Any:
            memory = super().malloc(size)
            if self.watching:  # counting takes long
                self.highest = max(self.highest, self.used_bytes())
            return memory

    return Pool()


class TinyalexGraph(Tinyalex):
    """The same step, recorded once as a CUDA graph and replayed.

    Every buffer of the recorded step belongs to the own pool, used by nothing else, and stays
    where it is. The update reads its table from the device's memory when it runs; so the table can
    be given the recorded gradients' addresses afterwards, which copies from the host and could not
    be recorded.
    """

    name = "tinyalex CUDA graph"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        with self._here():
            table = None
            if case.training:
                # With today's gradients in it, they would stay, and the recording lack their room.
                table = StepTable([u._replace(grad=u.param) for u in self._updates()])
            self._call()  # leaves the pool with as much memory as the recording wants
            self.stream.begin_capture()
            try:
                self._recorded(table)
            finally:
                self._graph = self.stream.end_capture()
        if table:
            with self.stream:
                table.fill(self._updates())
        self._table = table
        self.settings["whole step"] = "one CUDA graph"

    def _recorded(self, table: StepTable | None) -> None:
        if table is None:
            self._predict()
        else:
            self._gradients()
            table.launch()

    def _updates(self) -> list[Piece]:
        return [Piece(*update) for update in self._optimizer.updates()]

    def step(self) -> None:
        """Replay the step."""
        self._graph.launch(self.stream)

    def close(self) -> None:
        """Give all memory back."""
        self._graph = self._table = None
        super().close()
