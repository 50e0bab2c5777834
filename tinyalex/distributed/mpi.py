"""Sums and exchanges of arrays between ranks, through MPI."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

import numpy as np

from tinyalex.backends import array_module
from tinyalex.backends.devices import on_gpu, parse
from tinyalex.backends.shards import Tree
from tinyalex.backends.types import Array
from tinyalex.distributed.communicator import CommunicationError, Pending, ranks_of
from tinyalex.distributed.mpi_thread import BEAT, LONGEST_NAP, MPIThread, Open
from tinyalex.distributed.nccl import GPULink
from tinyalex.interrupts import LeftError

T = TypeVar("T")

PIECE = 240 << 10
"""Bytes of one message at most: each that arrives is a sign of life.

UCX, below MPICH, sends up to 253 KB at once, and asks the receiver before it sends more.
"""

BLOCK = 1 << 20
"""Bytes that are added at a time: they fit into a core's cache."""

AHEAD = 8
"""Blocks of a sum that are under way at a time."""

ROOM = 1 << 26
"""Bytes at most of what other ranks have sent for a sum."""

_DATA, _TERM, _TOTAL = 3, 4, 5  # tags of messages


class _OnGPU(Pending[T]):
    """Request that an event of a GPU ends."""

    def __init__(self, owner: MPICommunicator, label: str, started: Pending[tuple[T, Any]]) -> None:
        self._owner, self._label, self._started = owner, label, started

    def wait(self) -> T:
        result, event = self._started.wait()
        self._owner.wait_for_gpu(self._label, event)
        return result


