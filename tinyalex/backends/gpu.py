"""The only import of CuPy, and errors for missing drivers or GPUs."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.types import Array
from tinyalex.calls import pip_install

_NO_GPU = 100  # cudaErrorNoDevice
_NO_DRIVER = 35  # cudaErrorInsufficientDriver: older than CuPy needs, or none at all
_OLDEST = 8  # major compute capability: asynchronous copies, and tensor cores that know TF32


class DeviceError(RuntimeError):
    """A GPU, its driver or CuPy is missing, or has failed."""


class OutOfMemoryError(DeviceError, MemoryError):
    """The GPU has no memory left."""


def _install() -> str:
    """Return advice on installing CuPy."""
    return f"{pip_install('tinyalex[cuda13]')} (or [cuda12], as the driver allows)"


def cupy() -> Any:
    """Return the module ``cupy``; DeviceError if it is missing or broken."""
    if loaded := sys.modules.get("cupy"):  # the usual path, in half a microsecond less
        return loaded
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        # The missing module's name tells an absent CuPy from one that fails to load.
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            needs = f"the GPU needs CuPy, which is not installed: {_install()}"
            raise DeviceError(needs) from error
        raise DeviceError(
            f"CuPy is installed but cannot be loaded ({error}); install it anew: {_install()}"
        ) from error


def count() -> int:
    """Return the number of GPUs; DeviceError, with the reason, for none."""
    xp = cupy()
    try:
        found: int = xp.cuda.runtime.getDeviceCount()
    except xp.cuda.runtime.CUDARuntimeError as error:
        if error.status == _NO_DRIVER:
            raise DeviceError(
                "CuPy finds no NVIDIA driver, or one too old for it: install or update the driver, "
                f"or a CuPy that suits it: {_install()}"
            ) from error
        if error.status != _NO_GPU:
            raise DeviceError(f"CUDA cannot start: {error}") from error
        found = 0
    if not found:
        raise DeviceError(
            'CuPy finds no NVIDIA GPU on this machine; use the device "cpu", and look at what '
            "nvidia-smi and CUDA_VISIBLE_DEVICES say if there should be one"
        )
    return found


@cache
def check(index: int) -> None:
    """Raise DeviceError unless this GPU exists and can run the kernels."""
    found = count()
    if index >= found:
        there = "cuda:0" if found == 1 else f"cuda:0 to cuda:{found - 1}"
        raise DeviceError(f"there is no device cuda:{index}; this machine has {there}")
    gpu = cupy().cuda.runtime.getDeviceProperties(index)
    if gpu["major"] < _OLDEST:
        raise DeviceError(
            f"cuda:{index}, {gpu['name'].decode()}, is too old for the kernels: its compute "
            f"capability is {gpu['major']}.{gpu['minor']}, and they need {_OLDEST}.0 or newer"
        )


def describe(index: int) -> dict[str, Any]:
    """Return a GPU's name, memory, and versions of CuPy, CUDA and driver."""
    xp = cupy()
    runtime = xp.cuda.runtime
    return {
        "gpu": runtime.getDeviceProperties(index)["name"].decode(),
        "gpu_memory": int(xp.cuda.Device(index).mem_info[1]),
        "cupy": xp.__version__,
        "cuda": _version(runtime.runtimeGetVersion()),
        "driver": _version(runtime.driverGetVersion()),
    }


def _version(number: int) -> str:
    """Return CUDA's 13020 as "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def use(index: int) -> None:
    """Make a GPU, and its stream, current for this thread."""
    cupy().cuda.Device(index).use()
    _stream(index).use()


@cache
def _stream(index: int) -> Any:
    """Return a stream that is independent of CUDA's default stream."""
    return cupy().cuda.Stream(non_blocking=True)


def upload(array: Array, index: int) -> Array:
    """Copy a NumPy array to a GPU; DeviceError if missing or full.

    Images whose channels lie last keep lying so: CuPy would reorder them on the host, and the
    kernels back again.
    """
    check(index)
    xp = cupy()
    try:
        with xp.cuda.Device(index):
            if array.ndim == 4 and not array.flags.c_contiguous:
                return xp.asarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            return xp.asarray(array)
    except Exception as error:
        raise failure(error, f"copying {array.nbytes:,} bytes to cuda:{index}") from error


def download(array: Array) -> Array:
    """Copy a device array to the host, bfloat16 as float32."""
    return as_float32(cupy().asnumpy(array))


def contiguous(array: Array) -> Array:
    """Return ``array`` C-contiguous and aligned to 16 bytes, copied only if needed."""
    array = cupy().ascontiguousarray(array)
    return array.copy() if array.size and array.data.ptr % 16 else array


def multiprocessors() -> int:
    """Return the number of streaming multiprocessors of the current device."""
    return _attribute(cupy().cuda.get_device_id(), "MultiProcessorCount")


def most_shared_bytes() -> int:
    """Return the most shared memory a block may request on this device."""
    return _attribute(cupy().cuda.get_device_id(), "MaxSharedMemoryPerBlockOptin")


@cache
def _attribute(index: int, name: str) -> int:
    return int(cupy().cuda.Device(index).attributes[name])


def failure(error: Exception, what: str) -> Exception:
    """Return CUDA's error as a DeviceError, any other error unchanged."""
    xp = cupy()
    if isinstance(error, xp.cuda.memory.OutOfMemoryError):
        return OutOfMemoryError(f"the GPU's memory is full ({what}): {error}")
    cuda_errors = (
        xp.cuda.runtime.CUDARuntimeError,
        xp.cuda.driver.CUDADriverError,
        xp.cuda.compiler.CompileException,
    )
    return DeviceError(f"{what} failed: {error}") if isinstance(error, cuda_errors) else error
