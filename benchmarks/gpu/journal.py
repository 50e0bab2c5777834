"""Results of GPU runs as lines of JSON, written when measured."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Result = dict[str, Any]
PATTERN = "gpu*.jsonl"


def append(path: Path, name: str, result: Result) -> None:
    """Append a line; of one name the last counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": name, "at": time.time(), **result}) + "\n"
    with open(path, "a+b") as file:
        if file.tell() and _last_byte(file) != b"\n":
            file.write(b"\n")  # the writer before was stopped within a line
        file.write(text.encode())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def load(folder: Path) -> dict[str, Result]:
    """Return the results of all files in ``folder`` by name.

    Of one name the latest counts, and one that was cut short only where no other is.
    """
    found = []
    for path in folder.glob(PATTERN):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # half a line: its writer was stopped
    found.sort(key=lambda result: (result.get("complete", True), result["at"]))
    return {result["name"]: result for result in found}
