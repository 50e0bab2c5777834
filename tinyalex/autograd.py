"""Reverse-mode automatic differentiation: the node, and the walk backwards.

Applying a `Function` to tensors computes its output and, where a gradient will be wanted, leaves a
node behind: what backward needs, and edges to where the inputs came from. `backward` walks those
edges from the newest node to the oldest.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tinyalex.backends import array_module
from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.devices import device_of, same_device, using
from tinyalex.backends.numerics import quiet
from tinyalex.backends.types import Array
from tinyalex.grad_mode import is_grad_enabled
from tinyalex.hooks import GradHooks
from tinyalex.locks import new_rlock
from tinyalex.storage import Saved, owner_of, versions_of

if TYPE_CHECKING:
    from tinyalex.tensor import Tensor

# Threads may share leaves, and a graph: what they read and then write, one does at a time.
_turn = new_rlock()


class Function:
    """One differentiable operation on arrays; once applied, one node of the graph.

    A subclass writes the mathematics of both directions::

        class Square(Function):
            def forward(self, x):
                self.save(x)             # only this is kept alive for backward
                return x * x

            def backward(self, grad):    # grad: d(loss)/d(output); return d(loss)/d(input)
                (x,) = self.saved
                return 2 * x * grad

        y = Square.apply(x)

    Saved inputs and outputs must not change: backward raises an error where an operation of this
    library has written into them since. Copy whatever else the caller may write into later, such
    as an array among the options.

    Keep no reference to what backward returns: it may become a leaf's ``.grad``. It is new, or
    ``grad``, or something saved, or a view of these. With several inputs, it returns a tuple with
    one entry per input; an entry may be None where ``self.needs_input_grad[i]`` is False, and
    should be when it costs something to compute.
    Options that are not differentiable travel as keywords of `apply` and `forward`.

    Arrays are float32 or float64, and on a GPU perhaps bfloat16 (see
    `set_float32_matmul_precision`) if the class says ``takes_bfloat16 = True``: all others get
    copies in float32. `backward` gets ``grad`` in the dtype that `forward` returned.
    """

    Output: ClassVar[type[Tensor]]
    """Class of the results, set by tensor.py, which is built on this file."""
    takes_bfloat16: ClassVar[bool] = False
    """True if forward and backward take arrays of bfloat16, too."""
    _births: ClassVar[itertools.count[int]] = itertools.count()

    saved: tuple[Any, ...] = ()
    versions: Saved = ()
    shape: tuple[int, ...] = ()
    dtype: Any = None
    device = "cpu"
    freed = False

    def __init__(self, inputs: tuple[Tensor | None, ...]) -> None:
        wanted = is_grad_enabled()
        # An edge leads to the node that made the input or, for a leaf, to the leaf itself. It never
        # leads to an interior tensor: its array is freed as soon as nothing else needs it.
        self.edges: tuple[Function | Tensor | None, ...] = tuple(
            [
                (t._grad_fn or t) if t is not None and wanted and t._requires_grad else None
                for t in inputs
            ]
        )
        self.needs_input_grad = tuple([edge is not None for edge in self.edges])
        self.birth = next(self._births)

    def save(self, *values: Any) -> None:
        """Keep ``values`` for backward, where a gradient is wanted."""
        if True in self.needs_input_grad:
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
        """Run forward on the tensors' arrays; return a tensor in the graph."""
        try:
            arrays = tuple([None if t is None else t._values for t in inputs])
        except AttributeError:
            kinds = ", ".join(type(t).__name__ for t in inputs)
            raise TypeError(
                f"{cls.__name__}.apply expects Tensors or None, got {kinds}; wrap arrays in "
                "Tensor(...), and give options as keywords"
            ) from None
        node, device = cls(inputs), same_device(cls.__name__, *arrays)
        with using(device):
            if device != "cpu" and not cls.takes_bfloat16:
                arrays = tuple([None if a is None else as_float32(a) for a in arrays])
            output = cls.Output(node.forward(*arrays, **options))
        base = owner_of(output._values, inputs)
        if base is not None:
            output._storage = base._storage
            base._storage.add_view(base, output)
        if True in node.needs_input_grad:
            node.shape, node.dtype, node.device = output.shape, output.dtype, output.device
            node.versions = versions_of(node.saved, (*inputs, output))
            output._requires_grad, output._grad_fn = True, node
        return output

    def enter(self, retain_graph: bool) -> tuple[Function | Tensor | None, ...]:
        """Return the edges for one walk.

        Raises RuntimeError if a saved array was freed or was changed.
        """
        for storage, version in self.versions:
            if storage.version != version:
                raise RuntimeError(
                    f"a tensor that {type(self).__name__} saved for backward was modified by an "
                    "in-place operation since (an operator like +=, an assignment, an optimiser's "
                    "step, ...). Call backward() before it, or compute the loss again; y = y + ... "
                    "leaves alone what y += ... overwrites"
                )
        with _turn:
            if self.freed:
                raise RuntimeError(
                    f"backward reached {type(self).__name__} a second time; what it had saved went "
                    "with the first. Compute the loss again, or pass retain_graph=True the first "
                    "time"
                )
            self.freed = not retain_graph
            return self.edges


