"""Form of this command's call, which printed commands repeat."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tinyalex.progress import command_line

SCRIPTS = {
    "train": "train_alexnet.py",
    "predict": "predict.py",
    "evaluate": "evaluate.py",
    "probe": "probe.py",
    "look": "look.py",
    "report": "report.py",
    "convert": "convert_weights.py",
    "prepare": "prepare_images.py",
    "plan": "plan_training.py",
    "gradcheck": "gradient_check.py",
}
"""The commands as scripts of examples/."""


def call_of(command: str, *arguments: object) -> str:
    """Return the pasteable command line of a command with these arguments."""
    # A folder called -x would be taken for an option.
    rest = (f"./{a}" if str(a)[:1] == "-" and isinstance(a, Path) else a for a in arguments)
    return command_line([*words_of(command), *rest])


def words_of(command: str | None = None) -> list[str]:
    """Return the words that call a command, or all of them.

    It is called as a script, as installed, or by python -m.
    """
    started = Path(sys.argv[0])
    if command and started.name in SCRIPTS.values():
        script = started.with_name(SCRIPTS[command])
        if script.is_file():
            return [this_python(), shortest(script)]
    words = [this_python(), "-m", "tinyalex"]
    if started.name == "tinyalex":
        words = ["tinyalex" if shutil.which("tinyalex") == str(started) else shortest(started)]
    return [*words, *filter(None, [command])]


def this_python() -> str:
    """Return the words that call this Python."""
    if shutil.which("python") == sys.executable:
        return "python"
    return shortest(sys.executable)


def shortest(path: str | os.PathLike[str]) -> str:
    """Return a path, absolute or relative, whichever is shorter."""
    whole = os.path.abspath(path)
    try:
        found = min(os.path.relpath(whole), whole, key=len)
    except OSError:  # the current folder is gone
        return whole
    return found if os.sep in found else os.path.join(os.curdir, found)
