"""Cost model of a step on several ranks: bytes, seconds, bound.

All of it is arithmetic on the layers of a variant. A layer's features are divided among ``peers``
ranks that work on the same ``images``, and ``replicas`` ranks have the same weights:

========  ==================  =====  =============  ========
strategy  layers              peers  images         replicas
========  ==================  =====  =============  ========
data      all                 1      N / R          R
towers    all                 2      N / (R / 2)    R / 2
hybrid    conv1 ... conv5     1      N / R          R
hybrid    fc6, fc7, fc8       R      N              1
========  ==================  =====  =============  ========

From that follows what a rank sends in a step of N images on R ranks, in float32:

- a sum of gradients over r replicas: (r - 1) / r of the rank's gradients to those that add, and as
  much back from there, as soon as the layer's backward is done; those of all biases together, last;
- whole inputs, where each of p peers has a part: (p - 1) / p of the inputs of their images before
  the layer (an all-gather), and as much of their gradients after its backward (a reduce-scatter).
  The layer waits for both;
- the losses of its images, to each other rank, between forward and backward.

For N = 128 on two ranks that is, in MB (1e6 bytes):

- data, `paper`: gradients 243.9;
- towers, `source2012`: each way 11.08 of pool2 into conv3, 2.36 of pool5 into fc6 and 1.05 of fc6
  into fc7; fc8 is the first tower's alone, to which 1.05 of fc7 go, and from which as much comes
  back: 2 (11.08 + 2.36 + 1.05) + 1.05 = 30.0;
- hybrid, `paper`: gradients of the convolutions 9.34; each way 2.36 of pool5, 1.05 of fc6, 1.05 of
  fc7 and 0.26 of the logits: 9.34 + 2 (2.36 + 1.05 + 1.05 + 0.26) = 18.8.

Seconds are those of the busiest rank. It computes in proportion to multiply-adds: backward costs
twice forward, in the first layer once, since images need no gradient. One link carries one exchange
after the other, both ways at once, in the order in which they were begun: its bytes over the
bandwidth, and for each message the latency (Hockney's model): to each other rank one that says what
follows, then one for a gather, two for a sum. Bytes may cost time of the cores that compute, too:
to copy and to add them. Left out are ranks slower than others, loading of images, memory that is
full, and a network that has less than a whole link for each rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinyalex.models import Variant, spec
from tinyalex.models.alexnet import output_shape, parameter_shapes, smallest_input

STRATEGIES = ("data", "towers", "hybrid")
FLOAT = 4
"""Bytes of a float32."""
LOSS = 20
"""Bytes of an image's loss, in words that all ranks tell each other."""
PAYLOAD = 1448 / 1538
"""Share of Ethernet's bytes that TCP leaves to ours, in packets of 1,500 bytes."""
LARGEST_SGD = 1024
"""Largest batch of AlexNet with a learning rate that grew in proportion to it.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014, arXiv
1404.5997), went so far, and found that it worked better than the root that theory suggests.
"""
LARGEST_LARS = 8192
"""Batch to which LARS took AlexNet "without loss in accuracy".

You, Gitman, Ginsburg, "Large batch training of convolutional networks" (2017, arXiv 1708.03888).
"""


class Layer(NamedTuple):
    """A layer with weights, or the loss, for one image."""

    name: str
    inputs: int
    outputs: int
    """Filters or hidden units, which ranks can divide."""
    multiply_adds: int
    parameters: tuple[int, int] = (0, 0)
    """Sizes of weight and bias."""
    linear: bool = False
    both_towers: bool = True
    """Reads the features of both towers."""


