"""Exchange of activations between ranks that have parts of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.types import Array
from tinyalex.distributed.communicator import Communicator
from tinyalex.nn import Module
from tinyalex.tensor import Tensor


@dataclass(frozen=True)
class Gathering:
    """Array of which ranks have parts, and those that get it whole.

    Ranks gather in groups, all at once. A part has `sizes[rank]` elements along the axis; 0 is that
    of a rank that has none, or is in another group.
    """

    link: Communicator
    label: str
    axis: int
    sizes: Sequence[int]
    takers: frozenset[int]
    """Ranks of the group that get the whole."""

    def getters(self) -> list[bool]:
        """Return which ranks get this rank's part."""
        has = self.sizes[self.link.rank] > 0
        return [has and rank in self.takers for rank in range(self.link.size)]

    def got(self) -> list[int]:
        """Return the sizes of the parts that this rank gets."""
        return [size if self.link.rank in self.takers else 0 for size in self.sizes]

    def resized(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Return the shape, channels last, of a part of another size."""
        return (*shape[:-1], size) if self.axis else (size, *shape[1:])


NOTHING = (0,)
"""Shape of what is sent to a rank that gets no part."""


class Exchange(Function):
    """Parts along an axis, gathered in the order of ranks (all-gather).

    A rank that is no taker gets an array without elements. Backward: the sum over takers, in the
    order of ranks, of the gradients of this rank's part (reduce-scatter).
    """

    def forward(self, x: Array, *, gathering: Gathering) -> Array:
        """Return the whole, or none of it."""
        xp = array_module(x)
        part = xp.moveaxis(x, 1, -1)  # channels last, as kernels leave them
        nothing = xp.empty(NOTHING, x.dtype)
        self.gathering, self.part = gathering, part.shape
        parts = [part if gets else nothing for gets in gathering.getters()]
        sizes = gathering.got()
        expect = [gathering.resized(part.shape, size) if size else NOTHING for size in sizes]
        received = gathering.link.exchange(gathering.label, parts, expect).wait()
        none = xp.empty(gathering.resized(part.shape, 0), x.dtype)
        whole = [none, *(one for one, size in zip(received, sizes, strict=True) if size)]
        return xp.moveaxis(xp.concatenate(whole, gathering.axis and -1), -1, 1)

    def backward(self, grad: Array) -> Array:
        """Return the gradient of this rank's part."""
        gathering, xp = self.gathering, array_module(grad)
        nothing = xp.empty(NOTHING, grad.dtype)
        sizes, getters = gathering.got(), gathering.getters()
        *ends, _ = accumulate(sizes)
        slices = xp.split(xp.moveaxis(grad, 1, -1), ends, gathering.axis and -1)
        parts = [one if size else nothing for one, size in zip(slices, sizes, strict=True)]
        expect = [self.part if gets else NOTHING for gets in getters]
        label = f"the gradient of {gathering.label}"
        received = gathering.link.exchange(label, parts, expect).wait()
        total = xp.zeros(self.part, grad.dtype)
        for one, gets in zip(received, getters, strict=True):
            if gets:
                total += one
        return xp.moveaxis(total, -1, 1)


class Gather(Module):
    """Layer that makes inputs whole of which ranks have parts.

    Where a layer before it `learns`, all ranks exchange gradients, also one that has nothing of it.
    """

    def __init__(self, gathering: Gathering, learns: bool) -> None:
        self.gathering, self._learns = gathering, learns

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole, on ranks that take it."""
        if self._learns and not x.requires_grad:
            x = x.detach().requires_grad_()
        return Exchange.apply(x, gathering=self.gathering)
