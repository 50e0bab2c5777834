"""Random folders of images: names, files, links, splits and changes."""

import hashlib
import os
import shutil
import socket
import unicodedata
from pathlib import Path
from typing import NamedTuple

import images
import numpy as np
from hypothesis import strategies as st
from PIL import Image

import tinyalex as ta

ENDINGS = (".png", ".jpg", ".JPG", ".webp", ".bmp", ".gif", ".jpeg")
ODD = (
    "a b", " ", "-r", "--out", "new\nline", "tab\t", "\x1b[31m", "\r", "\x07", "ä", "a\u0308",
    "\udcff", "\udc80\udcfe", "*", "[a-z]?", "$HOME", "`id`", "'", '"', "\\", "%s%n", "{0}", "~",
    "日本語", "\u202e", "\u200d", "\u2028", "\ufeff", "con", "null", "1e5", "...", "..x", "é" * 100,
    "x" * 240, "train", "val", "last.safetensors",
)  # fmt: skip
NAMES = st.sampled_from(ODD) | st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12
)
CLASSES = NAMES | st.sampled_from(
    ("ash", "birch", "elm", "Ash", "a b", "日本", "ä", "-x", "oak.jpg")
)
SPLITS = (
    ("train", "val"), ("Train", "Val"), ("training", "validation"), ("train", "valid"),
    ("train", "test"), ("TRAIN", "VAL"), ("train", "val", "test"), ("train",), ("val",),
    ("test",), ("train", "dev"),
)  # fmt: skip


class Counter:
    """Numbers from 0 on, so that no two images drawn are equal; links lead to the folder `away`."""

    def __init__(self, away):
        self.away, self.value = away, 0

    def next(self):
        """Return the next number."""
        self.value += 1
        return self.value - 1


def fits(name):
    """Tell whether a file can have this name."""
    try:
        return name not in ("", ".", "..") and len(os.fsencode(name)) <= 255
    except UnicodeEncodeError:
        return False


# --- files ----------------------------------------------------------------------------------------


def picture(path, counter):
    """Write an image that no other number has, of the kind that the name says."""
    number = counter.next()
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (8 + number % 7, 9 + number % 5, 3), np.uint8)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
    with open(path, "wb") as file:
        ending = os.path.splitext(path)[1].lower()
        Image.fromarray(pixels).save(file, kind.get(ending, "PNG"))


def empty(path, counter):
    """Write no bytes."""
    path.write_bytes(b"")