def layers_of(variant: Variant, num_classes: int, pixels: int) -> list[Layer]:
    """Return the layers with weights.

    Raises ValueError for images of a size that the variant does not take.
    """
    least = smallest_input(variant) if variant.any_size else variant.input_size
    if pixels < least or (pixels > least and not variant.any_size):
        bound = "at least " if variant.any_size else ""
        raise ValueError(f"{variant.name} takes images of {bound}{least} pixels, got {pixels}")
    shapes = iter(parameter_shapes(variant, num_classes).values())
    layers: list[Layer] = []
    channels, size = variant.in_channels, pixels
    for layer in (*variant.features, *variant.classifier):
        inputs, reads_both = channels * size * size, True
        match layer:
            case spec.Conv(groups=groups):
                channels, size = output_shape(layer, channels, size)
                reads_both = groups == 1 and bool(layers)
            case spec.Linear(features):
                channels, size = features or num_classes, 1
            case _:
                channels, size = output_shape(layer, channels, size)
                continue
        weight, bias = math.prod(next(shapes)), math.prod(next(shapes))
        linear = isinstance(layer, spec.Linear)
        name = f"{'fc' if linear else 'conv'}{len(layers) + 1}"
        adds = weight * size * size
        layers.append(Layer(name, inputs, channels, adds, (weight, bias), linear, reads_both))
    return layers


def has_towers(variant: Variant) -> bool:
    """Return whether the network falls into two towers, as that of 2012 did.

    Some convolutions have two groups, and every response normalisation stays inside a tower.
    """
    convolutions = {layer.groups for layer in variant.features if isinstance(layer, spec.Conv)}
    norms = {layer.groups for layer in variant.features if isinstance(layer, spec.LRN)}
    return 2 in convolutions and norms <= {2}


class Compute(NamedTuple):
    """Arithmetic of the busiest rank."""

    multiply_adds: float


class Exchange(NamedTuple):
    """Bytes that the busiest rank sends and gets."""

    label: str
    sent: float
    received: float
    messages: int
    waits: bool
    """The next layer needs the result; else only the update does."""


class Part(NamedTuple):
    """Part of a layer that the busiest rank has."""

    layer: Layer
    peers: int
    images: float
    replicas: int
    share: float
    """Share of the features, and of the weights."""

    def arithmetic(self, times: int) -> Compute:
        """Return `times` the multiply-adds of forward."""
        layer = self.layer
        held = math.ceil(layer.outputs * self.share) / layer.outputs
        return Compute(times * math.ceil(self.images) * layer.multiply_adds * held)

    def sum(self, label: str, size: int) -> Exchange:
        """Return the sum over replicas of this rank's part of a gradient."""
        others = self.replicas - 1
        sent = FLOAT * 2 * others / self.replicas * size * self.share
        return Exchange(label, sent, sent, 3 * others, False)

    def whole(self, forward: bool) -> Iterator[Exchange]:
        """Yield the exchange that makes the layer's inputs whole, or its backward."""
        layer, others = self.layer, self.peers - 1
        if others and layer.both_towers:
            sent = received = FLOAT * self.images * layer.inputs * others / self.peers
            if self.share * self.peers > 1:  # a layer of one tower alone
                sent, received = (0.0, received) if forward else (sent, 0.0)
            label = f"{'inputs' if forward else 'gradients of inputs'} of {layer.name}"
            yield Exchange(label, sent, received, 2 * others, True)


