"""Fixtures of the tests of training: ``pytest_plugins = ("trained",)`` makes them known."""

import resource
import shutil
from dataclasses import replace

import pytest
from commands import draw_photos, run, tiny_variant

from tinyalex.cli import train_options
from tinyalex.models import VARIANTS


@pytest.fixture
def tiny():
    """Offer the variant "tiny"."""
    with tiny_variant():
        yield


@pytest.fixture
def thin(monkeypatch):
    """Make all networks thin, and trainings one epoch long."""
    for key, variant in VARIANTS.items():
        network = replace(variant.thinner(16, variant.input_size), name=key)
        monkeypatch.setitem(VARIANTS, key, network)
    for defaults in (train_options.SMALL_DATA, train_options.WITH_WEIGHTS):
        monkeypatch.setitem(defaults, "epochs", 1)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Draw the photos of `trained`: a file's own `photos` must not become those of all others."""
    return draw_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def photos(drawn):
    """Return a folder of small pictures in three classes; leave it as it is."""
    return drawn


@pytest.fixture(scope="session")
def trained(tmp_path_factory, drawn):
    """Return the folder of a finished run of three epochs; leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    with tiny_variant():
        code, said, complaints = run(
            "train", "--variant", "tiny", "--data", drawn, "--out", out, "--report"
        )
    assert (code, complaints) == (0, "")
    (out / "said.txt").write_text(said)
    return out


@pytest.fixture
def copy(trained, tmp_path):
    """Return a copy of the finished run, to be spoilt."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def disk():
    """Return a function that lets files grow to so many bytes only; None lifts the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)
