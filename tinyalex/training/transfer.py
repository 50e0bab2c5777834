"""Transfer learning: a new head, frozen layers, a rate for each layer.

A frozen layer keeps its weights: they want no gradient, and belong to no group of the optimiser.
What stands below the last frozen layer, and after it up to the next layer with weights or Dropout,
runs as in an evaluation; so backward stops there, and for an image that always looks the same its
output (its features) need be computed only once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from tinyalex import nn, random
from tinyalex.backends.devices import move
from tinyalex.backends.types import Array
from tinyalex.data import Dataset, Loader
from tinyalex.grad_mode import no_grad
from tinyalex.interrupts import StopRequest
from tinyalex.models import AlexNet
from tinyalex.ops.arguments import integer
from tinyalex.optim import Group
from tinyalex.progress import Progress
from tinyalex.tensor import Tensor
from tinyalex.training.evaluation import computed, device_of_model


def replace_head(model: AlexNet, num_classes: int, seed: int | None = None) -> AlexNet:
    """Give a network a new last layer for ``num_classes``; return the network.

    It begins as the variant says, drawn from ``seed`` if given, else from the library's generator;
    all other layers stay. The optimiser is to be made afterwards.
    """
    num_classes = integer(num_classes, "num_classes", minimum=1)
    old, before = list(model.weight_layers.values())[-1], random.get_state()
    assert isinstance(old, nn.Linear)
    if seed is not None:
        random.manual_seed(seed)
    try:
        model.num_classes = num_classes
        head = model._build(model.variant.classifier[-1], old.in_features)
    finally:
        if seed is not None:
            random.set_state(before)
    name, _ = list(model.classifier.named_children())[-1]
    setattr(model.classifier, name, head.to(old.weight.dtype).to(old.weight.device))
    return model


def freeze(model: AlexNet, up_to: str = "conv5") -> AlexNet:
    """Freeze the layers from the first to ``up_to``, a name of ``weight_layers``.

    Returns the network. `set_training` in place of ``model.train()`` leaves dropout between frozen
    layers off. Raises ValueError for the last layer, without which nothing would learn.
    """
    names = list(model.weight_layers)
    if up_to not in names[:-1]:
        raise ValueError(
            f"freeze expects a layer from {names[0]} to {names[-2]}, for one at least must learn; "
            f"got {up_to!r}"
        )
    for name, layer in model.weight_layers.items():
        layer.requires_grad_(names.index(name) > names.index(up_to))
    return model


def frozen_layers(model: AlexNet) -> list[str]:
    """Return the names of the frozen layers, from the first on."""
    names: list[str] = []
    for name, layer in model.weight_layers.items():
        if any(parameter.requires_grad for parameter in layer.parameters()):
            break
        names.append(name)
    return names


def span(layers: Sequence[str]) -> str:
    """Return names of consecutive layers in words: "conv1 to conv5"."""
    return layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def digest(model: AlexNet, layers: Iterable[str] | None = None) -> str:
    """Return the SHA-256 of the weights of layers, by default all."""
    found = hashlib.sha256()
    for name in model.weight_layers if layers is None else layers:
        for part, parameter in model.weight_layers[name].named_parameters():
            found.update(f"{name}.{part} {parameter.shape}".encode())
            found.update(np.ascontiguousarray(move(parameter.data, "cpu")).tobytes())
    return found.hexdigest()


def layer_rates(
    model: AlexNet,
    head_factor: float = 10,
    decay: float = 1,
    bias_lr_factor: float = 1,
    bias_decay_factor: float = 1,
) -> list[Group]:
    """Return groups for `SGD`, with a rate for each layer.

    The last layer has ``head_factor`` times the rate, and each layer below it ``decay`` times that
    of the one above, where the one below the last has ``decay`` times the rate itself. Biases have
    factors of their own, as in `tinyalex.optim.parameter_groups`.
    """
    groups: list[Group] = []
    for depth, layer in enumerate(reversed(model.weight_layers.values())):
        factor = decay**depth if depth else head_factor
        own = dict(layer.named_parameters())
        options = {
            "weight": {"lr_factor": factor},
            "bias": {"lr_factor": factor * bias_lr_factor, "decay_factor": bias_decay_factor},
        }
        groups += [
            {"params": [own[name]], **options[name]} for name in own if own[name].requires_grad
        ]
    return groups


def set_training(model: AlexNet) -> AlexNet:
    """Set training mode, but evaluation mode on the frozen part."""
    model.train()
    for layer in _layers(model)[: _boundary(model)]:
        layer.eval()
    return model


class Part(AlexNet):
    """Some consecutive layers of an AlexNet, shared with it."""

    def __init__(self, model: AlexNet, begin: int, end: int | None = None) -> None:
        self.variant, self.num_classes = model.variant, model.num_classes
        self.dropout = model.dropout
        features = len(model.features)
        self.flattens = end is None or end >= features
        self.features = model.features[begin:end]
        last = None if end is None else max(0, end - features)
        self.classifier = model.classifier[max(0, begin - features) : last]
        own = set(map(id, self.modules()))
        layers = model.weight_layers.items()
        self._names = {name: layer for name, layer in layers if id(layer) in own}

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last of these layers."""
        x = self.features(x)
        return self.classifier(x.flatten(1)) if self.flattens else x

    @property
    def weight_layers(self) -> dict[str, nn.Conv2d | nn.Linear]:
        """These of the network's layers with weights, by their names there."""
        return self._names


