"""tinyalex prepare --verify: damage is named, and mended by preparing again."""

import hashlib
import json

import images
import pytest
from preparing import GOOD, content, prepare

from tinyalex.data import load_statistics, read_image
from tinyalex.data.manifest import MANIFEST, STATISTICS, _hasher

pytest_plugins = ("originals",)


def test_verify_names_what_is_changed_missing_or_unexpected(originals, prepared, prepared_copy):
    assert prepare("--verify", prepared_copy)[::2] == (0, "")
    flipped = prepared_copy / "train/ash/02.jpg"
    pixels = bytearray(flipped.read_bytes())
    pixels[len(pixels) // 2] ^= 16
    flipped.write_bytes(pixels)
    read_image(flipped)  # nothing else would notice
    (prepared_copy / "train/elm/01.jpg").unlink()
    (prepared_copy / "val/ash/10.jpg").unlink()
    images.pipe(prepared_copy / "val/ash/10.jpg")
    images.write(prepared_copy / "val/elm/new.jpg")
    code, out, err = prepare("--verify", prepared_copy)
    assert code == 2
    assert "4 files are wrong" in out
    assert err.splitlines() == [
        "changed: train/ash/02.jpg",
        "missing: train/elm/01.jpg",
        "missing: val/ash/10.jpg",
        "unexpected: val/elm/new.jpg",
    ]
    assert out.endswith("remove them, then prepare again\n")
    for line in err.splitlines():
        (prepared_copy / line.partition(": ")[2]).unlink(missing_ok=True)
    assert f"3 images made, {GOOD - 3} were there" in prepare(originals, prepared_copy)[1]
    assert content(prepared_copy) == content(prepared)


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_looked_at(unprivileged):
    for name in ("1", "2"):
        (unprivileged / name).write_bytes(b"content")
    (unprivileged / "1").chmod(0)
    found = _hasher(None, unprivileged)(["1", "2", "3"], lambda position: None)
    assert found == {
        "1": ("", "unreadable (Permission denied)"),
        "2": (hashlib.sha256(b"content").hexdigest(), "changed"),
        "3": ("", "missing"),
    }


def cut_manifest(folder):
    """Take the last image out of the manifest, and off the disk."""
    *kept, last = (folder / MANIFEST).read_text().splitlines(keepends=True)
    (folder / MANIFEST).write_text("".join(kept))
    (folder / json.loads(last)["path"]).unlink()
    return f"changed: {MANIFEST}\n"


def damage_statistics(folder):
    """Change a bit of the mean image."""
    file = folder / STATISTICS
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    return f"changed: {STATISTICS} ("


def garble_manifest(folder):
    """Write over a line of the manifest."""
    before = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(before.replace('{"path"', "{path", 1))
    return f"error: {folder / MANIFEST} is damaged in line 2: prepare again, which mends it"


def garble_entry(folder):
    """Put a number where a path is, another where a source is."""
    first, one, two, *rest = (folder / MANIFEST).read_text().splitlines(keepends=True)
    one, two = json.loads(one) | {"path": 5}, json.loads(two) | {"source": ["a", "b"]}
    lines = [first, json.dumps(one) + "\n", json.dumps(two) + "\n", *rest]
    (folder / MANIFEST).write_text("".join(lines))
    return f"error: {folder / MANIFEST} is damaged in line 2: prepare again, which mends it"


def garble_options(folder):
    """Write over the first line of the manifest."""
    before = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(before[1:])
    return f"error: {folder / MANIFEST} is damaged in line 1: prepare again, which mends it"


def foreign_statistics(folder):
    """Save statistics that do not say what they are of."""
    load_statistics(folder / STATISTICS)[0].save(folder / STATISTICS)
    return f"changed: {MANIFEST}\n"


DAMAGES = [
    cut_manifest,
    damage_statistics,
    garble_manifest,
    garble_entry,
    garble_options,
    foreign_statistics,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_its_own_files_is_noticed_and_mended(damage, originals, prepared, prepared_copy):
    expected = damage(prepared_copy)
    code, _, err = prepare("--verify", prepared_copy)
    assert code == 2
    assert err.startswith(expected)
    assert prepare(originals, prepared_copy)[0] == 0
    assert content(prepared_copy) == content(prepared)


def test_without_its_options_a_folder_is_made_anew(originals, prepared_copy):
    garble_options(prepared_copy)
    code, out, _ = prepare(originals, prepared_copy, "--size", 128)
    assert code == 0
    assert f"{GOOD} images made, 0 were there" in out
    assert min(read_image(prepared_copy / "train/ash/02.jpg").shape[:2]) == 128


def test_without_its_manifest_a_folder_is_made_anew(originals, prepared, prepared_copy):
    (prepared_copy / MANIFEST).unlink()
    code, out, _ = prepare(originals, prepared_copy)
    assert code == 0
    assert f"{GOOD} images made, 0 were there" in out
    assert content(prepared_copy) == content(prepared)
