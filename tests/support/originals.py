"""Fixtures of tinyalex prepare: ``pytest_plugins = ("originals",)`` makes them known."""

import shutil

import numpy as np
import pytest
from PIL import Image
from preparing import GOOD, prepare


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Return a folder of noisy photographs, split into train and val."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for number in range(GOOD):
        split, name = ("val", "train")[number % 5 > 0], ("ash", "elm")[number % 2]
        path = root / split / name / f"{number:02}.{('jpg', 'png')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (int(rng.integers(280, 400)), int(rng.integers(256, 300)))
        noise = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        noise.resize(size, Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture(scope="session")
def prepared(originals, tmp_path_factory):
    """Return what an uninterrupted run makes of the photographs."""
    target = tmp_path_factory.mktemp("prepared") / "clean"
    code, out, err = prepare(originals, target)
    assert (code, err) == (0, "")
    assert f"{GOOD} images made, 0 were there, 0 left out\n" in out
    return target


@pytest.fixture
def prepared_copy(prepared, tmp_path):
    """Return a copy of the prepared folder, to be damaged."""
    return shutil.copytree(prepared, tmp_path / "copy")
