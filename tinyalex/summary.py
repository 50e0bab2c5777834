"""The table of a network's layers: shapes, parameters, multiply-adds, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyalex.grad_mode import no_grad
from tinyalex.nn import Conv2d, Linear, Module
from tinyalex.tensor import Tensor

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One layer, for one image."""

    name: str
    """The kind and the number of the layer, such as "Conv2d-1"."""
    path: str
    """Its name in the model, such as "features.0"."""
    output_shape: tuple[int, ...]
    """The shape of its output without the batch axis."""
    parameters: int
    multiply_adds: int
    """Of convolutions and linear layers; the rest is not counted."""
    output_bytes: int
    parameter_bytes: int


@dataclass(frozen=True)
class Summary:
    """Result of `summary`; ``print`` shows it as a table."""

    rows: tuple[Row, ...]
    parameters: int
    trainable_parameters: int
    parameter_bytes: int
    input_bytes: int

    @property
    def multiply_adds(self) -> int:
        """Multiplications with additions of one forward pass of one image."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def output_bytes(self) -> int:
        """Memory of all layers' outputs for one image."""
        return sum(row.output_bytes for row in self.rows)

    def training_bytes(self, batch_size: int) -> int:
        """Estimate the memory of a training step.

        Parameters, their gradients and their velocities, and for every image the input, all outputs
        and as much again for their gradients. An upper bound where memory is reused on the way.
        """
        return 3 * self.parameter_bytes + batch_size * (self.input_bytes + 2 * self.output_bytes)

    def __str__(self) -> str:
        columns = "Layer (type)", "Output Shape", "Param #", "Mult-adds", "Output MiB", "Param MiB"
        line = "{:>26}  {:>22} {:>13} {:>13} {:>10} {:>9}".format
        head = line(*columns)
        body = [
            line(
                row.name,
                str([-1, *row.output_shape]),
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
                f"{row.output_bytes / MIB:.2f}",
                f"{row.parameter_bytes / MIB:.2f}",
            )
            for row in self.rows
        ]
        frozen = self.parameters - self.trainable_parameters
        totals = [
            f"Total params: {self.parameters:,}",
            f"Trainable params: {self.trainable_parameters:,}",
            f"Non-trainable params: {frozen:,}",
            f"Multiply-adds, forward, one image: {self.multiply_adds:,}",
        ]
        memory = [
            f"Input, one image: {self.input_bytes / MIB:.2f} MiB",
            f"Outputs, one image: {self.output_bytes / MIB:.2f} MiB",
            f"Parameters: {self.parameter_bytes / MIB:.2f} MiB",
            *(
                f"Training step, batch {n} (estimate): {self.training_bytes(n) / MIB:,.2f} MiB"
                for n in (1, 128)
            ),
        ]
        thin, thick = "-" * len(head), "=" * len(head)
        return "\n".join([thin, head, thick, *body, thick, *totals, thin, *memory, thin])

    __repr__ = __str__


def summary(model: Module, input_size: Sequence[int]) -> Summary:
    """Run ``model`` once on zeros [1, *input_size]; return a table of its layers.

    Layers are the modules without children, in the order in which they run. The model stays as it
    was, training mode included. Raises TypeError or ValueError for a size that is no (C, H, W), and
    whatever the model raises for an input that it cannot take.
    """
    if not isinstance(model, Module):
        raise TypeError(f"summary expects a Module, got {type(model).__name__}")
    if not isinstance(input_size, Sequence) or not all(isinstance(n, int) for n in input_size):
        raise TypeError(f"input_size must be a tuple such as (3, 224, 224), got {input_size!r}")
    if not input_size or min(input_size) < 1:
        raise ValueError(f"input_size must have sizes of at least 1, got {tuple(input_size)}")

    parameters = list(model.parameters())
    dtype = parameters[0].dtype if parameters else np.dtype(np.float32)
    x = Tensor(np.zeros((1, *input_size), dtype))
    if parameters:
        x = x.to(parameters[0].device)

    rows = _run(model, x)
    return Summary(
        rows=tuple(rows),
        parameters=sum(p.size for p in parameters),
        trainable_parameters=sum(p.size for p in parameters if p.requires_grad),
        parameter_bytes=sum(p.data.nbytes for p in parameters),
        input_bytes=x.data.nbytes,
    )


def _run(model: Module, x: Tensor) -> list[Row]:
    """Run ``model`` in evaluation mode; return one row per layer that ran."""
    rows: list[Row] = []
    paths = {id(module): path for path, module in model.named_modules()}
    counted: set[int] = set()  # parameters that an earlier row has counted

    def record(layer: Module, args: tuple[Any, ...], output: Tensor) -> None:
        own = [p for p in layer.parameters() if id(p) not in counted]
        counted.update(id(p) for p in own)
        rows.append(
            Row(
                name=f"{type(layer).__name__}-{len(rows) + 1}",
                path=paths[id(layer)],
                output_shape=output.shape[1:],
                parameters=sum(p.size for p in own),
                multiply_adds=_multiply_adds(layer, output.shape),
                output_bytes=output.data.nbytes,
                parameter_bytes=sum(p.data.nbytes for p in own),
            )
        )

    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as undo:
        for module, training in modes:
            undo.callback(setattr, module, "training", training)
            if not any(True for _ in module.children()):
                undo.enter_context(module.register_forward_hook(record))
        model.eval()
        undo.enter_context(no_grad())
        model(x)
    return rows


def _multiply_adds(layer: Module, output_shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of ``layer`` for an output of this shape."""
    if isinstance(layer, (Conv2d, Linear)):
        return math.prod(output_shape) * math.prod(layer.weight.shape[1:])
    return 0
