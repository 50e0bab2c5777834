"""Restricted unpickler, which never runs code of a file.

A pickle is a program for a small stack machine. This one runs it in Python, for all protocols. A
name is looked up in the caller's dictionary and never imported; what it stands for there is called
only with arguments from the pickle. Instances get their state through `set_state`, and items are
put into real dicts and lists alone. Memory is bounded: lengths are held against what is left of
the file before anything is read, instructions are counted, and so is what copies a value.
"""

from __future__ import annotations

import codecs
import io
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn

import numpy as np

from tinyalex.files import DamagedError, FileError, refusing_damage
from tinyalex.text import counted

MOST_STEPS = 500_000
"""Instructions of a pickle: an AlexNet's have thousands, and each can make 216 bytes."""

LONGEST_LINE = 255
"""Bytes of a name or a number."""

ROOM = 2**24
"""Bytes that copies of values may take beyond those of the file."""


class UnknownNameError(FileError):
    """Name in a pickle that is not among those allowed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for the Python object {name[:200]!r}, which is not loaded")
        self.name = name


class Name:
    """Name in a pickle, and the function that stands for it here."""

    def __init__(self, name: str, make: Callable[..., Any] | None) -> None:
        self.name, self.make = name, make


class Instance:
    """Object of a class that is not loaded, as plain data."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None

    def set_state(self, state: Any) -> None:
        """Keep the state."""
        self.state = state

    @classmethod
    def of(cls, *names: str) -> dict[str, Callable[..., Any]]:
        """Return the entries of `allowed` that make such objects of these classes."""

        def maker(name: str) -> Callable[..., Any]:
            return lambda *arguments: cls(name, *arguments)

        return {name: maker(name) for name in names}


Allowed = Mapping[str, Callable[..., Any] | None]


