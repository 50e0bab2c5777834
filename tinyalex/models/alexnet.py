"""The builder: one table row in, one network out."""

from __future__ import annotations

from tinyalex import nn
from tinyalex.backends.geometry import (
    ConvOptions,
    PoolOptions,
    conv_output_size,
    pool_output_size,
)
from tinyalex.models import spec
from tinyalex.models.spec import Variant
from tinyalex.models.variants import VARIANTS
from tinyalex.ops.arguments import integer, probability
from tinyalex.tensor import Tensor

Shape = tuple[int, int]  # channels and size: all images and windows are square

NAMES: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.Linear: "fc",
    nn.ReLU: "relu",
    nn.LocalResponseNorm: "norm",
    nn.WithinChannelResponseNorm: "rnorm",
    nn.MaxPool2d: "pool",
    nn.AdaptiveAvgPool2d: "avgpool",
}


def alexnet(
    variant: str | Variant = "paper", num_classes: int = 1000, dropout: float = 0.5
) -> AlexNet:
    """Return a freshly initialised AlexNet.

    ``variant`` is a name in `VARIANTS`, or a Variant of your own. Raises ValueError for an unknown
    name, fewer than one class and a dropout probability outside 0..1.
    """
    if not isinstance(variant, Variant):
        if not isinstance(variant, str) or variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        variant = VARIANTS[variant]
    return AlexNet(variant, num_classes, dropout)


class AlexNet(nn.Module):
    """``features`` (convolutions), flattened, then ``classifier``; ``variant`` says which AlexNet.

    Takes images [N, in_channels, input_size, input_size], scaled as ``variant.pixels`` says, and
    returns logits [N, num_classes]. Other sizes raise ValueError, except in variants with an
    adaptive pool, which take anything that is not too small for their windows.
    """

    def __init__(self, variant: Variant, num_classes: int = 1000, dropout: float = 0.5) -> None:
        self.variant = variant
        self.num_classes = integer(num_classes, "num_classes", minimum=1)
        self.dropout = probability(dropout, "dropout")
        self.features = nn.Sequential()
        channels, size = variant.in_channels, variant.input_size
        for layer in variant.features:
            self.features.append(self._build(layer, channels))
            channels, size = output_shape(layer, channels, size)
        self.classifier = nn.Sequential()
        inputs = channels * size * size
        for layer in variant.classifier:
            self.classifier.append(self._build(layer, inputs))
            if isinstance(layer, spec.Linear):
                inputs = layer.features or num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, num_classes]."""
        self._check(x)
        return self.classifier(self.features(x).flatten(1))

    def activations(self, x: Tensor, layer: str) -> Tensor:
        """Return the activations [N, D] of a layer, flattened from C, H, W.

        ``layer`` is a name in `layers`. Activations are those after ReLU, also where the network
        pools or normalises in between; those of the last layer are the logits. Dropout is left out,
        and nothing behind the layer runs. Raises ValueError for an unknown layer.
        """
        self._check(x)
        self.check_layer(layer)
        layers, (*_, last) = self.layers, self.weight_layers
        stages = [*self.features, nn.Flatten(), *self.classifier]
        stages = stages[: stages.index(layers[layer]) + 1]
        part = [stage for stage in stages if not isinstance(stage, nn.Dropout)]
        if layer != last:
            part.append(nn.ReLU())  # changes nothing where the network's own came before
        return nn.Sequential(*part)(x).flatten(1)

    def check_layer(self, layer: str) -> None:
        """Raise ValueError for the name of an unknown layer."""
        if layer not in self.layers:
            raise ValueError(f"layer must be one of {', '.join(self.layers)}; got {layer!r}")

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers in order, by their names: conv1, relu1, norm1, ... fc8.

        A layer without weights has the number of the last one with weights before it. Dropout and
        padding, which add nothing, are left out.
        """
        found: dict[str, nn.Module] = {}
        number = 0
        for layer in self.modules():
            for kind, name in NAMES.items():
                if isinstance(layer, kind):
                    number += kind in (nn.Conv2d, nn.Linear)
                    found[f"{name}{number}"] = layer
        return found

    @property
    def weight_layers(self) -> dict[str, nn.Conv2d | nn.Linear]:
        """The layers with weights by their usual names: conv1 ... conv5, fc6 ... fc8."""
        layers = self.layers.items()
        return {name: m for name, m in layers if isinstance(m, (nn.Conv2d, nn.Linear))}

    def extra_repr(self) -> str:
        """Show which AlexNet this is."""
        return f"variant={self.variant.name!r}"

    def _build(self, layer: spec.Layer, inputs: int) -> nn.Module:
        match layer:
            case spec.Conv(channels, kernel, stride, padding, groups):
                conv = nn.Conv2d(inputs, channels, kernel, stride, padding, groups=groups)
                return _initialise(conv, layer.init)
            case spec.Linear(features):
                return _initialise(nn.Linear(inputs, features or self.num_classes), layer.init)
            case spec.ReLU():
                return nn.ReLU()
            case spec.Dropout():
                return nn.Dropout(self.dropout)
            case spec.Pool(kernel, stride):
                return nn.MaxPool2d(kernel, stride)
            case spec.AdaptivePool(size):
                return nn.AdaptiveAvgPool2d((size, size))
            case spec.Pad(size):
                return nn.ZeroPad2d((0, size, 0, size))
            case spec.LRN(alpha, k, size, beta, groups):
                return nn.LocalResponseNorm(size, alpha, beta, k, groups)
            case spec.WithinMapNorm(alpha, k, size, beta):
                return nn.WithinChannelResponseNorm(size, alpha, beta, k)
        raise TypeError(f"a variant is made of the layers in models/spec.py, got {layer!r}")

    def _check(self, x: Tensor) -> None:
        variant = self.variant
        shape = x.shape if isinstance(x, Tensor) else ()
        if len(shape) == 4 and shape[1] == variant.in_channels:
            if shape[2:] == (variant.input_size, variant.input_size):
                return
            if variant.any_size and min(shape[2:]) >= smallest_input(variant):
                return
        got = f"shape {shape}" if isinstance(x, Tensor) else type(x).__name__
        size: int | str = variant.input_size
        advice = "resize or crop the images, or use a variant for their size or channels"
        if variant.any_size:
            size, advice = f">={smallest_input(variant)}", "enlarge the images"
        raise ValueError(
            f"the AlexNet {variant.name!r} expects a Tensor of images of shape "
            f"[N, {variant.in_channels}, {size}, {size}], got {got}; {advice}"
        )


