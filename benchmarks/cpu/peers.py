"""Contestants of the CPU benchmark: their settings, and one call of each.

Each is asked for its best: both memory layouts of PyTorch, as installed, with the settings of
malloc and SGD that spare it page faults, and compiled (`torch.compile`; for predictions with frozen
weights, and with products chosen by trial); ONNX Runtime with its threads spinning, as it does by
default; OpenVINO in float32. Every library uses as many threads as there are cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cpu import gemm_floor
from cpu.cases import Case, batch

LR, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.9, 5e-4  # a rate at which no variant diverges

Call = Callable[[], Any]  # one training step, returning the loss; or a prediction, the logits
Ready = tuple[Call, dict[str, Any]]  # and the settings that a reader should know


@dataclass(frozen=True)
class Contestant:
    """A library's setup; ``mib_per_image`` is about what `paper` takes of memory."""

    name: str
    build: Callable[[Case, Path], Ready]
    mib_per_image: int
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Return the libraries that would have to be installed."""
        return [name for name in self.needs if not find_spec(name)]


def _cores() -> int:
    from tinyalex.threads import available_cores

    return available_cores()


def _tinyalex(case: Case, folder: Path) -> Ready:
    import tinyalex as ta
    import tinyalex.functional as F

    model = ta.models.alexnet(case.variant, dropout=0.0)
    model.load_state_dict(ta.load(folder / "weights"))
    images, labels = batch(case)
    x = ta.Tensor(images)
    settings = {"threads": ta.threads.get_num_threads(), "precision": "float32"}
    if not case.training:
        model.eval()

        def predict() -> np.ndarray:
            with ta.no_grad():
                return model(x).numpy()

        return predict, settings
    optimizer = ta.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, settings


def checkout(folder: str) -> Contestant:
    """Return the tinyalex of another checkout, named by its commit."""
    words = ["git", "-C", folder, "describe", "--always", "--dirty"]
    commit = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return Contestant(f"{TINYALEX} {commit}", partial(_other_tinyalex, folder), 10)


def _other_tinyalex(folder: str, case: Case, weights: Path) -> Ready:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tinyalex"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    return _tinyalex(case, weights)


def _torch(
    case: Case, folder: Path, channels_last: bool, compiled: str = "", **sgd_options: Any
) -> Ready:
    """Set up PyTorch; ``compiled`` is the mode of torch.compile, if any."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no processes beside those that are stopped
    import torch

    model = torch.load(folder / "twin.pt", weights_only=False)  # written by `cases.prepare`
    images, labels = batch(case)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    precision = f"float32, matmul precision {torch.get_float32_matmul_precision()}"
    settings = {"threads": torch.get_num_threads(), "precision": precision}
    if compiled:
        import torch._inductor.config

        settings["torch.compile"] = compiled
        if not case.training:
            torch._inductor.config.freezing = True
            settings["weights"] = "frozen"
        model = torch.compile(model, mode=compiled)
    if not case.training:
        model.eval()

        def predict() -> np.ndarray:
            with torch.no_grad() if compiled else torch.inference_mode():
                return model(x).numpy()

        predict()  # compiles, or fails to
        return predict, settings
    options = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, **sgd_options}
    optimizer = torch.optim.SGD(model.parameters(), LR, **options)

    def step(update: bool = True) -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        if update:
            optimizer.step()
        return loss.item()

    step(update=False)  # compiles, or fails to
    return step, settings


def _onnxruntime(case: Case, folder: Path) -> Ready:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _cores()
    session = onnxruntime.InferenceSession(
        folder / "twin.onnx", options, providers=["CPUExecutionProvider"]
    )
    inputs = {"images": batch(case)[0]}
    settings = {"threads": _cores(), "precision": "float32", "spinning": "as by default"}
    return lambda: session.run(None, inputs)[0], settings


def _openvino(case: Case, folder: Path) -> Ready:
    import openvino

    asked = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": _cores(),
        "PERFORMANCE_HINT": "LATENCY",  # all threads for the one batch that there is
    }
    net = openvino.Core().compile_model(folder / "twin.onnx", "CPU", asked)
    images = batch(case)[0]
    settings = {
        "threads": net.get_property("INFERENCE_NUM_THREADS"),
        "precision": net.get_property("INFERENCE_PRECISION_HINT").to_string(),
    }
    return lambda: net(images)[0], settings


def _large_product(case: Case, folder: Path) -> Ready:
    rng = np.random.default_rng(0)
    a, b, c = (rng.random((gemm_floor.SIZE,) * 2, np.float32) for _ in range(3))
    return lambda: np.matmul(a, b, out=c)[0, 0], {"threads": _cores(), "precision": "float32"}


TINYALEX = "tinyalex"
TORCH = ("torch", "torch channels_last")
TUNED_TORCH = ("torch tuned", "torch tuned channels_last")
COMPILED_TORCH = ("torch compiled", "torch compiled channels_last", "torch compiled max-autotune")
# Frozen weights are laid out by the compiler: for predictions both layouts take the same time.
# Where the memory does not suffice for all, the last is left out: of the two trainers, the slower.
COMPILED_PREDICTORS, COMPILED_TRAINERS = COMPILED_TORCH[::2], COMPILED_TORCH[1::-1]
ONE_THREAD = "tinyalex, one thread, quiet"
# glibc would give every large block back to the system, and fault its pages in again next step.
TUNED_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def _torch_contestant(name: str, mib_per_image: int, tuned: bool = False) -> Contestant:
    options: dict[str, Any] = {"channels_last": name.endswith("channels_last")}
    if "compiled" in name:
        options["compiled"] = "max-autotune" if name.endswith("max-autotune") else "default"
    if tuned:
        options["fused"] = True
    build = partial(_torch, **options)
    return Contestant(name, build, mib_per_image, ("torch",), TUNED_MALLOC if tuned else {})


PREDICTION_MIB = 8
CONTESTANTS = {
    "train": (
        Contestant(TINYALEX, _tinyalex, 10),
        *(_torch_contestant(name, 16) for name in TORCH),
        *(_torch_contestant(name, 26, tuned=True) for name in TUNED_TORCH),
        *(_torch_contestant(name, 16, tuned=True) for name in COMPILED_TRAINERS),
    ),
    "infer": (
        Contestant(TINYALEX, _tinyalex, PREDICTION_MIB),
        *(_torch_contestant(name, PREDICTION_MIB) for name in (*TORCH, *COMPILED_PREDICTORS)),
        Contestant("ONNX Runtime", _onnxruntime, PREDICTION_MIB, ("onnxruntime", "onnx")),
        Contestant("OpenVINO", _openvino, PREDICTION_MIB, ("openvino", "onnx")),
    ),
}
# Of the machine itself: what a whole core to itself would bring where others are busy, and a
# product that says how fast it is in this very minute.
ON_A_FREE_CORE = Contestant(ONE_THREAD, _tinyalex, 10, environment={"TINYALEX_NUM_THREADS": "1"})
LARGE_PRODUCT = Contestant("large product", _large_product, 0)
