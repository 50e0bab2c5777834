"""Compile and launch CUDA kernels; check every argument against the source.

A GPU reads arguments as the bytes they are: a float64 array under a ``float*``, or a Python number
of eight bytes under an ``int``, computes garbage without a word. So every argument is held against
the parameter list in the source first.

CuPy keeps compiled kernels by the text that it was given, and does not look into headers: with
``#include`` left to the compiler, an edited header would go unnoticed. So it gets the text with all
includes put in place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tinyalex.backends.bfloat16 import is_bfloat16
from tinyalex.backends.devices import on_gpu
from tinyalex.backends.gpu import cupy, failure
from tinyalex.backends.layout import ALIGNMENT
from tinyalex.backends.types import Array

_DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "int": np.dtype(np.int32),
    "unsigned": np.dtype(np.uint32),
    "unsigned char": np.dtype(np.uint8),
    "unsigned short": np.dtype(np.uint16),
    "unsigned long long": np.dtype(np.uint64),
}
_INCLUDE = re.compile(r'^[ \t]*#include "([^"]+)"[^\n]*\n', re.MULTILINE)
_ENTRY = re.compile(
    r'(?:(?:extern\s+"C"|template\s*<[^<>]*>)\s+__global__\s+void|KERNEL_FOR\(([\w\s,]+)\))\s+'
    r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)\s*\{"
)
_NULL = np.uint64(0)
MOST_ELEMENTS = 2**31 - 1  # kernels index with int
MOST_ROWS = 65535  # blocks along a grid's second and third side, each; the first takes 2^31 - 1
MOST_STATIC_SHARED = 48 * 1024  # bytes; more must be asked for


def type_name(dtype: Any) -> str:
    """Return CUDA's name of ``dtype``: "float", "double" or "bfloat16"."""
    return {"float32": "float", "float64": "double"}.get(str(dtype), str(dtype))


def launch(
    file: str,
    entry: str,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared_bytes: int = 0,
) -> None:
    """Run ``entry`` of ``kernels/<file>`` on the current device and stream.

    An instance of a template is named with its arguments, ``"relu<float>"``.
    ``args`` are C-contiguous device arrays of exactly the pointers' types, None for a null pointer,
    Python numbers, and NamedTuples of ints for structs. A grid with a zero runs nothing. Raises
    TypeError for a type without a kernel, TypeError or ValueError for arguments that the kernel
    would misread, DeviceError with the kernel's name when compiling or launching fails.
    """
    types = _types(file, entry)
    if len(types) != len(args):
        raise TypeError(f"{entry} takes {len(types)} arguments {types}, got {len(args)}")
    packed = tuple(
        _pack(entry, position, kind, value)
        for position, (kind, value) in enumerate(zip(types, args, strict=True))
    )
    if 0 in grid:
        return
    if max(grid[1:], default=0) > MOST_ROWS:
        raise ValueError(
            f"{entry} expects at most {MOST_ROWS:,} blocks along a grid's second and third side, "
            f"got {tuple(grid)}; use a smaller batch, or fewer groups"
        )
    try:
        kernel = _kernel(file, entry, cupy().cuda.get_device_id(), shared_bytes)
        kernel(tuple(grid), tuple(block), packed, shared_mem=shared_bytes)
    except Exception as error:
        raise failure(error, f"{entry} of kernels/{file}") from error


def build(file: str, instances: tuple[str, ...]) -> None:
    """Compile ``kernels/<file>`` with these `instances` of its templates now."""
    _module(file, instances, cupy().cuda.get_device_id()).compile()


@lru_cache
def instances(file: str, entry: str) -> tuple[str, ...]:
    """Return the instances of templates that are compiled together with ``entry``.

    An instance of tiles, which the source does not list, is compiled by itself.
    """
    listed = parameters(file)
    return tuple(name for name in listed if "<" in name) if entry in listed else (entry,)


@cache
def _kernel(file: str, entry: str, device: int, shared_bytes: int) -> Any:
    kernel = _module(file, instances(file, entry), device).get_function(entry)
    # The driver is asked here, not at every launch.
    if shared_bytes > max(MOST_STATIC_SHARED, kernel.max_dynamic_shared_size_bytes):
        kernel.max_dynamic_shared_size_bytes = shared_bytes
    return kernel


@cache
def _module(file: str, instances: tuple[str, ...], device: int) -> Any:
    text = read_source(file)
    # CuPy adds -arch=sm_90; of the two NVRTC takes ours (12.9 and 13; 12.4 refuses a second).
    options = ("-arch=sm_90a",) if for_hopper_alone(text) else ()
    options = ("-std=c++17", *options)
    return cupy().RawModule(code=text, options=options, name_expressions=instances or None)


