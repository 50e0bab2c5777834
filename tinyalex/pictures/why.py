"""Maps of an image's evidence for a class: occlusion, input gradient, Grad-CAM.

Each function takes a network, images [N, C, H, W] as the network takes them, and a class, one for
all images or one for each. It returns a map for each image, float32 [N, H, W]: the larger, the more
that place speaks for the class. Dropout is off meanwhile; then the network is as it was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import numpy as np

import tinyalex.functional as F
from tinyalex import nn
from tinyalex.backends.devices import host_copy
from tinyalex.grad_mode import no_grad
from tinyalex.ops.arguments import integer
from tinyalex.progress import Progress
from tinyalex.tensor import Tensor

BATCH = 32
"""Images with a square that go through the network at a time."""
SAMPLES = 16
"""Noisy copies of an image whose gradients are averaged."""


def occlusion(
    model: nn.Module,
    images: np.ndarray,
    target: int | np.ndarray,
    square: int | None = None,
    stride: int | None = None,
    fill: float | np.ndarray = 0.0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the probability that the class loses where a square hides pixels.

    map[y, x] = p(class | image) - p(class | image with a square), on average over the squares that
    hide (y, x). It is negative where the class wins by what is hidden. The squares of `square`
    pixels (a fifth of the image) stand `stride` apart (a third of a square) and are cut at the
    edges. They are filled with `fill`, a number or [C, H, W]; 0 is the mean colour where images
    come without their mean. Zeiler and Fergus (2014), section 4.2. Raises ValueError for squares
    with gaps between them.
    """
    labels, (height, width) = _labels(target, len(images)), images.shape[2:]
    fifth = max(1, min(height, width) // 5)
    if stride is None and fifth > 3:
        fifth -= fifth % 3  # three strides, so that each place is hidden as often
    square = fifth if square is None else integer(square, "square", 1)
    stride = max(1, square // 3) if stride is None else integer(stride, "stride", 1)
    if stride > square:
        raise ValueError(f"stride must be at most the square's {square} pixels, got {stride}")
    rows, columns = _windows(height, square, stride), _windows(width, square, stride)
    places = [(y, x) for y in rows for x in columns]
    grey = np.broadcast_to(np.asarray(fill, images.dtype), images.shape[1:])
    lost = np.zeros((len(images), height, width), np.float32)
    times = np.zeros((height, width), np.float32)
    for y, x in places:
        times[y, x] += 1

    progress = progress or Progress(silent=True)
    progress.start("hiding parts of the image", len(images) * len(places))
    with _undisturbed(model) as device, no_grad():

        def probability(views: np.ndarray, label: np.ndarray) -> np.ndarray:
            shares = F.softmax(model(Tensor(views).to(device)), dim=1)
            return host_copy(_of_class(shares, label).data)

        try:
            for n, label in enumerate(labels):
                whole = probability(images[n : n + 1], label)
                for start in range(0, len(places), BATCH):
                    some = places[start : start + BATCH]
                    views = np.repeat(images[n : n + 1], len(some), axis=0)
                    for view, (y, x) in zip(views, some, strict=True):
                        view[:, y, x] = grey[:, y, x]
                    for (y, x), part in zip(some, whole - probability(views, label), strict=True):
                        lost[n, y, x] += part
                    progress.update(n * len(places) + start + len(some), "")
        finally:
            progress.stop()
    return lost / times


def input_gradient(
    model: nn.Module, images: np.ndarray, target: int | np.ndarray, samples: int = SAMPLES
) -> np.ndarray:
    """Return the magnitude of the gradient of the class's score per pixel.

    map[y, x] = max over the channels c of |d score / d image[c, y, x]|; the score is the logit.
    Simonyan, Vedaldi and Zisserman (2013), section 3.1: that is `samples=1`. With more, the
    gradient is the mean of so many copies' with noise of half the image's standard deviation:
    SmoothGrad, Smilkov et al. (2017). One gradient does not point at the evidence, the mean does.
    """
    labels, rng = _labels(target, len(images)), np.random.default_rng(0)
    deviation = images.std(axis=(1, 2, 3), keepdims=True) / 2
    total = np.zeros_like(images)
    with _undisturbed(model) as device:
        for _ in range(integer(samples, "samples", 1)):
            noise = rng.standard_normal(images.shape[1:], np.float32) * deviation
            copies = images + noise if samples > 1 else images
            x = Tensor(copies).to(device).requires_grad_()
            _of_class(model(x), labels).sum().backward()
            total += host_copy(x.grad)
    return np.abs(total / samples).max(axis=1)


def grad_cam(
    model: nn.Module,
    images: np.ndarray,
    target: int | np.ndarray,
    layer: nn.Module | None = None,
) -> np.ndarray:
    """Return a layer's maps, weighed by the class's mean gradients.

    map = relu(sum over k of weight[k] A[k]), A [K, h, w] being the outputs of `layer` (the ReLU of
    the last convolution) and weight[k] the mean of d score / d A[k] over the places; enlarged to
    the image, bilinearly. Selvaraju et al. (2017), section 3.
    """
    labels, leaves = _labels(target, len(images)), list[Tensor]()

    def begin_here(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.ndim != 4:
            raise ValueError(f"layer must have outputs [N, K, h, w], got {list(output.shape)}")
        leaves.append(output.detach().requires_grad_())  # backward ends at leaves
        return leaves[-1]

    layer = last_maps(model) if layer is None else layer
    if all(layer is not module for module in model.modules()):
        raise ValueError(f"layer must be one of the network's, got another {type(layer).__name__}")
    with _undisturbed(model) as device, layer.register_forward_hook(begin_here):
        _of_class(model(Tensor(images).to(device)), labels).sum().backward()
    maps, grads = (host_copy(array) for array in (leaves[-1].data, leaves[-1].grad))
    weights = grads.mean(axis=(2, 3), keepdims=True)
    return enlarged(np.maximum((weights * maps).sum(axis=1), 0), images.shape[2:])


def last_maps(model: nn.Module) -> nn.Module:
    """Return the ReLU behind the last convolution, else the convolution.

    Raises ValueError for a network without convolutions.
    """
    layers = list(model.modules())
    last = max((i for i, m in enumerate(layers) if isinstance(m, nn.Conv2d)), default=None)
    if last is None:
        raise ValueError("Grad-CAM expects a network with a Conv2d, got one without")
    behind = takewhile(lambda layer: not isinstance(layer, nn.Linear), layers[last:])
    return next((layer for layer in behind if isinstance(layer, nn.ReLU)), layers[last])


def enlarged(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return maps [N, h, w] enlarged to [N, *size], bilinearly as torch does (interpolate)."""
    rows, columns = map(_blend, maps.shape[1:], size)
    return rows @ maps @ columns.T


def _blend(cells: int, length: int) -> np.ndarray:
    """Return each cell's share in each pixel of a line, [length, cells]."""
    centres = np.clip((np.arange(length) + 0.5) * cells / length - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(cells))).astype(np.float32)


def _windows(length: int, size: int, stride: int) -> list[slice]:
    """Return slices of `size` pixels that cover a line."""
    end = length - min(size // 2, size - stride)  # the last slice reaches the end of the line
    starts = range((length - 1) % stride // 2 - size // 2, end, stride)
    return [slice(max(0, start), start + size) for start in starts]


def _labels(target: Any, count: int) -> np.ndarray:
    """Return each image's class [N]; TypeError for what are no numbers."""
    labels = np.asarray(target)
    if labels.dtype.kind not in "iu" or labels.shape not in ((), (count,)):
        raise TypeError(f"target must be the number of a class, or {count} of them, got {target!r}")
    return np.broadcast_to(labels, count)


def _of_class(outputs: Tensor, labels: np.ndarray) -> Tensor:
    """Return each image's output [N] for its class; ValueError for unknown ones."""
    count, classes = outputs.shape
    if not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(f"target must be in 0..{classes - 1}, got {labels.tolist()}")
    return outputs[range(count), labels.tolist()]  # lists are put where the outputs are


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[str]:
    """Evaluate with frozen parameters, then restore both; yield the model's device."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield wanted[0][0].device if wanted else "cpu"
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad = requires_grad
