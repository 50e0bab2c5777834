"""Base of `use_backend` and `use_fusion`: settings, permanent or for a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar

from tinyalex.locks import new_rlock

_turn = new_rlock()


class Choice:
    """A value set for all threads, permanently or within a ``with`` block.

    Blocks may be nested, overlap, and share one object: the last choice that is still open counts,
    and is ``current``. Where all are closed, that is what the class was defined with.
    """

    current: ClassVar[Any]
    _default: ClassVar[Any]
    _open: ClassVar[list[Choice]]

    def __init_subclass__(cls, default: Any) -> None:
        cls.current = cls._default = default
        cls._open = []

    def __init__(self, value: Any) -> None:
        self._value = value
        self._for_good = True
        self._begin()

    def __enter__(self) -> None:
        if self._for_good:
            self._end()
            self._for_good = False
        self._begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _begin(self) -> None:
        kind = type(self)
        with _turn:
            kind._open.append(self)
            kind.current = self._value

    def _end(self) -> None:
        kind = type(self)
        with _turn:
            del kind._open[-1 - kind._open[::-1].index(self)]
            kind.current = kind._open[-1]._value if kind._open else kind._default
