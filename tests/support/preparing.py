"""Helpers for tests of tinyalex prepare; the fixtures are in `originals`."""

import json

import commands

GOOD = 40


def prepare(*arguments):
    return commands.run("prepare", "--processes", 1, *arguments)


def lines(path):
    """Return what the lines of a file stand for."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder):
    """Return the bytes of all files below a folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
