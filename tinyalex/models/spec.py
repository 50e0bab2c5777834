"""The records that describe a variant: layers and initial weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinyalex.models.recipe import PixelScale, Recipe


@dataclass(frozen=True)
class Gaussian:
    """Weights from N(0, std**2), the bias constant."""

    std: float
    bias: float = 0.0


@dataclass(frozen=True)
class Xavier:
    """Weights uniform on ±sqrt(6 / (fan_in + fan_out)); the bias as torch draws it."""


@dataclass(frozen=True)
class TorchDefault:
    """Weights and bias uniform on ±1/sqrt(fan_in)."""


Init = Gaussian | Xavier | TorchDefault


@dataclass(frozen=True)
class Conv:
    """A convolution with square filters; ``groups=2`` are the two towers."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    init: Init = TorchDefault()


@dataclass(frozen=True)
class Linear:
    """A fully connected layer; ``features=None`` stands for the number of classes."""

    features: int | None
    init: Init = TorchDefault()


@dataclass(frozen=True)
class ReLU:
    """max(x, 0)."""


@dataclass(frozen=True)
class Dropout:
    """Dropout with the probability that the builder is given."""


@dataclass(frozen=True)
class Pool:
    """Overlapping max-pooling (paper section 3.4)."""

    kernel: int = 3
    stride: int = 2


@dataclass(frozen=True)
class AdaptivePool:
    """Mean over a ``size`` x ``size`` grid, for images of any size."""

    size: int


@dataclass(frozen=True)
class Pad:
    """Zeros at right and bottom, so that the next window rounds up."""

    size: int


@dataclass(frozen=True)
class LRN:
    """Response normalisation across channels, in torch's convention: alpha is divided by size."""

    alpha: float
    k: float
    size: int = 5
    beta: float = 0.75
    groups: int = 1


@dataclass(frozen=True)
class WithinMapNorm:
    """Response normalisation within each channel; alpha is divided by size squared."""

    alpha: float
    k: float
    size: int = 5
    beta: float = 0.75


Layer = Conv | Linear | ReLU | Dropout | Pool | AdaptivePool | Pad | LRN | WithinMapNorm


@dataclass(frozen=True)
class Variant:
    """One AlexNet: architecture, initial weights, input scale and recipe, bound together.

    They belong together: the paper's weights of 0.01 need raw pixels, and starve on inputs that
    were divided down to a standard deviation of 1.
    """

    name: str
    title: str
    provenance: str
    input_size: int
    features: tuple[Layer, ...]
    classifier: tuple[Layer, ...]
    pixels: PixelScale
    recipe: Recipe
    in_channels: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", " ".join(self.provenance.split()))

    @property
    def any_size(self) -> bool:
        """True if images larger or smaller than ``input_size`` are allowed."""
        return any(isinstance(layer, AdaptivePool) for layer in self.features)

    def thinner(self, divisor: int, input_size: int) -> Variant:
        """Return this network with 1/``divisor`` of the filters and hidden units.

        ``input_size`` must leave every window room (`alexnet.smallest_input`).
        """

        def thin(layer: Layer) -> Layer:
            if isinstance(layer, Conv):
                return replace(layer, channels=layer.channels // divisor)
            if isinstance(layer, Linear) and layer.features is not None:
                return replace(layer, features=layer.features // divisor)
            return layer

        return replace(
            self,
            name=f"{self.name}/{divisor}",
            input_size=input_size,
            features=tuple(map(thin, self.features)),
            classifier=tuple(map(thin, self.classifier)),
        )