def parameter_shapes(variant: Variant, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a network's parameters, without building it."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(layer: str, weight: tuple[int, ...]) -> None:
        shapes.update({f"{layer}.weight": weight, f"{layer}.bias": weight[:1]})

    channels, size = variant.in_channels, variant.input_size
    for place, layer in enumerate(variant.features):
        if isinstance(layer, spec.Conv):
            window = (layer.kernel, layer.kernel)
            note(f"features.{place}", (layer.channels, channels // layer.groups, *window))
        channels, size = output_shape(layer, channels, size)
    inputs = channels * size * size
    for place, last in enumerate(variant.classifier):
        if isinstance(last, spec.Linear):
            outputs = last.features or num_classes
            note(f"classifier.{place}", (outputs, inputs))
            inputs = outputs
    return shapes


def smallest_input(variant: Variant) -> int:
    """Return the size of the smallest image that every window fits."""
    size = 1
    for layer in reversed(variant.features):
        match layer:
            case spec.AdaptivePool():
                size = 1
            case spec.Conv(_, kernel, stride, padding):
                size = (size - 1) * stride + kernel - 2 * padding
            case spec.Pool(kernel, stride):
                size = (size - 1) * stride + kernel
            case spec.Pad(width):
                size -= width
    return size


def output_shape(layer: spec.Layer, channels: int, size: int) -> Shape:
    """Return the channels and size that a layer makes of these."""
    both = (size, size)
    match layer:
        case spec.Conv(filters, kernel, stride, padding):
            sides = (padding, padding)
            convolution = ConvOptions((stride, stride), (sides, sides))
            return filters, conv_output_size(both, (kernel, kernel), convolution)[0]
        case spec.Pool(kernel, stride):
            pooling = PoolOptions((kernel, kernel), (stride, stride))
            return channels, pool_output_size(both, pooling)[0]
        case spec.AdaptivePool(cells):
            return channels, cells
        case spec.Pad(width):
            return channels, size + width
    return channels, size


def _initialise(layer: nn.Conv2d | nn.Linear, rule: spec.Init) -> nn.Module:
    """Give ``layer``, which begins with torch's initial values, those of ``rule``."""
    match rule:
        case spec.Gaussian(std, bias):
            nn.init.normal_(layer.weight, 0.0, std)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)
        case spec.Xavier():
            nn.init.xavier_uniform_(layer.weight)
    return layer
