"""Errors for a missing GPU, driver, CuPy or memory: one clear sentence."""

import importlib.util
import itertools
import re
import shutil
import sys

import numpy as np
import pytest
from commands import TRAIN, assert_refused, contents, run, tiny_settings, train_on, trainer
from helpers import run_python

import tinyalex as ta
import tinyalex.functional as F
from tinyalex.backends import gpu
from tinyalex.backends.devices import DeviceError
from tinyalex.calls import pip_install
from tinyalex.training import new_run

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(autouse=True)
def _nothing_known():
    """Forget which GPUs there were."""
    gpu.check.cache_clear()
    yield
    gpu.check.cache_clear()


@pytest.fixture
def no_cupy(monkeypatch):
    """Let no CuPy be installed."""
    monkeypatch.setitem(sys.modules, "cupy", None)


def without(monkeypatch, standin, status):
    """Fail with a status where GPUs are counted; None: find none."""

    def count():
        if status is None:
            return 0
        raise standin.cuda.runtime.CUDARuntimeError(status)

    monkeypatch.setattr(standin.cuda.runtime, "getDeviceCount", count)


def move_to(name):
    with pytest.raises(DeviceError) as caught:
        ta.ones(3).to(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_cupy(no_cupy):
    install = pip_install("tinyalex[cuda13]")
    assert move_to("cuda").startswith(f"the GPU needs CuPy, which is not installed: {install}")


def test_with_a_cupy_that_cannot_be_loaded(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("import missing_half_of_cupy")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert "CuPy is installed but cannot be loaded (No module named 'missing_ha" in move_to("cuda")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(35, "finds no NVIDIA driver, or one too old for it"), (100, "finds no NVIDIA GPU on this"),
     (None, "finds no NVIDIA GPU on this"), (3, "CUDA cannot start: cudaError 3")],
    ids=["no driver", "no device", "none", "broken"],
)  # fmt: skip
def test_without_driver_or_gpu(standin, monkeypatch, status, expected):
    without(monkeypatch, standin, status)
    assert expected in move_to("cuda")


def test_this_machine_as_it_is():
    """With what is really installed here, and without the stand-in."""
    found = run_python(
        "import tinyalex as ta\n"
        "try:\n    print(ta.ones(3).to('cuda').device)\n"
        "except RuntimeError as error:\n    print(type(error).__name__, error)"
    )
    if importlib.util.find_spec("cupy") is None:
        assert found.startswith("DeviceError the GPU needs CuPy, which is not installed")
    elif shutil.which("nvidia-smi") is None:
        assert found.startswith("DeviceError CuPy finds no NVIDIA ")
    else:
        assert found == "cuda:0\n"
    assert found.count("\n") == 1


def test_a_gpu_that_is_not_there(standin):
    assert move_to("cuda:2") == "there is no device cuda:2; this machine has cuda:0 to cuda:1"


def test_a_gpu_that_is_too_old(standin, monkeypatch):
    old = {"name": b"Tesla T4", "major": 7, "minor": 5}
    monkeypatch.setattr(standin.cuda.runtime, "getDeviceProperties", lambda index: old)
    assert move_to("cuda") == (
        "cuda:0, Tesla T4, is too old for the kernels: its compute capability is 7.5, "
        "and they need 8.0 or newer"
    )


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
def test_a_device_that_has_no_such_name(name):
    with pytest.raises(ValueError, match=r'a device, "cpu", "cuda" or "cuda:<number>", got '):
        ta.ones(3).to(name)


def test_devices_do_not_mix(standin):
    x, weight, bias = ta.ones((2, 3)).to("cuda"), ta.ones((4, 3)), ta.ones(2).to("cuda:1")
    for tensors, devices in (((x, weight), "cuda:0 and cpu"), ((x, x, bias), "cuda:0 and cuda:1")):
        with pytest.raises(ValueError, match=f"on one device, got {devices}; move them first"):
            F.linear(*tensors)


# --- the commands: before anything else is done


@pytest.mark.parametrize("name", [TRAIN, "evaluate", "predict"])
def test_commands_look_for_the_device_first(no_cupy, tmp_path, name):
    """Nothing else on this command line can be used either."""
    nowhere = tmp_path / "nowhere"
    places = {TRAIN: ["--data", nowhere, "--out", tmp_path / "run"], "predict": [nowhere, nowhere]}
    code, said, complaints = run(name, *places.get(name, [nowhere]), "--device", "cuda")
    assert_refused(code, complaints, "error: the GPU needs CuPy, which is not installed")
    assert said == ""
    assert contents(tmp_path) == []


