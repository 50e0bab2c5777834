"""Restricted unpickler: data comes out, and nothing else happens."""

import collections
import io
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from commands import ROOT

from tinyalex.files import FileError
from tinyalex.interop.unpickling import MOST_STEPS, NUMPY, PLAIN, Instance, Name, unpickle

ALLOWED = {**PLAIN, **NUMPY}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

DATA = {
    "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**40, -(2**70), 0.5, -1e300, float("inf")],
    "constants": [None, True, False],
    "texts": ["", "a'b\"c\\d\n\t", "\N{TULIP}ä", "x" * 300],
    "bytes": [b"", b"\0\xff" * 3, b"y" * 300],
    "containers": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {1: 2}], b"k": set("ab")},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", DATA)
def test_plain_data_come_back(name, protocol):
    assert unpickle(pickle.dumps(DATA[name], protocol), ALLOWED) == DATA[name]


def test_nothing_is_imported_for_data():
    code = "import sys; from tinyalex.interop.unpickling import *; heard = [];"
    code += "sys.addaudithook(lambda event, arguments: heard.append(event));"
    for data in DATA.values():
        for protocol in PROTOCOLS:
            code += f"unpickle({pickle.dumps(data, protocol)!r}, PLAIN);"
    code += "assert not {'import', 'open', 'exec', 'compile'} & {*heard}, heard"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_and_circular_lists_come_back(protocol):
    inner = [1]
    inner.append(inner)
    first, second = unpickle(pickle.dumps([inner, inner], protocol), ALLOWED)
    assert first is second
    assert first[1] is first
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    assert list(unpickle(pickle.dumps(ordered, protocol), ALLOWED)) == ["b", "a"]


ARRAYS = {
    "float32": np.arange(6, dtype="f4").reshape(2, 3),
    "large": np.arange(5000, dtype="f8"),
    "Fortran": np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">f4"),
    "uint8": np.arange(256, dtype="u1"),
    "bool": np.array([True, False]),
    "no axes": np.array(2.5),
    "empty": np.zeros((0, 3), "i2"),
    "objects": np.array([{"a": np.ones(2)}, None], dtype=object),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back(name, protocol):
    array = ARRAYS[name]
    read = unpickle(pickle.dumps([array, array.dtype, array], protocol), ALLOWED)
    assert read[0] is read[2] or protocol == 5
    assert (read[0].dtype.kind, read[0].shape) == (array.dtype.kind, array.shape)
    if name == "objects":
        np.testing.assert_array_equal(read[0][0]["a"], np.ones(2))
    else:
        np.testing.assert_array_equal(read[0], array)
    number = np.float64(0.1)
    assert unpickle(pickle.dumps(number, protocol), ALLOWED) == number


PYTHON2 = {
    b"(dp0\nS'a'\np1\nI01\nsS'b\\n\\x41\\''\np2\nL12L\nsV\\u00e4\np3\nF0.5\ns.": {
        "a": True,
        "b\nA'": 12,
        "ä": 0.5,
    },
    b"\x80\x02]q\0(U\x02\xe4bT\x03\0\0\0xyzNe.": ["äb", "xyz", None],
    b"\x80\x02ccollections\nOrderedDict\nq\0]q\x01]q\x02(U\x01aK\x01ea\x85q\x03Rq\x04.": {"a": 1},
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\x01K\0\x85U\x01b\x87Rq\x02"
    b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\0K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
    b"\xffK\0tb\x89U\x08\0\0\x80?\0\0\0@tb.": np.array([1, 2], "f4"),
}


@pytest.mark.parametrize("number", range(len(PYTHON2)))
def test_pickles_of_python_2_are_read(number):
    content, expected = list(PYTHON2.items())[number]
    read = unpickle(content, ALLOWED)
    np.testing.assert_array_equal(read, expected)
    assert type(read) is type(expected)


def test_several_pickles_follow_each_other():
    file = io.BytesIO(pickle.dumps([1]) + pickle.dumps({"a": 2}) + b"rest")
    assert [unpickle(file, ALLOWED), unpickle(file, ALLOWED), file.read()] == [
        [1],
        {"a": 2},
        b"rest",
    ]


def test_instances_keep_their_state_and_persistent_ids_are_asked_for():
    content = b"\x80\x02coptions\nParser\n)\x81}(X\x01\0\0\0aK\x01ub."
    read = unpickle(content, Instance.of("options.Parser"))
    assert (type(read), read.name, read.state) == (Instance, "options.Parser", {"a": 1})
    assert unpickle(b"\x80\x02X\x01\0\0\0aQ.", {}, lambda key: key * 2) == "aa"
    assert unpickle(b"Pkey\n.", {}, lambda key: key) == "key"
    assert isinstance(unpickle(b"ca\nb\n.", {"a.b": None}), Name)


DANGERS = """
os.system posix.system nt.system subprocess.Popen subprocess.call builtins.eval builtins.exec
builtins.compile builtins.open builtins.getattr builtins.setattr builtins.__import__
builtins.print builtins.globals builtins.type builtins.object builtins.list.append
__builtin__.eval __builtin__.apply sys.exit sys.modules importlib.import_module runpy.run_path
pty.spawn shutil.rmtree socket.socket webbrowser.open code.interact timeit.timeit pdb.run
ctypes.CDLL pickle.loads marshal.loads types.FunctionType functools.partial operator.attrgetter
copyreg._reconstructor copyreg.__newobj__ numpy.load numpy.fromfile numpy.memmap
numpy.testing.run numpy.core.multiarray.frombuffer torch.load torch.hub.load
torch.storage._load_from_bytes torch.jit.load torch.utils.data.DataLoader
logging.config.fileConfig codecs.open _codecs.decode collections.OrderedDict.update
collections.abc __main__.x .x x. ..
"""
ARGUMENT = b"X\x04\0\0\0true"
heard = []
sys.addaudithook(lambda event, arguments: heard.append(event))


