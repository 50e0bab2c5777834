"""Find the layer with the first NaN or infinity; write a report.

The step that failed is taken once more, with a look at the output of every layer and, on the way
back, at every gradient. The first layer that turns finite numbers into others is the one to name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyalex import backends, random
from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.devices import move
from tinyalex.backends.types import Array
from tinyalex.data import Batch, Dataset
from tinyalex.distributed.communicator import Communicator, Single
from tinyalex.files import save
from tinyalex.folders import write_atomically
from tinyalex.models import AlexNet
from tinyalex.nn import Module
from tinyalex.tensor import Tensor
from tinyalex.text import printable
from tinyalex.training.evaluation import logits_and_loss

REPORT, STEP = "diverged.json", "diverged.safetensors"
NOT_FINITE = "has values that are not finite"
ALONE = Single()
NAMED_IMAGES = 3
"""Number of images that a message names; the report names all."""


class DivergedError(ArithmeticError):
    """A non-finite loss, gradient or weight; the last checkpoint is good."""

    of_one_rank = False
    """True if other ranks do not know."""


def not_finite(arrays: Mapping[str, Array]) -> str | None:
    """Return the name of the first array with a NaN or infinity."""
    return next((n for n, a in arrays.items() if not backends.of(a).all_finite(a)), None)


@dataclass(frozen=True)
class Cause:
    """The layer, and images, of the first value that is not finite."""

    direction: str
    """ "forward" or "backward"."""
    layer: str
    """conv1 to conv5 and fc6 to fc8; "ReLU after conv1"; "the images"; "the loss"."""
    reason: str
    rows: tuple[int, ...] = ()
    """Positions in the batch of the images that it came up in, unless it did in all of them."""

    def __str__(self) -> str:
        return f"{self.direction} in {self.layer}, {self.reason}"


@dataclass
class LayerTrace:
    """Largest magnitudes of weights, output and gradient seen at one layer."""

    layer: str
    weight: float | None
    output: float
    gradient: float | None = None
    """Of the loss with respect to the output."""
    bad_parameter: str | None = field(default=None, repr=False)
    bad_gradient: str | None = field(default=None, repr=False)
    bad_rows: tuple[int, ...] = field(default=(), repr=False)


class _Watch(Function):
    """y = x, and a note of the gradient that passes."""

    takes_bfloat16 = True

    def forward(self, x: Array, trace: LayerTrace) -> Array:
        self.trace = trace
        return x

    def backward(self, grad: Array) -> Array:
        self.trace.gradient = _largest(as_float32(grad))
        return grad


@np.errstate(over="ignore", invalid="ignore")
def find_cause(model: AlexNet, batch: Batch) -> tuple[Cause | None, list[LayerTrace]]:
    """Repeat a step; return the cause of the first non-finite value.

    The random state must be the one from before. Also returns what went through each layer, in
    order, for those that want to see the numbers grow. No weight is touched, gradients are lost.
    """
    traces: list[LayerTrace] = []
    modules: list[Module] = []
    labels = {id(module): name for name, module in model.weight_layers.items()}
    last_named = "the images"

    def look(module: Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal last_named
        label = labels.get(id(module))
        last_named = label or last_named
        parameters = {name: p.data for name, p in module.named_parameters()}
        values = as_float32(output.data)
        trace = LayerTrace(
            label or f"{type(module).__name__} after {last_named}",
            max(map(_largest, parameters.values()), default=None),
            _largest(values),
            bad_parameter=not_finite(parameters),
            bad_rows=_bad_rows(values),
        )
        traces.append(trace)
        modules.append(module)
        return _Watch.apply(output, trace=trace)

    model.zero_grad()
    with ExitStack() as hooks:
        for module in model.modules():
            if not any(module.children()):
                hooks.enter_context(module.register_forward_hook(look))
        _, loss = logits_and_loss(model, batch)
        if loss.requires_grad:
            loss.backward()
    for module, trace in zip(modules, traces, strict=True):
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        trace.bad_gradient = not_finite(gradients)
    model.zero_grad()
    cause = _forward_cause(batch, traces, loss.item()) or _backward_cause(traces)
    return cause, traces


def _forward_cause(batch: Batch, traces: list[LayerTrace], loss: float) -> Cause | None:
    if rows := _bad_rows(batch.images):
        return _forward(
            "the images", "one of which has pixels that are not finite", rows, len(batch)
        )
    for trace in traces:
        if trace.bad_rows:
            reason = f"whose {trace.bad_parameter or 'output'} {NOT_FINITE}"
            return _forward(trace.layer, reason, trace.bad_rows, len(batch))
    if not math.isfinite(loss):
        return Cause("forward", "the loss", f"which is {loss}")
    return None


def _forward(layer: str, reason: str, rows: tuple[int, ...], count: int) -> Cause:
    return Cause("forward", layer, reason, rows if len(rows) < count else ())


def _backward_cause(traces: list[LayerTrace]) -> Cause | None:
    """Return the last layer whose gradient is good, but not its input's."""
    after = "the loss"
    for trace in reversed(traces):
        if trace.gradient is not None and not math.isfinite(trace.gradient):
            return Cause("backward", after, f"the gradient of whose input {NOT_FINITE}")
        if trace.bad_gradient:
            reason = f"the gradient of whose {trace.bad_gradient} {NOT_FINITE}"
            return Cause("backward", trace.layer, reason)
        after = trace.layer
    return None


