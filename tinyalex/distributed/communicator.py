"""Messages between the processes (ranks) that train one network."""

from __future__ import annotations

import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np

from tinyalex.backends import array_module
from tinyalex.backends.shards import Tree
from tinyalex.backends.types import Array
from tinyalex.text import escaped

T = TypeVar("T")


class CommunicationError(RuntimeError):
    """Ranks that ask for different things, or a broken MPI."""


class Pending(ABC, Generic[T]):
    """Result on its way, for which arrays must stay as they are."""

    @abstractmethod
    def wait(self) -> T:
        """Return the result, once it is there."""


class Communicator(ABC):
    """Ranks that ask for the same things in the same order.

    Every request has a label, which messages about a failure name, and returns at once. Its
    `Pending` may be waited for at any time, or never. Arrays of `sum` and `exchange` lie on the
    host, or on the GPU that `connect` was told of.
    """

    rank: int
    size: int
    hosts: Sequence[str]
    """The host of each rank."""
    place = 0
    """Number of this rank among those of its host."""
    engine = ""
    """The library that carries messages, and its version."""
    timeout = math.inf
    """Seconds without a message after which `Pending.wait` ends all ranks."""
    sharing: int
    """The number of ranks that have the cores of this one."""
    step: int | None = None
    """The step of training that messages about a failure name."""
    sent = 0
    """Bytes sent so far."""
    waited = 0.0
    """Seconds spent in `Pending.wait` so far."""

    def connect(self, device: str) -> None:
        """Connect this device with those of all ranks, at once."""
        del device  # one process sends none

    def gather(self, label: str, array: np.ndarray) -> Pending[list[np.ndarray]]:
        """Request the arrays of all ranks, in the order of ranks.

        They are on the host, and agree in dtype and in all but the length of axis 0, which may be
        0. That of this rank is `array` itself.
        """
        if array.ndim == 0:
            raise ValueError("gather joins arrays along axis 0, got an array without axes")
        _check_dtype(array)
        return self._ask(label, lambda: self._gather(label, array))

    def sum(self, label: str, array: Array, tree: Tree) -> Pending[None]:
        """Request the sum over ranks, in place.

        It is taken in the order of `tree`, and is the same on every rank, bit for bit. Ranks that
        are not in the tree contribute nothing. Those with another tree, or shape, have another sum.
        """
        ranks_of(tree, self.size)
        _check_dtype(array)
        return self._ask(label, lambda: self._sum(label, array, tree), array)

    def exchange(
        self, label: str, parts: Sequence[Array], expect: Sequence[tuple[int, ...]]
    ) -> Pending[list[Array]]:
        """Request one part from each rank, and send each one.

        ``parts[j]`` goes to rank j, and ``expect[j]`` is the shape of what rank j sends here. All
        are of one dtype. The part for this rank itself comes back as it is.
        """
        if not len(parts) == len(expect) == self.size:
            raise ValueError(
                f"exchange takes {self.size} parts and {self.size} shapes, one per rank, got "
                f"{len(parts)} and {len(expect)}"
            )
        if len({part.dtype for part in parts}) > 1:
            raise ValueError(f"parts must be of one dtype, got {[str(p.dtype) for p in parts]}")
        _check_dtype(parts[0])
        if parts[self.rank].shape != tuple(expect[self.rank]):
            raise ValueError(
                f"rank {self.rank} expects {tuple(expect[self.rank])} of itself, but sends "
                f"{parts[self.rank].shape}"
            )
        own, xp = parts[self.rank], array_module(parts[self.rank])
        into = [xp.empty(shape, own.dtype) for shape in expect]
        into[self.rank] = own
        return self._ask(label, lambda: self._exchange(label, list(parts), into), own)

    def share(self, label: str, value: Any) -> Pending[list[Any]]:
        """Request the values of all ranks, as JSON has them."""
        text = json.dumps(value)
        return self._ask(label, lambda: self._share(label, json.loads(text)))

    @abstractmethod
    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print the message and end all ranks with the exit code."""

    @abstractmethod
    def close(self) -> None:
        """Wait until all ranks have come here, and send no more."""

    @abstractmethod
    def leave(self, code: int) -> None:
        """End after a signal, when all ranks have come here.

        Requests that are under way on others raise LeftError.
        """

    @abstractmethod
    def _ask(self, label: str, work: Callable[[], T], array: Array | None = None) -> Pending[T]:
        """Do the work in its turn, where the array is."""

    @abstractmethod
    def _gather(self, label: str, array: np.ndarray) -> list[np.ndarray]: ...

    @abstractmethod
    def _sum(self, label: str, array: Array, tree: Tree) -> None: ...

    @abstractmethod
    def _exchange(self, label: str, parts: list[Array], into: list[Array]) -> list[Array]: ...

    @abstractmethod
    def _share(self, label: str, value: Any) -> list[Any]: ...


def ranks_of(tree: Tree, size: int) -> list[int]:
    """Check a tree; return its ranks from left to right."""

    def leaves(node: Any) -> Iterator[Any]:
        if isinstance(node, tuple) and len(node) == 2:
            yield from leaves(node[0])
            yield from leaves(node[1])
        else:
            yield node

    ranks = list(leaves(tree))
    proper = all(type(rank) is int and 0 <= rank < size for rank in ranks)
    if not proper or len(set(ranks)) < len(ranks):
        raise ValueError(
            f"the order of a sum must be a rank or a pair of orders, with each rank at most once "
            f"and all in 0 to {size - 1}, got {tree!r}"
        )
    return ranks


def _check_dtype(array: Array) -> None:
    if array.dtype.kind not in "biufc":
        raise ValueError(f"ranks exchange arrays of numbers, got dtype {array.dtype}")


class _Done(Pending[T]):
    def __init__(self, result: T) -> None:
        self._result = result

    def wait(self) -> T:
        return self._result


class Single(Communicator):
    """One process without MPI: every request is done at once."""

    rank, size = 0, 1
    hosts, sharing = ("",), 1

    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print the message and exit."""
        print(escaped(message), file=sys.stderr)
        raise SystemExit(code)

    def close(self) -> None:
        """Do nothing: there is none to wait for."""

    def leave(self, code: int) -> None:
        """Do nothing."""

    def _ask(self, label: str, work: Callable[[], T], array: Array | None = None) -> Pending[T]:
        return _Done(work())

    def _gather(self, label: str, array: np.ndarray) -> list[np.ndarray]:
        return [array]

    def _sum(self, label: str, array: Array, tree: Tree) -> None:
        pass

    def _exchange(self, label: str, parts: list[Array], into: list[Array]) -> list[Array]:
        return parts

    def _share(self, label: str, value: Any) -> list[Any]:
        return [value]