def _layers(model: AlexNet) -> list[nn.Module]:
    return [*model.features, *model.classifier]


def _boundary(model: AlexNet) -> int:
    """Return the number of layers of the frozen part."""
    frozen, layers = frozen_layers(model), _layers(model)
    if not frozen:
        return 0
    ends = (nn.Conv2d, nn.Linear, nn.Dropout)
    last = layers.index(model.weight_layers[frozen[-1]])
    after = (place for place in range(last + 1, len(layers)) if isinstance(layers[place], ends))
    return next(after, len(layers))


class Features:
    """Data set of the frozen part's outputs for images.

    One is [1, 1, length], or [height, width, channels] where a convolution comes next.
    """

    def __init__(self, dataset: Dataset, outputs: np.ndarray) -> None:
        self.classes, self.labels, self.describe = dataset.classes, dataset.labels, dataset.describe
        self._outputs = outputs

    def __len__(self) -> int:
        return len(self._outputs)

    def load(self, index: int) -> np.ndarray:
        """Return the output for image `index`."""
        return self._outputs[index]


class _Copy:
    """Transform that changes nothing."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        out = np.empty_like(image) if out is None else out
        out[...] = image
        return out


class Split(NamedTuple):
    """Frozen part of a network as a function, and the rest."""

    below: Callable[[Array], np.ndarray]
    """Function that returns the features [N, height, width, channels] of images."""
    shape: tuple[int, ...]
    rest: Part


def split_frozen(model: AlexNet, images: Loader, most_bytes: int) -> Split | None:
    """Split a network above its frozen part, if features can be kept."""
    boundary, transform = _boundary(model), images.transform
    if not boundary or getattr(transform, "random", True) or device_of_model(model) != "cpu":
        return None
    below = Part(model, 0, boundary).eval()

    def compute(pixels: Array) -> np.ndarray:
        with no_grad():
            found = below(Tensor(pixels)).numpy()
        return found[:, None, None] if found.ndim == 2 else np.moveaxis(found, 1, -1)

    of_one = compute(np.zeros((1, *transform.shape), np.float32).transpose(0, 3, 1, 2))
    if of_one.nbytes * len(images.dataset) > most_bytes:
        return None
    return Split(compute, of_one.shape[1:], Part(model, boundary))


def keep_features(
    model: AlexNet,
    images: Loader,
    most_bytes: int,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> tuple[AlexNet, Loader] | None:
    """Compute the frozen part's outputs; return what is left to run.

    That is the rest of the network, and batches of the features of the images in the batches of
    `images`. They are computed in the order of the data set, so they have the same bits each time;
    in batches of other images, as in training without this, the last bits may be others. Returns
    None where nothing is frozen, an image does not always look the same, the network is on a GPU,
    the features take more than `most_bytes` or are not finite (a step on the images tells why), or
    a stop was requested on the way.
    """
    split = split_frozen(model, images, most_bytes)
    if split is None:
        return None
    compute, shape, rest = split
    size = images.batch_size
    outputs = np.zeros((len(images.dataset), *shape), np.float32)
    options: dict[str, Any] = {"workers": images.workers, "processes": images.processes}
    once = Loader(images.dataset, size, images.transform, shuffle=False, **options)
    title = f"computing the features of {span(frozen_layers(model))}"
    with closing(once):
        for batch, found in computed(compute, once, progress, title):
            outputs[batch.indices] = found
            if stop or not np.isfinite(found).all():
                return None
    bad = once.bad_from(np.arange(len(images.dataset)))
    kept = Loader(
        Features(images.dataset, outputs),
        size,
        _Copy(shape),
        images.seed,
        images.shuffle,
        images.drop_last,
        workers=1,
    )
    for loader in (images, kept):
        loader.leave_out(bad)
    return rest, kept
