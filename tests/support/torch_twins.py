"""PyTorch's kinds of files, made without it: zip, stream and tar."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
    **{"f4": "Float", "f8": "Double", "f2": "Half", "u2": "BFloat16"},
    **{"i8": "Long", "i1": "Char", "u1": "Byte"},
}


class Name(NamedTuple):
    """A name that a pickle refers to."""

    full: str


class Call(NamedTuple):
    """A call of a name; with a state, it is also built."""

    name: str
    arguments: tuple = ()
    state: Any = None


class Tensor:
    """A view of a flat array, which tensors may share."""

    def __init__(self, array, shape=None, strides=None, offset=0):
        array = np.asarray(array)
        self.storage = array if array.ndim == 1 else array.reshape(-1)
        self.shape = array.shape if shape is None else tuple(shape)
        steps = [int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape))]
        self.strides = tuple(steps if strides is None else strides)
        self.offset, self.count = offset, self.storage.size

    @property
    def kind(self):
        return KINDS[self.storage.dtype.str[1:]]

    @property
    def arguments(self):
        return self.offset, self.shape, self.strides


def dump(value: Any, reference: Callable[[Tensor], Any] | None = None) -> bytes:
    """Return a value's pickle; `reference` gives the persistent id of a tensor's storage."""
    return b"\x80\x02" + _dump(value, reference) + b"."


def _dump(value: Any, reference: Callable[[Tensor], Any] | None) -> bytes:
    def dumps(values):
        return b"".join(_dump(item, reference) for item in values)

    match value:
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case Name(full):
            module, _, name = full.rpartition(".")
            return b"c" + f"{module}\n{name}\n".encode()
        case Call(name, arguments, state):
            made = _dump(Name(name), reference) + dumps([arguments]) + b"R"
            return made if state is None else made + dumps([state]) + b"b"
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + dumps(value) + b"t"
        case list():
            return b"](" + dumps(value) + b"e"
        case dict():
            return b"}(" + dumps(item for pair in value.items() for item in pair) + b"u"
        case Tensor():
            storage = _dump(reference(value), reference) + b"Q"
            rest = dumps([*value.arguments, False, Call("collections.OrderedDict")])
            rebuild = _dump(Name("torch._utils._rebuild_tensor_v2"), reference)
            return rebuild + b"(" + storage + rest + b"tR"
    raise TypeError(type(value))


class Storages:
    """Storages of the tensors that were referred to."""

    def __init__(self, parts=()):
        self.arrays: dict[str, np.ndarray] = {}
        self.parts = parts

    def reference(self, tensor: Tensor) -> tuple:
        key = str(id(tensor.storage) % 10**12)
        self.arrays[key] = tensor.storage
        kind = Name(f"torch.{tensor.kind}Storage")
        return ("storage", kind, key, "cpu", tensor.count, *self.parts)


def raw(array: np.ndarray) -> bytes:
    """Return the bytes of a storage, little-endian."""
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def zip_file(
    tree: Any, more: dict[str, bytes] | None = None, pickled: bytes | None = None
) -> bytes:
    """Return a file as torch 1.6 and later write it."""
    storages, file = Storages(), io.BytesIO()
    pickled = pickled or dump(tree, storages.reference)
    content = {"data.pkl": pickled, "byteorder": b"little"}
    content |= {f"data/{key}": raw(array) for key, array in storages.arrays.items()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {**content, "version": b"3\n", **(more or {})}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return file.getvalue()


def stream_file(tree: Any) -> bytes:
    """Return a file as torch before 1.6 wrote it."""
    storages = Storages(parts=(None,))
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    pickles = [dump(MAGIC), dump(1001), dump(info), dump(tree, storages.reference)]
    pickles.append(dump(list(storages.arrays)))
    counted = (struct.pack("<q", a.size) + raw(a) for a in storages.arrays.values())
    return b"".join([*pickles, *counted])


def tar_file(tree: dict[str, Tensor]) -> bytes:
    """Return a file as torch before 0.1.10 wrote it, of one dict of tensors."""
    storages: dict[int, Tensor] = {}
    tensors, views = dump(len(tree)), []
    for number, tensor in enumerate(tree.values()):
        key = next((k for k, t in storages.items() if t.storage is tensor.storage), number)
        storages.setdefault(key, tensor)
        views.append((1000 + number, key, 0, tensor.count))
        owner, axes = views[-1][0], len(tensor.shape)
        tensors += dump((number, owner, Name(f"torch.{tensor.kind}Tensor")))
        numbers = (axes, *tensor.shape, *tensor.strides, tensor.offset)
        tensors += struct.pack(f"<{len(numbers)}q", *numbers)
    stored = dump(len(storages))
    for key, tensor in storages.items():
        stored += dump((key, "cpu", Name(f"torch.{tensor.kind}Storage")))
        stored += struct.pack("<q", tensor.storage.size) + raw(tensor.storage)
    numbers = {id(tensor): str(number) for number, tensor in enumerate(tree.values())}
    items = b"".join(
        _dump(name, None) + _dump(numbers[id(tensor)], None) + b"Q" for name, tensor in tree.items()
    )
    members = {
        "storages": stored + dump(views),
        "tensors": tensors,
        "pickle": b"\x80\x02}(" + items + b"u.",
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


FILES = {"zip": zip_file, "stream": stream_file, "tar": tar_file}
"""Writers of all three kinds."""