def _pack(entry: str, position: int, kind: str, value: Any) -> Any:
    """Return ``value`` as CuPy's argument for a parameter of type ``kind``."""
    where = f"{entry}, argument {position} ({kind})"
    if kind.endswith("*"):
        return _NULL if value is None else _checked(where, kind[:-1], value)
    if kind in _DTYPES:
        if not isinstance(value, (int, float, np.generic)):
            raise TypeError(f"{where} expects a number, got {type(value).__name__}")
        number = _DTYPES[kind].type(value)
        if _DTYPES[kind].kind != "f" and int(number) != value:
            raise ValueError(f"{where} cannot hold {value}")
        return number
    if type(value).__name__ != kind:
        raise TypeError(f"{where} got a {type(value).__name__}")
    return _struct(value)


@lru_cache(maxsize=1024)
def _struct(value: Any) -> np.ndarray:
    """Return a NamedTuple of ints as an array, which CuPy passes.

    An element of plain bytes: CuPy reads ``__array_interface__`` at every launch, which would list
    all fields of a record.
    """
    return np.array(value, np.int32).view(f"V{4 * len(value)}")


def _checked(where: str, kind: str, array: Array) -> Array:
    if not on_gpu(array):
        raise TypeError(f"{where} expects an array on the device, got {type(array).__name__}")
    fits = is_bfloat16(array.dtype) if kind == "bfloat16" else array.dtype == _DTYPES[kind]
    if not fits:
        raise TypeError(f"{where} expects {_DTYPES.get(kind, kind)}, got {array.dtype}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{where} expects a C-contiguous array, got strides {array.strides}")
    if array.size > MOST_ELEMENTS:
        raise ValueError(
            f"{where}: an array of shape {array.shape} has more than 2**31 - 1 elements, which the "
            "kernels cannot count; use a smaller batch"
        )
    if array.size and array.data.ptr % ALIGNMENT:
        raise ValueError(f"{where} expects memory at a multiple of {ALIGNMENT} bytes")
    return array


# --- sources --------------------------------------------------------------------------------------


def source_folder() -> Path:
    """Return the folder of the kernels.

    It is the environment's TINYALEX_KERNELS, that of an installed package, or that of the source
    tree. Raises FileNotFoundError if there is none.
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
def read_source(file: str) -> str:
    """Return the text of ``file``, each ``#include "header"`` replaced by the header, once."""
    done: set[str] = set()

    def expand(name: str) -> str:
        done.add(name)
        text = (source_folder() / name).read_text(encoding="utf-8").replace("#pragma once\n", "")

        def replace(match: re.Match[str]) -> str:
            header = "" if match[1] in done else expand(match[1]) + "\n"
            return header + _line(name, 1 + text.count("\n", 0, match.end()))

        return _line(name, 1) + _INCLUDE.sub(replace, text)

    return expand(file)


def _line(file: str, number: int) -> str:
    """Return a ``#line`` directive, so that messages name the original line."""
    return f'#line {number} "{file}"\n'


def for_hopper_alone(text: str) -> bool:
    """Return whether a source has instructions that only Hopper has.

    They must be asked for by its name, and then run on no other GPU.
    """
    return "wgmma" in _without_comments(text)


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


@lru_cache
def parameters(file: str) -> dict[str, tuple[str, ...]]:
    """Return the parameter types of every entry of ``file``, such as ``("float*", "int")``.

    KERNEL_FOR(float, double) makes two entries, ``name<float>`` and ``name<double>``. All instances
    of another template are one entry, under its bare name.
    """
    found = {}
    for kinds, name, items in _ENTRY.findall(_without_comments(read_source(file))):
        listed = re.sub(r"\s+", " ", items).split(",")
        types = tuple(_type(item) for item in listed if item.strip())
        for kind in kinds.replace(" ", "").split(","):
            found[f"{name}<{kind}>" if kind else name] = _instance(types, kind) if kind else types
    return found


def _instance(types: tuple[str, ...], kind: str) -> tuple[str, ...]:
    """Return a template's parameter types with ``kind`` for T."""
    stored = "bfloat16" if "bfloat16" in kind else "float"  # in a tile
    computed = "double" if kind == "double" else "float"
    names = {"T::E": stored, "Compute<T>": computed, "T": kind}
    return tuple(names.get(t.strip("*"), t.strip("*")) + "*" * t.count("*") for t in types)


@lru_cache
def _types(file: str, entry: str) -> tuple[str, ...]:
    """Return the parameter types of an entry or instance."""
    every = parameters(file)
    name, _, arguments = entry.removesuffix(">").partition("<")
    if entry in every:
        return every[entry]
    if arguments and name in every:
        return _instance(every[name], arguments)
    kinds = [other[len(name) + 1 : -1] for other in every if other.startswith(f"{name}<")]
    if arguments and kinds:
        raise TypeError(
            f"on a GPU {name} takes {' or '.join(kinds)}, got {arguments}; convert it first, for "
            'example with .to("float32")'
        )
    raise ValueError(f"kernels/{file} has no entry {entry}")


def _type(parameter: str) -> str:
    """Return the type of ``const float* __restrict__ x`` as ``float*``."""
    words = re.sub(r"\b(const|typename|__restrict__)\b", " ", parameter.replace("*", " * ")).split()
    return " ".join(word for word in words[:-1] if word != "*") + ("*" if "*" in words else "")
