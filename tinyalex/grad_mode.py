"""The switch of recording: whether operations leave behind what backward needs."""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable, Generator
from typing import Any


class _Mode:
    """Recording is off while there are open blocks of `no_grad`."""

    blocks = 0


class _Thread(threading.local):
    def __init__(self) -> None:
        self.mode = _Mode()


_thread = _Thread()


def is_grad_enabled() -> bool:
    """Return whether operations record what backward needs (per thread)."""
    return _thread.mode.blocks == 0


class no_grad:  # noqa: N801 (torch's name)
    """Compute without recording: ``with no_grad(): ...``, or ``@no_grad()`` above a function.

    Blocks may be nested, overlap, and share one object; recording is on again after the last one.
    A generator or a coroutine under the decorator has the mode for itself: between its steps its
    caller finds its own. Raises TypeError for a class: it would be unclear which methods are meant.
    """

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        """Return a context or, as a decorator without parentheses, the decorated function."""
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self, function: None = None) -> None:
        self._entered: list[_Mode] = []

    def __enter__(self) -> None:
        mode = _thread.mode
        mode.blocks += 1
        self._entered.append(mode)

    def __exit__(self, *exception: object) -> None:
        mode = _thread.mode
        if mode not in self._entered:  # another thread ends the generator that this block is in
            mode = self._entered[-1]
        self._entered.remove(mode)
        mode.blocks -= 1

    def __call__(self, function: Callable[..., Any]) -> Any:
        """Return ``function`` so that it computes without recording."""
        if inspect.isclass(function) or not callable(function):
            raise TypeError(f"no_grad decorates functions and methods, got {function!r}")
        if inspect.isasyncgenfunction(function):
            raise TypeError(
                "no_grad does not decorate asynchronous generators: use `with no_grad():` inside, "
                "around what does not wait"
            )
        decorated: Callable[..., Any]
        if inspect.iscoroutinefunction(function):

            async def decorated(*args: Any, **kwargs: Any) -> Any:
                return await _await_without_recording(function(*args, **kwargs))

        elif inspect.isgeneratorfunction(function):

            def decorated(*args: Any, **kwargs: Any) -> Any:
                return (yield from _without_recording(function(*args, **kwargs)))

        else:

            def decorated(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        return functools.wraps(function)(decorated)


def _without_recording(body: Any) -> Generator[Any, Any, Any]:
    """Run a generator or coroutine in a grad mode of its own.

    Between its steps the caller's mode holds.
    """
    inside = _Mode()
    inside.blocks = 1

    def step(resume: Callable[..., Any], *values: Any) -> Any:
        outside, _thread.mode = _thread.mode, inside
        try:
            return resume(*values)
        finally:
            _thread.mode = outside

    try:
        result = step(body.send, None)
        while True:
            try:
                sent = yield result
            except GeneratorExit:
                step(body.close)
                raise
            except BaseException as error:
                result = step(body.throw, error)
            else:
                result = step(body.send, sent)
    except StopIteration as end:
        return end.value


_await_without_recording = types.coroutine(_without_recording)
