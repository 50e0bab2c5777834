"""Stochastic gradient descent with momentum, in torch's form and in the paper's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tinyalex import backends
from tinyalex.backends.devices import device_of, host_copy, move, using
from tinyalex.backends.geometry import SGDOptions
from tinyalex.backends.layout import for_device
from tinyalex.backends.numerics import quiet
from tinyalex.backends.types import Array
from tinyalex.nn.module import Module, Parameter
from tinyalex.ops.arguments import number
from tinyalex.tensor import Tensor, as_array

Group = dict[str, Any]
Update = tuple[Array, Array, Array | None, SGDOptions]

UPDATES = ("torch", "paper")
_FACTORS = {"lr_factor": 1.0, "decay_factor": 1.0}


class SGD:
    """Update parameters from their ``.grad``.

    Those whose ``.grad`` is None are left alone, and so are frozen ones (``requires_grad`` False),
    whatever gradient they still have.

    ``update="torch"``, as torch.optim.SGD::

        g = grad + weight_decay * w
        v = momentum * v + (1 - dampening) * g        (the first time: v = g)
        w = w - lr * (g + momentum * v if nesterov else v)

    ``update="paper"`` (section 5), which keeps the rate inside the velocity::

        v = momentum * v - weight_decay * lr * w - lr * grad
        w = w + v

    At a constant rate the two walk the same path; when the rate changes, torch's form rescales the
    velocity that was built up before and the paper's form does not.

    ``params`` are parameters, or dictionaries with "params" and options of their own that replace
    the defaults given here. Two further options multiply a group's rates: "lr_factor" and
    "decay_factor" (see `parameter_groups`); schedules change "lr" and leave the factors alone.

    Raises ValueError for options out of range or that exclude each other, for no parameters and for
    a parameter given twice, TypeError for things that are no parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        update: str = "torch",
    ) -> None:
        self.defaults: Group = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "update": update,
            **_FACTORS,
        }
        self.param_groups: list[Group] = []
        self._velocity: list[
            Array | None
        ] = []  # one for each parameter, in the order of the groups
        if isinstance(params, (Tensor, dict)):
            raise TypeError(
                f"params must be a list of parameters or of groups, got one {type(params).__name__}"
            )
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError("there is nothing to optimise: params is empty")
        if not any(isinstance(entry, dict) for entry in entries):
            entries = [{"params": entries}]
        for entry in entries:
            self.add_param_group(entry)

    def add_param_group(self, group: Group) -> None:
        """Add ``{"params": [...], **options}``; options that are missing take the defaults."""
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f"expected a group, a dictionary with 'params', got {group!r}")
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        unknown = set(group) - {"params"} - set(self.defaults)
        if unknown:
            raise ValueError(
                f"unknown options {sorted(unknown)} in a parameter group; known are "
                f"{', '.join(self.defaults)}"
            )
        options = {name: group.get(name, default) for name, default in self.defaults.items()}
        _check_options(options)
        taken = {id(p) for p in self._params()}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"expected a parameter, got {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError(
                    f"cannot optimise a tensor of shape {p.shape} that was computed from others: "
                    "give the parameters that it was computed from"
                )
            if id(p) in taken:
                raise ValueError(f"a parameter of shape {p.shape} was given twice")
            taken.add(id(p))
        self.param_groups.append({"params": params, **options})
        self._velocity += [None] * len(params)

    @quiet
    def step(self) -> None:
        """Update every parameter that learns and has a gradient, in place."""
        by_device: dict[str, list[Update]] = {}
        for update in self.updates():
            by_device.setdefault(device_of(update[0]), []).append(update)
        for device, updates in by_device.items():
            kernels = backends.of(updates[0][0])
            with using(device):
                if hasattr(kernels, "sgd_steps"):  # all in one launch
                    kernels.sgd_steps(updates)
                    continue
                for update in updates:
                    kernels.sgd_step(*update)

    def updates(self) -> Iterator[Update]:
        """Yield the arguments of `sgd_step` for each parameter that `step` updates.

        Velocities that are missing begin here, with zeros. Raises ValueError, before any begins,
        for a gradient, a velocity or an option that does not fit its parameter.
        """
        for (p, group), velocity in zip(self._with_groups(), self._velocity, strict=True):
            if p.requires_grad and p.grad is not None:
                _check_fit(p, p.grad, velocity)
                _check_range(p, group)
        for index, (p, group) in enumerate(self._with_groups()):
            if p.grad is None or not p.requires_grad:
                continue
            p._storage.version += 1  # the caller is about to write
            velocity = self._velocity[index] if group["momentum"] else None
            if velocity is not None and device_of(velocity) != p.device:
                velocity = self._velocity[index] = for_device(move(velocity, p.device))
            first = group["momentum"] and velocity is None
            if first:
                with using(p.device):
                    zeros = backends.array_module(p.data).zeros_like(p.data)
                velocity = self._velocity[index] = zeros
            options = SGDOptions(
                float(group["lr"] * group["lr_factor"]),
                float(group["momentum"]),
                # A first velocity is the whole gradient, as in torch.
                0.0 if first else float(group["dampening"]),
                float(group["weight_decay"] * group["decay_factor"]),
                bool(group["nesterov"]),
                group["update"],
            )
            yield p.data, p.grad, velocity, options

    @property
    def velocities(self) -> list[Array | None]:
        """Velocities in the order of the groups; None where none has begun."""
        return list(self._velocity)

    def of_rows(self, rows: Callable[[Tensor], tuple[Tensor, slice]]) -> SGD:
        """Return an optimiser of some rows of each parameter.

        It has views of the velocities, which begin with zeros if missing. ``rows`` returns, for
        a parameter, a tensor that shares the memory of some of its rows, and which they are.
        """
        for index, (p, group) in enumerate(self._with_groups()):
            if p.requires_grad and group["momentum"] and self._velocity[index] is None:
                with using(p.device):
                    self._velocity[index] = backends.array_module(p.data).zeros_like(p.data)
        parts = [
            {**group, "params": [rows(p)[0] for p in group["params"]]}
            for group in self.param_groups
        ]
        optimizer = SGD(parts, self.defaults["lr"])  # each group has its own options
        both = zip(self._params(), self._velocity, strict=True)
        optimizer._velocity = [None if v is None else v[rows(p)[1]] for p, v in both]
        return optimizer

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop every gradient, or fill it with zeros if ``set_to_none`` is False."""
        for p in self._params():
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                with using(device_of(p.grad)):
                    p.grad[...] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the velocities (NumPy arrays, in order) and the options."""
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            | {"params": len(group["params"])}
            for group in self.param_groups
        ]
        velocity = [None if v is None else host_copy(v) for v in self._velocity]
        return {"velocity": velocity, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the velocities and options of a `state_dict`, to resume exactly.

        Raises ValueError, before anything is changed, for the state of other parameters.
        """
        try:
            velocity = [None if v is None else as_array(v) for v in state["velocity"]]
            groups = list(state["param_groups"])
            sizes = [group["params"] for group in groups]
            options = [{name: group[name] for name in self.defaults} for group in groups]
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not the state of an SGD optimiser: {error!r}") from error
        own_sizes = [len(group["params"]) for group in self.param_groups]
        if sizes != own_sizes or len(velocity) != sum(own_sizes):
            raise ValueError(
                f"this optimiser has groups of {own_sizes} parameters, the state has groups of "
                f"{sizes} and {len(velocity)} velocities; build it for the same model"
            )
        for index, (p, v) in enumerate(zip(self._params(), velocity, strict=True)):
            if v is not None and (v.shape != p.shape or v.dtype != p.dtype):
                raise ValueError(
                    f"velocity {index} is {v.dtype} of shape {v.shape}, its "
                    f"parameter {p.dtype} of shape {p.shape}; build it for the same model"
                )
        for values in options:
            _check_options(values)
        self._velocity = [None if v is None else host_copy(v) for v in velocity]
        for group, values in zip(self.param_groups, options, strict=True):
            group.update(values)

    def __repr__(self) -> str:
        lines = []
        for index, group in enumerate(self.param_groups):
            shown = {name: value for name, value in group.items() if name != "params"}
            options = ", ".join(f"{name}={value}" for name, value in shown.items())
            lines.append(f"  group {index}: {len(group['params'])} parameters, {options}\n")
        return f"SGD (\n{''.join(lines)})"

    def _with_groups(self) -> Iterator[tuple[Tensor, Group]]:
        for group in self.param_groups:
            for p in group["params"]:
                yield p, group

    def _params(self) -> Iterator[Tensor]:
        for p, _ in self._with_groups():
            yield p


def parameter_groups(
    model: Module, bias_lr_factor: float = 1, bias_decay_factor: float = 1
) -> list[Group]:
    """Return two groups for `SGD`: weights and biases, with their own factors.

    The 2012 source and Caffe let biases learn twice as fast and not decay: factors 2 and 0.
    """
    weights: list[Parameter] = []
    biases: list[Parameter] = []
    for name, parameter in model.named_parameters():
        (biases if name.rpartition(".")[2] == "bias" else weights).append(parameter)
    return [
        {"params": weights},
        {"params": biases, "lr_factor": bias_lr_factor, "decay_factor": bias_decay_factor},
    ]


def _check_fit(p: Tensor, grad: Array, velocity: Array | None) -> None:
    on = device_of(grad)
    if grad.shape != p.shape or grad.dtype != p.dtype or on != p.device:
        raise ValueError(
            f"a parameter of shape {p.shape}, {p.dtype} on {p.device} has a gradient of shape "
            f"{grad.shape}, {grad.dtype} on {on}; call zero_grad() and backward() again"
        )
    if velocity is not None and velocity.dtype != p.dtype:
        raise ValueError(
            f"the velocity is {velocity.dtype} and its parameter {p.dtype}: convert the model with "
            ".to() before making the optimiser"
        )


def _check_range(p: Tensor, group: Group) -> None:
    rates = {
        "lr * lr_factor": group["lr"] * group["lr_factor"],
        "weight_decay * decay_factor": group["weight_decay"] * group["decay_factor"],
        "momentum": group["momentum"],
        "dampening": group["dampening"],
    }
    most = float(np.finfo(p.dtype).max)
    for name, value in rates.items():
        if abs(value) > most:
            raise ValueError(
                f"{name} is {value}, but a parameter of {p.dtype} takes {most:.2g} at most"
            )


def _check_options(options: Group) -> None:
    for name in ("lr", "momentum", "weight_decay", "lr_factor", "decay_factor"):
        _check_number(name, options[name], minimum=0)
    _check_number("dampening", options["dampening"], minimum=-math.inf)
    if options["update"] not in UPDATES:
        raise ValueError(f"update must be one of {UPDATES}, got {options['update']!r}")
    if options["update"] == "paper" and (options["nesterov"] or options["dampening"]):
        raise ValueError("update='paper' has neither nesterov nor dampening: leave them out")
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        raise ValueError(
            "nesterov needs a momentum above 0 and no dampening, got "
            f"momentum={options['momentum']}, dampening={options['dampening']}"
        )


def _check_number(name: str, value: Any, minimum: float) -> None:
    if not (math.isfinite(number(value, name)) and value >= minimum):
        raise ValueError(f"{name} must be a finite number >= {minimum}, got {value}")
