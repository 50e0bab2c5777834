"""Caffe's arrays (BlobProto in src/caffe/proto/caffe.proto), in all ways of writing them."""

from __future__ import annotations

import math

import numpy as np

from tinyalex.files import FileError
from tinyalex.interop.protobuf import Fields, Reader

SIZES, DATA, SHAPE, DOUBLES = (1, 2, 3, 4), 5, 7, 8
"""Fields: num, channels, height, width; data; shape; double_data."""


def blob_shape(reader: Reader, blob: Fields) -> tuple[int, ...]:
    """Return the shape of an array; once all had four axes."""
    if SHAPE in blob:
        return tuple(reader.whole_numbers(reader.fields(blob[SHAPE][-1]).get(1, [])))
    return tuple(reader.whole_numbers([blob.get(place, [0])[-1] for place in SIZES]))


def blob_array(reader: Reader, blob: Fields, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array's numbers as float32, in a shape."""
    if DATA in blob and DOUBLES in blob:
        raise FileError("an array has its numbers twice")
    size, values = (8, blob[DOUBLES]) if DOUBLES in blob else (4, blob.get(DATA, []))
    return reader.floats(values, size, math.prod(shape)).reshape(shape)
