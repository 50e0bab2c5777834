"""Cases of the GPU benchmark: net, mode, batch size, class of precision."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

import tinyalex as ta
import tinyalex.functional as F
from shared.network import network
from tinyalex.models import VARIANTS, Variant, spec

LR, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
CHUNK = 16  # images that the reference takes at a time: float64 takes room

# How far a result may be from float64: the loss or the logits, the gradient of all parameters
# together, and that of any single one. Gradients are less exact than the arithmetic, since two
# values of a pooling window that differ by less than the rounding change places, and the one that
# wins takes the whole gradient along. Where the operands of all products were rounded to TF32 on
# the CPU (8 images, both nets), the three were off by 1e-4, 3 % and 8 %, and rounded to bfloat16 by
# 1e-3, 11 % and 23 %: twice to tenfold that is allowed here, for it is no more than a guard against
# wrong programs. Single layers, where nothing changes places, are held much tighter, and what a
# contestant really reaches stands beside its time.
TOLERANCES = {
    "A": {"result": 1e-5, "gradient": 1e-2, "worst gradient": 1e-1},
    "B": {"result": 1e-3, "gradient": 1e-1, "worst gradient": 2e-1},
    "C": {"result": 1e-2, "gradient": 3e-1, "worst gradient": 5e-1},
}
TOLERANCES["as shipped"] = TOLERANCES["B"]
CLASSES = {
    "A": "float32 throughout",
    "B": "TF32 products, float32 elsewhere",
    "C": "bfloat16 products, float32 weights",
    "as shipped": "PyTorch with no setting touched: TF32 convolutions, float32 linear layers",
}
UPDATE_TOLERANCE = 0.1  # of the update's norm: adding it to the weights rounds it


@dataclass(frozen=True)
class Net:
    """AlexNet with one or two towers (``groups``), with or without response normalisation.

    ``thin`` divides all widths and ``pixels`` is the size of the images, for trying the script.
    """

    groups: int = 1
    norm: bool = True
    thin: int = 1
    pixels: int = 224
    classes: int = 1000

    @property
    def name(self) -> str:
        """Return a short name, which is also part of a file's."""
        size = f"-thin{self.thin}-{self.pixels}" if self.thin > 1 else ""
        return f"g{self.groups}-{'lrn' if self.norm else 'plain'}{size}"

    def variant(self) -> Variant:
        """Return the variant with these layers."""
        variant = VARIANTS["paper" if self.groups == 2 else "one_tower"]
        if not self.norm:
            kept = tuple(x for x in variant.features if not isinstance(x, spec.LRN))
            variant = replace(variant, name=f"{variant.name} without LRN", features=kept)
        return variant.thinner(self.thin, self.pixels) if self.thin > 1 else variant

    def build(self) -> ta.models.AlexNet:
        """Return the net with the weights that every contestant begins with."""
        return deepcopy(_drawn(self))


@lru_cache(maxsize=1)
def _drawn(net: Net) -> ta.models.AlexNet:
    """Return the net whose copies all contestants get."""
    return network(net.variant(), net.classes)


@dataclass(frozen=True)
class Case:
    """One net at work: ``mode`` is "train" or "infer"."""

    net: Net
    mode: str
    images: int
    precision: str

    @property
    def name(self) -> str:
        """Return the name of the file that holds the result."""
        precision = self.precision.replace(" ", "-")
        return f"gpu-{self.mode}-{self.net.name}-{self.images}-{precision}"

    @property
    def floor_class(self) -> str:
        """Return the class of the floor: TF32's for PyTorch as shipped."""
        return "B" if self.precision == "as shipped" else self.precision

    @property
    def training(self) -> bool:
        """True where a call is a training step, False for a prediction."""
        return self.mode == "train"


def batch(net: Net, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images and labels; zeros would run faster than photographs."""
    rng = np.random.default_rng(images)
    shape = (images, 3, net.pixels, net.pixels)
    return rng.standard_normal(shape, np.float32), rng.integers(0, net.classes, images)


def expected(net: Net, images: int, training: bool) -> dict[str, np.ndarray]:
    """Return the expected results of every contestant, in float64 on the CPU.

    For training ``loss`` and the gradient of each parameter, else ``logits``.
    """
    model = net.build().to(np.dtype(np.float64))
    x, labels = batch(net, images)
    chunks = [slice(begin, begin + CHUNK) for begin in range(0, images, CHUNK)]
    parts = [(ta.Tensor(x[part].astype(np.float64)), labels[part]) for part in chunks]
    if not training:
        with ta.no_grad():
            return {"logits": np.concatenate([model(x).numpy() for x, _ in parts])}
    loss = 0.0
    for x, labels in parts:
        part = F.cross_entropy(model(x), labels, reduction="sum")
        part.backward()  # gradients add up
        loss += part.item() / images
    gradients = {name: p.grad / images for name, p in model.named_parameters()}
    return {"loss": np.array(loss), **gradients}


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Return ||got - want|| / ||want||, infinity for NaN and wrong shapes."""
    if got.shape != want.shape:
        return float("inf")
    error = float(np.linalg.norm(got - want)) / float(np.linalg.norm(want))
    return error if np.isfinite(error) else float("inf")


def errors(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the distances from `expected`, by the names of `TOLERANCES`."""
    if "logits" in want:
        return {"result": distance(got["logits"], want["logits"])}
    single = {name: distance(got[name], want[name]) for name in want if name != "loss"}
    norms = {name: float(np.linalg.norm(want[name])) for name in single}
    total = sum((single[n] * norms[n]) ** 2 for n in single) / sum(n**2 for n in norms.values())
    loss = float(want["loss"])
    return {
        # A loss far below 1, as a single image may have, is the logits' small difference.
        "result": distance(got["loss"], want["loss"]) * min(1.0, loss),
        "gradient": total**0.5,
        "worst gradient": max(single.values()),
    }


def objection(found: dict[str, float], precision: str) -> str | None:
    """Return what is wrong with a contestant's `errors`, None if nothing is."""
    limits = {**TOLERANCES[precision], "update": UPDATE_TOLERANCE}
    for name, error in found.items():
        if not error <= limits[name]:
            return f"wrong result: {name} is off by {error:.1e}, allowed are {limits[name]:.0e}"
    return None
