"""Part that one of several processes (ranks) has in a training run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from tinyalex.backends.shards import Part, Span, Tree, part_of, spans_of_ranks, tree_of_ranks
from tinyalex.data import Batch, DataError, Loader, PixelSums, WorkerError
from tinyalex.data.dataset import Unreadable
from tinyalex.distributed.communicator import Communicator, Single
from tinyalex.interrupts import StopRequest
from tinyalex.progress import one_sentence

Item = TypeVar("Item")
LOSSES = "losses"
"""Label of what ranks tell in every step."""


class SharedStop(StopRequest):
    """Request to stop that all ranks heed at the same step."""

    agreed = False
    alone = False
    """True once this rank goes its own way."""

    def __bool__(self) -> bool:
        if self.alone:
            return super().__bool__()
        # All come to a limit of steps at once, and need not talk about it.
        return self.agreed or (self.at_limit and super().__bool__())

    def own(self) -> list[Any] | None:
        """Return this rank's reason and exit code, None without a request."""
        return [self.reason, self.exit_code] if super().__bool__() else None

    def settle(self, requests: list[list[Any] | None]) -> None:
        """Take note of what all ranks have asked for."""
        for request in filter(None, requests):
            self.agreed = True
            self.reason, self.exit_code = request
            break


@dataclass
class Ranks:
    """Processes that train one network, and this one among them.

    The batch of all is cut into `shards` (`backends.shards`), of which each rank has some.
    """

    link: Communicator = field(default_factory=Single)
    shards: int = 1
    parallel: str = "data"
    """Strategy: one of `distributed.plan.STRATEGIES`."""
    check_sync: int = 0
    """Steps after which weights are compared, 0 for never."""
    stop: SharedStop | None = None
    """That of the training under way."""
    _unreadable: dict[int, set[int]] = field(default_factory=dict)
    """Unreadable images that all ranks know of, by loader."""

    @property
    def alone(self) -> bool:
        """True for one process that computes whole batches."""
        return self.link.size == self.shards == 1

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""
        return self.link.rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.link.size

    @property
    def first(self) -> bool:
        """True on the rank that writes files and messages."""
        return self.link.rank == 0

    @property
    def peers(self) -> int:
        """Ranks that have the same rows: two towers, or one."""
        return 2 if self.parallel == "towers" else 1

    @cached_property
    def spans(self) -> list[Span]:
        """Shards of each rank."""
        spans = spans_of_ranks(self.shards, self.link.size // self.peers)
        return [span for span in spans for _ in range(self.peers)]

    @cached_property
    def tree_of_all(self) -> Tree:
        """Order of sums of all ranks, also of those without shards."""
        return tree_of_ranks(spans_of_ranks(self.size, self.size))

    @cached_property
    def tree(self) -> Tree:
        """Order of sums of ranks; in towers, of equal ones."""
        own = self.link.rank % self.peers
        alike = [rank % self.peers == own for rank in range(self.link.size)]
        return tree_of_ranks(
            [span if like else (0, 0) for span, like in zip(self.spans, alike, strict=True)]
        )

    def part(self, images: int, own: int | None = None) -> Part:
        """Return this rank's part of a batch of all ranks.

        It may have fewer images of its `own` than planned, where one took too long to read.
        """
        first, last = self.spans[self.rank]
        part = part_of(images, self.shards, (first, last))
        if own is not None and own < part.rows.stop - part.rows.start:
            sizes = part_of(own, last - first, (0, 0)).sizes
            part = Part((*part.sizes[:first], *sizes, *part.sizes[last:]), part.span)
        return part

    def rows(self, images: int) -> slice:
        """Return this rank's images in a batch of all ranks."""
        return self.part(images).rows

    def have(self, mine: bool) -> bool:
        """Return whether `mine` is true on all ranks."""
        return all(self.link.share("what is there", mine).wait())

    def add_up(self, sums: PixelSums, bad: Unreadable, problem: Exception | None) -> None:
        """Replace sums over images and unreadable ones by those of all ranks.

        Raises the problem of the first rank that has one, on all ranks alike.
        """
        # A fault of this rank's machine; a fault of the images is the same on all.
        of_rank = not isinstance(problem, DataError)
        why = problem and [of_rank, f"rank {self.rank}: " * of_rank + one_sentence(problem)]
        told = [sums.count, list(bad.reasons.items()), bad.lasting, why]
        everything = self.link.share("sums", told).wait()
        for rank, (count, unreadable, lasting, why) in enumerate(everything):
            if why:
                raise _error(*why) from problem
            sums.count += count if rank != self.rank else 0
            bad.lasting = bad.lasting and lasting
            bad.reasons.update(dict(unreadable))
        bad.check(len(bad.reasons))
        for name, array in (("mean", sums.image), ("colours", sums.products)):
            self.link.sum(name, array, self.tree_of_all).wait()

    def part_of_counts(self, counts: Sequence[int]) -> Part:
        """Return this rank's part, given how many images each rank has read."""
        sizes: list[int] = []
        for (first, last), own in list(zip(self.spans, counts, strict=True))[:: self.peers]:
            sizes += part_of(own, last - first, (0, 0)).sizes if first < last else ()
        return Part(tuple(sizes), self.spans[self.rank])

    def rows_with_partners(self, images: int) -> slice:
        """Return `rows` and those with which `mixing.mixed` blends them, pairs of two."""
        rows = self.rows(images)
        if rows.start == rows.stop:
            return rows
        return slice(rows.start - rows.start % 2, min(images, rows.stop + rows.stop % 2))

    def own_rows(self, batch: Batch, images: int) -> Batch:
        """Return the rows of this rank alone, of a batch with partners."""
        rows, more = self.rows(images), self.rows_with_partners(images)
        own = slice(rows.start - more.start, rows.stop - more.start)
        targets = None if batch.targets is None else batch.targets[own]
        return Batch(batch.images[own], batch.labels[own], batch.indices[own], targets)

    def tell(self, what: str, data: Loader, **own: Any) -> list[dict[str, Any]]:
        """Return what all ranks tell under a label, `own` being this rank's.

        With it go requests to stop and images that cannot be read. Raises DataError where these
        are too many, and DataError or WorkerError for the "problem" of another rank.
        """
        known = self._unreadable.setdefault(id(data), set())
        new = [i for i in data.unreadable if i not in known]
        told = {
            **own,
            "stop": None if self.stop is None else self.stop.own(),
            "unreadable": [[i, data.unreadable[i]] for i in new],
        }
        everything = self.link.share(what, told).wait()
        if self.stop is not None:
            self.stop.settle([one["stop"] for one in everything])
        found = {i: reason for one in everything for i, reason in one["unreadable"]}
        known |= found.keys()
        data.leave_out({i: reason for i, reason in found.items() if i not in data.unreadable})
        for rank, one in enumerate(everything):
            if problem := one.get("problem"):
                of_worker, text = problem
                raise _error(of_worker, f"rank {rank}: {text}")
        if found:
            data.check_left_out(len(known))
        return everything

    def watched(self, batches: Iterator[Item], data: Loader, label: str = LOSSES) -> Iterator[Item]:
        """Yield batches; tell the other ranks where they cannot be read."""
        try:
            yield from batches
        except (DataError, WorkerError) as error:
            with suppress(DataError, WorkerError):
                self.tell(label, data, problem=_told(error))
            raise


def _told(error: Exception) -> tuple[bool, str]:
    """Return whether an error is of a worker, and its text."""
    return isinstance(error, WorkerError), one_sentence(error)


def _error(of_worker: bool, text: str) -> Exception:
    """Return an error as another rank has raised it."""
    return WorkerError(text) if of_worker else DataError(text)
