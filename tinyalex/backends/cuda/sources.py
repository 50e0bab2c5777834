"""Where the CUDA sources lie, and their text with all includes put in place.

CuPy keeps compiled kernels by the text that it was given, and does not look into headers: with
``#include`` left to the compiler, an edited header would go unnoticed.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

_INCLUDE = re.compile(r'^[ \t]*#include "([^"]+)"[^\n]*\n', re.MULTILINE)
_ENTRY = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)\s*\{'
)


def folder() -> Path:
    """Return the folder of the kernels: the environment's TINYALEX_KERNELS, that of an installed
    package, or that of the source tree. Raises FileNotFoundError if there is none.
    """
    package = Path(__file__).parents[2]
    chosen = os.environ.get("TINYALEX_KERNELS")
    candidates = [Path(chosen)] if chosen else [package / "kernels", package.parent / "kernels"]
    for candidate in candidates:
        if any(candidate.glob("*.cu")):
            return candidate
    looked = " and ".join(map(str, candidates))
    raise FileNotFoundError(f"found no CUDA sources (*.cu) in {looked}; install tinyalex again")


@lru_cache
def read(file: str) -> str:
    """Return the text of ``file``, each ``#include "header"`` replaced by the header, once."""
    done: set[str] = set()

    def expand(name: str) -> str:
        done.add(name)
        text = (folder() / name).read_text(encoding="utf-8").replace("#pragma once\n", "")

        def replace(match: re.Match[str]) -> str:
            header = "" if match[1] in done else expand(match[1]) + "\n"
            return header + _line(name, 1 + text.count("\n", 0, match.end()))

        return _line(name, 1) + _INCLUDE.sub(replace, text)

    return expand(file)


def _line(file: str, number: int) -> str:
    """Say what the next line is, so that messages name the line of the file itself."""
    return f'#line {number} "{file}"\n'


@lru_cache
def parameters(file: str) -> dict[str, tuple[str, ...]]:
    """Return the parameter types of every entry of ``file``, such as ``("float*", "int")``."""
    text = re.sub(r"//[^\n]*", "", read(file))
    return {
        name: tuple(_type(item) for item in re.sub(r"\s+", " ", items).split(",") if item.strip())
        for name, items in _ENTRY.findall(text)
    }


def _type(parameter: str) -> str:
    """Return the type of ``const float* __restrict__ x`` as ``float*``."""
    words = re.sub(r"\b(const|__restrict__)\b", " ", parameter.replace("*", " * ")).split()
    return " ".join(word for word in words[:-1] if word != "*") + ("*" if "*" in words else "")
