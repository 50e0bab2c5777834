"""A training step as a CUDA graph: recorded once, then repeated by a single call.

A step of an AlexNet is some seventy launches, each of them some microseconds of Python. Recorded
("captured"), they are one. The record knows addresses and numbers as they were, so

- what the step reads anew each time lies where it lay: images and labels in buffers of its own,
  learning rates in the table of the update, the keys of dropout in `KeySlots`. All of these are
  filled before a replay; numbers of Python's would stay as they were.
- its memory is nobody else's: it comes from a pool of its own, which is kept as long as the graph.
  CuPy's own pool would hand the memory of intermediate results, free once the recording is over,
  to others, and the replay would write over theirs.
- in the recording nothing is computed, nothing may wait, and nothing be copied from the host.

So the first steps run as they are, from that pool: they compile the kernels, begin the velocities
and leave enough memory in the pool for the recording. They are steps of the training like all
others; no step is computed twice, and all bits are those of a training without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tinyalex import random
from tinyalex.backends.cuda.sgd import Piece, StepTable
from tinyalex.backends.cuda.step_state import KeySlots
from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array
from tinyalex.nn import Module

WARM_UP = 2
"""Steps before the recording: the first begins the velocities, the second is like all others."""


class StepGraph:
    """Takes steps on batches of one size, from the third one on by replaying a graph.

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
        """Take a step on images [N, C, H, W] and labels int64 [N]."""
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
        self._images, self._labels = xp.empty_like(images), xp.empty_like(labels)
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
        self._images[...], self._labels[...] = images, labels
        if len(self._slots):
            self._slots.fill([random.next_key() for _ in range(len(self._slots))])
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        self._table.fill(self._pieces())
        self._graph.launch()