def unpickle(
    source: bytes | BinaryIO,
    allowed: Allowed,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the object that the pickle at the file's position describes.

    `allowed` has for every full name ("collections.OrderedDict") a function that makes the object
    from the pickle's arguments; None stands for a name that is data alone. Both come as a `Name`
    where they are not called. `persistent_load` takes the persistent ids. Python 2's strings are
    read as latin-1 text. The file is left behind the pickle. Raises FileError for everything else.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    machine = _Machine(file, allowed, persistent_load)
    with refusing_damage("its pickle is damaged"):
        return machine.run()


class _Mark:
    """Beginning of a group on the stack."""


_MARK = _Mark()


class _Machine:
    """Stack, memo and file of one pickle."""

    def __init__(
        self,
        file: BinaryIO,
        allowed: Allowed,
        persistent_load: Callable[[Any], Any] | None,
    ) -> None:
        self.file, self.allowed, self.persistent_load = file, allowed, persistent_load
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        here = file.tell()
        self.left = file.seek(0, io.SEEK_END) - here
        self.room = self.left + ROOM
        file.seek(here)

    def run(self) -> Any:
        """Follow the instructions until STOP; return what is left."""
        for _ in range(MOST_STEPS):
            instruction = self.take(1)[0]
            if instruction == STOP:
                result = self.pop()
                if self.stack:
                    _damaged("it ends with more than one object")
                return result
            step = STEPS.get(instruction)
            if step is None:
                _damaged(f"it has no instruction {instruction}")
            step(self)
        raise FileError(f"its pickle has more than {MOST_STEPS:,} instructions")

    # --- bytes ---

    def take(self, count: int) -> bytes:
        """Return the next bytes of the file."""
        if count > self.left:
            _damaged("it ends in the middle of a value")
        self.left -= count
        taken = self.file.read(count)
        if len(taken) != count:
            _damaged("it ends in the middle of a value")
        return taken

    def number(self, layout: str) -> Any:
        """Return the next number, laid out as `struct` says."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self, longest: int | None = None) -> bytes:
        """Return the next line, without its end."""
        most = self.left if longest is None else min(self.left, longest + 1)
        line = self.file.readline(most)
        if not line.endswith(b"\n"):
            _damaged("a line of it does not end")
        self.left -= len(line)
        return line[:-1]

    def charge(self, count: int) -> None:
        """Count what takes memory beyond the file: values can be used again."""
        self.room -= count
        if self.room < 0:
            raise FileError("its pickle would take much more memory than the file has bytes")

    # --- stack ---

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the topmost value."""
        value = self.stack.pop()
        if value is _MARK:
            _damaged("a mark stands where a value is expected")
        return value

    def top(self) -> Any:
        """Return the topmost value and leave it."""
        self.push(self.pop())
        return self.stack[-1]

    def group(self) -> list[Any]:
        """Take all values above the last mark, and the mark."""
        stack = self.stack
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _MARK:
                values = stack[place + 1 :]
                del stack[place:]
                return values
        _damaged("a group of it has no beginning")

    def remember(self, place: int) -> None:
        """Keep the topmost value under a number."""
        if not 0 <= place < 2**32:
            _damaged("a place of it is too large")
        self.memo[place] = self.top()

    def recall(self, place: int) -> None:
        """Put the value of a number on the stack."""
        if place not in self.memo:
            _damaged("it refers to a value that it does not have")
        self.push(self.memo[place])

    # --- objects ---

    def look_up(self, module: str, name: str) -> Name:
        """Return what stands for a name."""
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise UnknownNameError(full)
        return Name(full, self.allowed[full])

    def call(self, function: Any, arguments: Any) -> None:
        """Put on the stack what an allowed function makes."""
        if not isinstance(function, Name) or type(arguments) is not tuple:
            _damaged("it calls what is no function")
        if function.make is None:
            raise FileError(f"its pickle calls {function.name!r}, which is data here")
        self.charge(_length(arguments))
        self.push(function.make(*arguments))

    def call_with_keywords(self) -> None:
        """Call with keyword arguments, of which there must be none."""
        if self.pop() != {}:
            _damaged("it calls a function with keyword arguments")
        self.call_newest()

    def call_newest(self) -> None:
        """Call the second value with the topmost one."""
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def call_named(self) -> None:
        """Call a name in the text with the topmost group."""
        function = self.global_line()
        self.call(function, tuple(self.group()))

    def call_group(self) -> None:
        """Call the first value of the topmost group with the rest."""
        function, *arguments = self.group()
        self.call(function, tuple(arguments))

    def global_line(self) -> Name:
        """Return what the name in the next two lines stands for."""
        module = self.line(LONGEST_LINE).decode()
        return self.look_up(module, self.line(LONGEST_LINE).decode())

    def stack_global(self) -> None:
        """Replace two texts by what the name stands for."""
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            _damaged("a name of it is no text")
        self.push(self.look_up(module, name))

    def build(self) -> None:
        """Give the second value the topmost one as its state."""
        state = self.pop()
        target = self.top()
        self.charge(_length(state))
        if type(target) is np.ndarray:
            _set_array(target, state)
        elif hasattr(target, "set_state"):
            target.set_state(state)
        elif type(target) is not dict:  # an OrderedDict's attributes are not needed
            _damaged(f"a {type(target).__name__} has no state")

    def append(self, values: list[Any]) -> None:
        """Append values to the list on top."""
        target = self.top()
        if type(target) is not list:
            _damaged(f"it appends to a {type(target).__name__}")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Put keys and values into the dict on top."""
        target = self.top()
        if type(target) is not dict:
            _damaged(f"it sets an item of a {type(target).__name__}")
        _fill(target, values)

    def add_items(self) -> None:
        """Put the topmost group into the set below."""
        values = self.group()
        target = self.top()
        if type(target) is not set:
            _damaged(f"it adds to a {type(target).__name__}")
        target.update(map(_key, values))

    def persistent(self, identity: Any) -> None:
        """Put on the stack what a persistent id stands for."""
        if self.persistent_load is None:
            _damaged("it refers to objects outside")
        self.push(self.persistent_load(identity))

    # --- values ---

    def text(self, length: int) -> None:
        """Put a text in UTF-8 on the stack."""
        raw = self.take(length)
        if not raw.isascii():
            self.charge(3 * length)
        self.push(raw.decode("utf-8", "surrogatepass"))

    def escaped_line(self) -> None:
        """Put a text in a line, with escapes, on the stack."""
        line = self.line()
        self.charge(3 * len(line))
        self.push(codecs.raw_unicode_escape_decode(line)[0])  # by name, Python would import it

    def python2_text(self, length: int) -> None:
        """Put a string of Python 2 on the stack."""
        if length < 0:
            _damaged("a length of it is negative")
        self.push(self.take(length).decode("latin-1"))

    def quoted(self) -> None:
        """Put a string of Python 2 in quotes on the stack."""
        line = self.line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            _damaged("a string of it has no quotes")
        self.charge(8 * line.count(b"\\"))
        self.push(_ESCAPE.sub(_unescaped, line[1:-1]).decode("latin-1"))

    def whole(self, size: int) -> None:
        """Put a whole number of `size` bytes on the stack."""
        if not 0 <= size <= LONGEST_LINE:
            _damaged("a number of it is too long")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def digits(self) -> None:
        """Put a number in digits, or a truth value, on the stack."""
        line = self.line(LONGEST_LINE)
        truth = {b"00": False, b"01": True}
        self.push(truth[line] if line in truth else int(line.rstrip(b"L")))

    def tuple_of(self, count: int) -> None:
        """Replace the topmost values by a tuple."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))


def _damaged(reason: str) -> NoReturn:
    raise DamagedError(f"its pickle is damaged: {reason}")


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\", b"'": b"'", b'"': b'"'}


def _unescaped(found: re.Match[bytes]) -> bytes:
    code = found[1]
    return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPED[code]


def _key(key: Any) -> Any:
    """Return a key, if it is small: not all have one hash."""
    if type(key) not in (str, bytes, int, float, bool, type(None)):
        _damaged(f"a {type(key).__name__} is a key of it")
    if type(key) is int and key.bit_length() > 64:
        _damaged("a key of it is too large")
    return key


_GROUPS = (tuple, list, dict)


def _length(values: Any) -> int:
    """Return the bytes that the values take, and those inside them."""
    if type(values) not in _GROUPS:
        return 0
    inside = list(values.values() if type(values) is dict else values)
    texts = sum(len(value) for value in inside if type(value) in (str, bytes))
    return texts + 8 * sum(len(value) for value in (values, *inside) if type(value) in _GROUPS)


def _fill(target: dict[Any, Any], values: list[Any]) -> None:
    """Put keys and values, in turn, into a dict."""
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_key(key)] = value


