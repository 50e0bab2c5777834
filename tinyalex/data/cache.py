"""Results cached in the user's folder while the images stay the same.

A file in `$XDG_CACHE_HOME/tinyalex`, or `~/.cache/tinyalex`, holds a result together with a digest
of the names, identities and times of the images: it counts only while these are what they were.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL

from tinyalex.data.folder import ImageFolder
from tinyalex.files import FileError, load, save
from tinyalex.folders import make_folder
from tinyalex.version import __version__


def images_digest(images: ImageFolder, measured: object) -> str:
    """Return a digest of the images and of the measurement.

    That is so with this Pillow and this tinyalex: another one may decode and resize in another way.
    """
    digest = hashlib.sha256(f"{__version__} {PIL.__version__} {measured}\n".encode())
    for path in images.paths:
        digest.update(os.fsencode(path) + f"\0{_identity(path)}\n".encode())
    return digest.hexdigest()


def _identity(path: str) -> tuple[int, ...] | None:
    """Return the file's identity and times; None for a dangling link."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def cache_file(folder: str | Path, kind: str = "statistics") -> Path | None:
    """Return the cache file for images in `folder`; None without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # unset; or relative, which the XDG specification ignores
        cache = os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:32]
    return Path(cache, "tinyalex", f"{kind}-{name}.safetensors") if os.path.isabs(cache) else None


def kept(place: Path | None, digest: str) -> dict[str, Any]:
    """Return what `keep` wrote if the digest is the same, else nothing."""
    content: Any = None
    with suppress(OSError, FileError):  # none, or damaged
        content = load(place) if place else None
    same = isinstance(content, dict) and content.get("images_sha256") == digest
    return content if same else {}


def keep(place: Path | None, digest: str, content: Mapping[str, Any]) -> None:
    """Cache the content for images with this digest.

    Where it cannot be written, the next run computes it again.
    """
    if place is not None:
        with suppress(OSError):
            make_folder(place.parent)
            save({"images_sha256": digest, **content}, place)
