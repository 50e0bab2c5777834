"""Large weight files, read without PyTorch and in little memory."""

import hashlib
import json
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch_twins as twins
from commands import ROOT
from safetensors.numpy import save
from torch_twins import Tensor

import tinyalex as ta
from tinyalex.models import VARIANTS, alexnet
from tinyalex.models.alexnet import parameter_shapes

READ = """
import sys, hashlib, json
from pathlib import Path
sys.modules["torch"] = sys.modules["torchvision"] = None  # importing them raises ImportError
import tinyalex as ta
from tinyalex.interop import torch_files, safetensors_files
from tinyalex.models import VARIANTS
variant = VARIANTS["torchvision"].thinner(2, 224)
VARIANTS[variant.name] = variant
def most_memory():  # ru_maxrss would count the parent's
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")
before = most_memory()
weights = ta.load_weights(sys.argv[1])
peak = most_memory() - before
digests = [hashlib.sha256(array.copy().data).hexdigest() for array in weights.arrays.values()]
print(json.dumps([peak, sum(array.nbytes for array in weights.arrays.values()), digests]))
"""


def assert_read(path, state):
    """Read the file in a process that has no torch, and hold the peak of its memory."""
    read = subprocess.run(
        [sys.executable, "-c", READ, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert read.returncode == 0, read.stderr
    peak, size, digests = json.loads(read.stdout)
    assert digests == [hashlib.sha256(array.tobytes()).hexdigest() for array in state.values()]
    print(f"{path.name}: {peak / 1e6:.0f} MB for {size / 1e6:.0f} MB: {peak / size:.3f}")
    assert size <= peak <= 1.3 * size


@pytest.fixture(scope="module")
def state():
    """State of torchvision's network with half of its filters: 62 MB."""
    ta.manual_seed(0)
    return alexnet(VARIANTS["torchvision"].thinner(2, 224)).state_dict()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, "float32") for kind in twins.FILES), ("zip", "float64"), ("safetensors", "float64")],
)
def test_memory_is_little_more_than_the_weights(kind, dtype, state, tmp_path):
    arrays = {name: array.astype(dtype) for name, array in state.items()}
    if kind == "safetensors":
        content = save(arrays)
    else:
        content = twins.FILES[kind]({name: Tensor(array) for name, array in arrays.items()})
    path = tmp_path / f"{dtype}.{kind}"
    path.write_bytes(content)
    assert_read(path, state)


@pytest.mark.parametrize("order", ["one storage", "transposed"])
def test_views_take_no_more_memory(order, state, tmp_path):
    if order == "one storage":
        flat = np.concatenate([array.ravel() for array in state.values()])
        ends = np.cumsum([array.size for array in state.values()]).tolist()
        tree = {
            name: Tensor(flat, array.shape, offset=end - array.size)
            for (name, array), end in zip(state.items(), ends, strict=True)
        }
    else:
        tree = {name: Tensor(array) for name, array in state.items()}
        for name in ("classifier.1.weight", "classifier.4.weight"):
            array = np.ascontiguousarray(state[name].T)
            tree[name] = Tensor(array, state[name].shape, (1, len(state[name])))
    path = tmp_path / order
    path.write_bytes(twins.zip_file(tree))
    assert_read(path, state)


@pytest.mark.parametrize("kind", ["zip", "stream", "tar"])
def test_files_of_torch_itself_are_read(kind, tmp_path):
    """Of torchvision's whole network: 244 MB."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    state = OrderedDict(
        (name, torch.randn(shape) * 0.01)
        for name, shape in parameter_shapes(VARIANTS["torchvision"], 1000).items()
    )
    path = tmp_path / f"alexnet.{kind}"
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    if kind == "tar":  # which torch reads and no longer writes
        tree = {name: Tensor(array) for name, array in arrays.items()}
        path.write_bytes(twins.tar_file(tree))
        read = torch.load(path, weights_only=False)
        assert all(torch.equal(read[name], state[name]) for name in state)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    assert_read(path, arrays)
