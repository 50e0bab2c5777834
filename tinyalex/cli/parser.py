"""Arguments of the commands: their parser, its help, and types of values."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tinyalex.calls import call_of, command_line, words_of
from tinyalex.interrupts import USAGE
from tinyalex.progress import show
from tinyalex.text import escaped

MOST = 1e9
STOPPED = "129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM"


def parser_of(command: str, text: str | None, exit_codes: str, stopped: str = STOPPED) -> Parser:
    """Return a command's parser, whose help names the command as called."""
    return Parser(
        prog=program(command),
        description=(text or "").replace(f"tinyalex {command}", call_of(command)),
        epilog=f"exit codes: {exit_codes}; {stopped}",
    )


def program(command: str | None = None) -> str:
    """Return the name of a command, or of all, in its help."""
    return " ".join(map(os.path.basename, words_of(command)))


class Parser(argparse.ArgumentParser):
    """Argument parser with `Help` and one-line errors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Help, **options})

    def error(self, message: str) -> NoReturn:
        """Print the complaint and exit with code 2."""
        given = message.removeprefix("unrecognized arguments: ")
        if given != message and os.path.exists(given) and "--data" in self._option_string_actions:
            message += f"; if these are images, say {command_line(['--data', given])}"
        self.exit(USAGE, f"{self.prog}: {escaped(message)} (--help explains all options)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        show(message, file or sys.stderr)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults, which keeps the lines of its description.

    Only lines that are too long for the terminal, or for 99 columns, are broken, between words.
    """

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size((101, 40)).columns  # if it is a terminal
        super().__init__(prog, max_help_position=26, width=min(99, columns - 2))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # What follows a command is set off from it by several blanks.
        lines = ((line, "    " if "   " in line else "") for line in text.splitlines())
        return "\n".join(textwrap.fill(line, width, subsequent_indent=rest) for line, rest in lines)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def option(name: str) -> str:
    """Return the option for a setting: "--batch-size" for "batch_size"."""
    return "--" + name.replace("_", "-")


def whole(least: int = 1, most: float = math.inf) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers from `least` to `most`."""
    expected = f"from {least} to {most}" if most < math.inf else f">= {least}"

    def number_in(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number {expected}, got {text!r}")
        return number

    return number_in


def positive(text: str) -> float:
    """Return a number above 0, and not beyond what measures of machines need."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= MOST:
        raise argparse.ArgumentTypeError(
            f"expected a number above 0, up to {MOST:,.0f}, got {text!r}"
        )
    return number


def name_in(text: str) -> str:
    """Return a file or folder name; an empty one is refused."""
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got nothing (this folder is called '.')")
    return text


def path_in(text: str) -> Path:
    """Return the path of a file or folder, which has a name."""
    return Path(name_in(text))
