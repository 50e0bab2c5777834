"""Lines that the commands of docs/no-learning.md print.

    python benchmarks/no_learning.py               # all commands, four minutes on two cores
    python benchmarks/no_learning.py --only wrong  # those with this word; of the others, the last

Runs the page's programs and commands in a folder of its own, keeps the lines that the page shows,
and others that differ in numbers alone, in benchmarks/results/no-learning.json, and writes them
into the page.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from shared import report
from tinyalex.folders import write_atomically

PAGE = report.ROOT / "docs" / "no-learning.md"
NUMBER = re.compile(r"nan|\d[\d.]*(?:e-\d+)?")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and the text of each block."""
    return _BLOCK.findall(page)


def shown(page: str) -> list[tuple[str, str, str]]:
    """Return language, code and shown lines of each block that prints."""
    return [(*code, text) for code, (kind, text) in pairwise(blocks(page)) if kind == "text"]


def skeleton(line: str) -> str:
    """Return a line without its numbers."""
    return NUMBER.sub("#", line.replace(" (best so far)", ""))


def filled(page: str, printed: dict[str, list[str]]) -> str:
    """Return the page with the lines that commands have printed.

    A line of the page stands for one that differs in numbers alone: of several, for the one whose
    first number, the step, is the same, else for the last.
    """
    for language, code, text in shown(page):
        if language == "sh" and (lines := printed.get(code.strip())):
            new = "".join(f"{_latest(line, lines)}\n" for line in text.splitlines())
            page = page.replace(f"{code}```\n\n```text\n{text}", f"{code}```\n\n```text\n{new}")
    return page


def _latest(line: str, printed: list[str]) -> str:
    alike = [other for other in printed if skeleton(other) == skeleton(line)]
    if not alike:
        raise ValueError(f"nothing is printed any more like {line!r}")
    return next((other for other in alike if start(other) == start(line)), alike[-1])


def start(line: str) -> str:
    """Return a line up to its first number."""
    found = NUMBER.search(line)
    return line[: found.end()] if found else line


def main() -> None:
    """Read the command line, run the commands, and write what they print."""
    parser = report.parser(__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="run commands with this word")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    found = report.load("no-learning") or {"printed": {}, "machines": {}}
    with tempfile.TemporaryDirectory() as folder:
        programs = "\n".join(code for language, code in blocks(page) if language == "python")
        run(["-c", programs], Path(folder))
        for language, code, text in shown(page):
            if language == "sh" and arguments.only in code:
                print(f"$ {code.strip()}", flush=True)
                words = ["-m", "tinyalex", *shlex.split(code)[1:]]
                wanted = text.splitlines()
                alike = {*map(skeleton, wanted)}
                lines = run(words, Path(folder), wanted)
                found["printed"][code.strip()] = [o for o in lines if skeleton(o) in alike]
                found["machines"][code.strip()] = report.machine()
                report.save("no-learning", found)
    page = filled(page, found["printed"])
    write_atomically(PAGE, lambda file: file.write(page.encode()))


def run(words: list[str], folder: Path, wanted: Sequence[str] = ()) -> list[str]:
    """Return what Python prints until all lines `wanted` have begun.

    A command may end with an error, which is one of the lines.
    """
    path = os.pathsep.join(filter(None, [str(report.ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-u", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    left, lines = {(skeleton(line), start(line)) for line in wanted}, []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
        left.discard((skeleton(lines[-1]), start(lines[-1])))
        if wanted and not left:
            process.send_signal(signal.SIGINT)
            break
    process.communicate()
    return lines


if __name__ == "__main__":
    main()
