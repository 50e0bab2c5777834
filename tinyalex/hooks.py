"""Hooks: functions that a module or a tensor calls, and their removal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any


class Registration:
    """One registration of a hook; the same hook may have several."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook


class HookHandle:
    """Removes a hook: call ``remove()``, or leave its ``with`` block."""

    def __init__(self, owner: Any, attribute: str, hook: Any, form: str) -> None:
        """Add the hook to a tuple of registrations, the owner's attribute.

        Raises TypeError, which names the ``form`` of its call, for what cannot be called.
        """
        if not callable(hook):
            raise TypeError(f"a hook must be callable as {form}, got {hook!r}")
        self._owner, self._attribute = owner, attribute
        self._registration = Registration(hook)
        setattr(owner, attribute, (*getattr(owner, attribute), self._registration))

    def remove(self) -> None:
        """Take this registration off; a second call does nothing."""
        hooks = getattr(self._owner, self._attribute)
        kept = tuple(one for one in hooks if one is not self._registration)
        setattr(self._owner, self._attribute, kept)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class GradHooks:
    """Calls of leaves' hooks in one backward, with complete gradients."""

    _to_come: Counter[int] | None = None  # gradients by leaf, once one with a hook was met

    def after(
        self, leaf: Any, arrived: Sequence[tuple[Any, Any]], waiting: Sequence[tuple[int, Any]]
    ) -> None:
        """Take note of a gradient that was added to a leaf.

        It is the first of those that ``arrived``; ``waiting`` are the nodes that the walk has still
        to pass.
        """
        if self._to_come is None:
            if not leaf._grad_hooks:
                return
            edges = [edge for edge, _ in arrived]
            self._to_come = _count_leaves(edges + [node for _, node in waiting])
        self._to_come[id(leaf)] -= 1
        if not self._to_come[id(leaf)] and leaf.requires_grad:
            for registration in leaf._grad_hooks:
                registration.hook(leaf)


def _count_leaves(edges: list[Any]) -> Counter[int]:
    """Return how many edges lead to each leaf, by its id."""
    found: Counter[int] = Counter()
    seen: set[int] = set()
    while edges:
        edge = edges.pop()
        further = getattr(edge, "edges", None)  # of a node
        if further is None:
            found[id(edge)] += 1
        elif id(edge) not in seen:
            seen.add(id(edge))
            edges += [one for one in further if one is not None]
    return found
