"""Shared memory of tensors and its version counter, which backward checks."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tinyalex.locks import new_rlock

if TYPE_CHECKING:
    from tinyalex.tensor import Tensor

# Threads may make views of one tensor at once, and none is to be lost.
_turn = new_rlock()

Saved = Sequence[tuple["Storage", int]]


class Storage:
    """The memory behind a tensor, its detached aliases and its views.

    Every write of this library counts up ``version``; what NumPy writes into ``tensor.data`` (or
    into an array that a tensor was made of) is not seen.
    """

    version = 0
    _views: dict[int, weakref.ref[Tensor]] | None = None
    _room = 8

    def __reduce__(self) -> tuple[type[Storage], tuple[()]]:
        return Storage, ()  # a copy is other memory

    def add_view(self, base: Tensor, view: Tensor) -> None:
        """Take note that an operation made ``view`` of ``base``, here."""
        with _turn:
            views = self._views or {}
            if len(views) >= self._room:  # rarely, so that a view costs the same among many
                views = {key: ref for key, ref in views.items() if ref() is not None}
                self._room = 2 * len(views) + 8
            views[id(base)], views[id(view)] = weakref.ref(base), weakref.ref(view)
            self._views = views

    def others(self, tensor: Tensor) -> Iterable[Tensor]:
        """Yield the live tensors that share memory with ``tensor`` as views."""
        with _turn:
            in_use = [ref() for ref in (self._views or {}).values()]
        if any(view is tensor for view in in_use):  # not an alias that was detached
            yield from (view for view in in_use if view is not None and view is not tensor)


def owner_of(array: Any, tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return the one of ``tensors`` in whose memory ``array`` lies.

    ``array`` is its data, or a view of it.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    for tensor in given:  # first of all, since several may be views of one array of the caller's
        if array is tensor._values:
            return tensor
    base = array.base
    for tensor in given:
        data = tensor._values
        if array is data.base or (base is not None and (base is data or base is data.base)):
            return tensor
    return None


def versions_of(values: Sequence[Any], tensors: Sequence[Tensor | None]) -> Saved:
    """Return the storage and current version of each array of a tensor."""
    versions = []
    for value in values:
        if hasattr(value, "base") and (tensor := owner_of(value, tensors)) is not None:
            versions.append((tensor._storage, tensor._storage.version))
    return versions
