"""The cache of compiled kernels: no file in it fails a process."""

import contextlib
import importlib.util
import os
import shutil

import numpy as np
import pytest
from helpers import run_python

from tinyalex.backends.cpu import compiling

pytest_plugins = ("trained",)

SOURCE = """
from tinyalex.backends.cpu.runtime import kernel

@kernel
def act(x):
    return x {} x
"""
AGAIN, ALWAYS = "kernels are compiled again\n", "every process compiles them\n"


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Return a function that imports a small kernel anew."""
    # Python would take the bytecode of a source that changed within the same second.
    monkeypatch.setattr("sys.dont_write_bytecode", True)

    def begin(operation="+", folder=tmp_path):
        path = folder / "little.py"
        if not path.exists() or path.read_text() != SOURCE.format(operation):
            path.write_text(SOURCE.format(operation))
        description = importlib.util.spec_from_file_location("little", path)
        module = importlib.util.module_from_spec(description)
        description.loader.exec_module(module)
        monkeypatch.setattr(compiling, "_said", set(), raising=False)
        return module.act

    return begin


@pytest.fixture
def kept(tmp_path, begin):
    """Return the files of a kernel: its index, and its code."""
    assert begin()(1.5) == 3.0
    (index,), (code,) = ([*tmp_path.glob(f"__pycache__/*.{ending}")] for ending in ("nbi", "nbc"))
    return {"index": index, "code": code}


def hits(act):
    return sum(act.stats.cache_hits.values())


def test_a_kernel_is_kept(kept, begin, capsys):
    act = begin()
    assert (act(1.5), hits(act)) == (3.0, 1)
    assert capsys.readouterr().err == ""


def cut(at):
    return lambda path: os.truncate(path, int(at * path.stat().st_size))


def change(at):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(at * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return damage


def replace(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


DAMAGE = {
    "empty": cut(0),
    **{f"cut at {at}": cut(at) for at in (0.001, 0.5, 0.999)},
    **{f"changed at {at}": change(at) for at in (0, 0.5, 1)},
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "pipe": replace(os.mkfifo),
    "link to a device": replace(lambda path: path.symlink_to("/dev/zero")),
    "link to itself": replace(lambda path: path.symlink_to(path.name)),
    "of another user": lambda path: os.chown(path, 12345, -1),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["index", "code"])
def test_what_is_damaged_is_said_removed_and_compiled_again(kept, begin, capsys, which, damage):
    if damage == "of another user" and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    DAMAGE[damage](kept[which])
    assert begin()(1.5) == 3.0
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {kept[which]} ")
    assert said.count(AGAIN) == 1
    act = begin()
    assert (act(1.5), hits(act)) == (3.0, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("which", ["index", "code"])
def test_what_is_gone_is_compiled_again_without_a_word(kept, begin, capsys, which):
    kept[which].unlink()
    assert begin()(1.5) == 3.0
    assert AGAIN not in capsys.readouterr().err


def test_a_kernel_of_other_types_or_another_source_is_not_taken(kept, begin):
    other = kept["code"].with_name("other")
    shutil.copy(kept["code"], other)
    act = begin()
    act(1)
    second = kept["code"].with_name(kept["code"].name.replace(".1.nbc", ".2.nbc"))
    shutil.copy(other, second)  # as if two processes had found the same name
    act = begin()
    assert (act(3), hits(act)) == (6, 0)
    assert begin("*")(1.5) == 2.25
    shutil.copy(other, kept["code"])  # as if the process had been killed after the index
    assert begin("*")(1.5) == 2.25


def test_an_index_of_types_that_are_gone_is_as_none(tmp_path):
    """As after an update in place, where a record of options has another name, or another file."""
    source = """
from typing import NamedTuple
from tinyalex.backends.cpu.runtime import kernel
class {}(NamedTuple):
    size: int
@kernel
def double(options):
    return 2 * options.size
print(double({}(21)))
"""
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport small"
    for name in ("Before", "After"):
        (tmp_path / "small.py").write_text(source.replace("{}", name))
        assert run_python(code) == "42\n"


def test_a_full_disk_costs_the_cache_alone(begin, disk, capsys, tmp_path):
    act = begin()
    disk(100)
    assert act(1.5) == 3.0
    assert act(2) == 4
    disk(None)
    said = capsys.readouterr().err
    assert said.count("kernels cannot be kept in ") == said.count(ALWAYS) == 1
    assert not [*tmp_path.glob("__pycache__/*.nb*")]


@pytest.mark.usefixtures("kept")  # what is imported late may lie where only root can read
def test_folders_that_cannot_be_written_cost_the_cache_alone(
    begin, unprivileged, monkeypatch, capsys
):
    library = unprivileged / "library"
    library.mkdir()
    (library / "little.py").write_text(SOURCE.format("+"))
    library.chmod(0o555)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/dev/null")
    assert begin(folder=library)(1.5) == 3.0
    assert capsys.readouterr().err.count(ALWAYS) == 1


INTERRUPTED = """
import signal, sys
sys.path.insert(0, {folder!r})
from little import act

def interrupt(frame, event, argument):
    if frame.f_code.co_name == {callback!r}:
        sys.setprofile(None)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

def leave(signum, frame):
    raise SystemExit

signal.signal(signal.SIGTERM, leave)
sys.setprofile(interrupt)
try:
    try:
        act(1.5)
    except KeyboardInterrupt:
        signal.pause()  # unless the other is there, too
except SystemExit:
    print(signal.getsignal(signal.SIGINT) == signal.default_int_handler)
    print(signal.getsignal(signal.SIGTERM) == leave)
    print(act(1.5), sum(act.stats.cache_hits.values()))
"""


def test_signals_while_a_kernel_is_compiled_or_loaded_come_after_it(tmp_path):
    (tmp_path / "little.py").write_text(SOURCE.format("+"))
    for callback, hits in (("_raw_object_cache_notify", 0), ("_raw_object_cache_getbuffer", 1)):
        code = INTERRUPTED.format(folder=str(tmp_path), callback=callback)
        assert run_python(code) == f"True\nTrue\n3.0 {hits}\n"


def closed():
    with open(os.devnull, "w") as file:
        return file


def gone():
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


def full():
    return open("/dev/full", "w")


def none():
    return None


STREAMS = none, closed, gone, full


@pytest.mark.parametrize("stream", STREAMS)
def test_nobody_need_read_that_it_is_compiled(begin, monkeypatch, stream):
    stderr = stream()
    monkeypatch.setattr("sys.stderr", stderr)
    assert begin()(1.5) == 3.0
    with contextlib.suppress(OSError, AttributeError):
        stderr.close()