def attacks(module, name):
    """Yield the ways in which a pickle calls a function."""
    a, b = module.encode(), name.encode()
    pushed = b"".join(b"X" + struct.pack("<I", len(text)) + text for text in (a, b))
    yield b"\x80\x02c" + a + b"\n" + b + b"\n" + ARGUMENT + b"\x85R."
    yield b"(" + ARGUMENT + b"i" + a + b"\n" + b + b"\n."
    yield b"\x80\x04" + pushed + b"\x93" + ARGUMENT + b"\x85R."
    yield b"(c" + a + b"\n" + b + b"\n" + ARGUMENT + b"o."
    yield b"\x80\x04" + pushed + b"\x93" + ARGUMENT + b"\x85}\x92."
    yield b"\x80\x04" + pushed + b"\x93" + ARGUMENT + b"\x85\x81."
    yield b"}c" + a + b"\n" + b + b"\n" + b"}(X\1\0\0\0aK\1ubs."
    yield b"c" + a + b"\n" + b + b"\n."


@pytest.mark.parametrize("name", DANGERS.split())
def test_no_name_is_imported_or_called(name):
    module, _, short = name.rpartition(".")
    for content in attacks(module, short):
        heard.clear()
        with pytest.raises(FileError):
            unpickle(content, ALLOWED)
        assert not heard, content


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
DTYPE = b"cnumpy\ndtype\nU\2f4\x85R"


def test_what_is_allowed_cannot_be_changed():
    """Items, attributes and states are set of what the pickle itself has made."""
    made = {
        b"ccollections\nOrderedDict\n": b"}(X\1\0\0\0aK\1ub.",
        b"cnumpy\nndarray\n": b"K\0K\1s.",
        b"(K\1K\2t": b"K\3a.",
        b"X\1\0\0\0a": b"(K\1e.",
        b"}": b"K\3a.",
        ARRAY + b"(K\1K\1\x85" + DTYPE + b"\x89C\4\0\0\0\0tb": b"K\0K\1s.",
        b"]": b"K\0K\1s.",
        b"K\1": b"}b.",
        b"N": b"(K\1\x90.",
        b"(l": b"}b.",
    }
    for target, change in made.items():
        with pytest.raises(FileError):
            unpickle(target + change, ALLOWED)


TEXT = b"X" + struct.pack("<I", 2**20) + b"x" * 2**20
LIST = b"](" + b"K\1" * 20_000 + b"e"
SET = b"c__builtin__\nset\nq\1"
ENCODE = b"c_codecs\nencode\nq\1"
BOMBS = {
    "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "memo in digits": b"]p99999999999999999\n.",
    "bytes": b"B\xff\xff\xff\xff.",
    "long bytes": b"\x8e\0\0\0\0\0\1\0\0.",
    "bytearray": b"\x96\0\0\0\0\0\1\0\0.",
    "text": b"X\xff\xff\xff\xff.",
    "long text": b"\x8d\xff\xff\xff\xff\xff\0\0\0.",
    "negative text": b"T\xff\xff\xff\xff.",
    "number": b"\x8b\xff\xff\xff\x7f" + b"\1" * 99 + b".",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "sets": b"\x8f" * 2_000_000 + b".",
    "copies of a text": TEXT + b"q\0" + ENCODE + b"h\1h\0\x85R" * 10_000 + b".",
    "copies of a list": LIST + b"q\0" + SET + b"h\1h\0\x85R" * 10_000 + b".",
    "shape": ARRAY + b"(K\1(\x8a\5\0\0\0\0\1K\0t" + DTYPE + b"\x89X\0\0\0\0tb.",
    "product": ARRAY + b"(K\1(" + b"J\xff\xff\xff\x7f" * 32 + b"t" + DTYPE + b"\x89Utb.",
    "key": b"}(" + b")" + b"\x85" * 100_000 + b"K\1u.",
    "groups": b"(" * 1_000_000,
    "escapes": b"S'" + b"\\x00" * 10_000_000 + b"'\n.",
    "wide text": b"".join(
        b"X\0\0\x10\0" + b"x" * (2**20 - 4) + b"\xf0\x9f\x8c\xb7" for _ in "x" * 30
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_pickle_takes_little_memory_and_time(name, tmp_path):
    content, path = BOMBS[name], tmp_path / "pickle"
    path.write_bytes(content)
    begin = time.perf_counter()
    tracemalloc.start()
    try:
        with suppress(FileError), path.open("rb") as file:
            unpickle(file, ALLOWED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 140e6 + len(content)
    assert time.perf_counter() - begin < 20  # with every allocation traced, on a busy machine


def test_deep_lists_and_long_programs():
    depth = MOST_STEPS // 2 - 10
    assert unpickle(b"]" * depth + b"a" * (depth - 1) + b".", {}) != []
    with pytest.raises(FileError, match="instructions"):
        unpickle(b"N0" * MOST_STEPS, {})


@pytest.mark.parametrize(
    "content", [b"", b".", b"N", b"NN.", b"(.", b"0.", b"\x82\1.", b"\xff.", b"h\0."]
)
def test_what_is_no_pickle_is_refused(content):
    with pytest.raises(FileError, match="its pickle is damaged"):
        unpickle(content, ALLOWED)
