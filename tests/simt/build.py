"""CuPy's ``RawModule`` over g++, on a machine without a GPU.

What CuPy and the driver refuse is refused here, and so is what they would silently get wrong: an
argument whose type is not the parameter's, of which a GPU would read the wrong bytes.
"""

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simt import compiler, memory
from simt.compiler import CompileError, available
from simt.runtime import CUDADriverError

__all__ = ["CompileError", "Kernel", "LaunchError", "RawModule", "available", "settings", "using"]

SCHEDULES = ("greedy", "reversed", "in turns")
COPIES = ("lazy", "eager")
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)
MAX_THREADS = 1024
DEFAULT_SHARED = 48 << 10  # what a kernel may use without asking for more
MAX_SHARED = 227 << 10  # a block, on an H100
MAX_PARAMETERS = 64


class LaunchError(CUDADriverError):
    """A launch that the driver would refuse, or a kernel that went wrong; as CuPy's error."""


@dataclasses.dataclass
class Settings:
    """How kernels are built and run from now on."""

    mode: str = "plain"  # one of compiler.MODES
    schedule: str = "greedy"  # one of SCHEDULES
    copies: str = "lazy"  # one of COPIES: when the bytes of a cp.async land
    folder: Path | None = None  # where builds are kept; None: compiler.default_folder()
    observer: Callable[["Kernel"], None] | None = None  # called after each launch


settings = Settings()


@contextlib.contextmanager
def using(**changes):
    """Change `settings` inside a ``with``."""
    before = vars(settings).copy()
    try:
        for name, value in changes.items():
            if name not in before:
                raise TypeError(f"no setting {name!r}; there are {', '.join(before)}")
            setattr(settings, name, value)
        yield settings
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


class _Launch(ctypes.Structure):  # Launch in engine.h
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_uint),
        ("schedule", ctypes.c_int),
        ("eager_copies", ctypes.c_int),
    )


class _Parameter(ctypes.Structure):  # Parameter in simt.h
    _fields_ = (("pointer", ctypes.c_char), ("kind", ctypes.c_char), ("bytes", ctypes.c_int))

    def __str__(self):
        words = {b"f": "float", b"i": "int", b"u": "unsigned", b"b": "bool", b"V": "struct"}
        kind = f"{words[self.kind]} of {self.bytes} bytes"
        return f"a pointer to {kind}" if self.pointer == b"*" else kind


_fibers: dict[str, int] = {}
"""Address of the fibers of each mode, which its libraries share."""


@functools.cache
def _load(path: Path, mode: str) -> ctypes.PyDLL:
    """Load a library once. PyDLL keeps the interpreter's lock: one launch at a time."""
    library = ctypes.PyDLL(str(path))
    library.simt_fibers.restype = ctypes.c_void_p
    _fibers[mode] = library.simt_fibers(ctypes.c_void_p(_fibers.get(mode)))
    return library


class RawModule:
    """The kernels of one CUDA source, as ``cupy.RawModule`` has them.

    Args:
        code: CUDA C++ source.
        options: Compiler options; ``-D``, ``-std`` and ``-arch`` are known.
        backend: As CuPy's; "nvrtc".
        name_expressions: The instances of templates to compile, such as ``"k<float, 4>"``.
    """

    def __init__(
        self,
        *,
        code: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        name_expressions: tuple[str, ...] | None = None,
    ):
        if not isinstance(options, tuple):
            raise TypeError(f"options must be a tuple, not {type(options).__name__}")
        known = ("-D", "--std=", "-std=", "-arch=", "--gpu-architecture=")
        unknown = [option for option in options if not option.startswith(known)]
        if unknown or backend != "nvrtc":
            raise ValueError(f"the shim knows no option {' '.join(unknown) or backend}")
        if name_expressions and not any("-std=c++" in option for option in options):
            raise ValueError("need to specify C++ standard for compiling template code")
        self.code = code
        self.instances = tuple(name_expressions or ())
        self.defines = tuple(option for option in options if option.startswith("-D"))
        self._libraries: dict[tuple[str, Path | None], ctypes.PyDLL] = {}

    def compile(self, log_stream=None) -> None:
        """Compile now; else the first kernel asked for does it."""
        self.library()

    def get_function(self, name: str) -> "Kernel":
        """Return the kernel ``extern "C" __global__ void name(...)``, or an instance by name."""
        return Kernel(self, name)

    def library(self) -> ctypes.PyDLL:
        """Return the build that the present settings ask for."""
        wanted = settings.mode, settings.folder
        if wanted not in self._libraries:
            path = compiler.compile_module(
                self.code, wanted[0], self.defines, wanted[1], self.instances
            )
            self._libraries[wanted] = _load(path, wanted[0])
        return self._libraries[wanted]