def cut(path, counter):
    """Write the beginning of an image."""
    picture(path, counter)
    os.truncate(path, path.stat().st_size * (counter.value % 9 + 1) // 10)


def garbage(path, counter):
    """Write random bytes."""
    number = counter.next()
    path.write_bytes(np.random.default_rng(number).bytes(number % 300))


def bomb(path, counter):
    """Write a small file that claims to be a large image."""
    images.pixel_bomb(path)


def link(path, counter):
    """Link to an image that lies elsewhere."""
    counter.away.mkdir(exist_ok=True)
    target = counter.away / f"{counter.value}.png"
    picture(target, counter)
    path.symlink_to(target)


def broken_link(path, counter):
    """Link to nothing."""
    path.symlink_to("gone.png")


def loop(path, counter):
    """Link to itself."""
    path.symlink_to(path.name)


def fifo(path, counter):
    """Make a pipe."""
    os.mkfifo(path)


def unix_socket(path, counter):
    """Make a socket, or a pipe where the path is too long for one."""
    with socket.socket(socket.AF_UNIX) as made:
        try:
            made.bind(os.fsencode(path))
        except OSError:
            os.mkfifo(path)


def device(path, counter):
    """Link to a device that never ends."""
    path.symlink_to("/dev/zero")


def folder(path, counter):
    """Make a folder with an image inside."""
    path.mkdir()
    picture(path / "inside.png", counter)


def upwards(path, counter):
    """Link to the folder that this lies in."""
    path.symlink_to(path.parent, target_is_directory=True)


GOOD = (picture, link)
BROKEN = (empty, cut, garbage, bomb)
SPECIAL = (broken_link, loop, fifo, unix_socket, device, folder, upwards)


class Entry(NamedTuple):
    """A file to be made: in which class, its name, what it is."""

    name: str
    make: object

    def __repr__(self):
        return f"{self.make.__name__} {self.name!r}"


@st.composite
def entries(draw, odd):
    """Draw some files of a class: mostly images."""
    found = {}
    for _ in range(draw(st.integers(0 if odd else 2, 6))):
        stem = draw(NAMES if odd else st.sampled_from("abcdefghij"))
        ending = draw(st.sampled_from((*ENDINGS, "", ".txt") if odd else ENDINGS))
        make = draw(st.sampled_from(GOOD * 4 + BROKEN + SPECIAL)) if odd else picture
        hidden = "." if odd and draw(st.integers(0, 9)) == 9 else ""
        name = hidden + stem + ending
        if fits(name):
            found[name] = Entry(name, make)
    return tuple(found.values())


@st.composite
def folders(draw, odd=True):
    """Draw a folder: split (or not), then class, then files."""
    splits = draw(st.sampled_from(SPLITS) | st.none()) if odd else None
    names = draw(st.lists((CLASSES if odd else st.sampled_from("abc")).filter(fits),
                          min_size=1 if odd else 2, max_size=3, unique=True))  # fmt: skip
    made = {}
    for split in splits or ("",):
        made[split] = {name: draw(entries(odd)) for name in names}
        if odd and draw(st.integers(0, 9)) == 9:
            made[split].pop(names[0])
    return made


def write(root, tree, counter):
    """Make a folder that was drawn."""
    for split, classes in tree.items():
        for name, files in classes.items():
            place = Path(os.path.join(root, split, name))
            place.mkdir(parents=True, exist_ok=True)
            for entry in files:
                if not os.path.lexists(place / entry.name):
                    entry.make(place / entry.name, counter)


# --- changes --------------------------------------------------------------------------------------


def _images(root):
    return sorted(p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in ENDINGS)


def rename(root, rng, counter):
    """Give an image another name."""
    path = rng.choice(_images(root))
    path.rename(path.with_name(f"renamed {rng.randrange(999)}{path.suffix}"))


def rename_all(root, rng, counter):
    """Give all images other names, in another order."""
    found = _images(root)
    rng.shuffle(found)
    for number, path in enumerate(found):
        path.rename(path.with_name(f"{number:03}_{path.name[-40:]}"))


def add(root, rng, counter):
    """Add an image."""
    path = rng.choice(_images(root))
    picture(path.with_name(f"added {rng.randrange(999)}.png"), counter)


def double(root, rng, counter):
    """Add a copy of an image."""
    path = rng.choice(_images(root))
    shutil.copy(path, path.with_name(f"{rng.randrange(999)} copy{path.suffix}"))


def delete(root, rng, counter):
    """Remove an image."""
    rng.choice(_images(root)).unlink()


def swap(root, rng, counter):
    """Let two images change places."""
    one, other = rng.choice(_images(root)), rng.choice(_images(root))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def spoil(root, rng, counter):
    """Replace an image by what is none."""
    path = rng.choice(_images(root))
    path.unlink()
    rng.choice((*BROKEN, fifo, broken_link, device))(path, counter)


def repaint(root, rng, counter):
    """Put another image in the place of one."""
    picture(rng.choice(_images(root)), counter)


def touch(root, rng, counter):
    """Give all images another time."""
    for path in _images(root):
        os.utime(path, (1e9, 1e9))


def move_class(root, rng, counter):
    """Rename a class folder."""
    path = rng.choice(_images(root)).parent
    path.rename(path.with_name(f"{path.name[:40]} moved"))


def split_up(root, rng, counter):
    """Move all into train/ and val/."""
    for path in _images(root):
        target = root / rng.choice(("train", "val")) / path.parent.relative_to(root) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def remove_all(root, rng, counter):
    """Remove the folder."""
    shutil.rmtree(root)


def nothing(root, rng, counter):
    """Change nothing."""


CHANGES = (
    rename, rename_all, add, double, delete, swap, spoil, repaint, touch, move_class, split_up,
    remove_all, nothing,
)  # fmt: skip


def change(root, which, rng, counter):
    """Make some changes to a folder, as far as there are images."""
    for act in which:
        if root.is_dir() and _images(root):
            act(root, rng, counter)


# --- run folders ----------------------------------------------------------------------------------

VALUES = (
    None, True, 0, -1, 10**30, 1e308, float("nan"), float("inf"), "", "x", "../x", "a\nb", [], {},
    ["a"], {"a": 1}, np.zeros(3, np.float32), np.zeros((2, 2), np.int64), np.full(4, np.nan),
    np.zeros(0, np.float32), np.array(1e300),
)  # fmt: skip


def damage_gone(path, rng):
    """Remove a file."""
    path.unlink()


def damage_empty(path, rng):
    """Leave no bytes."""
    path.write_bytes(b"")


def damage_cut(path, rng):
    """Lose the end."""
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


def damage_garbled(path, rng):
    """Change some bytes."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 9)):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def damage_fifo(path, rng):
    """Put a pipe there."""
    path.unlink()
    os.mkfifo(path)


def damage_folder(path, rng):
    """Put a folder there."""
    path.unlink()
    path.mkdir()


def damage_linked(path, rng):
    """Move the file elsewhere, and link to it."""
    away = path.parents[1] / "linked"
    away.mkdir(exist_ok=True)
    path.rename(away / path.name)
    path.symlink_to(away / path.name)


def damage_stray_link(path, rng):
    """Link to a file that must not be written."""
    path.unlink()
    path.symlink_to(rng.choice(("gone", path.name, "/dev/zero", "/dev/null", "../precious")))


def damage_leaf(path, rng):
    """Replace one value in a checkpoint, with a digest that fits; of other files, a byte."""
    if path.suffix != ".safetensors":
        return damage_garbled(path, rng)
    content = ta.load(path)
    inner = content
    while True:
        key = rng.choice(sorted(inner) if isinstance(inner, dict) else range(len(inner)))
        if not (isinstance(inner[key], (dict, list)) and inner[key]) or rng.random() < 0.1:
            break
        inner = inner[key]
    inner[key] = rng.choice(VALUES)
    return ta.save(content, path)


DAMAGE = (
    damage_gone, damage_empty, damage_cut, damage_garbled, damage_fifo, damage_folder,
    damage_linked, damage_stray_link, damage_leaf,
)  # fmt: skip


# --- what there is --------------------------------------------------------------------------------


def listing(root, *without):
    """Return all that lies below a folder, without some of it: kinds, sizes, times, contents."""
    found = {}
    for path in sorted(root.rglob("*")):
        if any(path == other or other in path.parents for other in without):
            continue
        kept = os.lstat(path)
        what = [kept.st_mode]
        if path.is_symlink():
            what.append(os.readlink(path))
        elif path.is_file():
            what += [kept.st_size, kept.st_mtime_ns, digest(path)]
        found[str(path.relative_to(root))] = what
    return found


def digest(path):
    """Return the SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def plain_text(text):
    """Tell whether a text has nothing in it that steers a terminal."""
    return not any(unicodedata.category(c) == "Cc" for c in text.replace("\n", ""))
