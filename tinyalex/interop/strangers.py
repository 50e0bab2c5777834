"""Files that are taken for weights, by their first bytes."""

from __future__ import annotations

MARKS: dict[str, tuple[bytes, ...]] = {
    "a Git LFS pointer, not the file itself: git lfs pull fetches that": (
        b"version https://git-lfs",
    ),
    "a web page, which a failed download leaves: download the file again": (
        b"<!doctype",
        b"<html",
        b"<head",
        b"<?xml",
        b"<error",
    ),
    "compressed: unpack it first": (
        b"\x1f\x8b",
        b"bzh",
        b"\xfd7zxz",
        b"\x28\xb5\x2f\xfd",
        b"7z\xbc\xaf",
        b"rar!",
    ),
    "an image, not weights": (
        b"\x89png",
        b"\xff\xd8\xff",
        b"gif8",
        b"riff",
    ),
    "HDF5, as Keras and newer MATLAB files are, which is not read": (b"\x89hdf",),
    "a PDF": (b"%pdf",),
}
"""Beginnings in lower case, by a description."""

TEXT = bytes(range(32, 127)) + b"\t\n\r\f\v"


def known(head: bytes) -> str:
    """Return a description of a file that begins so, or ""."""
    if not head.strip():
        return "blank" if head else "empty"
    begins = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((text for text, marks in MARKS.items() if begins.startswith(marks)), "")


def unread(head: bytes) -> str:
    """Return a description of a file that no reader takes, or ""."""
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle, which may run code and is not opened: save its arrays by numpy.savez"
    return "" if head.translate(None, TEXT) else "a text file"
