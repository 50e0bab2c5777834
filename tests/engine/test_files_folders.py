"""Folders that others write to as well: nothing foreign is touched."""

import errno
import os
import socket

import pytest

from tinyalex.files import load, save
from tinyalex.folders import Folder, FolderLostError, make_folder, open_regular, write_atomically

SYNC_REFUSED = ("EPERM", "ENOSYS", "EBADF", "EACCES", "EINVAL", "ENOTSUP")


def a_pipe(path):
    os.mkfifo(path)


def a_folder(path):
    path.mkdir()


def a_device(path):
    path.symlink_to("/dev/zero")  # which never ends


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def a_link(path):
    path.with_name("foreign").write_bytes(b"foreign")
    path.symlink_to("foreign")


IN_THE_WAY = [a_pipe, a_folder, a_device, a_socket, a_link]


@pytest.mark.timeout(5)
@pytest.mark.parametrize("make", IN_THE_WAY[:-1])
def test_only_regular_files_are_opened(tmp_path, make):
    make(tmp_path / "x")
    for read in (open_regular, load):
        with pytest.raises(OSError, match="x'"):
            read(tmp_path / "x")


def test_links_to_files_are_read(tmp_path):
    save("content", tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    assert load(tmp_path / "link") == "content"


@pytest.mark.timeout(5)
@pytest.mark.parametrize("make", IN_THE_WAY)
@pytest.mark.parametrize("role", ["target", "keep", "in place"])
def test_what_is_in_the_way_goes_aside_as_it_is(tmp_path, make, role):
    make(tmp_path / "x")
    before = os.lstat(tmp_path / "x")
    (tmp_path / "x.unreadable").write_text("taken")
    if role == "keep":
        write_atomically(tmp_path / "y", lambda file: file.write(b"kept"))
        write_atomically(tmp_path / "y", lambda file: file.write(b"new"), keep=tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == b"kept"
    elif role == "target":
        write_atomically(tmp_path / "x", lambda file: file.write(b"new"), keep=tmp_path / "y")
    else:
        with Folder(tmp_path) as folder, folder.open_own("x") as file:
            file.write(b"new")
    assert (tmp_path / ("y" if role == "keep" else "x")).read_bytes() == b"new"
    aside = os.lstat(tmp_path / "x.unreadable-2")
    assert (aside.st_ino, aside.st_mode) == (before.st_ino, before.st_mode)
    assert (tmp_path / "x.unreadable").read_text() == "taken"
    if make is a_link:
        assert (tmp_path / "foreign").read_bytes() == b"foreign"


def test_a_file_of_several_names_is_written_under_one(tmp_path):
    (tmp_path / "backup").write_bytes(b"before")
    os.link(tmp_path / "backup", tmp_path / "x")
    with Folder(tmp_path) as folder, folder.open_own("x") as file:
        file.seek(6)
        file.write(b" and after")
    assert (tmp_path / "backup").read_bytes() == b"before"
    assert (tmp_path / "x").read_bytes() == b"before and after"


def test_no_link_is_followed_below_a_folder(tmp_path):
    make_folder(tmp_path / "elsewhere")
    make_folder(tmp_path / "real/a")
    (tmp_path / "named").symlink_to("real")
    (tmp_path / "real/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real/c").write_text("")
    with Folder(tmp_path / "named") as folder:
        for path in ("a", "new/deep"):
            with folder.inside(path) as deeper:
                deeper.write("x", lambda file: file.write(b"new"))
        for path in ("b", "b/deep", "c"):
            with pytest.raises(NotADirectoryError, match="links are not followed here"):
                folder.inside(path)
    assert (tmp_path / "real/new/deep/x").read_bytes() == b"new"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_stays_the_same_under_another_name(tmp_path):
    path, moved = tmp_path / "a", tmp_path / "b"
    path.mkdir()
    with Folder(path) as folder:
        assert folder.where() == path
        path.rename(moved)
        path.mkdir()
        folder.write("x", lambda file: file.write(b"new"))
        assert folder.where() == moved
        with pytest.raises(FolderLostError, match="no longer the folder that it was"):
            Folder(path, folder.identity)
        Folder(moved, folder.identity).close()
        (moved / "x").unlink()
        moved.rmdir()
        with pytest.raises(FolderLostError, match="is gone, or another folder has its name"):
            folder.where()
        with pytest.raises(FileNotFoundError, match="b/x"):
            folder.write("x", lambda file: file.write(b"new"))
    assert not list(path.iterdir())


def test_the_folder_may_change_its_name_while_a_file_is_written(tmp_path):
    path, moved = tmp_path / "a", tmp_path / "b"
    path.mkdir()

    def write(file):
        path.rename(moved)
        path.mkdir()
        file.write(b"new")

    write_atomically(path / "x", write)
    assert (moved / "x").read_bytes() == b"new"
    assert not list(path.iterdir())


def test_new_folders_reach_the_disk_with_those_above(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def record(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    make_folder(tmp_path / "a/b/c")
    assert synced == [str(tmp_path / name) for name in (".", "a", "a/b")]
    make_folder(tmp_path / "a/b/c")
    assert len(synced) == 3


@pytest.mark.parametrize("name", [*SYNC_REFUSED, "EIO"])
def test_a_folder_that_cannot_be_synced_can_be_written_and_a_failing_disk_not(
    tmp_path, monkeypatch, name
):
    fsync, file = os.fsync, tmp_path / "x"

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(getattr(errno, name), name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if name == "EIO":
        with pytest.raises(OSError, match="EIO"):
            save(1, file)
        return
    save(1, file)
    assert load(file) == 1
    make_folder(tmp_path / "a/b")
    with Folder(tmp_path) as folder:
        assert not folder.sync()


def test_a_folder_that_cannot_be_listed_can_be_written(unprivileged):
    folder = unprivileged / "a"
    make_folder(folder)
    folder.chmod(0o300)
    save(1, folder / "x")
    assert load(folder / "x") == 1
