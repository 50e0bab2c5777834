"""Steps on a GPU that the host does not wait for: what they find out is read now and then."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tinyalex.backends.cuda.elementwise import all_finite_many
from tinyalex.backends.cuda.sgd import Piece, StepTable
from tinyalex.backends.cuda.step_state import StepReport
from tinyalex.backends.devices import device_of, move
from tinyalex.backends.types import Array
from tinyalex.data import Batch
from tinyalex.nn import Module
from tinyalex.optim import SGD
from tinyalex.training.cuda_graph import StepGraph
from tinyalex.training.divergence import NOT_FINITE, DivergedError
from tinyalex.training.evaluation import judge
from tinyalex.training.metrics import Average
from tinyalex.training.steps import Steps


class GPUSteps(Steps):
    """Takes steps as `Steps` does, `every` so many of them between two readings.

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
        """How many steps have been taken since the last reading."""
        return len(self._sizes)

    def take(self, batch: Batch) -> None:
        """Ask the GPU for a step, whose images are there already; return before it is done."""
        labels = move(batch.labels, device_of(batch.images))
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
        logits, loss = judge(self._model, Batch(images, labels, labels))
        loss.backward()
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        self._report.note(loss.data, logits.data, labels, all_finite_many(gradients))

    def update(self, table: StepTable) -> None:
        """Update the weights, unless a gradient was not finite."""
        table.launch(self._report.words)

    def pieces(self) -> list[Piece]:
        """Return the update of each parameter."""
        return [Piece(*update) for update in self._optimizer.updates()]