@dataclass(frozen=True)
class Step:
    """A step about to be taken, with all that repeating it takes."""

    number: int
    epoch: int
    lr: float
    batch: Batch
    dataset: Dataset
    repeating: Callable[[Batch], AbstractContextManager[object]] = nullcontext
    """Lets kernels compute the batch as in the step."""
    random_state: dict[str, Any] = field(default_factory=random.get_state)


def explain(
    error: Exception,
    step: Step,
    model: AlexNet,
    here: Callable[[], Path] | None,
    whole: AlexNet | None = None,
    link: Communicator = ALONE,
) -> DivergedError:
    """Return `error` with cause and images; write two files into `here()`.

    `diverged.json` is the report, for people; `diverged.safetensors` has weights, random state and
    batch, all that it takes to repeat the step. Where `model` is the part of the `whole` network
    that learns, the weights are of all layers, and "images" are what those in "features_of" made
    of them. A disk that refuses them is no reason for another error. Ranks connected by `link` each
    repeat the step with their own images; the one that writes names the first that found a cause.
    """
    what, batch = f"{error} in step {step.number} (epoch {step.epoch})", step.batch
    random.set_state(step.random_state)
    began = "but not again when the step was repeated" + (
        ": suspect the machine" if link.size == 1 else ", by each rank with its own images"
    )
    cause: Cause | None = None
    traces: list[LayerTrace] = []
    try:
        if len(batch):  # a rank may have no image
            with step.repeating(batch):
                cause, traces = find_cause(model, batch)
    except MemoryError:  # a look at every layer takes more than a step does
        began = "and the memory does not suffice to find out where"
    files = [step.dataset.describe(index) for index in batch.indices.tolist()]
    suspects = [files[row] for row in cause.rows] if cause else []
    whose = "the batch" if link.size == 1 else f"rank {link.rank}"
    told = link.share("causes", [cause and str(cause), _name(suspects, files, whose)]).wait()
    if here is None:
        return DivergedError(what)
    whole = whole or model
    below = [name for name in whole.weight_layers if name not in model.weight_layers]
    report = {
        "what": what,
        "step": step.number,
        "epoch": step.epoch,
        "lr": step.lr,
        **(asdict(cause) if cause else {}),
        "suspects": suspects,
        "features_of": below,
        "images": files,
        "layers": [_as_row(trace) for trace in traces],
    }
    repeat = {
        "weights": whole.state_dict(),
        "features_of": below,
        "training": model.training,
        "random": step.random_state,
        "images": move(batch.images, "cpu"),
        "labels": batch.labels,
        "targets": batch.targets,
    }
    text = json.dumps(report, indent=1) + "\n"
    try:
        folder = here()
        write_atomically(folder / REPORT, lambda file: file.write(text.encode()))
        save(repeat, folder / STEP)
        of_all = "the whole report" if link.size == 1 else f"the report of {whose}"
        where = f"{printable(folder / REPORT)} has {of_all}"
    except OSError as refused:
        where = f"no report could be written ({refused.strerror or refused})"
    return DivergedError(f"{what}: {_first(told) or f'{began}; {told[link.rank][1]}'}; {where}")


def _first(told: list[list[str]]) -> str | None:
    """Return the first cause found, with its rank unless all agree."""
    for rank, (cause, images) in enumerate(told):
        if cause:
            same = all(other == cause for other, _ in told)
            return f"{'' if same else f'on rank {rank}, '}{cause}; {images}"
    return None


def _name(suspects: list[str], files: list[str], whose: str) -> str:
    named = suspects or files
    kind = "because of" if suspects else f"the images of {whose} are"
    rest = f" and {len(named) - NAMED_IMAGES} more" if len(named) > NAMED_IMAGES else ""
    return f"{kind} {', '.join(named[:NAMED_IMAGES])}{rest}"


def _as_row(trace: LayerTrace) -> dict[str, Any]:
    """Return the magnitudes for the report; JSON has no spelling for NaN."""
    row: dict[str, Any] = {"layer": trace.layer}
    for name in ("weight", "output", "gradient"):
        value = getattr(trace, name)
        row[f"largest {name}"] = value if value is None or math.isfinite(value) else str(value)
    return row


def _largest(array: Array) -> float:
    return float(abs(array).max()) if array.size else 0.0


def _bad_rows(array: Array) -> tuple[int, ...]:
    finite = array_module(array).isfinite(array).reshape(len(array), -1).all(axis=1)
    return tuple(np.flatnonzero(~move(finite, "cpu")).tolist())
