"""Names and text as they are printed: on one line, with escapes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of what steers terminals, breaks lines or stands for bytes that are no UTF-8.

Others that str.isprintable() refuses are parts of real names: joiners, wide spaces.
"""

_REVERSING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of what changes the order of the characters around it."""


def printable(name: str | os.PathLike[str]) -> str:
    r"""Return a name or a path on one line, quoted if needed.

    >>> printable("a\nb.png"), printable("caf\udce9"), printable("a /b")
    ('a\\nb.png', 'caf\\xe9', "'a /b'")
    """
    text = escaped(os.fspath(name))
    plain = text and all(part == part.strip() for part in text.split("/"))
    return text if plain else f"'{text}'"


def escaped(text: str) -> str:
    """Return text with control characters and invalid characters escaped."""
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def counted(number: int, one: str, more: str | None = None) -> str:
    """Return a number with its noun or verb, ``more`` being the plural.

    >>> counted(1, "epoch"), counted(2, "epoch"), counted(0, "class"), counted(3, "is", "are")
    ('1 epoch', '2 epochs', '0 classes', '3 are')
    """
    plural = more or one + ("es" if one.endswith(("s", "tch")) else "s")
    return f"{number} {one if number == 1 else plural}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share in percent, with more digits where it is small.

    >>> percent(0.873), percent(0.0525), percent(0.0012, 1), percent(4e-7), percent(0.0)
    ('87%', '5.2%', '0.12%', '<0.01%', '0%')
    """
    if 0 < share < 5e-5:
        return "<0.01%"
    least = 0 if share == 0 or share >= 0.0995 else 1 if share >= 0.00995 else 2
    return f"{share:.{max(digits, least)}%}"


def listed(names: Iterable[str | bytes], limit: int = 5) -> str:
    """Return the first names for a message, and the number of others.

    >>> listed(["a", b"b", "c"], limit=2), listed([])
    ('a, b and 1 more', 'none')
    """
    names = list(names)
    shown = ", ".join(printable(os.fsdecode(name)) for name in names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    steers = unicodedata.category(character) in UNPRINTABLE
    if steers or unicodedata.bidirectional(character) in _REVERSING:
        return character.encode("unicode_escape").decode()
    return character
