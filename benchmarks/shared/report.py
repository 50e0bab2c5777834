"""Description of the machine, and tables for the documents."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import statistics
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from tinyalex.folders import write_atomically
from tinyalex.threads import available_cores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TIMES = "\N{MULTIPLICATION SIGN}"
OWN_LIBRARIES = ("tinyalex", "numpy", "numba", "scipy")


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints a command's docstring as it stands."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def machine(*peers: str) -> dict[str, Any]:
    """Return processor, cores, versions and date, to judge a time by.

    ``peers`` are the libraries, besides our own, that took part.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": available_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in (*OWN_LIBRARIES, *peers)},
    }


def one_line(facts: dict[str, Any]) -> str:
    """Return the facts of `machine` as one line below a table."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    cores = f"{facts['cores']} core{'s' if facts['cores'] > 1 else ''}"
    return f"{facts['date']}, {facts['processor']}, {cores}; {versions}"


def machines(found: dict[str, Any], rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return machines of rows, each once; `found` names the others'."""
    return list(dict.fromkeys(one_line(row.get("machine") or found["machine"]) for row in rows))


def measured_on(found: dict[str, Any], rows: Iterable[dict[str, Any]]) -> str:
    """Return `machines` in one line."""
    return "; ".join(machines(found, rows))


class Ratio(NamedTuple):
    """Others' median time relative to ours, and its range over rounds."""

    middle: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, theirs: list[list[float]], ours: list[list[float]]) -> Ratio:
        """Compare times in seconds, a list per round."""
        middle = median(theirs) / median(ours)
        rounds = [
            statistics.median(a) / statistics.median(b) for a, b in zip(theirs, ours, strict=True)
        ]
        return cls(middle, min(middle, *rounds), max(middle, *rounds))

    @property
    def equal(self) -> bool:
        """True if one is faster in some rounds, slower in others."""
        return self.lowest <= 1 <= self.highest

    def __str__(self) -> str:
        span = f"({self.lowest:.2f} .. {self.highest:.2f})"
        return f"equal {span}" if self.equal else f"{self.middle:.2f}{TIMES} {span}"


def median(rounds: list[list[float]]) -> float:
    """Return the median of the numbers of all rounds."""
    return statistics.median(number for numbers in rounds for number in numbers)


def save(name: str, result: dict[str, Any], folder: Path | None = None) -> None:
    """Write NAME.json atomically: a rented machine may end at any moment."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(folder / f"{name}.json", lambda file: file.write(text.encode()))


def load(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return what was saved under this name, nothing if nothing was."""
    path = (folder or RESULTS) / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def publish(name: str, result: dict[str, Any], table: str, into_document: bool) -> None:
    """Save a result, print its table, and write it into docs/cpu.md."""
    save(name, result)
    print("\n" + table)
    if into_document:
        replace_table(ROOT / "docs" / "cpu.md", name, table)


def replace_table(document: Path, name: str, table: str) -> None:
    """Put ``table`` between a document's ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{document} has no markers {begin} and {end}")
    between = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text = between.sub(lambda _: f"{begin}\n{table}\n{end}", text)
    write_atomically(document, lambda file: file.write(text.encode()))


def _processor() -> str:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown processor"
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    instructions = " with AVX-512" if "avx512f" in cpuinfo else ""
    return (match.group(1).strip() if match else "unknown processor") + instructions


def version_of(name: str) -> str | None:
    """Return the version of a library, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
