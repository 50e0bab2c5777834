"""Shards of a batch, and the tree of their sums.

A training step on several ranks (processes) is to give the bits that one process gives for the same
batch. Two things are in the way: sums over images are rounded differently where they are cut
differently, and a kernel may round the outputs of an image differently beside other images. So the
batch of all ranks is cut into a number of contiguous shards that does not depend on the ranks, each
shard is computed by itself, and sums over images are added in a fixed tree of halves. Of 8 shards::

    ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))

A rank has the shards of one node of the tree: with two ranks one half, with four one pair each. It
adds theirs; the rest of the tree is added across ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import ModuleType
from typing import Any

from tinyalex.backends.types import Array

Span = tuple[int, int]
"""Numbers of the first shard and of the one after the last."""
Tree = int | tuple["Tree", "Tree"]
"""Number of a rank, or the pair of whose sums this is the sum."""


def halves(first: int, last: int) -> tuple[Span, Span]:
    """Return the two halves of a span; the first may be larger."""
    middle = (first + last + 1) // 2
    return (first, middle), (middle, last)


def spans_of_ranks(shards: int, ranks: int) -> list[Span]:
    """Return the shards of each rank, which are nodes of the tree.

    They are as equal as that allows; where there are more ranks than shards, the last have none.
    """
    spans = [(0, shards)]
    while len(spans) < min(shards, ranks):
        largest = max(spans, key=lambda span: span[1] - span[0])
        place = spans.index(largest)
        spans[place : place + 1] = halves(*largest)
    return spans + [(shards, shards)] * (ranks - len(spans))


def tree_of_ranks(spans: Sequence[Span]) -> Tree:
    """Return the part of the tree that is above ranks."""
    own = {span: rank for rank, span in enumerate(spans) if span[0] < span[1]}

    def tree(span: Span) -> Tree:
        if span in own:
            return own[span]
        left, right = halves(*span)
        return tree(left), tree(right)

    return tree((0, max(last for _, last in spans)))


def tree_sum(term: Callable[[int], Array], first: int, last: int) -> Array:
    """Return the sum of a span of terms, added in the tree.

    Terms are made when they are added, and written into: at most one per level is there at a time.
    """
    if last - first == 1:
        return term(first)
    left, right = halves(first, last)
    total = tree_sum(term, *left)
    total += tree_sum(term, *right)
    return total


def additions(terms: int) -> list[int]:
    """Return, for each term of the tree, the additions that it completes."""
    if terms == 1:
        return [0]
    left, right = halves(0, terms)
    *others, last = additions(right[1] - right[0])
    return [*additions(left[1]), *others, last + 1]


@dataclass(frozen=True)
class Part:
    """Shards of a rank in the batch of all ranks."""

    sizes: tuple[int, ...]
    """Images in each shard of the whole batch."""
    span: Span
    """Shards that are this rank's."""

    @property
    def total(self) -> int:
        """Images in the batch of all ranks."""
        return sum(self.sizes)

    @property
    def rows(self) -> slice:
        """Images of this rank."""
        return slice(sum(self.sizes[: self.span[0]]), sum(self.sizes[: self.span[1]]))

    def of(self, images: int) -> Part:
        """Return this part, or the whole, whichever has so many images.

        Raises ValueError for other numbers.
        """
        own = self.rows
        if images == own.stop - own.start:
            return self
        if images == self.total:
            return Part(self.sizes, (0, len(self.sizes)))
        raise ValueError(
            f"expected {own.stop - own.start} images, this rank's, or {self.total}, those of all "
            f"ranks; got {images}"
        )

    def slices(self) -> list[slice]:
        """Return the images of each of its shards, counted from its first.

        Where it has no shard, there is one without images.
        """
        ends = accumulate(self.sizes[slice(*self.span)], initial=0)
        return [slice(first, last) for first, last in pairwise(ends)] or [slice(0, 0)]


def part_of(images: int, shards: int, span: Span) -> Part:
    """Return a part of a batch in equal shards.

    If they cannot be, the first have one image more.
    """
    size, more = divmod(images, shards)
    return Part(tuple(size + (i < more) for i in range(shards)), span)


Wrapper = Callable[[ModuleType], Any]
"""Function that returns kernels for shards, given a backend."""


class _Thread(threading.local):
    part: Part | None = None
    wrapper: Wrapper | None = None


_thread = _Thread()


@contextmanager
def in_use(part: Part | None, wrapper: Wrapper | None) -> Iterator[None]:
    """Let this thread's kernels be wrapped in a ``with`` block."""
    before = _thread.part, _thread.wrapper
    _thread.part, _thread.wrapper = part, wrapper
    try:
        yield
    finally:
        _thread.part, _thread.wrapper = before


def current() -> Part | None:
    """Return the part of a batch that this thread's kernels compute."""
    return _thread.part


def wrapped(kernels: ModuleType) -> Any:
    """Return a backend's kernels, wrapped if they are to be."""
    return kernels if _thread.wrapper is None else _thread.wrapper(kernels)