class Kernel:
    """A kernel that can be launched: ``kernel(grid, block, args, shared_mem=0)``."""

    def __init__(self, module: RawModule, name: str):
        known = "<" not in name or name in module.instances
        if not known or not hasattr(module.library(), f"simt_launch_{compiler.symbol(name)}"):
            raise LaunchError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        self.name = name
        self.module = module
        parameters = (_Parameter * MAX_PARAMETERS)()
        self.parameters = tuple(parameters[: self._function("parameters")(parameters)])
        self._max_dynamic = DEFAULT_SHARED

    def _function(self, what):
        return getattr(self.module.library(), f"simt_{what}_{compiler.symbol(self.name)}")

    @property
    def attributes(self) -> dict[str, int]:
        """What the driver knows of the kernel, under CuPy's names."""
        return {
            "max_threads_per_block": self._function("max_threads")(),
            "max_dynamic_shared_size_bytes": self._max_dynamic,
        }

    @property
    def max_threads_per_block(self) -> int:
        """How many threads a block may have."""
        return self.attributes["max_threads_per_block"]

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """How much dynamic shared memory a launch may ask for."""
        return self._max_dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, count: int) -> None:
        if not 0 <= count <= MAX_SHARED:
            raise LaunchError(f"{self.name}: {count} bytes of shared memory; at most {MAX_SHARED}")
        self._max_dynamic = count

    def __call__(self, grid, block, args, *, shared_mem: int = 0, stream=None) -> None:
        """Launch the kernel and wait for its end.

        Raises:
            LaunchError: Sizes beyond the device's, a deadlock, barriers that do not match.
            TypeError: An argument that CuPy refuses, or that is not of the parameter's type.
        """
        grid = _three(grid, MAX_GRID, f"{self.name}: grid")
        block = _three(block, MAX_BLOCK, f"{self.name}: block")
        if np.prod(block) > MAX_THREADS:
            raise LaunchError(f"{self.name}: {np.prod(block)} threads; at most {MAX_THREADS}")
        if not 0 <= shared_mem <= self._max_dynamic:
            raise LaunchError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory; "
                f"max_dynamic_shared_size_bytes is {self._max_dynamic}"
            )
        if len(args) != len(self.parameters):
            raise TypeError(
                f"{self.name}: {len(args)} arguments for {len(self.parameters)} parameters"
            )
        values = [
            _packed(argument, parameter, f"{self.name}: argument {i}")
            for i, (argument, parameter) in enumerate(zip(args, self.parameters, strict=True))
        ]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        eager = COPIES.index(settings.copies)
        launch = _Launch(grid, block, shared_mem, SCHEDULES.index(settings.schedule), eager)
        memory.use(*args)
        kept = values, [getattr(argument, "_host", None) for argument in args]
        memory.enqueue(lambda: self._run(launch, pointers, kept))

    def _run(self, launch, pointers, kept) -> None:
        """Run a launch; ``kept`` is what the pointers point to, and must not be gone."""
        run = self._function("launch")
        run.restype = ctypes.c_char_p
        error = run(ctypes.byref(launch), pointers)
        if error:
            raise LaunchError(f"{self.name}: {error.decode()}")
        if settings.observer:
            settings.observer(self)


def _three(sizes, largest, what) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in sizes)
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"{what} {sizes}: one to three sizes")
    sizes += (1,) * (3 - len(sizes))
    if any(not 1 <= size <= limit for size, limit in zip(sizes, largest, strict=True)):
        raise LaunchError(f"{what} {sizes}: each from 1 to {largest}")
    return sizes


def _packed(argument, parameter, what) -> np.ndarray:
    """Return the bytes that CuPy would pass, in an array; refuse what the kernel would misread."""
    if argument is None or (hasattr(argument, "data") and hasattr(argument.data, "ptr")):
        _check_pointer(argument, parameter, what)
        return np.array(0 if argument is None else argument.data.ptr, np.uintp)
    if isinstance(argument, np.ndarray) and not isinstance(argument, np.generic):
        if argument.size != 1 or argument.dtype.kind != "V":
            raise TypeError(f"{what} is a NumPy array of {argument.dtype}: it lies on the host")
        value = np.ascontiguousarray(argument)
    elif isinstance(argument, (np.generic, bool, int, float)):
        value = np.array(argument)  # Python's int: 8 bytes; Python's float: a double
    else:
        raise TypeError(f"{what}: unsupported type {type(argument).__name__}")
    kind = parameter.kind.decode()
    integers = value.dtype.kind in "iu" and kind in "iu"
    if parameter.pointer == b"*" and value.dtype.kind == "V":
        raise TypeError(f"{what} is a struct, the parameter {parameter}")
    if parameter.pointer != b"*" and (
        value.nbytes != parameter.bytes or not (integers or value.dtype.kind == kind)
    ):
        raise TypeError(
            f"{what} is {value.dtype} of {value.nbytes} bytes, the parameter {parameter}"
        )
    if parameter.pointer == b"*" and (value.nbytes != 8 or value.dtype.kind not in "iu"):
        raise TypeError(f"{what} is {value.dtype}, the parameter {parameter}")
    return value


def _check_pointer(argument, parameter, what) -> None:
    if parameter.pointer != b"*":
        raise TypeError(f"{what} is an array, the parameter {parameter}")
    dtype = getattr(argument, "dtype", None)
    kind = parameter.kind.decode()
    if dtype is None:
        return
    bytes_for_bools = dtype.kind == "b" and kind == "u" and parameter.bytes == 1
    if not bytes_for_bools and (dtype.kind != kind or dtype.itemsize != parameter.bytes):
        raise TypeError(f"{what} is an array of {dtype}, the parameter {parameter}")
