"""Schemas of what is read from files, as plain data.

A schema is a `Rule` for one value; a list with the schema of all items; a dict with the schemas of
the keys, of which those in `Maybe` may be missing; or `Each`, for a dict with keys of any names.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Schema = Any
EXACT = 2**53
"""Up to here every whole number is a float as well."""


class SettingError(ValueError):
    """Value that a setting cannot have.

    A command calls the setting by its option.
    """

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(setting, reason)
        self.setting, self.reason = setting, reason

    def __str__(self) -> str:
        return f"{self.setting} {self.reason}"


@dataclass(frozen=True)
class Rule:
    """Condition on a value, and words for it; `a | b` is either."""

    expected: object
    """Text, or what becomes text when it is needed."""
    holds: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        expected = f"{self.expected} or {other.expected}"
        return Rule(expected, lambda value: self.holds(value) or other.holds(value))


@dataclass(frozen=True)
class Maybe:
    """The schema of a key that may be missing."""

    schema: Schema


@dataclass(frozen=True)
class Each:
    """The schema of every value of a dict."""

    schema: Schema


def check(value: Any, schema: Schema, name: str = "") -> None:
    """Raise ValueError, which names the place, unless a value fits the schema.

    Keys that a schema does not have are left alone: a later version may write more.
    """
    if isinstance(schema, Rule):
        if not schema.holds(value):
            raise ValueError(f"{name} must be {schema.expected}, got {shown(value)}")
        return
    kind = Rule("a list", lambda value: type(value) is list) if isinstance(schema, list) else DICT
    check(value, kind, name or "the content")
    if isinstance(schema, list):
        for place, item in enumerate(value):
            check(item, schema[0], f"{name}.{place}")
    elif isinstance(schema, Each):
        for key, item in value.items():
            check(item, schema.schema, f"{name}.{reprlib.repr(key)}")
    else:
        for key, inner in schema.items():
            below = f"{name}.{key}" if name else key
            if key in value:
                check(value[key], inner.schema if isinstance(inner, Maybe) else inner, below)
            elif not isinstance(inner, Maybe):
                raise ValueError(f"{below} is missing")


def shown(value: Any) -> str:
    """Return a value as a message shows it, however large it is."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return reprlib.repr(value)


def _is_text(value: Any) -> bool:
    if type(value) is not str or len(value) > 4096:
        return False
    try:
        value.encode("utf-8", "surrogateescape")  # as the names of files
    except UnicodeEncodeError:
        return False
    return True


NOTHING = Rule("None", lambda value: value is None)
FLAG = Rule("True or False", lambda value: type(value) is bool)
TEXT = Rule("text of at most 4096 characters", _is_text)
DICT = Rule("a dict", lambda value: type(value) is dict)
ARRAY = Rule("an array", lambda value: isinstance(value, np.ndarray))


def whole(least: int = 0, most: int = EXACT) -> Rule:
    """Return the rule of whole numbers in a range."""
    expected = f"a whole number >= {least}"
    if most < EXACT:
        expected = f"a whole number from {least} to {most}"
    return Rule(expected, lambda value: type(value) is int and least <= value <= most)


def number(least: float = -math.inf, most: float = math.inf) -> Rule:
    """Return the rule of finite numbers in a range."""
    expected = "a finite number"
    if most < math.inf:
        expected += f" from {least:g} to {most:g}"
    elif least > -math.inf:
        expected += f" >= {least:g}"
    return Rule(
        expected,
        lambda value: (
            type(value) in (int, float)
            and least <= value <= most
            and abs(value) <= sys.float_info.max
        ),
    )


def one_of(known: Iterable[str]) -> Rule:
    """Return the rule of known words, looked up at each check."""
    return Rule(_Names(known), lambda value: type(value) is str and value in known)


@dataclass(frozen=True)
class _Names:
    known: Iterable[str]

    def __str__(self) -> str:
        return "one of " + ", ".join(self.known)


def list_of(rule: Rule, least: int, most: int) -> Rule:
    """Return the rule of lists and tuples of so many values."""
    return Rule(
        f"a list of {least} to {most}, each {rule.expected}",
        lambda value: (
            isinstance(value, (list, tuple))
            and least <= len(value) <= most
            and all(map(rule.holds, value))
        ),
    )


def array_of(dtype: str, *shape: int | None) -> Rule:
    """Return the rule of arrays; None in `shape` is any size."""
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return Rule(
        f"an array of {dtype} of shape ({sizes})",
        lambda value: (
            isinstance(value, np.ndarray)
            and value.dtype == np.dtype(dtype)
            and value.ndim == len(shape)
            and all(size in (None, own) for size, own in zip(shape, value.shape, strict=True))
        ),
    )
