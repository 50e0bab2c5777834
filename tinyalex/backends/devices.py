"""Devices by name, and the device of an array; CuPy is optional."""

from __future__ import annotations

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from tinyalex.backends import gpu
from tinyalex.backends.gpu import DeviceError as DeviceError
from tinyalex.backends.types import Array

_NAME = re.compile(r"cpu|cuda(?::(\d+))?")
_place = 0
_NOWHERE_ELSE: AbstractContextManager[Any] = nullcontext()


def set_place(place: int) -> None:
    """Let "cuda" be the GPU of a process, numbered on its host.

    Processes are numbered from 0. Where they are more than the GPUs, they share them.
    """
    global _place
    _place = place


def parse(name: str) -> str:
    """Return "cpu" or "cuda:<index>" for a device's name, else raise ValueError."""
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(f'expected a device, "cpu", "cuda" or "cuda:<number>", got {name!r}')
    if name == "cpu":
        return name
    return f"cuda:{int(match[1]) if match[1] else _place and _place % gpu.count()}"


def check(name: str) -> None:
    """Raise DeviceError, with what is missing, unless the device is usable.

    Raises ValueError if nothing is called ``name``.
    """
    if (device := parse(name)) != "cpu":
        gpu.check(int(device.partition(":")[2]))


def describe(name: str) -> dict[str, Any]:
    """Return a GPU's name, memory and versions; nothing for "cpu"."""
    if (device := parse(name)) == "cpu":
        return {}
    return gpu.describe(int(device.partition(":")[2]))


def use(name: str) -> None:
    """Make ``name`` the device of this thread.

    New arrays of a GPU lie there, and its work goes to a stream of its own, beside which copies can
    run and which can be recorded. Raises what `check` raises.
    """
    check(name)
    if (device := parse(name)) != "cpu":
        gpu.use(int(device.partition(":")[2]))


def on_gpu(array: Any) -> bool:
    """Return whether ``array`` is CuPy's, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def device_of(array: Array) -> str:
    """Return "cpu" or "cuda:<index>". Raises TypeError for what is neither library's array."""
    if isinstance(array, (np.ndarray, np.generic)):  # arithmetic makes scalars of 0-d arrays
        return "cpu"
    if on_gpu(array):
        return f"cuda:{array.device.id}"
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}")


def move(array: Array, device: str) -> Array:
    """Return ``array`` on ``device``; itself if it is there already.

    Raises ValueError for an unknown name, DeviceError if there is no such device.
    """
    target, source = parse(device), device_of(array)
    if target == source:
        return array
    host = array if source == "cpu" else gpu.download(array)
    return host if target == "cpu" else gpu.upload(host, int(target.partition(":")[2]))


def host_copy(array: Array) -> Array:
    """Return a new C-contiguous NumPy array with the values of ``array``."""
    return np.array(move(array, "cpu"), order="C")


def same_device(what: str, *arrays: Array | None) -> str:
    """Return the device that all arrays (None is ignored) share, else ValueError."""
    for array in arrays:
        if array is not None and not isinstance(array, np.ndarray):
            break
    else:
        return "cpu"  # the usual case, and every operation asks: without naming devices
    devices = list(dict.fromkeys(device_of(array) for array in arrays if array is not None))
    if len(devices) > 1:
        raise ValueError(
            f"{what} expects all its tensors on one device, got {' and '.join(devices)}; "
            f'move them first, for example with .to("{devices[0]}")'
        )
    return devices[0]


def using(device: str) -> AbstractContextManager[Any]:
    """Return a context in which new arrays and kernels go to ``device``."""
    if device == "cpu":
        return _NOWHERE_ELSE
    return sys.modules["cupy"].cuda.Device(int(device.partition(":")[2]))