class MPICommunicator(MPIThread):
    """Ranks under MPI.

    All is sent point to point, so sums are taken in an order that no library chooses.

    The header of a request says what is asked for: ranks that do not ask for the same end with an
    error. `sum` sends chunk j of the array to rank j, which adds those of all ranks and sends the
    result to all: the bytes of a ring, 2 (n - 1) / n times the array from each of n ranks. It needs
    memory for `AHEAD` blocks of each other rank. Arrays on GPUs are sent and added in the same way,
    as much of them as fits into `ROOM`: once the headers are there, the thread asks a stream for it
    (`nccl.GPULink`).
    """

    _gpu: GPULink | None = None

    def connect(self, device: str) -> None:
        """Connect this device with those of all ranks, at once."""
        if (device := parse(device)) != "cpu":
            index = int(device.partition(":")[2])
            self._ask("the start of NCCL", lambda: self._connect(index)).wait()

    def wait_for_gpu(self, label: str, event: Any) -> None:
        """Wait for an event; end all ranks after `timeout` seconds."""
        assert self._gpu is not None
        begun = now = time.monotonic()
        waited = 0.0
        self._waiting = True
        while not self._gpu.ended(label, event):
            if waited >= self.timeout:
                self._give_up(label)
            time.sleep(min(LONGEST_NAP, waited / 10))
            before, now = now, time.monotonic()
            waited += min(BEAT, now - before)  # it is longer after a pause of the whole job
        self._waiting = False
        self.waited += time.monotonic() - begun

    def _end(self) -> None:
        if (gpu := self._gpu) is not None:  # also for work that was not waited for
            self._insist(_OnGPU(self, "end", self._put("end", lambda: (None, gpu.now()))))
        super()._end()

    def _ask(self, label: str, work: Callable[[], T], array: Array | None = None) -> Pending[T]:
        if not on_gpu(array):
            return super()._ask(label, work)
        if (gpu := self._gpu) is None:
            raise CommunicationError(f"{label}: an array on a GPU, before `connect`")
        ready = gpu.now()
        return _OnGPU(self, label, super()._ask(label, lambda: gpu.run(label, ready, work)))

    # --- in the thread ----------------------------------------------------------------------------

    def _connect(self, index: int) -> None:
        self._gpu = GPULink(index, self.rank)
        way = self._gpu.join(self._agree(["connect"], self._gpu.offer()))
        self.engine += f", arrays on GPUs {way}"

    def _share(self, label: str, value: Any) -> list[Any]:
        return self._agree(["share", label], value)

    def _agree(self, request: list[Any], value: Any = None) -> list[Any]:
        """Return the values of all ranks, whose requests must be the same."""
        header = json.dumps([request, value]).encode()
        open_ = self._send_header(header)
        headers: dict[int, bytes | bytearray] = {self.rank: header}
        missing = set(self._others)
        for peer, theirs in self._headers(missing, open_):
            if len(theirs) == 1:
                self._complete([open_.pop()])
                self._left.add(peer)
                self._dropped = open_
                raise LeftError(theirs[0])
            headers[peer] = theirs
            missing.remove(peer)
        self._complete(open_)
        values = []
        for peer in range(self.size):
            asked, value = json.loads(headers[peer])
            if asked != request:
                self._refuse(request, asked, peer)
            values.append(value)
        return values

    def _refuse(self, ours: list[Any], theirs: list[Any], peer: int) -> NoReturn:
        first, second = (" ".join(map(str, words)) for words in (ours, theirs))
        raise CommunicationError(
            f"ranks must ask for the same things in the same order, but rank {self.rank} asks for "
            f"{first}, and rank {peer} for {second}"
        )

    def _gather(self, label: str, array: np.ndarray) -> list[np.ndarray]:
        array = np.ascontiguousarray(array)
        like = ["gather", label, array.dtype.str, *array.shape[1:]]
        lengths = self._agree(like, len(array))
        arrays = [np.empty((length, *array.shape[1:]), array.dtype) for length in lengths]
        arrays[self.rank] = array
        self._transfer([array] * self.size, arrays)
        return arrays

    def _exchange(self, label: str, parts: list[Array], into: list[Array]) -> list[Array]:
        xp, dtype = array_module(parts[0]), parts[0].dtype
        parts = [xp.ascontiguousarray(part) for part in parts]
        shapes = self._agree(["exchange", label, dtype.str], [part.shape for part in parts])
        for peer, (array, sent) in enumerate(zip(into, shapes, strict=True)):
            if array.shape != tuple(sent[self.rank]):
                raise CommunicationError(
                    f"{label}: rank {self.rank} expects {array.shape} from rank {peer}, which "
                    f"sends {tuple(sent[self.rank])}"
                )
        self._transfer(parts, into)
        return into

    def _sum(self, label: str, array: Array, tree: Tree) -> None:
        what = ["sum", label, array.dtype.str]
        asked = self._agree(what, [*array.shape, repr(tree)])
        mine = asked[self.rank]
        group = [rank for rank, theirs in enumerate(asked) if theirs == mine]
        terms = set(ranks_of(tree, self.size))
        for rank, theirs in enumerate(asked):
            shared = rank in terms or terms & set(map(int, re.findall(r"\d+", theirs[-1])))
            if theirs != mine and shared:
                self._refuse([*what, *mine], [*what, *theirs], rank)
        xp = array_module(array)
        line = xp.ascontiguousarray(array).reshape(-1)
        if on_gpu(line):
            length = ROOM // line.itemsize
            for start in range(0, line.size, length):
                self._sum_on_gpu(line[start : start + length], tree, group)
        else:
            self._sum_line(line, tree, group)
        if not xp.may_share_memory(line, array):
            array[...] = line.reshape(array.shape)

    def _sum_on_gpu(self, block: Array, tree: Tree, group: list[int]) -> None:
        nothing, xp = block[:0], array_module(block)
        parts = _chunks(block, group)
        chunks = [parts.get(rank, nothing) for rank in range(self.size)]
        mine = chunks[self.rank]
        terms = ranks_of(tree, self.size)
        received = [xp.empty_like(mine) if r in terms else nothing for r in range(self.size)]
        received[self.rank] = mine
        self._transfer(chunks if self.rank in terms else [nothing] * self.size, received)
        total = _add(tree, dict(enumerate(received)))
        if total is not mine:
            mine[...] = total
        back = [mine if rank in group else nothing for rank in range(self.size)]
        self._transfer(back, chunks)

    def _sum_line(self, line: np.ndarray, tree: Tree, group: list[int]) -> None:
        """Sum a line over the ranks of a group.

        A block is added while it is in the processor's cache, and goes back while others come.
        """
        here = group.index(self.rank)
        others = group[here + 1 :] + group[:here]  # each rank begins with another one
        terms = set(ranks_of(tree, self.size))
        senders = [rank for rank in others if rank in terms]
        chunks = _chunks(line, group)
        mine = chunks[self.rank]
        length = max(1, min(BLOCK, ROOM // (AHEAD * len(group))) // line.itemsize)
        room = np.empty((AHEAD, len(senders), min(length, len(mine))), line.dtype)
        under_way = deque[tuple[slice, dict[int, np.ndarray], Open, Open]]()
        back = deque[Open]()

        def begin(number: int) -> None:
            """Send a block of each chunk to the rank that adds it."""
            block = slice(number * length, (number + 1) * length)
            rows = [row[: len(mine[block])] for row in room[number % AHEAD]]
            got = dict(zip(senders, rows, strict=True))
            coming = [one for rank in senders for one in self._receive(got[rank], rank, _TERM)]
            going: Open = []
            for rank in others if self.rank in terms else ():
                going += self._send(chunks[rank][block], rank, _TERM)
            under_way.append((block, got, coming, going))

        def finish() -> None:
            """Add a block of this rank's chunk, and send it to all."""
            block, got, coming, going = under_way.popleft()
            own = mine[block]
            self._complete(coming)
            total = _add(tree, {**got, self.rank: own}, own)
            if total is not own:
                own[...] = total
            self._complete(going)  # before their places are taken by sums
            sums: Open = []
            for rank in others:
                sums += self._receive(chunks[rank][block], rank, _TOTAL)
                sums += self._send(own, rank, _TOTAL)
            back.append(sums)
            if len(back) > AHEAD:  # those have come before the terms of this block
                self._complete(back.popleft())

        for number in range(-(-max(map(len, chunks.values())) // length)):
            if len(under_way) == AHEAD:
                finish()
            begin(number)
        while under_way:
            finish()
        for sums in back:
            self._complete(sums)

    def _transfer(self, parts: Sequence[Array], into: Sequence[Array]) -> None:
        """Send a part to each other rank; receive one from each."""
        if self._gpu is not None and on_gpu(parts[self.rank]):
            self.sent += self._gpu.transfer(parts, into, self._transfer)
            return
        peers = [(self.rank + away) % self.size for away in range(1, self.size)]
        open_: Open = []
        for peer in peers:
            open_ += self._receive(into[peer], peer, _DATA)
        for peer in peers:  # each rank begins with another one
            open_ += self._send(parts[peer], peer, _DATA)
        self._complete(open_)

    def _send(self, array: np.ndarray, peer: int, tag: int) -> Open:
        self.sent += array.nbytes
        return self._open(self._ranks.Isend, array, peer, tag)

    def _receive(self, array: np.ndarray, peer: int, tag: int) -> Open:
        return self._open(self._ranks.Irecv, array, peer, tag)

    def _open(self, call: Callable[..., Any], array: np.ndarray, peer: int, tag: int) -> Open:
        line = array.reshape(-1).view(np.uint8)
        starts = range(0, len(line), PIECE)
        return [(call(line[start : start + PIECE], peer, tag), peer) for start in starts]


def _chunks(line: Array, group: list[int]) -> dict[int, Array]:
    """Return the part of a line that each rank adds."""
    bounds = [len(line) * place // len(group) for place in range(len(group) + 1)]
    return {rank: line[a:b] for rank, (a, b) in zip(group, pairwise(bounds), strict=True)}


def _add(tree: Tree, terms: Mapping[int, Array], into: Array | None = None) -> Array:
    """Return the sum in the order of the tree; it overwrites terms."""
    if isinstance(tree, int):
        return terms[tree]
    left, right = (_add(branch, terms) for branch in tree)
    return np.add(left, right, out=left if into is None else into)
