"""Random state of the library: a generator for weights, keys for dropout.

Keys are functions of the seed and of a counter; once `start_step` was called, of the seed, the
step and a counter that begins anew in every step. So what is drawn between two steps of training,
by an evaluation for example, changes nothing in the next one. All of it is set by `manual_seed` and
fits in a JSON object, so that a checkpoint can carry it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyalex.locks import new_rlock

_generator = np.random.default_rng(0)
_seed = 0
_step: int | None = None
_draws = 0
_turn = new_rlock()


class _Given(threading.local):
    keys: Iterator[int] | None = None


_given = _Given()


def manual_seed(seed: int) -> None:
    """Restart all random draws of the library from ``seed``, an integer >= 0."""
    global _generator, _seed, _step, _draws
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"the seed must be an integer >= 0, got {seed!r}")
    with _turn:
        _generator = np.random.default_rng(int(seed))
        _seed, _step, _draws = int(seed), None, 0


def start_step(step: int) -> None:
    """Make the next keys functions of the seed, ``step`` and their order.

    A training loop calls this at the start of every step; ``step`` is an integer >= 0.
    """
    global _step, _draws
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
        raise ValueError(f"the step must be an integer >= 0, got {step!r}")
    with _turn:
        _step, _draws = int(step), 0


def generator() -> np.random.Generator:
    """Return the generator that draws initial weights (PCG64)."""
    return _generator


def next_key() -> int:
    """Return a 64-bit key: a function of seed, step and earlier draws."""
    global _draws
    if _given.keys is not None:
        return _next_given(_given.keys)
    with _turn:  # no two threads draw the same key
        place = f"{_seed} {_draws}" if _step is None else f"{_seed} {_step} {_draws}"
        _draws += 1
    digest = hashlib.blake2b(place.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@contextmanager
def keys_from(keys: Iterable[int]) -> Iterator[None]:
    """Let `next_key` return these keys in a ``with`` block of this thread.

    They are not drawn: what is drawn afterwards is what would have been drawn without them. A key
    beyond the last one raises RuntimeError.
    """
    before, _given.keys = _given.keys, iter(keys)
    try:
        yield
    finally:
        _given.keys = before


def _next_given(keys: Iterator[int]) -> int:
    for key in keys:
        return key
    raise RuntimeError("more keys were asked for than `keys_from` was given")


def get_state() -> dict[str, Any]:
    """Return the whole random state as a JSON-able dictionary, for `set_state`."""
    with _turn:
        return {
            "generator": _generator.bit_generator.state,
            "seed": _seed,
            "step": _step,
            "draws": _draws,
        }


def set_state(state: dict[str, Any]) -> None:
    """Continue exactly where `get_state` was called. Raises ValueError for anything else.

    A state from before steps were counted, without "step", is one in which none has begun.
    """
    global _generator, _seed, _step, _draws
    fresh = np.random.default_rng(0)
    try:
        fresh.bit_generator.state = state["generator"]
        seed, draws = int(state["seed"]), int(state["draws"])
        step = None if state.get("step") is None else int(state["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a dictionary made by get_state(), got {state!r}") from error
    with _turn:
        _generator, _seed, _step, _draws = fresh, seed, step, draws
