"""Weights written for others: safetensors, and PyTorch's zip archive.

The arrays have the names of the variant's parameters, which torchvision's own AlexNet shares. A
description of the rest travels beside them, where other readers do not look.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import numpy as np

from tinyalex.files import header_of
from tinyalex.folders import write_atomically
from tinyalex.interop.description import KEY, describe
from tinyalex.interop.weights import Weights

ALIGNMENT = 64
"""Bytes; so that a mapped array begins where vectors may."""


def save_safetensors(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write weights as safetensors, atomically; equal weights give equal bytes."""
    arrays = _arrays(weights)
    text = header_of(arrays, {"format": "pt", KEY: describe(weights)})

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays.values():
            file.write(_raw(array))

    write_atomically(path, write)


def save_torch(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write weights as a state_dict that `torch.load` reads, atomically.

    Equal weights give equal bytes.
    """
    arrays = _arrays(weights)
    members = {
        "data.pkl": _state_dict(arrays),
        "byteorder": b"little",
        "version": b"3\n",
        f"{KEY}.json": describe(weights).encode(),
    }

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                _add(archive, file, name, content)
            for number, array in enumerate(arrays.values()):
                _add(archive, file, f"data/{number}", _raw(array))

    write_atomically(path, write)


def _arrays(weights: Weights) -> dict[str, np.ndarray]:
    """Return the arrays as they are written, without copies if possible."""
    named = weights.state_dict().items()
    return {name: np.asarray(array, np.dtype("<f4"), order="C") for name, array in named}


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes | memoryview) -> None:
    """Add a member that is not compressed, its content aligned."""
    member = zipfile.ZipInfo(f"archive/{name}")  # dated 1980
    member.file_size = len(content)
    begin = file.tell() + 30 + len(member.filename) + 4
    padding = -begin % ALIGNMENT
    member.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(member, "w") as opened:
        opened.write(content)


def _state_dict(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the pickle of an OrderedDict of tensors, one storage each.

    In the order of torch.serialization; it is short enough to do without the memo.
    """
    empty = b"ccollections\nOrderedDict\n)R"
    items = b"".join(
        _text(name)
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(number)) + _text("cpu")
        + _number(array.size) + b"tQ"
        + _number(0)
        + _numbers(array.shape)
        + _numbers([step // array.itemsize for step in array.strides])
        + b"\x89" + empty + b"tR"
        for number, (name, array) in enumerate(arrays.items())
    )  # fmt: skip
    return b"\x80\x02" + empty + b"(" + items + b"u."


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _numbers(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"
