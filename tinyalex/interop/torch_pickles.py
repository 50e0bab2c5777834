"""Pickles of PyTorch: their names, and tensors as views of storages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from tinyalex.files import DamagedError, FileError
from tinyalex.interop.stored import MOST_AXES, Stored, extent
from tinyalex.interop.unpickling import (
    NUMPY,
    PLAIN,
    Allowed,
    Instance,
    Name,
    UnknownNameError,
    unpickle,
)

STORAGES = {
    "Float": ("float32", 4),
    "Double": ("float64", 8),
    "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2),
    "Long": ("int64", 8),
    "Int": ("int32", 4),
    "Short": ("int16", 2),
    "Char": ("int8", 1),
    "Byte": ("uint8", 1),
    "Bool": ("bool", 1),
    "ComplexFloat": ("complex64", 8),
    "ComplexDouble": ("complex128", 16),
    "QInt8": ("qint8", 1),
    "QUInt8": ("quint8", 1),
    "QInt32": ("qint32", 4),
}
"""Dtypes and bytes of torch.FloatStorage and its like."""

TYPES = {
    f"torch.{place}{kind}{what}": dtype
    for kind, dtype in STORAGES.items()
    for place in ("", "cuda.")
    for what in ("Storage", "Tensor")
} | {"torch.storage.UntypedStorage": ("uint8", 1)}
"""Dtype and bytes of each class of storages and, as they once were, of tensors."""

DTYPES = (
    *(dtype for dtype, _ in STORAGES.values()),
    *("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"),
    *("per_tensor_affine", "per_channel_affine"),
)
"""Dtypes and kinds of quantisation that a pickle names."""

DEEPEST = 10
"""Dicts inside each other, down to the weights."""

MOST_ITEMS = 1_000_000
"""Items of a checkpoint that are looked at."""


@dataclass
class Storage:
    """Numbers that tensors are views of; their place may become known later."""

    dtype: str
    item_size: int
    count: int
    position: int = -1
    root: Storage | None = None
    """Storage that this is a part of, from the number `offset`."""
    offset: int = 0

    def part(self, offset: Any, count: Any) -> Storage:
        """Return some of these numbers as a storage."""
        if not all(type(number) is int and number >= 0 for number in (offset, count)):
            raise DamagedError("its pickle is damaged: a part of a storage has no place")
        if offset + count > self.count:
            raise DamagedError("its pickle is damaged: a part of a storage ends outside of it")
        root, begin = self.root or self, self.offset + offset
        return Storage(self.dtype, self.item_size, count, root=root, offset=begin)

    def place(self) -> int:
        """Return the position of the first number in the file."""
        above = self.position if self.root is None else self.root.place()
        return above + self.offset * self.item_size


class View(NamedTuple):
    """Tensor: a part of a storage, in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def stored(self, file: BinaryIO, byte_order: str) -> Stored:
        """Return the array in the file."""
        position = self.storage.place() + self.storage.item_size * self.offset
        return Stored(file, position, self.storage.dtype, self.shape, self.strides, byte_order)


