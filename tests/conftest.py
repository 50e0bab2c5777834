"""Fixtures: a seeded generator, and one run per backend."""

import gc
import importlib
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# Processes that tests start, hundreds of them, find the library compiled to bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Thousands of tiny kernels: threads that spin while they wait would slow down a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from commands import hear_signals

import tinyalex as ta

# Random examples: the same few in every test run; new ones, for minutes, in a campaign.
settings.register_profile("default", deadline=None, max_examples=30, derandomize=True)
settings.register_profile(
    "campaign",
    deadline=None,
    max_examples=1000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")

hear_signals()

CHOICES = ta.use_backend, ta.use_fusion
BACKENDS = ("reference", "cpu")
FILE_SIZES = resource.getrlimit(resource.RLIMIT_FSIZE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Lift a test's limit on file sizes before its result is written: to a file, perhaps."""
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, FILE_SIZES)


@pytest.fixture
def rng():
    """Return the same numbers for every test, whichever tests ran before."""
    return np.random.default_rng(2012)


@pytest.fixture(autouse=True)
def _independent():
    """Let no test have its chance, threads, precision or backend from the tests before."""
    ta.manual_seed(2012)
    before = ta.threads.get_num_threads()
    chosen = [list(choice._open) for choice in CHOICES]
    yield
    assert [choice._open for choice in CHOICES] == chosen, "a choice that the test left open"
    if ta.threads.get_num_threads() != before:  # which costs 7 ms: a look at all libraries
        ta.threads.set_num_threads(before)
    ta.set_float32_matmul_precision("highest")


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Run the test on this backend, and restore the default."""
    with ta.use_backend(request.param):
        yield request.param


@pytest.fixture
def kernels(backend):
    """Return the table of kernels under test."""
    return importlib.import_module(f"tinyalex.backends.{backend}")


@pytest.fixture(params=(np.float64, np.float32), ids=("float64", "float32"))
def dtype(request):
    """Run the test in both precisions."""
    return np.dtype(request.param)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Look for no garbage among the tests, while they are collected and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """Mark what can run on a GPU, every test that uses the fixture `cuda`; tests of CUDA first.

    Of two processes one begins in the middle. It compiles the kernels of the CPU, on a new machine
    for a minute, and the other finds them when it has compiled those of CUDA.
    """
    items.sort(key=lambda item: item.path.parent.name != "cuda")
    for item in items:
        if "cuda" in item.fixturenames:
            item.add_marker(pytest.mark.gpu)


def pytest_configure(config):
    """Refuse ``pytest -m gpu`` in one sentence where no GPU is."""
    if config.getoption("markexpr") == "gpu":
        try:
            ta.backends.devices.check("cuda")
        except ta.DeviceError as error:
            raise pytest.UsageError(f"-m gpu: {error}") from None


@pytest.fixture
def standin(monkeypatch):
    """Let ``import cupy`` find the stand-in, whose kernels run on the CPU."""
    from simt import compiler, standin

    if not compiler.available():
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("the kernels run on the CPU only where there is g++")
    for name, module in standin.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return standin.modules()["cupy"]


@pytest.fixture
def cuda(request):
    """Return the module cupy: the real one under ``pytest -m gpu``, else its stand-in."""
    if request.config.getoption("markexpr") == "gpu":
        return importlib.import_module("cupy")
    return request.getfixturevalue("standin")


@pytest.fixture
def unprivileged():
    """Return a folder for a test without root's permissions."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        Image.init()  # what is imported late may lie where only root can read
        importlib.import_module("safetensors.numpy")
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)