def _mapping(items: Any = ()) -> dict[Any, Any]:
    """Return the dict that stands for an OrderedDict."""
    made: dict[Any, Any] = {}
    for key, value in items.items() if type(items) is dict else items:
        made[_key(key)] = value
    return made


def _set(values: Any = ()) -> set[Any]:
    if type(values) not in (list, tuple):
        _damaged("a set of it is made of no list")
    return set(map(_key, values))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return the bytes that Python 3 writes as text for older protocols."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        _damaged("bytes of it are encoded in an unknown way")
    return text.encode("latin-1")


class Dtype:
    """Dtype of an array as a pickle describes it."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if type(code) is not str or not re.fullmatch(r"[<>=|]?([biuf][1248]|b1|O8|c8|c16|O)", code):
            raise FileError(f"its pickle has an array of dtype {str(code)[:40]!r}")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Take the byte order from a dtype's state, which is otherwise plain."""
        _, order, *parts = state[:5]
        if order not in ("<", ">", "|", "=") or parts != [None, None, None]:
            raise FileError("its pickle has an array of a structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


def _new_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Return an empty array, to be filled by its state."""
    if not isinstance(kind, Name) or kind.name != "numpy.ndarray":
        _damaged("an array of it is of an unknown class")
    return np.ndarray((0,), np.int8)


def _set_array(array: np.ndarray, state: Any) -> None:
    """Give an array its shape, dtype and values."""
    _, shape, dtype, fortran, values = state
    plain: Any = (1, *_checked(shape, dtype, values), bool(fortran), _raw(values))
    array.__setstate__(plain)


def _checked(shape: Any, dtype: Any, values: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype, if the values fill them exactly."""
    if type(shape) is not tuple or len(shape) > 32 or not isinstance(dtype, Dtype):
        _damaged("an array of it has no shape and dtype")
    count = 1
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**40:
            _damaged("an array of it has an impossible shape")
        count *= size
    items = type(values) is list
    if items != (dtype.dtype.kind == "O"):
        _damaged("the values of an array do not fit its dtype")
    if count * (1 if items else dtype.dtype.itemsize) != len(values):
        _damaged(f"an array of shape {shape} has {counted(len(values), 'value')} or bytes")
    return shape, dtype.dtype


def _raw(values: Any) -> Any:
    return values.encode("latin-1") if type(values) is str else values


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    """Return the array that numpy writes in protocol 5."""
    if order not in ("C", "F") or type(raw) is not bytes:
        _damaged("an array of it has no bytes")
    sizes, plain = _checked(shape, dtype, raw)
    values: np.ndarray = np.frombuffer(raw, plain)
    return values.reshape(sizes, order=order)


def _scalar(dtype: Any, raw: Any) -> Any:
    """Return a number of numpy's as a plain one."""
    shape, plain = _checked((), dtype, raw)
    return np.frombuffer(_raw(raw), plain).reshape(shape).item()


_BUILTINS: Allowed = {
    "dict": _mapping,
    "list": lambda: [],
    "set": _set,
    "bytes": lambda raw=b"": _raw(raw),
    "bytearray": lambda raw=b"", *_: _raw(raw),
}

PLAIN: Allowed = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda kind=None: {},
    "_codecs.encode": _encode,
    **{
        f"{module}.{name}": make
        for module in ("builtins", "__builtin__")
        for name, make in _BUILTINS.items()
    },
}
"""Names of Python's own containers."""