def load(source: bytes | BinaryIO, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """Return what a pickle of torch's describes; tensors are `View`s."""
    try:
        return unpickle(source, ALLOWED, persistent_load)
    except UnknownNameError as error:
        raise FileError(
            f"it holds more than weights, {error.name[:200]}, and what a file holds is never run: "
            "save model.state_dict() with torch.save where it is from, and bring that"
        ) from error


def new_storage(kind: Any, count: Any) -> Storage:
    """Return a storage of a class in `TYPES`."""
    if not isinstance(kind, Name) or kind.name not in TYPES:
        name = kind.name if isinstance(kind, Name) else type(kind).__name__
        raise FileError(f"its pickle has a storage of the class {name}")
    if type(count) is not int or not 0 <= count < 2**48:
        raise FileError("its pickle has a storage of an impossible size")
    return Storage(*TYPES[kind.name], count)


def view(storage: Any, offset: Any, shape: Any, strides: Any) -> View:
    """Return a tensor; raise FileError unless it lies in its storage."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise DamagedError("its pickle is damaged: a tensor has no storage or shape")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise DamagedError("its pickle is damaged: a tensor has an impossible shape")
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise DamagedError("its pickle is damaged: a tensor has an impossible number of axes")
    inside = offset + extent(shape, strides) <= storage.count
    if not inside or math.prod(shape) > storage.count:
        raise DamagedError(
            f"it has a tensor of shape {shape} with offset {offset} and strides {strides} in a "
            f"storage of {storage.count:,} numbers: it is damaged, or not for weights"
        )
    return View(storage, offset, shape, strides)


def leaves(tree: Any) -> Iterator[tuple[str, View | np.ndarray]]:
    """Yield all arrays in dicts, lists and modules, under their full names."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    count = 0
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, View) or (type(value) is np.ndarray and value.dtype != object):
            yield ".".join(path), value
        elif type(value) in _NODES and len(path) < DEEPEST:
            below = []
            for key, item in _items(value):
                count += 1
                if type(item) in (*_NODES, View, np.ndarray) and type(key) in (str, int):
                    below.append(((*path, str(key)), item))
                if count > MOST_ITEMS:  # a list can be in many others
                    raise FileError("it has too many items to be an AlexNet")
            waiting += reversed(below)


_NODES = (dict, list, tuple, Instance)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return the named items of a dict, a list or a module."""
    if isinstance(value, Instance):
        state = value.state if type(value.state) is dict else {}
        parts = [state.get(part) for part in ("_parameters", "_buffers", "_modules")]
        return itertools.chain(*(part.items() for part in parts if type(part) is dict))
    return value.items() if isinstance(value, dict) else enumerate(value)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> View:
    """Return the tensor of torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    metadata = others[2] if len(others) > 2 else None
    if metadata:
        raise FileError("it has a tensor that is conjugated or negated: save a clone of it")
    return view(storage, offset, shape, strides)


def _size(sizes: Any = ()) -> tuple[int, ...]:
    if not isinstance(sizes, (list, tuple)):
        raise DamagedError("its pickle is damaged: a size is no list of numbers")
    return tuple(sizes)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    """Return the tensor of a class derived from torch.Tensor."""
    if not isinstance(function, Name) or function.name not in _TENSORS:
        raise DamagedError("its pickle is damaged: a tensor is made by an unknown function")
    return _TENSORS[function.name](*arguments)


def _refusing(what: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any) -> NoReturn:
        raise FileError(f"it has {what}, which is not read: save the weights as plain tensors")

    return refuse


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _refusing("a tensor of a dtype without a storage class"),
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_qtensor": _refusing("a quantised tensor"),
    "torch._utils._rebuild_sparse_tensor": _refusing("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _refusing("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _refusing("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _refusing("a tensor without values (meta)"),
    "torch._utils._rebuild_wrapper_subclass": _refusing("a tensor of a class of its own"),
}

MODULES = Instance.of(
    "torchvision.models.alexnet.AlexNet",
    "torch.nn.parallel.data_parallel.DataParallel",
    *(
        f"torch.nn.modules.{place}"
        for place in (
            "container.Sequential",
            "conv.Conv2d",
            "linear.Linear",
            "activation.ReLU",
            "pooling.MaxPool2d",
            "pooling.AdaptiveAvgPool2d",
            "dropout.Dropout",
            "normalization.LocalResponseNorm",
            "flatten.Flatten",
        )
    ),
)
"""Classes of an AlexNet that was saved whole: its parameters are read as plain data."""

ALLOWED: Allowed = {
    **PLAIN,
    **NUMPY,
    **dict.fromkeys(TYPES),
    **dict.fromkeys(f"torch.{dtype}" for dtype in DTYPES),
    **dict.fromkeys(["torch.Tensor", "torch.nn.parameter.Parameter"]),
    **_TENSORS,
    **MODULES,
    **Instance.of("argparse.Namespace", "torch.device", "collections.Counter"),
    "torch.Size": _size,
    "torch.serialization._get_layout": lambda name: name,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
"""Names in torch's pickles, besides those of Python and NumPy."""
