"""Caffe's networks: three generations, OpenCV's answers, refusals, damaged files."""

import numpy as np
import pytest
from caffemodels import caffemodel, layers

from tinyalex.interop import load_weights
from tinyalex.interop.means import IMAGENET_MEAN
from tinyalex.interop.weights import expected_shapes
from tinyalex.models import VARIANTS

GENERATIONS = {"V0": 0, "V1": 1, "V2": 2}
CLASSES = 7


def random_arrays(rng, variant, num_classes=CLASSES):
    """Return weights of a variant's shapes that let signals through."""
    return {
        name: (rng.standard_normal(shape) * (2 / max(1, np.prod(shape[1:]))) ** 0.5).astype("f4")
        for name, shape in expected_shapes(variant, num_classes).items()
    }


@pytest.fixture(params=["caffe", "caffenet"])
def thin(request, rng, monkeypatch):
    """Return a variant with an eighth of the filters, under its name, and weights of it."""
    variant = VARIANTS[request.param].thinner(8, 227)
    monkeypatch.setitem(VARIANTS, request.param, variant)
    return request.param, variant, random_arrays(rng, variant)


@pytest.fixture
def load(tmp_path):
    """Return a function that writes a file and loads it."""

    def loaded(raw, **options):
        (tmp_path / "net").write_bytes(raw)
        return load_weights(tmp_path / "net", **options)

    return loaded


def assert_arrays(weights, arrays):
    for key, array in arrays.items():
        assert np.array_equal(weights.arrays[key], array), key


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_every_generation_has_the_same_weights(load, thin, generation, packed, dtype):
    name, variant, arrays = thin
    writing = {"packed": packed, "dtype": dtype}
    weights = load(caffemodel(layers(variant, arrays), GENERATIONS[generation], **writing))
    assert weights.variant == name
    assert_arrays(weights, arrays)
    assert weights.mean == IMAGENET_MEAN
    assert (weights.resize, weights.shorter_side, weights.input_size) == ("warp", 256, 227)
    assert (weights.std, weights.channels, weights.classes) == ((1, 1, 1), "BGR", None)
