"""Thin variants with random weights, and files of them."""

import numpy as np
import pytest

from tinyalex.interop import load_weights
from tinyalex.interop.weights import expected_shapes
from tinyalex.models import VARIANTS


@pytest.fixture
def draw(rng):
    """Return a function that draws weights of a variant which let signals through."""

    def drawn(variant, num_classes=7):
        return {
            name: (rng.standard_normal(shape) * (2 / max(8, np.prod(shape[1:]))) ** 0.5).astype(
                "f4"
            )
            for name, shape in expected_shapes(variant, num_classes).items()
        }

    return drawn


@pytest.fixture(params=["caffe", "caffenet"])
def thin(request, draw, monkeypatch):
    """Return one of two variants, both made thin under their names, and weights."""
    for name in ("caffe", "caffenet"):
        monkeypatch.setitem(VARIANTS, name, VARIANTS[name].thinner(16, 227))
    variant = VARIANTS[request.param]
    return request.param, variant, draw(variant)


@pytest.fixture
def load(tmp_path):
    """Return a function that loads the weights in the bytes of a file."""

    def loaded(raw, **options):
        (tmp_path / "net").write_bytes(raw)
        return load_weights(tmp_path / "net", **options)

    return loaded
