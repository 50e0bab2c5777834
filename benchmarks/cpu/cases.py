"""Cases of the CPU benchmark: mode, variant, batch size, image size."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tinyalex as ta
from cpu import gemm_floor
from shared.network import network, walk_one_image


@dataclass(frozen=True)
class Condition:
    """State of the machine: busy processes, and pauses before calls in ms."""

    name: str
    busy: int = 0
    pauses: tuple[int, ...] = (0,)


QUIET = Condition("quiet")


def idle() -> Condition:
    """Return the condition of single calls after pauses, on a quiet machine."""
    return Condition("idle", pauses=(0, 20, 100, 1000))


def busy(processes: int, training: bool) -> Condition:
    """Return the condition of calls beside busy processes."""
    return Condition(f"busy{processes}", processes, (0,) if training else (0, 100))


@dataclass(frozen=True)
class Case:
    """One net at work: ``mode`` is "train" or "infer"."""

    mode: str
    variant: str
    batch_size: int
    pixels: int

    @property
    def name(self) -> str:
        """Return the file name of the result on a quiet machine."""
        return f"cpu-{self.mode}-{self.variant}-{self.batch_size}"

    @property
    def training(self) -> bool:
        """True where a call is a training step, False for a prediction."""
        return self.mode == "train"


def batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels that every contestant gets."""
    rng = np.random.default_rng(0)
    shape = (case.batch_size, 3, case.pixels, case.pixels)
    return rng.standard_normal(shape, np.float32), rng.integers(0, 1000, case.batch_size)


def prepare(case: Case, folder: Path, libraries: Collection[str]) -> dict[str, float]:
    """Write the net for ``libraries``; return the operations of its products."""
    model = network(case.variant)
    ta.save(model.state_dict(), folder / "weights")
    if "torch" in libraries:
        import torch

        from shared.torch_twin import twin

        torch.save(twin(model), folder / "twin.pt")
    if "onnx" in libraries:
        from cpu.onnx_twin import write_onnx

        write_onnx(model, case.batch_size, folder / "twin.onnx")
    steps = walk_one_image(model, case.pixels)
    return gemm_floor.operations(steps, case.batch_size, case.training)
