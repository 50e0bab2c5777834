"""Command `tinyalex`: it calls a command, and imports no other."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from tinyalex.cli.parser import Parser, program
from tinyalex.interrupts import leaving_on_signals
from tinyalex.progress import open_standard_streams
from tinyalex.version import __version__

COMMANDS = {
    "train": "train an AlexNet on photographs, or on images drawn on the fly",
    "predict": "name what is in images",
    "evaluate": "measure a trained network, class by class",
    "probe": "measure how much a network's features tell of other images",
    "look": "draw what a trained network has learned",
    "report": "write one HTML page of a run",
    "convert": "turn other people's weights, or a run's, into another format",
    "prepare": "turn a folder of images into a clean one",
    "plan": "estimate the speed of a training on several computers",
    "gradcheck": "check every gradient against finite differences",
}


def main(argv: list[str] | None = None) -> int:
    """Call a command; return its exit code."""
    open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    try:
        with leaving_on_signals():
            command = make_parser().parse_args(words[:1] or ["--help"]).command
            run = import_module(f"tinyalex.cli.{command}").main
    except KeyboardInterrupt:
        return 130
    return run(words[1:])


def make_parser() -> Parser:
    """Return the parser of the first word."""
    listed = "\n".join(f"  {name:9}   {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog=program(),
        usage="%(prog)s COMMAND [OPTION ...]",
        description=f"AlexNet from scratch: train it, use it, look at it.\n\ncommands:\n{listed}",
        epilog="%(prog)s COMMAND --help explains a command",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"tinyalex {__version__}")
    return parser