def test_a_run_is_resumed_without_its_gpu(standin, monkeypatch, photos, tmp_path):
    out = tmp_path / "run"
    assert train_on(photos, out, "--device", "cuda", "--steps", 1, "--batch-size", 16)[0] == 0
    before = contents(out)
    code, _, complaints = run(TRAIN, "--resume", out, "--precision", "high")
    assert_refused(code, complaints, "(--precision highest then, high now): leave these options")
    without(monkeypatch, standin, 100)
    gpu.check.cache_clear()
    code, _, complaints = run(TRAIN, "--resume", out)
    expected = f"if there should be one; {out} can also be resumed with another --device"
    assert_refused(code, complaints, expected)
    assert contents(out) == before
    assert run(TRAIN, "--resume", out, "--device", "cpu", "--steps", 2)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--device", "tpu"], "expected a device, "),
     (["--cuda-graph"], "--cuda-graph must be off without a GPU (--device cuda), got True"),
     (["--precision", "high"], "--precision must be highest without a GPU (--device cuda), got '"),
     (["--read-loss-every", 11], "read-loss-every must be a whole number from 1 to 10, got 11")],
)  # fmt: skip
def test_options_that_cannot_be(photos, tmp_path, arguments, expected):
    code, _, complaints = train_on(photos, tmp_path / "run", *arguments)
    assert_refused(code, complaints, expected)


# --- memory


def test_an_array_that_does_not_fit(standin):
    memory = importlib.import_module("simt.memory")
    with memory.limited(1000), pytest.raises(gpu.OutOfMemoryError) as caught:
        ta.ones(500).to("cuda")
    assert "the GPU's memory is full (copying 2,000 bytes to cuda:0)" in str(caught.value)


def test_a_batch_that_does_not_fit(standin, photos, tmp_path):
    """The batch that is named instead fits, whatever the room."""
    memory = importlib.import_module("simt.memory")
    named = set()
    for room in (600_000, 1_000_000, 1_500_000):
        out = tmp_path / str(room)
        with memory.limited(room):
            code, _, complaints = train_on(photos, out, "--device", "cuda", "--batch-size", 32)
        assert code == 1
        found = re.fullmatch(
            r"error: the memory does not suffice: lower --batch-size \(cuda:0 has no room for "
            r"steps of 32 images, (\d+) fit\)\n",
            complaints,
        )
        assert found, complaints
        size = int(found[1])
        named.add(size)
        out.mkdir()
        with memory.limited(room):
            options = {"device": "cuda", "batch_size": size, "epochs": 1, "cuda_graph": True}
            trainer(new_run(tiny_settings(photos, **options)), out).train()
    assert len(named) > 1


def test_not_even_one_image_fits(standin, photos, tmp_path):
    memory = importlib.import_module("simt.memory")
    with memory.limited(200_000):
        code, _, complaints = train_on(photos, tmp_path / "run", "--device", "cuda")
    assert code == 1
    assert "no room for steps of 8 images, not even one fits" in complaints


def test_looking_for_room_leaves_no_trace(standin, photos):
    from tinyalex.training.gpu_memory import check_memory

    run = new_run(tiny_settings(photos, device="cuda"))
    before = run.get_state()
    check_memory(run)
    pool = standin.get_default_memory_pool()
    assert pool.total_bytes() == pool.used_bytes()
    after = run.get_state()
    for part in ("random", "optimizer"):
        assert before[part] == after[part]
    for name, array in before["classifier"]["weights"].items():
        assert np.array_equal(array, after["classifier"]["weights"][name])
    assert {p.grad is None for p in run.classifier.model.parameters()} == {True}


def test_memory_that_runs_out_on_the_way(standin, photos, tmp_path, monkeypatch):
    from tinyalex.training.gpu_steps import GPUSteps

    memory, steps = importlib.import_module("simt.memory"), itertools.count()
    take = GPUSteps.take

    def take_less(self, batch):
        if next(steps) < 3:
            return take(self, batch)
        with memory.limited(1000):
            return take(self, batch)

    monkeypatch.setattr(GPUSteps, "take", take_less)
    code, _, complaints = train_on(photos, tmp_path / "run", "--device", "cuda")
    assert code == 1
    assert complaints.startswith("error: the memory of cuda:0 does not suffice, but did when the ")
    assert f"--resume {tmp_path / 'run'}" in complaints
    assert complaints.count("\n") == 1
