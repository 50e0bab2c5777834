"""Readers of weight files, chosen by a file's first bytes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tinyalex.files import LONGEST_HEADER, DamagedError, FileError, refusing_damage
from tinyalex.folders import open_regular
from tinyalex.interop import protobuf, strangers
from tinyalex.interop.means import read_mean
from tinyalex.interop.weights import Weights
from tinyalex.text import printable

HEAD = 512
"""Bytes of a file that a reader is chosen by: a tar archive's mark stands at 257."""


LONGEST_MESSAGE = 1000
"""Characters of an error."""


class Request(NamedTuple):
    """File to read, open at its beginning, and what was asked for."""

    file: BinaryIO
    size: int
    name: str
    """Path as it is printed."""
    variant: str | None = None
    mean: str | os.PathLike[str] | None = None
    """File with the mean, which takes the place of the one that a reader finds."""


class Format(NamedTuple):
    """Format of weight files: title, mark and module."""

    title: str
    begins: Callable[[bytes], bool]
    module: str
    """Name of the module whose `read(request)` returns `Weights`."""


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER


def _is_numpy(head: bytes) -> bool:
    """Tell an array, and a zip archive that begins with one."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"\x93NUMPY") or (head[:4] == b"PK\3\4" and name.endswith(b".npy"))


def _is_torch(head: bytes) -> bool:
    """Tell a zip archive, torch's first pickle and a tar archive."""
    return head.startswith(b"PK\3\4") or TORCH_MAGIC in head[:32] or head[257:262] == b"ustar"


TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""Number that torch's files began with before 1.6, in the first pickle."""

CAFFE = {1: 2, 2: 2, 3: 2, 4: 0, 5: 0, 6: 2, 7: 0, 8: 2, 100: 2}
"""Fields of Caffe's NetParameter and their kinds."""

ONNX = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2}
"""Fields of ONNX's ModelProto and their kinds."""

FORMATS: list[Format] = [
    Format("safetensors", _is_safetensors, "safetensors_files"),
    Format("NumPy", _is_numpy, "numpy_files"),
    Format("PyTorch", _is_torch, "torch_files"),
    Format("MatConvNet", lambda head: head.startswith(b"MATLAB"), "matlab"),
    Format("Caffe", lambda head: protobuf.begins(head, CAFFE), "caffe"),
    Format("ONNX", lambda head: protobuf.begins(head, ONNX), "onnx_import"),
]
"""Known formats; the first whose mark fits reads the file."""


def _checkpoint(path: Path) -> Path:
    """Return `path`, or the best or last checkpoint of a run's folder."""
    found = (path / f"{name}.safetensors" for name in ("best", "last") if path.is_dir())
    return next((checkpoint for checkpoint in found if checkpoint.exists()), path)


def _sentence(path: Path, text: str) -> str:
    """Return a message that names the file, without odd characters."""
    if str(path) not in text:
        text = f"{printable(path)}: {text}"
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."


def load_weights(
    path: str | os.PathLike[str],
    variant: str | None = None,
    mean: str | os.PathLike[str] | None = None,
) -> Weights:
    """Read an AlexNet's weights from any known file, or a run's folder.

    `variant` decides where several variants have the file's shapes, `mean` is a file with the mean
    to subtract (Caffe: .binaryproto, .npy, .mat). Raises FileError, with one sentence, for what is
    no such file, damaged or no AlexNet; FileNotFoundError and other OSErrors stay themselves. No
    code in the file is ever run.
    """
    path = _checkpoint(Path(path))
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD) or b""
        file.seek(0)
        what = strangers.known(head)
        for known in () if what else FORMATS:
            if known.begins(head):
                module = importlib.import_module(f"tinyalex.interop.{known.module}")
                try:
                    with refusing_damage("it is damaged"):
                        own = None if mean is None else read_mean(mean)
                        weights = module.read(Request(file, size, str(path), variant, mean))
                        return weights if own is None else weights.with_mean(own)
                except FileError as error:
                    advice = "; copy or download it again" * isinstance(error, DamagedError)
                    error.args = (_sentence(path, f"{error}{advice}"),)
                    raise
    titles = ", ".join(known.title for known in FORMATS)
    what = what or strangers.unread(head)
    raise FileError(
        f"{printable(path)} is no weight file of a known format ({titles})"
        + (f": it is {what}" if what else "")
    )
