"""Directory of a zip archive."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from tinyalex.files import DamagedError, FileError, refusing_damage

LONGEST_DIRECTORY = 2**23
"""Bytes of a directory: an entry has about 70, and a checkpoint some hundred entries."""

_LONG = 0xFFFFFFFF
"""Stands for a number that the extra field has, in 64 bits."""


class Member(NamedTuple):
    """Place of a member's bytes, and their checksum, 0 if there is none."""

    position: int
    size: int
    crc: int
    compressed: bool

    def check(self, file: BinaryIO) -> None:
        """Raise FileError for compressed bytes or another checksum."""
        if self.compressed:
            raise FileError("the zip archive is compressed, which torch.save never does: unpack it")
        crc, left = 0, self.size if self.crc else 0
        file.seek(self.position)
        while left:
            piece = file.read(min(left, 2**20))
            if not piece:
                raise DamagedError("it ends in the middle of an array")
            crc, left = zlib.crc32(piece, crc), left - len(piece)
        if crc != self.crc:
            raise DamagedError("it is damaged: a checksum of the zip archive is wrong")


def members_of(file: BinaryIO, size: int) -> dict[str, Member]:
    """Return the members of an archive that is whole."""
    with refusing_damage("it is a damaged zip archive, or cut short"):
        begin, directory = _directory(file, size)
        members: dict[str, Member] = {}
        end = 0
        for start, name, member in sorted(_entries(directory)):
            file.seek(min(start, size))
            mark, names, extras = struct.unpack("<4s22xHH", file.read(30))
            position = start + 30 + names + extras
            same = mark == b"PK\3\4" and file.read(names) == name and name.decode() not in members
            if not same or start < end or position + member.size > begin:
                raise DamagedError(
                    "it is a damaged zip archive: its members are not where they belong"
                )
            members[name.decode()] = member._replace(position=position)
            end = position + member.size
        return members


def _directory(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Return the directory and its place."""
    start = max(0, size - 22 - 0xFFFF)
    file.seek(start)
    tail = file.read(size - start)
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise DamagedError("it is cut short: the end of its zip archive is missing")
    length, begin, comment = struct.unpack_from("<12xLLH", tail, place)
    end = start + place
    if end + 22 + comment != size:
        raise DamagedError("it is a damaged zip archive: it does not end with its directory")
    if _LONG in (length, begin):
        mark, end = struct.unpack_from("<4s4xQ", tail, place - 20)
        file.seek(min(end, size) if mark == b"PK\6\7" else 0)
        mark, length, begin = struct.unpack("<4s36xQQ", file.read(56))
        if mark != b"PK\6\6":
            raise DamagedError("it is a damaged zip archive: its directory cannot be found")
    if length > LONGEST_DIRECTORY or begin + length > end:
        raise DamagedError("it is a damaged zip archive: its directory is too long")
    file.seek(begin)
    return begin, file.read(length)


def _entries(directory: bytes) -> Iterator[tuple[int, bytes, Member]]:
    """Yield each member's start, name and bytes, whose position is unknown."""
    place = 0
    while place < len(directory):
        fields = struct.unpack_from("<4s4xHH4xLLLHHH8xL", directory, place)
        mark, flags, method, crc, packed, length, names, extras, comment, start = fields
        if mark != b"PK\1\2":
            raise DamagedError("it is a damaged zip archive: an entry is none")
        place += 46
        name, extra = directory[place : place + names], directory[place + names :][:extras]
        place += names + extras + comment
        long = _long_numbers(extra)
        length, packed, start = (
            next(long, number) if number == _LONG else number for number in (length, packed, start)
        )
        compressed = bool(method or flags & 1 or packed != length)
        yield start, name, Member(0, packed, crc, compressed)


def _long_numbers(extra: bytes) -> Iterator[int]:
    """Yield the numbers in 64 bits of an entry's extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            yield from (number for (number,) in struct.iter_unpack("<Q", extra[4 : 4 + length]))
        extra = extra[4 + length :]
