"""Commands that messages print, to be pasted into a shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from tinyalex.text import escaped

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
    """Return the call of a command, made as the one that runs."""
    # A folder called -x would be taken for an option.
    rest = (f"./{a}" if str(a)[:1] == "-" and isinstance(a, Path) else a for a in arguments)
    return command_line([*words_of(command), *rest])


def pip_install(*requirements: str) -> str:
    """Return the command that installs packages where this Python finds them."""
    return command_line([this_python(), "-m", "pip", "install", *requirements])


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


def command_line(words: Iterable[object]) -> str:
    r"""Return a command that can be pasted into a shell.

    >>> command_line(["python", "a b.py", "a\nb", "-"])
    "python 'a b.py' $'a\\012b' -"
    """
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if escaped(word) == word == word.encode(encoding, "replace").decode(encoding):
        return shlex.quote(word)
    special = {ord("'"): "\\'", ord("\\"): "\\\\"}
    spelt = (special.get(b, chr(b) if 32 <= b < 127 else f"\\{b:03o}") for b in os.fsencode(word))
    return f"$'{''.join(spelt)}'"
