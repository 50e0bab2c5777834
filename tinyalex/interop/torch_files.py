"""Weights in PyTorch's files: zip archives, single streams, tar archives.

In all three, a pickle describes tensors that lie in the same file. They are read once they are
known to be an AlexNet's. The formats are those of torch.serialization.
"""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple

from tinyalex.files import DamagedError, FileError, refusing_damage
from tinyalex.interop import names
from tinyalex.interop.description import KEY, described
from tinyalex.interop.reading import TORCH_MAGIC, Request
from tinyalex.interop.stored import MOST_AXES, Stored
from tinyalex.interop.torch_pickles import Storage, View, leaves, load, new_storage, view
from tinyalex.interop.weights import Weights
from tinyalex.interop.zip_files import Member, members_of
from tinyalex.schema import TEXT

LONGEST_PICKLE = 2**24
"""Bytes of the pickle in an archive: an AlexNet's has a few thousand."""

MOST_MEMBERS = 64
"""Members of a tar archive that are looked at."""


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
    options = described(content.description) if content.description else _classes(content.tree)
    own, variant, prefix = names.select(arrays, request.variant, options.pop("variant", None))
    places = [array.position for array in own.values() if isinstance(array, Stored)]
    for member in content.members:
        if any(member.position <= place < member.position + member.size for place in places):
            member.check(file)
    notes = (f"names begin with {prefix}",) if prefix else ()
    return Weights(names.read(own), variant, source="PyTorch", notes=notes, **options)


def _classes(tree: Any) -> dict[str, Any]:
    """Return the names of the classes, if they are beside the weights."""
    beside = tree if type(tree) is dict else {}
    found = beside.get("classes", beside.get("class_names"))
    numbers = beside.get("class_to_idx")
    if type(numbers) is dict and {*range(len(numbers))} == {*map(_as_int, numbers.values())}:
        found = sorted(numbers, key=numbers.__getitem__)
    if type(found) is list and found and all(map(TEXT.holds, found)):
        return {"classes": found}
    return {}


def _as_int(number: Any) -> int:
    return number if type(number) is int else -1


def _read_zip(file: BinaryIO, size: int) -> Content:
    """Read an archive of torch 1.6 or later."""
    members = members_of(file, size)
    roots = [name[: -len("data.pkl")] for name in members if f"/{name}".endswith("/data.pkl")]
    if len(roots) != 1:
        raise FileError(
            "it is a zip archive, but not of torch.save: save model.state_dict() with it"
        )
    if f"{roots[0]}constants.pkl" in members:
        raise FileError("it is a TorchScript program: save the state_dict() of the model instead")

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
            raise DamagedError("its pickle refers to a storage that is not in the archive")
        if key not in storages:
            new = storages[key] = new_storage(kind, count)
            new.position = member.position
            if not member.compressed and new.count * new.item_size != member.size:
                raise DamagedError(
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
    """Read a file of torch before 1.6: five pickles, then the storages."""
    magic, version, _ = load(file), load(file), load(file)
    if magic != int.from_bytes(TORCH_MAGIC, "little") or version != 1001:
        raise FileError("it begins as PyTorch's files do, but is none")
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Any:
        if identity[0] == "module":
            return identity[1]
        _, kind, key, _, count, part = identity
        if type(key) is not str:
            raise DamagedError("its pickle is damaged: the name of a storage is no text")
        whole = storages.setdefault(key, new_storage(kind, count))
        return whole if part is None else whole.part(*part[1:])

    tree = load(file, storage)
    keys = load(file)
    named = type(keys) is list and all(type(key) is str for key in keys)
    if not named or {*keys} != {*storages} or len(keys) != len(storages):
        raise DamagedError("it is damaged: its list of storages is not that of its tensors")
    for key in keys:
        _skip(storages[key], _number(file), file, size)
    if file.tell() != size:
        raise DamagedError(f"it is damaged: {size - file.tell():,} bytes follow its arrays")
    return Content(tree)


def _read_tar(file: BinaryIO, size: int) -> Content:
    """Read an archive of torch before 0.1.10: storages, tensors, a pickle."""
    members = _tar_members(file, size)
    if not {"storages", "tensors", "pickle"} <= members.keys():
        raise FileError("it is a tar archive, but not of torch.save: unpack it")
    with refusing_damage("it is damaged: its tensors and storages do not fit together"):
        return Content(_tar_tree(file, size, members))


def _tar_tree(file: BinaryIO, size: int, members: dict[str, int]) -> Any:
    """Return the tree of an archive whose members begin at these places."""
    storages: dict[Any, Storage] = {}
    file.seek(members["storages"])
    for _ in range(load(file)):
        key, _, kind = load(file)
        count = _number(file)
        storages[key] = new_storage(kind, count)
        _skip(storages[key], count, file, size)
    for key, root, offset, count in load(file):
        storages[key] = storages[root].part(offset, count)
    tensors: dict[int, View] = {}
    file.seek(members["tensors"])
    for _ in range(load(file)):
        key, owner, _ = load(file)
        axes = _number(file) & 0xFFFFFFFF  # four bytes of eight: the others need not be zeros
        if axes > MOST_AXES:
            raise DamagedError(f"it is damaged: a tensor has {axes} axes")
        shape, strides = (tuple(_number(file) for _ in range(axes)) for _ in range(2))
        tensors[int(key)] = view(storages[owner], _number(file), shape, strides)
    file.seek(members["pickle"])
    return load(file, lambda identity: tensors[int(identity)])


def _tar_members(file: BinaryIO, size: int) -> dict[str, int]:
    """Return where the content of each member of a tar archive begins."""
    members: dict[str, int] = {}
    place = 0
    while place + 512 <= size and len(members) < MOST_MEMBERS:
        file.seek(place)
        header = file.read(512)
        if not any(header):
            break
        try:
            length, total = (int(header[a:b].strip(b" \0"), 8) for a, b in ((124, 136), (148, 156)))
        except ValueError as error:
            raise DamagedError("it is a damaged tar archive: a header has no length") from error
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != total or length < 0:
            raise DamagedError("it is a damaged tar archive: the checksum of a header is wrong")
        if place + 512 + length > size:
            raise DamagedError("it is a part of a tar archive: it ends in the middle of a member")
        members[header[:100].rstrip(b"\0").decode("latin-1").removeprefix("./")] = place + 512
        place += 512 + length + -length % 512
    return members


def _number(file: BinaryIO) -> int:
    """Return the next number of 64 bits."""
    raw = file.read(8)
    if len(raw) != 8:
        raise DamagedError("it ends in the middle of a number")
    return int.from_bytes(raw, "little", signed=True)


def _skip(storage: Storage, count: int, file: BinaryIO, size: int) -> None:
    """Skip the numbers of a storage, and remember their place."""
    storage.position = file.tell()
    end = storage.position + storage.count * storage.item_size
    if count != storage.count:
        raise DamagedError(f"a storage should have {storage.count:,} numbers, but has {count:,}")
    if end > size:
        raise DamagedError("it ends in the middle of an array")
    file.seek(end)
