"""Readers of weight files, chosen by a file's first bytes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from tinyalex.files import FileError
from tinyalex.folders import open_regular
from tinyalex.interop.weights import Weights

HEAD = 512
"""Bytes of a file that a reader is chosen by: a tar archive's mark stands at 257."""


class Request(NamedTuple):
    """File to read, open at its beginning, and what was asked for."""

    file: BinaryIO
    size: int
    name: str
    """Path as it is printed."""
    variant: str | None = None
    mean: str | os.PathLike[str] | None = None


class Format(NamedTuple):
    """Format of weight files: title, mark and module."""

    title: str
    begins: Callable[[bytes], bool]
    module: str
    """Name of the module whose `read(request)` returns `Weights`."""


FORMATS: list[Format] = []
"""Known formats; the first whose mark fits reads the file."""


def load_weights(
    path: str | os.PathLike[str],
    variant: str | None = None,
    mean: str | os.PathLike[str] | None = None,
) -> Weights:
    """Read an AlexNet's weights from a file of any known format.

    `variant` decides where several variants have the file's shapes, `mean` is a file with the mean
    to subtract (Caffe: .binaryproto, .npy, .mat). Raises FileError, with one sentence, for what is
    no such file, damaged or no AlexNet; FileNotFoundError and other OSErrors stay themselves. No
    code in the file is ever run.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD) or b""
        file.seek(0)
        for known in FORMATS:
            if known.begins(head):
                module = importlib.import_module(f"tinyalex.interop.{known.module}")
                return module.read(Request(file, size, str(path), variant, mean))
    raise FileError(f"{path} is no weight file of a known format")
