"""A trained network together with all it takes to feed it an image and to name its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinyalex.functional as F
from tinyalex.autograd import no_grad
from tinyalex.data import EvalTransform, resize_shorter_side
from tinyalex.models import VARIANTS, AlexNet, alexnet
from tinyalex.tensor import Tensor
from tinyalex.training.datasets import shorter_side_for


@dataclass
class Classifier:
    """The part of a checkpoint that outlives training; `get_state` and `from_state` carry it.

    `mean` and `std` are per colour in units of 0..255, `input_size` is the side of the square
    that the network sees.
    """

    model: AlexNet
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int

    @property
    def shorter_side(self) -> int:
        """To how many pixels the shorter side of an image is scaled before it is cropped."""
        return shorter_side_for(self.input_size)

    @property
    def transform(self) -> EvalTransform:
        """The central crop, normalised as in training."""
        channels = self.model.variant.in_channels
        return EvalTransform(self.input_size, self.mean, self.std, channels)

    def probabilities(self, images: Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """Return the probability of every class for uint8 RGB images of any size, [N, C]."""
        transform, unused = self.transform, np.random.default_rng(0)
        self.model.eval()
        found = []
        for start in range(0, len(images), batch_size):
            chunk = [
                transform(resize_shorter_side(image, self.shorter_side), unused)
                for image in images[start : start + batch_size]
            ]
            with no_grad():
                logits = self.model(Tensor(np.stack(chunk).transpose(0, 3, 1, 2)))
                found.append(F.softmax(logits, dim=1).numpy())
        return np.concatenate(found) if found else np.empty((0, len(self.classes)), np.float32)

    def get_state(self) -> dict[str, Any]:
        """Return everything as plain values and arrays, for `tinyalex.save`."""
        return {
            "variant": self.model.variant.name,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "input_size": self.input_size,
            "dropout": self.model.dropout,
            "weights": self.model.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Classifier:
        """Rebuild the classifier. Raises ValueError where the parts do not fit one another."""
        if state["variant"] not in VARIANTS:
            raise ValueError(
                f"the variant {state['variant']!r} is unknown here; known: {', '.join(VARIANTS)}"
            )
        model = alexnet(state["variant"], len(state["classes"]), state["dropout"])
        model.load_state_dict(state["weights"])
        mean, std = tuple(state["mean"]), tuple(state["std"])
        return cls(model, list(state["classes"]), mean, std, state["input_size"])
