"""Saved files: they are whole or absent, and they cannot run code."""

import os
import pickle

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import tinyalex as ta

pytest_plugins = ("trained",)


@pytest.fixture
def path(tmp_path):
    """A path in an empty folder."""
    return tmp_path / "weights of Alex.ta"


CHECKPOINT = {
    "weights": {"features.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4)},
    "velocity": [np.ones((3, 2)), None],
    "step": 12345678901234567890,
    "lr": 0.1,
    "done": False,
    "name": "Älex\n",
}


# --- whole or absent -----------------------------------------------------------------------------


def test_failing_write_leaves_the_old_file_and_nothing_else(path, disk):
    ta.save(CHECKPOINT, path)
    before = path.read_bytes()
    disk(4096)
    with pytest.raises(OSError):
        ta.save(np.zeros(10_000), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_missing_folder(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        ta.save(1, tmp_path / "nowhere" / "x.ta")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_what_was_there_before_can_be_kept(path, links, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    other = path.with_name("before")
    for content in ("first", "second", "third"):
        ta.files.save(content, path, keep=other)
    assert (ta.load(path), ta.load(other)) == ("third", "second")
    assert sorted(os.listdir(path.parent)) == sorted([path.name, other.name])


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("name", ["a file", "n" * 255, "\N{TULIP}" * 63], ids=len)
def test_a_name_that_is_taken_can_be_left_alone(tmp_path, name, links, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path, other = tmp_path / name, tmp_path / "other"

    def write(text):
        ta.files.write_atomically(path, lambda file: file.write(text), overwrite=False)

    write(b"first")
    with pytest.raises(FileExistsError):
        write(b"second")
    path.rename(other)
    path.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        write(b"third")
    assert other.read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, name])


def refuse(*args, **options):
    raise PermissionError(1, "Operation not permitted")


def test_the_content_is_on_the_disk_before_its_name_is(path, monkeypatch):
    ta.save("old", path)
    calls = []

    def record(function):
        real = getattr(os, function)

        def recorded(*args, **options):
            names = [os.readlink(f"/proc/self/fd/{a}") if a in range(3, 999) else a for a in args]
            calls.append((function, *(os.path.basename(name) for name in names)))
            return real(*args, **options)

        monkeypatch.setattr(os, function, recorded)

    for function in ("fsync", "link", "replace"):
        record(function)
    ta.files.save("new", path, keep=path.with_name("before"))
    temporary = calls[0][1]
    assert temporary.startswith(f".{path.name}.")
    assert calls == [
        ("fsync", temporary),
        ("link", path.name, "before"),
        ("replace", temporary, path.name),
        ("fsync", path.parent.name),
    ]


def test_replacing_keeps_readers_of_the_old_file(path):
    ta.save("old", path)
    with open(path, "rb") as reader:
        before = path.read_bytes()
        ta.save("new", path)
        assert reader.read() == before
    assert ta.load(path) == "new"


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_others_may_read_it_where_new_files_are_so(path, umask, monkeypatch):
    set_umask = os.umask
    before = set_umask(umask)
    monkeypatch.delattr(os, "umask")  # to change it for a moment is to change it in all threads
    try:
        ta.save(1, path)
    finally:
        set_umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127], ids=["ASCII", "two bytes each"])
def test_any_name_that_a_file_may_have_can_be_written(tmp_path, name):
    left = []
    ta.files.write_atomically(tmp_path / name, lambda file: left.extend(os.listdir(tmp_path)))
    (tmp_path / left[0]).write_text("of a process that was killed")
    with ta.folders.Folder(tmp_path) as folder:
        folder.remove_temporaries(name)
    assert os.listdir(tmp_path) == [name]


# --- damage --------------------------------------------------------------------------------------


def assert_refused(path):
    with pytest.raises(ta.FileError) as caught:
        ta.load(path)
    assert path.name in str(caught.value)


def test_any_changed_byte_is_noticed(path):
    ta.save(CHECKPOINT, path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    places = {*range(16), *range(len(good) - 16, len(good)), *rng.choice(len(good), 170).tolist()}
    for place in sorted(places):
        for flip in (0x01, 0x80, 0xFF):
            bad = bytearray(good)
            bad[place] ^= flip
            path.write_bytes(bad)
            assert_refused(path)


@pytest.mark.parametrize("blank", [b"\t", b"\n", b"\r"])
def test_a_changed_blank_of_the_header_is_noticed(path, blank):
    ta.save(CHECKPOINT, path)
    good = path.read_bytes()
    header = good[: 8 + int.from_bytes(good[:8], "little")]
    for place in (place for place in range(8, len(header)) if header[place] == ord(" ")):
        path.write_bytes(good[:place] + blank + good[place + 1 :])
        assert_refused(path)


def test_files_of_safetensors_own_writer_are_read(path):
    """As the first versions wrote them."""
    ta.save(CHECKPOINT, path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(arrays, path, metadata)
    assert ta.load(path).keys() == CHECKPOINT.keys()


def test_any_truncation_is_noticed(path):
    ta.save(CHECKPOINT, path)
    good = path.read_bytes()
    for length in {*range(0, len(good), 37), 7, 8, 9, len(good) - 1}:
        path.write_bytes(good[:length])
        assert_refused(path)
    path.write_bytes(good + b"\0")
    assert_refused(path)


def test_a_missing_file_stays_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        ta.load(path)
    with pytest.raises(OSError):
        ta.load(path.parent)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_loading_cannot_run_code(path, tmp_path):
    target = tmp_path / "executed"
    bomb = Bomb(target)
    path.write_bytes(pickle.dumps(bomb))
    assert_refused(path)
    with open(path, "wb") as file:
        np.save(file, np.array([bomb], dtype=object))
    assert_refused(path)
    with open(path, "wb") as file:
        np.savez(file, weights=np.array([bomb], dtype=object))
    assert_refused(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(bomb))
    assert target.exists(), "the bomb would have gone off"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\xff" * 64, b"[" * 100_000, b"\x02" + b"\0" * 7 + b"{}"],
    ids=["empty", "zeros", "ones", "brackets", "no tensors"],
)
def test_files_of_somebody_else_are_refused(content, path):
    path.write_bytes(content)
    assert_refused(path)
