"""Weights in safetensors: torchvision's, others', and checkpoints of our own.

The container is described at https://github.com/huggingface/safetensors. It is read here with
bounded memory, not mapped: truncating a mapped file kills its reader.
"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO

from tinyalex import files
from tinyalex.files import DamagedError, FileError
from tinyalex.interop import names
from tinyalex.interop.description import COLOURS, KEY, SCHEMA, described
from tinyalex.interop.reading import Request
from tinyalex.interop.stored import MOST_AXES, Stored, row_major
from tinyalex.interop.weights import Weights, array_names
from tinyalex.models import VARIANTS
from tinyalex.models.alexnet import parameter_shapes
from tinyalex.schema import ARRAY, TEXT, Each, array_of, check
from tinyalex.text import counted

LONGEST_HEADER = 2**22
"""Bytes of a header: an AlexNet's has a few thousand, a mean image in it takes a million."""

DTYPES = {
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}

CHECKPOINT = {
    "classifier": {
        **SCHEMA,
        "classes": [TEXT],
        "mean": COLOURS | array_of("float32", None, None, 3),
        "weights": Each(ARRAY),
    }
}
"""Schema of a run's checkpoint, as far as it is needed."""


def read(request: Request) -> Weights:
    """Read the weights of an AlexNet."""
    metadata, arrays = read_header(request.file, request.size)
    if metadata.get("format") == files.FORMAT:
        return _read_checkpoint(request)
    options = described(metadata[KEY]) if KEY in metadata else {}
    own, variant, prefix = names.select(arrays, request.variant, options.pop("variant", None))
    notes = (f"names begin with {prefix}",) if prefix else ()
    return Weights(names.read(own), variant, source="safetensors", notes=notes, **options)


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, str], dict[str, Stored]]:
    """Return metadata and arrays, which fill the file without holes or overlaps."""
    with files.refusing_damage("its header is damaged"):
        return _read_header(file, size)


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, str], dict[str, Stored]]:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise DamagedError(
            f"a file of {counted(size, 'byte')} cannot have a header of {length}: it is damaged"
        )
    if length > LONGEST_HEADER:
        raise FileError(f"its header has {length:,} bytes, at most {LONGEST_HEADER:,} are read")
    entries = json.loads(file.read(length).decode(), object_pairs_hook=_without_duplicates)
    metadata = entries.pop("__metadata__", {})
    if not all(type(value) is str for value in metadata.values()):
        raise ValueError("a value of its metadata is no text")
    arrays: dict[str, Stored] = {}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        dtype, itemsize = DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, stop)):
            raise ValueError(f"{name} has sizes that are no whole numbers")
        if len(shape) > MOST_AXES:
            raise ValueError(f"{name} has {len(shape)} axes")
        if begin != end or stop - begin != math.prod(shape) * itemsize:
            raise ValueError(f"{name} does not begin and end where it should")
        arrays[name] = Stored(file, 8 + length + begin, dtype, shape, row_major(shape))
        end = stop
    if 8 + length + end > size:
        raise DamagedError(
            f"it is cut short: its arrays end at byte {8 + length + end:,} of {size:,}"
        )
    if 8 + length + end != size:
        raise ValueError(f"its arrays end at byte {8 + length + end:,} of {size:,}")
    return metadata, arrays


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name is there twice")
    return entries


def _read_checkpoint(request: Request) -> Weights:
    """Read what our own training wrote: `training.Classifier.get_state`."""
    content = files.load(request.name, lambda content: check(content, CHECKPOINT))
    try:
        state = content["classifier"]
        variant = state["variant"]
        if request.variant not in (None, variant):
            raise FileError(f"it is of the variant {variant!r}, not {request.variant!r}")
        if variant not in VARIANTS:
            raise FileError(f"its variant {variant!r} is unknown here: {', '.join(VARIANTS)}")
        keys = parameter_shapes(VARIANTS[variant], 1)
        own = zip(array_names(VARIANTS[variant]), keys, strict=True)
        mean = state["mean"]
        return Weights(
            {name: state["weights"][key] for name, key in own},
            variant,
            source="checkpoint of tinyalex",
            mean=tuple(mean) if isinstance(mean, list) else mean,
            std=tuple(state["std"]),
            resize=state.get("resize", "shorter_side"),
            shorter_side=state.get("shorter_side", 0),
            input_size=state["input_size"],
            classes=list(state["classes"]),
        )
    except (LookupError, TypeError) as error:
        raise FileError("its weights are not those of its variant") from error
