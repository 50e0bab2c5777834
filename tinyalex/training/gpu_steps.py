"""Training steps on a GPU, read occasionally, perhaps as a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from tinyalex import random
from tinyalex.backends.cuda.elementwise import all_finite_many
from tinyalex.backends.cuda.sgd import Piece, StepTable
from tinyalex.backends.cuda.step_state import KeySlots, StepReport
from tinyalex.backends.devices import device_of, move
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import copy_images, copy_with_room
from tinyalex.backends.types import Array
from tinyalex.data import Batch
from tinyalex.nn import Module
from tinyalex.optim import SGD
from tinyalex.training.divergence import NOT_FINITE, DivergedError
from tinyalex.training.evaluation import logits_and_loss
from tinyalex.training.metrics import Average
from tinyalex.training.step import Steps

WARM_UP = 2
"""Steps before the recording: the first begins the velocities, the second is like all others."""


class StepGraph:
    """Steps on batches of one size; from the third, a CUDA graph.

    A step of an AlexNet is some seventy launches, each of them some microseconds of Python.
    Recorded ("captured"), they are one. The record has the addresses and numbers of its time, so

    - what the step reads anew each time lies where it lay: images and labels in buffers, learning
      rates in the table of the update, the keys of dropout in `KeySlots`. All of these are filled
      before a replay; Python's numbers would stay as they were.
    - it has a memory pool of its own, kept as long as the graph. CuPy's pool would hand the memory
      of intermediate results, free once the recording is over, to others, and the replay would
      write over theirs.
    - while it is recorded nothing is computed, nothing may wait, and nothing be copied from the
      host.

    So the first steps run as they are, from that pool: they compile the kernels, begin the
    velocities and leave enough memory in the pool. They are steps of the training like all others;
    no step is computed twice, and all bits are those of a training without a graph.

    `learn(images, labels)` computes gradients, `pieces()` says how to update the parameters by
    them, `update(table)` does so. Batches of another size are learned from without the graph. For
    each step `random.start_step` must have been called; the current stream must not be CUDA's
    default one, which cannot be recorded.
    """

    def __init__(
        self,
        model: Module,
        learn: Callable[[Array, Array], None],
        pieces: Callable[[], list[Piece]],
        update: Callable[[StepTable], None],
    ) -> None:
        self._model = model
        self._learn, self._pieces, self._update = learn, pieces, update
        self._pool = cupy().cuda.MemoryPool()
        self._shape: tuple[int, ...] = ()
        self._seen = 0  # steps on batches of this shape
        self._graph: Any = None

    def take(self, images: Array, labels: Array) -> None:
        """Take a step on images [N, C, H, W] and int64 labels or class probabilities."""
        if not self._seen:
            self._shape = images.shape
        if images.shape != self._shape:
            self._take(images, labels)
            return
        self._seen += 1
        if self._seen <= WARM_UP:
            with cupy().cuda.using_allocator(self._pool.malloc):
                self._take(images, labels)
            return
        if self._graph is None:
            self._record(images, labels)
        self._replay(images, labels)

    def _take(self, images: Array, labels: Array) -> None:
        self._learn(images, labels)
        self._update(StepTable(self._pieces()))
        self._keys = random.get_state()["draws"]  # of this step

    def _record(self, images: Array, labels: Array) -> None:
        xp = cupy()
        self._images, self._labels = copy_with_room(images), xp.empty_like(labels)
        self._slots = KeySlots(self._keys)
        # As large as those to come. With a gradient in it, that would stay, and take up the room.
        self._table = StepTable([piece._replace(grad=piece.param) for piece in self._pieces()])
        stream = xp.cuda.get_current_stream()
        with xp.cuda.using_allocator(self._pool.malloc):
            stream.begin_capture()
            try:
                with random.keys_from(self._slots):
                    self._learn(self._images, self._labels)
                self._update(self._table)
            except BaseException:
                with suppress(xp.cuda.runtime.CUDARuntimeError):  # it may be spoilt already
                    stream.end_capture()
                raise
            self._graph = stream.end_capture()
        # Where the graph writes its gradients: others may lie in `.grad` between two replays.
        self._gradients = [(p, p.grad) for p in self._model.parameters()]

    def _replay(self, images: Array, labels: Array) -> None:
        copy_images(images, self._images)
        self._labels[...] = labels
        if len(self._slots):
            self._slots.fill([random.next_key() for _ in range(len(self._slots))])
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        self._table.fill(self._pieces())
        self._graph.launch()


class GPUSteps(Steps):
    """`Steps` on a GPU, with a reading after `every` steps.

    The model is on a GPU. After a step whose loss or gradients are not finite nothing is updated
    any more, so that at the next reading the weights are those from before it. With `graph`, the
    steps are replays of a CUDA graph (`StepGraph`).
    """

    def __init__(self, model: Module, optimizer: SGD, every: int, graph: bool = False) -> None:
        super().__init__(model, optimizer)
        self.every = every
        self._report = StepReport(every)
        self._graph = StepGraph(model, self.learn, self.pieces, self.update) if graph else None
        self._sizes: list[int] = []

    @property
    def unread(self) -> int:
        """Number of steps since the last reading."""
        return len(self._sizes)

    def take(self, batch: Batch) -> None:
        """Start a step, whose images are on the GPU; do not wait."""
        target = batch.labels if batch.targets is None else batch.targets
        labels = move(target, device_of(batch.images))
        if self._graph is None:
            self.learn(batch.images, labels)
            self.update(StepTable(self.pieces()))
        else:
            self._graph.take(batch.images, labels)
        self._sizes.append(len(batch))

    def read(self) -> Iterator[Average]:
        """Wait; yield what each step since the last reading found out.

        Raises DivergedError in the place of the first one whose loss or gradients are not finite.
        """
        sizes, self._sizes = self._sizes, []
        losses, hits, halted = self._report.read()
        for size, loss, correct in zip(sizes, losses.tolist(), hits.tolist(), strict=False):
            yield Average(loss * size, correct, size)
        if halted is not None:
            finite = math.isfinite(halted)
            raise DivergedError(f"a gradient {NOT_FINITE}" if finite else f"the loss is {halted}")

    def learn(self, images: Array, labels: Array) -> None:
        """Compute the gradients, and note what is to be read."""
        self._optimizer.zero_grad()
        logits, loss = logits_and_loss(self._model, Batch(images, labels, labels))
        loss.backward()
        if labels.ndim == 2:  # of mixed images: the label of the larger part
            labels = labels.argmax(axis=1)
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        self._report.note(loss.data, logits.data, labels, all_finite_many(gradients))

    def update(self, table: StepTable) -> None:
        """Update the weights, unless a gradient was not finite."""
        table.launch(self._report.words)

    def pieces(self) -> list[Piece]:
        """Return the update of each parameter."""
        return [Piece(*update) for update in self._optimizer.updates()]
