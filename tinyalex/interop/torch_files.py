"""Weights in PyTorch's files: zip archives, single streams, tar archives.

In all three, a pickle describes tensors that lie in the same file. They are read once they are
known to be an AlexNet's. The formats are those of torch.serialization.
"""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple

from tinyalex.files import FileError
from tinyalex.interop import names
from tinyalex.interop.description import KEY, described
from tinyalex.interop.reading import Request
from tinyalex.interop.stored import Stored
from tinyalex.interop.torch_pickles import Storage, View, leaves, load, new_storage
from tinyalex.interop.weights import Weights
from tinyalex.interop.zip_files import Member, members_of

LONGEST_PICKLE = 2**24
"""Bytes of the pickle in an archive: an AlexNet's has a few thousand."""


class Content(NamedTuple):
    """Tree of dicts and tensors, and what the container says about it."""

    tree: Any
    byte_order: str = "<"
    members: tuple[Member, ...] = ()
    """Members with checksums, in which the tensors lie."""
    description: bytes = b""


def read(request: Request) -> Weights:
    """Read the weights of an AlexNet."""
    file = request.file
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\3\4"):
        content = _read_zip(file, request.size)
    elif head[257:262] == b"ustar":
        content = _read_tar(file, request.size)
    else:
        content = _read_stream(file, request.size)
    arrays: dict[str, names.Array] = {}
    for name, leaf in leaves(content.tree):
        if name in arrays:
            raise FileError(f"it has two arrays under {name}")
        arrays[name] = leaf.stored(file, content.byte_order) if isinstance(leaf, View) else leaf
    options = described(content.description) if content.description else {}
    own, variant, prefix = names.select(arrays, request.variant, options.pop("variant", None))
    places = [array.position for array in own.values() if isinstance(array, Stored)]
    for member in content.members:
        if any(member.position <= place < member.position + member.size for place in places):
            member.check(file)
    notes = (f"names begin with {prefix}",) if prefix else ()
    return Weights(names.read(own), variant, source="PyTorch", notes=notes, **options)


def _read_zip(file: BinaryIO, size: int) -> Content:
    """Read an archive of torch 1.6 or later."""
    members = members_of(file, size)
    roots = [name[: -len("data.pkl")] for name in members if f"/{name}".endswith("/data.pkl")]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in members:
        raise FileError("it is a zip archive, but not of torch.save: save model.state_dict()")

    def content(name: str, default: bytes = b"") -> bytes:
        member = members.get(roots[0] + name)
        if member is None:
            return default
        if member.size > LONGEST_PICKLE:
            raise FileError(f"its member {name} has {member.size:,} bytes, too many")
        member.check(file)
        file.seek(member.position)
        return file.read(member.size)

    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        _, kind, key, _, count = identity
        if type(key) is not str or (member := members.get(f"{roots[0]}data/{key}")) is None:
            raise FileError("its pickle refers to a storage that is not in the archive")
        if key not in storages:
            new = storages[key] = new_storage(kind, count)
            new.position = member.position
            if new.count * new.item_size != member.size:
                raise FileError(
                    f"its storage {key} should have {new.count:,} numbers of {new.dtype}, "
                    f"but has {member.size:,} bytes"
                )
        return storages[key]

    order = {b"little": "<", b"big": ">"}.get(content("byteorder", b"little"))
    if order is None:
        raise FileError("its byte order is neither little nor big")
    tree = load(content("data.pkl"), storage)
    return Content(tree, order, tuple(members.values()), content(f"{KEY}.json"))


def _read_stream(file: BinaryIO, size: int) -> Content:
    raise FileError("files of torch before 1.6 are not read")


def _read_tar(file: BinaryIO, size: int) -> Content:
    raise FileError("tar archives of torch are not read")
