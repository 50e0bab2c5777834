"""Parameter and Module: a tree of layers that owns its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinyalex.backends.devices import device_of, host_copy, move, using
from tinyalex.backends.layout import for_device
from tinyalex.backends.types import Array
from tinyalex.grad_mode import no_grad
from tinyalex.hooks import HookHandle, Registration
from tinyalex.tensor import Tensor, as_array

Self = TypeVar("Self", bound="Module")
Hook = Callable[["Module", tuple[Any, ...], Any], Any]


class Parameter(Tensor):
    """A tensor that a module learns; as an attribute, ``parameters()`` finds it."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class IncompatibleKeys(NamedTuple):
    """Names that ``load_state_dict(strict=False)`` skipped."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base class of layers and networks; subclasses define `forward`.

    Attributes are the registry: whatever is a Parameter or a Module belongs to the tree, under its
    attribute's name, in the order in which it was set.
    """

    training: bool = True
    _kinds: Mapping[str, type[Parameter | Module]] = MappingProxyType({})
    _forward_hooks: tuple[Registration, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._kinds.get(name)  # None too can be set where a parameter or a module belongs
        if isinstance(value, Parameter):
            self._register(name, Parameter)
        elif kind is Parameter and value is not None:
            raise TypeError(
                f"cannot assign {type(value).__name__} as parameter {name!r} (Parameter or None "
                "expected); to change its values: with no_grad(): layer.weight[...] = values"
            )
        elif isinstance(value, Module):
            self._register(name, Module)
        elif kind is Module and value is not None:
            raise TypeError(
                f"cannot assign {type(value).__name__} as child module {name!r} (Module or None "
                "expected)"
            )
        object.__setattr__(self, name, value)

    def _register(self, name: str, kind: type[Parameter | Module]) -> None:
        if self._kinds.get(name) is not kind:
            vars(self).pop(name, None)  # what becomes a parameter comes after those before it
            object.__setattr__(self, "_kinds", {**self._kinds, name: kind})

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        if name in self._kinds:
            left = {key: kind for key, kind in self._kinds.items() if key != name}
            object.__setattr__(self, "_kinds", left)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; every subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`, then the forward hooks."""
        output = self.forward(*args, **kwargs)
        for registration in self._forward_hooks:
            replacement = registration.hook(self, args, output)
            output = output if replacement is None else replacement
        return output

    def register_forward_hook(self, hook: Hook) -> HookHandle:
        """Call ``hook(module, args, output)`` after each forward.

        What it returns, if anything, replaces the output. On a GPU the output may be bfloat16: see
        `set_float32_matmul_precision`.
        """
        return HookHandle(self, "_forward_hooks", hook, "hook(module, args, output)")

    def add_module(self, name: str, module: Module) -> None:
        """Set ``module`` as the child called ``name``.

        Raises TypeError for anything but a module, ValueError for a name that is empty, has a dot
        or already means something else here.
        """
        if not isinstance(module, Module):
            raise TypeError(f"expected a Module for {name!r}, got {type(module).__name__}")
        taken = hasattr(self, name) and self._kinds.get(name) is not Module
        if not name or "." in name or taken:
            reason = "is an attribute of this module" if taken else "is empty or has a dot in it"
            raise ValueError(f"a child cannot be called {name!r}: the name {reason}")
        setattr(self, name, module)

    # The tree

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) of each direct child, in order of assignment."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Yield every direct child."""
        for _, child in self.named_children():
            yield child

    def named_modules(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) for this module (named ``prefix``) and all descendants.

        Parents come first.

        A module that hangs in several places is yielded once, unless ``remove_duplicate`` is False.
        """
        seen: set[int] = set()
        for name, module in self._walk(prefix):
            if not remove_duplicate or id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def _walk(self, prefix: str) -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it, parents first, each once."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter), of this module alone where ``recurse`` is False.

        A parameter that hangs in several places is yielded once, unless ``remove_duplicate`` is
        False.
        """
        seen: set[int] = set()
        modules = self.named_modules(prefix, remove_duplicate) if recurse else [(prefix, self)]
        for module_name, module in modules:
            for name, value in vars(module).items():
                if not isinstance(value, Parameter) or (remove_duplicate and id(value) in seen):
                    continue
                seen.add(id(value))
                yield f"{module_name}.{name}" if module_name else name, value

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield every parameter once."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def apply(self: Self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` on every module, children before parents, and return this module."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # Modes, devices, gradients

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode on the whole tree, or evaluation mode with False."""
        if not isinstance(mode, bool):
            raise ValueError(f"train() takes True or False, got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Set evaluation mode (dropout does nothing) on the whole tree."""
        return self.train(False)

    def to(self: Self, target: Any) -> Self:
        """Move every parameter, in place, to a device ("cuda") or dtype (np.float64).

        All of them or, if one cannot be moved, none. Existing optimisers stay valid: they move
        their velocities after the parameters.
        """
        with no_grad():
            moved = [(p, _moved(p.data, target), _moved(p.grad, target)) for p in self.parameters()]
        for parameter, data, grad in moved:
            if data is not parameter.data:  # what stays in its place was not written to
                parameter._replace(data, grad)
        return self

    def cpu(self: Self) -> Self:
        """Move every parameter, in place, to the host."""
        return self.to("cpu")

    def cuda(self: Self) -> Self:
        """Move every parameter, in place, to the first GPU."""
        return self.to("cuda")

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Set ``requires_grad`` of every parameter; optimisers skip frozen ones."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop every gradient, or fill it with zeros if ``set_to_none`` is False."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                with using(device_of(parameter.grad)):
                    parameter.grad[...] = 0

    # Weights in and out

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters, as NumPy arrays, under their dotted names."""
        named = self.named_parameters(remove_duplicate=False)
        return {name: host_copy(parameter.data) for name, parameter in named}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy ``state_dict``'s arrays into the parameters of the same names.

        Everything is checked before anything is touched: with ``strict``, that the names are
        exactly this module's; always, that shapes agree and that every value is finite in the
        parameter's dtype. Raises one ValueError that lists all that is wrong, TypeError for
        something that is no mapping of arrays. Returns the names that ``strict=False`` let pass.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"expected a mapping from names to arrays, got {type(state_dict).__name__}"
            )
        own = dict(self.named_parameters(remove_duplicate=False))
        arrays = {name: _as_array(name, state_dict[name]) for name in own if name in state_dict}
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]

        problems = [f"missing: {', '.join(missing)}"] if strict and missing else []
        problems += [f"unexpected: {', '.join(unexpected)}"] if strict and unexpected else []
        for name, array in arrays.items():
            if array.shape != own[name].shape:
                problems.append(f"{name} must have shape {own[name].shape}, got {array.shape}")
            elif not np.isfinite(_quietly_as(array, own[name].dtype)).all():
                problems.append(f"{name} has values that are not finite in {own[name].dtype}")
        if problems:
            raise ValueError(
                f"these weights do not fit this {type(self).__name__}, build the network that they "
                f"belong to. {'; '.join(problems)}"
            )
        with no_grad():
            for name, array in arrays.items():
                own[name][...] = move(np.asarray(array, own[name].dtype), own[name].device)
        return IncompatibleKeys(missing, unexpected)

    # Printing

    def extra_repr(self) -> str:
        """Return the arguments to show between the parentheses of the repr."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}" for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        body = "\n".join(filter(None, [self.extra_repr(), *children])).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"


def _moved(array: Array | None, target: Any) -> Array | None:
    if array is None:
        return None
    moved = Tensor(array).to(target).data
    if moved.dtype.kind != "f":
        raise TypeError(f"parameters are float32 or float64, cannot make them {target}")
    return for_device(moved)


def _as_array(name: str, value: Any) -> Array:
    array = move(as_array(value), "cpu")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"expected an array of numbers for {name}, got dtype {array.dtype}")
    return array


def _quietly_as(array: Array, dtype: Any) -> Array:
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the caller reports
        return array.astype(dtype, copy=False)
