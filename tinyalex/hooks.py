"""Hooks: functions that a module or a tensor calls, and their removal."""

from __future__ import annotations

from collections.abc import Callable
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
