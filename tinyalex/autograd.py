"""Reverse-mode automatic differentiation: the node, the walk backwards, and its switch.

Applying a `Function` to tensors computes its output and, where a gradient will be wanted, leaves a
node behind: what backward needs, and edges to where the inputs came from. `backward` walks those
edges from the newest node to the oldest.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from contextlib import ContextDecorator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from tinyalex.backends import array_module
from tinyalex.backends.devices import device_of, same_device, using
from tinyalex.backends.numerics import quiet
from tinyalex.backends.types import Array

if TYPE_CHECKING:
    from tinyalex.tensor import Tensor


class _Switch(threading.local):
    enabled = True


_grad = _Switch()


def is_grad_enabled() -> bool:
    """Return whether operations record what backward needs (per thread)."""
    return _grad.enabled


class no_grad(ContextDecorator):  # noqa: N801 (torch's name)
    """Compute without recording: ``with no_grad(): ...``, or as a decorator of a function."""

    def __enter__(self) -> None:
        self._previous = getattr(self, "_previous", [])
        self._previous.append(_grad.enabled)
        _grad.enabled = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _grad.enabled = self._previous.pop()


class Function:
    """One differentiable operation on arrays and, once applied, one node of the graph.

    A subclass writes the mathematics of both directions::

        class Square(Function):
            def forward(self, x):
                self.save(x)             # only this is kept alive for backward
                return x * x

            def backward(self, grad):    # grad: d(loss)/d(output); return d(loss)/d(input)
                (x,) = self.saved
                return 2 * x * grad

        y = Square.apply(x)

    What backward returns is new, or ``grad`` itself or something saved, or a view of these: it may
    become a leaf's ``.grad``, which nobody else may see. With several inputs, it returns a tuple
    with one entry an input; an entry may be None where ``self.needs_input_grad[i]`` is False, and
    should be when it costs something to compute.
    Options that are not differentiable travel as keywords of `apply` and `forward`.
    """

    _births: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, inputs: tuple[Tensor | None, ...]) -> None:
        wanted = is_grad_enabled()
        self.needs_input_grad = tuple(wanted and t is not None and t.requires_grad for t in inputs)
        self.saved: tuple[Any, ...] = ()
        # An edge leads to the node that made the input or, for a leaf, to the leaf itself. It never
        # leads to an interior tensor: its array is free to go as soon as nobody else needs it.
        self.edges: tuple[Function | Tensor | None, ...] = tuple(
            (t.grad_fn or t) if need and t is not None else None
            for t, need in zip(inputs, self.needs_input_grad, strict=True)
        )
        self.shape: tuple[int, ...] = ()
        self.dtype: Any = None
        self.device = "cpu"
        self.birth = next(self._births)
        self.freed = False

    def save(self, *values: Any) -> None:
        """Keep ``values`` for backward; where no gradient is wanted they are not kept."""
        if any(self.needs_input_grad):
            self.saved = values

    def forward(self, *arrays: Any, **options: Any) -> Array:
        """Compute the output array from the input arrays."""
        raise TypeError(f"{type(self).__name__} must define forward(self, *arrays, **options)")

    def backward(self, grad: Array) -> Array | tuple[Array | None, ...]:
        """Return the gradients of the inputs, given the gradient of the output."""
        raise TypeError(f"{type(self).__name__} must define backward(self, grad)")

    @classmethod
    @quiet
    def apply(cls, *inputs: Tensor | None, **options: Any) -> Tensor:
        """Run forward on the tensors' arrays and return the result as a tensor in the graph."""
        from tinyalex.tensor import Tensor  # here: Tensor's operators are Functions themselves

        node = cls(inputs)
        arrays = tuple(None if t is None else t.data for t in inputs)
        with using(same_device(cls.__name__, *arrays)):
            output = Tensor(node.forward(*arrays, **options))
        if any(node.needs_input_grad):
            node.shape, node.dtype, node.device = output.shape, output.dtype, output.device
            output.requires_grad = True
            output.grad_fn = node
        return output


@quiet
def backward(root: Function | Tensor, gradient: Array, retain_graph: bool = False) -> None:
    """Propagate ``gradient`` from ``root`` to every leaf behind it, into their ``.grad``.

    A node is born after everything that it depends on, so the newest node that has a gradient has
    all of it: no sorting, no recursion, and a node used by many others is still visited once. What
    a node saved, and the gradient that reached it, are freed as the walk passes.
    """
    if not isinstance(root, Function):
        with using(root.device):
            _accumulate(root, gradient)
        return
    gradients = {root: gradient}
    newest_first = [(-root.birth, root)]
    while newest_first:
        _, node = heapq.heappop(newest_first)
        if node.freed:
            raise RuntimeError(
                f"backward reached {type(node).__name__} a second time; what it had saved went "
                "with the first. Compute the loss again, or pass retain_graph=True the first time"
            )
        grad = gradients.pop(node)
        with using(node.device):
            input_grads = node.backward(grad)
        if not isinstance(input_grads, tuple):
            input_grads = (input_grads,)
        others = [array for array in (grad, *node.saved, *input_grads) if hasattr(array, "dtype")]
        edges = node.edges
        if not retain_graph:
            node.saved, node.edges, node.freed = (), (), True
        for edge, input_grad in zip(edges, input_grads, strict=True):
            if edge is None:
                continue
            if input_grad is None or input_grad.shape != edge.shape:
                got = "None" if input_grad is None else f"shape {input_grad.shape}"
                raise ValueError(
                    f"{type(node).__name__}.backward must return a gradient of shape {edge.shape} "
                    f"for this input, got {got}"
                )
            device = edge.device
            if device_of(input_grad) != device:
                raise ValueError(
                    f"{type(node).__name__}.backward must return a gradient on {device} for this "
                    f"input, got one on {device_of(input_grad)}; move tensors before the forward "
                    "pass or after backward(), not between the two"
                )
            with using(device):
                input_grad = input_grad.astype(edge.dtype, copy=False)
                if not isinstance(edge, Function):
                    own = _writable(input_grad, device) and not _seen_by_others(input_grad, others)
                    _accumulate(edge, input_grad if own else input_grad.copy())
                elif edge in gradients:
                    gradients[edge] = gradients[edge] + input_grad
                else:
                    gradients[edge] = input_grad
                    heapq.heappush(newest_first, (-edge.birth, edge))


def _seen_by_others(grad: Array, others: list[Array]) -> bool:
    """Return whether the memory of ``grad``, itself one of ``others``, is also another's there.

    A leaf's .grad is its own: what others see too, or a constant, is copied.
    """
    xp = array_module(grad)
    comparable = [other for other in others if isinstance(other, xp.ndarray)]
    return sum(xp.may_share_memory(grad, other) for other in comparable) > 1


def _writable(array: Array, device: str) -> bool:
    """Return whether each element has a place of its own that may be written."""
    if device == "cpu":
        return array.flags.writeable
    return 0 not in array.strides  # CuPy protects nothing: see what was broadcast


def _accumulate(leaf: Tensor, grad: Array) -> None:
    total = grad if leaf.grad is None else leaf.grad + grad
    # Arithmetic makes scalars of arrays without axes, and nobody can write into a scalar.
    leaf.grad = array_module(leaf.data).asarray(total)
