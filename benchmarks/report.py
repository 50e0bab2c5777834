"""Where numbers were measured, and how they get into the documents: never by hand."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Return what a reader must know to judge a time: processor, cores, versions, date."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("tinyalex", "numpy", "numba", "scipy", "torch")
        },
    }


def one_line(facts: dict[str, Any]) -> str:
    """Return the facts of `machine` as one line for the foot of a table."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    cores = f"{facts['cores']} core{'s' if facts['cores'] > 1 else ''}"
    return f"{facts['date']}, {facts['processor']}, {cores}; {versions}"


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``result`` to benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def replace_table(document: Path, name: str, table: str) -> None:
    """Put ``table`` between the markers ``<!-- NAME -->`` and ``<!-- /NAME -->`` of a document."""
    text = document.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{document} has no markers {begin} and {end}")
    between = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    document.write_text(between.sub(lambda _: f"{begin}\n{table}\n{end}", text))


def _processor() -> str:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown processor"
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    instructions = " with AVX-512" if "avx512f" in cpuinfo else ""
    return (match.group(1).strip() if match else "unknown processor") + instructions


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