@quiet
def backward(root: Function | Tensor, gradient: Array, retain_graph: bool = False) -> None:
    """Propagate ``gradient`` from ``root`` to every leaf behind it, into their ``.grad``.

    A node is born after everything that it depends on, so the newest node that has a gradient has
    all of it: no sorting, no recursion, and a node used by many others is still visited once. What
    a node saved, and the gradient that reached it, are freed as the walk passes.

    A leaf's hooks are called as soon as all that adds to its gradient has been passed.
    """
    if not isinstance(root, Function):
        _accumulate(root, gradient)
        return GradHooks().after(root, [(root, gradient)], [])
    gradients, newest_first, hooks = {root: gradient}, [(-root.birth, root)], GradHooks()
    while newest_first:
        _, node = heapq.heappop(newest_first)
        edges, grad = node.enter(retain_graph), gradients.pop(node)
        with using(node.device):
            input_grads = node.backward(grad)
        arrived = _checked(node, edges, input_grads)
        others = [grad, *node.saved, *[input_grad for _, input_grad in arrived]]
        if not retain_graph:
            node.saved, node.edges, node.versions = (), (), ()
        for number, (edge, input_grad) in enumerate(arrived):
            if not isinstance(edge, Function):
                _accumulate(edge, input_grad, others)
                hooks.after(edge, arrived[number:], newest_first)
            elif edge in gradients:
                with using(edge.device):
                    gradients[edge] = gradients[edge] + input_grad
            else:
                gradients[edge] = input_grad
                heapq.heappush(newest_first, (-edge.birth, edge))


def _checked(
    node: Function, edges: tuple[Function | Tensor | None, ...], input_grads: Any
) -> list[tuple[Function | Tensor, Array]]:
    """Return each edge that wants a gradient with its gradient.

    Raises ValueError for a gradient that does not fit.
    """
    if not isinstance(input_grads, tuple):
        input_grads = (input_grads,)
    if len(input_grads) != len(edges):
        _refuse(node, f"one gradient per input, {len(edges)} of them", str(len(input_grads)))
    arrived = []
    for edge, grad in zip(edges, input_grads, strict=True):
        if edge is None:
            continue
        shape = getattr(grad, "shape", None)
        if shape != edge.shape:
            got = type(grad).__name__ if shape is None else f"shape {shape}"
            _refuse(node, f"a gradient of shape {edge.shape} for this input", got)
        device, lies_on = edge.device, device_of(grad)
        if lies_on != device:
            _refuse(
                node,
                f"a gradient on {device} for this input",
                f"one on {lies_on}; move tensors before the forward pass or after backward(), not "
                "between the two",
            )
        if grad.dtype != edge.dtype:
            with using(device):
                grad = grad.astype(edge.dtype)
        arrived.append((edge, grad))
    return arrived


def _refuse(node: Function, expected: str, got: str) -> None:
    raise ValueError(f"{type(node).__name__}.backward must return {expected}, got {got}")


def _seen_by_others(grad: Array, others: Sequence[Any]) -> bool:
    """Return whether another of ``others`` shares the memory of ``grad``.

    A leaf's .grad is its own: what others see too, or a constant, is copied.
    """
    xp = array_module(grad)
    comparable = [other for other in others if isinstance(other, xp.ndarray)]
    return sum(xp.may_share_memory(grad, other) for other in comparable) > 1


def writable(array: Array) -> bool:
    """Return whether each element has its own memory and may be written."""
    if device_of(array) == "cpu":
        return array.flags.writeable
    return 0 not in array.strides  # CuPy protects nothing: see what was broadcast


def _accumulate(leaf: Tensor, grad: Array, others: Sequence[Any] = ()) -> None:
    """Add ``grad`` to the leaf's .grad; copy it if it shares memory."""
    if not leaf.requires_grad:  # it was frozen after the forward pass
        return
    with using(leaf.device), _turn:
        if not writable(grad) or _seen_by_others(grad, others):
            grad = grad.copy()
        total = grad if leaf.grad is None else leaf.grad + grad
        # Arithmetic makes scalars of arrays without axes, and scalars cannot be written into.
        leaf._grad = array_module(leaf.data).asarray(total)