def parts_of(layers: Sequence[Layer], strategy: str, ranks: int, batch: int) -> list[Part]:
    """Return the parts of the busiest rank, those of the loss included."""
    parts = []
    for layer in layers:
        part = Part(layer, 1, batch / ranks, ranks, 1)
        if strategy == "towers":  # the logits of 2012 are made in the first
            share = 1 if layer is layers[-1] else 1 / 2
            part = Part(layer, 2, 2 * batch / ranks, ranks // 2, share)
        elif strategy == "hybrid" and layer.linear:
            part = Part(layer, ranks, batch, 1, 1 / ranks)
        parts.append(part)
    if strategy == "hybrid":
        classes = layers[-1].outputs
        parts.append(Part(Layer("loss", classes, classes, 0), ranks, batch, 1, 1 / ranks))
    return parts


def program(parts: Sequence[Part]) -> Iterator[Compute | Exchange]:
    """Yield what a rank computes and exchanges in a step, in order."""
    for part in parts:
        yield from part.whole(forward=True)
        yield part.arithmetic(1)
    first = parts[0]
    others = first.peers * first.replicas - 1
    sent = LOSS * math.ceil(first.images / first.peers) * others
    yield Exchange("losses", sent, sent, others, True)
    for part in reversed(parts):
        yield part.arithmetic(1 if part is parts[0] else 2)
        yield part.sum(part.layer.name, part.layer.parameters[0])
        yield from part.whole(forward=False)
    biases = [part.sum("biases", part.layer.parameters[1]) for part in parts]
    total = sum(one.sent for one in biases)
    yield Exchange("biases", total, total, max(one.messages for one in biases), False)


@dataclass(frozen=True)
class Machine:
    """A rank's speed and its link."""

    rate: float
    """Images per second that it trains with the whole network."""
    link: float
    """Gbit/s, each way."""
    latency: float
    """Seconds of a message beside its bytes."""
    fixed: float = 0.0
    """Seconds of a step that its images do not change: the update of all weights."""
    payload: float = PAYLOAD
    """Share of the link that our bytes get; emulated links count no headers."""

    per_byte: float = 0.0
    """Seconds of the cores that compute, for a byte that is sent, received and added."""

    def alone(self, batch: int) -> float:
        """Return the images per second of one rank."""
        return batch / (batch / self.rate + self.fixed)


@dataclass(frozen=True)
class Cost:
    """Cost of a step; seconds, bytes that a rank sends."""

    strategy: str
    ranks: int
    batch: int
    sent: float
    compute: float
    link: float
    """Bytes of all exchanges over the bandwidth."""
    latency: float
    """Messages of all exchanges times the latency."""
    step: float

    @property
    def exchange(self) -> float:
        """Time for which the link is busy."""
        return self.link + self.latency

    @property
    def wait(self) -> float:
        """Time for which the rank waits for the link."""
        return self.step - self.compute

    @property
    def hidden(self) -> float:
        """Share of the exchange behind which the rank computes."""
        return 1 - self.wait / self.exchange if self.exchange else 1.0

    @property
    def bound(self) -> str:
        """Largest part of the step: "compute", "link" or "latency"."""
        if self.compute >= self.wait:
            return "compute"
        return "link" if self.link >= self.latency else "latency"

    def speed_up(self, alone: float) -> float:
        """Return the speed relative to `alone` images per second."""
        return self.batch / self.step / alone


def cost(layers: Sequence[Layer], strategy: str, ranks: int, batch: int, machine: Machine) -> Cost:
    """Return the cost of a step of `batch` images.

    Backward continues while gradients are on the link; the update waits for all of them.
    """
    parts = parts_of(layers, strategy, ranks, batch)
    adds = sum(3 * layer.multiply_adds for layer in layers) - layers[0].multiply_adds
    held = sum(sum(part.layer.parameters) * part.share for part in parts)
    update = machine.fixed * held / sum(sum(layer.parameters) for layer in layers)
    now = free = compute = sent = link = latency = 0.0
    for work in program(parts):
        if isinstance(work, Compute):
            seconds = work.multiply_adds / adds / machine.rate
            compute, now = compute + seconds, now + seconds
            continue
        of_bytes = max(work.sent, work.received) / (machine.link * 1e9 / 8 * machine.payload)
        of_messages = work.messages * machine.latency
        sent, link, latency = sent + work.sent, link + of_bytes, latency + of_messages
        busy = max(work.sent, work.received) * machine.per_byte
        free = max(now, free) + of_bytes + of_messages
        compute, now = compute + busy, now + busy
        now = max(now, free) if work.waits else now
    step = max(now, free) + update
    return Cost(strategy, ranks, batch, sent, compute + update, link, latency, step)


def hybrid_below(layers: Sequence[Layer]) -> float:
    """Return the batch below which hybrid sends less than data.

    Hybrid trades the gradients of the linear layers for their inputs, and for the logits.
    """
    linear = [layer for layer in layers if layer.linear]
    inputs = sum(layer.inputs for layer in linear) + layers[-1].outputs
    return sum(sum(layer.parameters) for layer in linear) / inputs
