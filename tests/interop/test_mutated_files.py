"""Damaged weight files, which are read or refused.

No code in them is ever run. A test run reads some hundred files of each kind, the same each
time; with ``--hypothesis-profile=campaign`` there are ten thousand.
"""

import importlib
import io
import itertools
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch_twins as twins
from hypothesis import settings
from mutants import DAMAGE
from safetensors.numpy import save
from torch_twins import Tensor

import tinyalex as ta
from tinyalex.interop.reading import FORMATS
from tinyalex.models import VARIANTS, alexnet

COUNT = 10 * settings.default.max_examples
MOST_MEMORY = 200e6
MOST_SECONDS = 5  # of a machine that is busy
RUNS_CODE = (
    "import",
    "exec",
    "compile",
    "open",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pickle.",
)
THIN = VARIANTS["torchvision"].thinner(64, 63)

READERS = [*(f"tinyalex.interop.{known.module}" for known in FORMATS), "onnx", "scipy.io"]

_heard: list[tuple] | None = None


def _listen(event, arguments):
    if _heard is not None and event.startswith(RUNS_CODE):
        _heard.append((event, *map(str, arguments[:2])))


sys.addaudithook(_listen)


def state():
    ta.manual_seed(0)
    return alexnet(THIN, 3).state_dict()


def tree():
    return {name: Tensor(array) for name, array in state().items()}


def without_checksums(content):
    """Return an archive that says that its members have none, as torch may write it."""
    from zipfile import ZipFile

    for member in ZipFile(io.BytesIO(content)).infolist():
        content = content.replace(member.CRC.to_bytes(4, "little"), bytes(4))
    return content


def checkpoint():
    """Return a checkpoint of our own."""
    colours = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    network = {"variant": THIN.name, "classes": list("abc"), "weights": state(), **colours}
    file = io.BytesIO()
    ta.files.writer_of({"classifier": {**network, "input_size": 63, "dropout": 0.5}})(file)
    return file.getvalue()


def onnx_file():
    """Return the network as ONNX, with its pool that is two products."""
    with tempfile.TemporaryDirectory() as folder:
        model = alexnet(THIN, 3)
        model.load_state_dict(state())
        ta.export_onnx(model, path := Path(folder) / "net.onnx", softmax=True, pixels=True)
        return path.read_bytes()


KINDS = {
    "zip": lambda: twins.zip_file(tree()),
    "zip without checksums": lambda: without_checksums(twins.zip_file(tree())),
    "stream": lambda: twins.stream_file(tree()),
    "tar": lambda: twins.tar_file(tree()),
    "safetensors": lambda: save(state(), {"format": "pt"}),
    "checkpoint": checkpoint,
    "ONNX": onnx_file,
}


def pieces(content):
    """Split a file into its arrays and what is between them."""
    places = sorted((content.index(array.tobytes()), array.nbytes) for array in state().values())
    cuts = [0, *(cut for start, size in places for cut in (start, start + size)), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(cuts)]


def mutant(parts, number):
    """Return mutant `number`: damaged anywhere, or, mostly, between the arrays."""
    rng = np.random.default_rng((15, number))
    if rng.random() < 0.2:
        return spoilt(b"".join(parts), rng)
    changed = list(parts)
    between = [place for place in range(0, len(parts), 2) if parts[place]]
    for place in rng.choice(between, size=rng.integers(1, 3)):
        changed[place] = spoilt(changed[place], rng)
    return b"".join(changed)


def spoilt(content, rng):
    """Return damaged bytes; a number that is replaced is of the kind that allocates."""
    if rng.random() < 0.7 or len(content) < 16:
        return DAMAGE[rng.integers(len(DAMAGE))](content, rng)
    place = rng.integers(len(content) - 8)
    bomb = BOMBS[rng.integers(len(BOMBS))]
    return content[:place] + bomb + content[place + len(bomb) * rng.integers(2) :]


BOMBS = [
    b"\xff" * 4,
    b"\x7f\xff\xff\xff\xff",
    b"r\xff\xff\xff\x7f",
    b"\x8e\0\0\0\0\0\x01\0\0",
    b"\x8d\xff\xff\xff\xff\0\0\0\0",
    b"\x8b\xff\xff\xff\x7f",
    b"\x95\xff\xff\xff\xff\xff\0\0\0",
    b"cos\nsystem\nX\x04\0\0\0true\x85R",
    b"(X\x04\0\0\0truecos\nsystem\no",
    b"(X\x04\0\0\0trueios\nsystem\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"]]]]]]",
    b"2222",
    b"R",
    b"b",
    b"99999999999999999",
    b"[" * 40,
    b"\xff\xff\xff\xff\x07",
    b"\x80" * 9 + b"\x01",
]


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind, tmp_path, monkeypatch):
    global _heard
    monkeypatch.setitem(VARIANTS, THIN.name, THIN)
    path = tmp_path / "file"
    parts = pieces(KINDS[kind]())
    path.write_bytes(b"".join(parts))
    ta.load_weights(path)
    for module in READERS:  # a mutant may look like another format
        importlib.import_module(module)
    counts = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for number in range(COUNT):
            content = mutant(parts, number)
            path.write_bytes(content)
            tracemalloc.reset_peak()
            before, begin = tracemalloc.get_traced_memory()[0], time.perf_counter()
            message, heard = "", []
            _heard = heard
            try:
                ta.load_weights(path)
                counts["read"] += 1
            except ta.FileError as error:
                counts["refused"] += 1
                message = str(error)
            finally:
                _heard = None
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < MOST_MEMORY + len(content), (number, peak)
            assert time.perf_counter() - begin < MOST_SECONDS, number
            assert "\n" not in message, number
            assert {event[:2] for event in heard} == {("open", str(path))}, (number, heard)
    finally:
        tracemalloc.stop()
    assert counts["refused"] > COUNT / 10, counts
    print(kind, counts)