_NUMPY_CORE: Allowed = {
    "multiarray._reconstruct": _new_array,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _from_buffer,
}

NUMPY: Allowed = {
    "numpy.ndarray": None,
    "numpy.dtype": Dtype,
    **{
        f"numpy.{core}.{name}": make
        for core in ("core", "_core")
        for name, make in _NUMPY_CORE.items()
    },
}
"""Names of NumPy's arrays, dtypes and numbers; to be allowed together with `PLAIN`."""

STOP = ord(".")

STEPS: dict[int, Callable[[_Machine], object]] = {
    code[0]: step
    for code, step in {
        b"\x80": lambda m: m.take(1),  # PROTO
        b"\x95": lambda m: m.take(8),  # FRAME: its length is of no use here
        b"(": lambda m: m.push(_MARK),
        b"0": lambda m: m.stack.pop(),
        b"1": lambda m: m.group(),
        b"2": lambda m: m.push(m.top()),
        # numbers and constants
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"I": _Machine.digits,
        b"L": _Machine.digits,
        b"F": lambda m: m.push(float(m.line(LONGEST_LINE))),
        b"G": lambda m: m.push(m.number(">d")),
        b"J": lambda m: m.push(m.number("<i")),
        b"K": lambda m: m.push(m.number("<B")),
        b"M": lambda m: m.push(m.number("<H")),
        b"\x8a": lambda m: m.whole(m.number("<B")),
        b"\x8b": lambda m: m.whole(m.number("<i")),
        # texts and bytes
        b"S": _Machine.quoted,
        b"T": lambda m: m.python2_text(m.number("<i")),
        b"U": lambda m: m.python2_text(m.number("<B")),
        b"V": _Machine.escaped_line,
        b"X": lambda m: m.text(m.number("<I")),
        b"\x8c": lambda m: m.text(m.number("<B")),
        b"\x8d": lambda m: m.text(m.number("<Q")),
        b"B": lambda m: m.push(m.take(m.number("<I"))),
        b"C": lambda m: m.push(m.take(m.number("<B"))),
        b"\x8e": lambda m: m.push(m.take(m.number("<Q"))),
        b"\x96": lambda m: m.push(m.take(m.number("<Q"))),  # a bytearray, as bytes
        # containers
        b")": lambda m: m.push(()),
        b"t": lambda m: m.push(tuple(m.group())),
        b"\x85": lambda m: m.tuple_of(1),
        b"\x86": lambda m: m.tuple_of(2),
        b"\x87": lambda m: m.tuple_of(3),
        b"]": lambda m: m.push([]),
        b"l": lambda m: m.push(m.group()),
        b"a": lambda m: m.append([m.pop()]),
        b"e": lambda m: m.append(m.group()),
        b"}": lambda m: m.push({}),
        b"d": lambda m: m.push(_mapping(zip(*2 * [iter(m.group())], strict=True))),
        b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        b"u": lambda m: m.set_items(m.group()),
        b"\x8f": lambda m: m.push(set()),
        b"\x90": _Machine.add_items,
        b"\x91": lambda m: m.push(frozenset(map(_key, m.group()))),
        # memo
        b"p": lambda m: m.remember(int(m.line(LONGEST_LINE))),
        b"q": lambda m: m.remember(m.number("<B")),
        b"r": lambda m: m.remember(m.number("<I")),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"g": lambda m: m.recall(int(m.line(LONGEST_LINE))),
        b"h": lambda m: m.recall(m.number("<B")),
        b"j": lambda m: m.recall(m.number("<I")),
        # names and objects
        b"c": lambda m: m.push(m.global_line()),
        b"\x93": _Machine.stack_global,
        b"i": _Machine.call_named,
        b"o": _Machine.call_group,
        b"R": _Machine.call_newest,
        b"\x81": _Machine.call_newest,
        b"\x92": _Machine.call_with_keywords,
        b"b": _Machine.build,
        b"P": lambda m: m.persistent(m.line(LONGEST_LINE).decode("latin-1")),
        b"Q": lambda m: m.persistent(m.pop()),
    }.items()
}
"""Instructions of all protocols, but for extensions and buffers that lie elsewhere."""
