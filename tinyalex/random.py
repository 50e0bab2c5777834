"""The random state of the library: one generator for initial weights, one counter for dropout.

Both are set by `manual_seed` and fit in a JSON object, so that a checkpoint can carry them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

_generator = np.random.default_rng(0)
_seed = 0
_draws = 0


def manual_seed(seed: int) -> None:
    """Start all random draws of the library anew from ``seed``, an integer >= 0."""
    global _generator, _seed, _draws
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"the seed must be an integer >= 0, got {seed!r}")
    _generator = np.random.default_rng(int(seed))
    _seed, _draws = int(seed), 0


def generator() -> np.random.Generator:
    """Return the generator that draws initial weights (PCG64)."""
    return _generator


def next_key() -> int:
    """Return a fresh 64-bit key: a function of the seed and of how many were drawn before."""
    global _draws
    digest = hashlib.blake2b(f"{_seed} {_draws}".encode(), digest_size=8).digest()
    _draws += 1
    return int.from_bytes(digest, "little")


def get_state() -> dict[str, Any]:
    """Return the whole random state as a JSON-able dictionary, for `set_state`."""
    return {"generator": _generator.bit_generator.state, "seed": _seed, "draws": _draws}


def set_state(state: dict[str, Any]) -> None:
    """Continue exactly where `get_state` was called. Raises ValueError for anything else."""
    global _generator, _seed, _draws
    fresh = np.random.default_rng(0)
    try:
        fresh.bit_generator.state = state["generator"]
        seed, draws = int(state["seed"]), int(state["draws"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a dictionary made by get_state(), got {state!r}") from error
    _generator, _seed, _draws = fresh, seed, draws
