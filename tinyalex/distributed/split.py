"""Parts of a network on ranks: towers, or shares of linear layers.

**hybrid** (Krizhevsky: One weird trick for parallelizing convolutional neural networks, 2014,
arXiv 1404.5997). Each rank has all convolutions for its rows of a batch. Before the first linear
layer the features of all rows are gathered on every rank; each linear layer computes this rank's
share of its outputs for the whole batch, and these are gathered before the next.

**towers** (the two GPUs of 2012: layers-imagenet-2gpu-model.cfg of cuda-convnet2). Of two ranks
that have the same rows, each has one group of the convolutions with two groups, and half the
outputs of all other layers but the last, which is the first tower's. Inputs are gathered where both
towers are read: by convolutions without groups, and by linear layers.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

from tinyalex import nn
from tinyalex.distributed.communicator import Communicator
from tinyalex.distributed.exchange import Gather, Gathering
from tinyalex.models import AlexNet
from tinyalex.nn.module import Parameter
from tinyalex.tensor import Tensor

Layers = OrderedDict[str, nn.Module]


class _Some(nn.Module):
    """Some elements of the inputs: ``choose(x)``."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        self._choose = choose

    def forward(self, x: Tensor) -> Tensor:
        """Return these."""
        return self._choose(x)


class Split:
    """Part of a network that this rank has.

    Its arrays are views of those of the whole.
    `model` takes this rank's rows of a batch and returns their logits; of two towers, the first
    returns those of both, the second none.
    """

    def __init__(self, whole: AlexNet, parallel: str, link: Communicator) -> None:
        self._towers, self._link = parallel == "towers", link
        self.images = [0] * link.size
        """Images of each rank in the batch under way."""
        self._count = 2 if self._towers else link.size
        self.place = link.rank % self._count
        """Number among the ranks that have the whole network together."""
        self.first = link.rank - self.place
        """First of these."""
        self._names = {id(layer): name for name, layer in whole.weight_layers.items()}
        self.rows: dict[str, tuple[Parameter, slice]] = {
            name: (parameter, slice(None)) for name, parameter in whole.named_parameters()
        }
        """This rank's part of each parameter, and which rows it is."""
        self.divided: list[str] = []
        """Parameters of which other ranks have other rows."""
        learning = (p.requires_grad for p in whole.features.parameters())
        self._learns = not self._towers and any(learning)  # something, in the layers so far
        self.model = copy.copy(whole)
        if self._towers:
            self.model.features = self._features(whole.features)
        self.model.classifier = self._classifier(whole.classifier)
        replicated = [name for name in self.rows if name not in self.divided]
        self.summed = list(self.rows) if self._towers and link.size > 2 else replicated
        """Parameters that other ranks have as well."""

    def _features(self, whole: nn.Sequential) -> nn.Sequential:
        layers, sizes = Layers(), list[int]()
        for name, layer in whole.named_children():
            if isinstance(layer, nn.Conv2d):
                if sizes and layer.groups == 1:
                    label = f"the inputs of {self._names[id(layer)]}"
                    layers[f"{name}_inputs"] = self._gather(label, 1, sizes)
                sizes = self._shares(layer.out_channels)
                layer = self._part(f"features.{name}", layer, sizes)
            elif isinstance(layer, nn.LocalResponseNorm):
                layer = copy.copy(layer)
                layer.groups //= 2
            layers[name] = layer
        layers["whole"] = self._gather("the features", 1, sizes)
        return nn.Sequential(layers)

    def _classifier(self, whole: nn.Sequential) -> nn.Sequential:
        layers = Layers()
        if not self._towers:
            layers["whole"] = self._gather("the features", 0, self.images)
        *_, before, last = (layer for layer in whole if isinstance(layer, nn.Linear))
        for name, layer in whole.named_children():
            if not isinstance(layer, nn.Linear):
                layers[name] = layer
                continue
            alone = self._towers and layer is last
            sizes = [layer.out_features, 0] if alone else self._shares(layer.out_features)
            layers[name] = self._part(f"classifier.{name}", layer, sizes)
            if alone and self.place:  # logits of no images
                layers[name] = _Some(lambda x: x.reshape(0, last.out_features))
            elif not alone:
                takers = 1 if self._towers and layer is before else self._count
                label = f"the outputs of {self._names[id(layer)]}"
                layers[f"{name}_whole"] = self._gather(label, 1, sizes, takers)
        if not self._towers:
            layers["own"] = _Some(self._own)
        return nn.Sequential(layers)

    def _own(self, logits: Tensor) -> Tensor:
        first = sum(self.images[: self._link.rank])
        return logits[first : first + self.images[self._link.rank]]

    def _shares(self, outputs: int) -> list[int]:
        ends = [outputs * place // self._count for place in range(self._count + 1)]
        return [end - begin for begin, end in pairwise(ends)]

    def _gather(self, label: str, axis: int, sizes: list[int], takers: int | None = None) -> Gather:
        """Return a layer that gathers, on the first ranks or all."""
        taking = range(self.first, self.first + (takers or self._count))
        if self._count < self._link.size:  # others gather among themselves
            after = self._link.size - self.first - self._count
            sizes = [0] * self.first + sizes + [0] * after
        gathering = Gathering(self._link, label, axis, sizes, frozenset(taking))
        return Gather(gathering, self._learns)

    def _part(self, name: str, layer: nn.Conv2d | nn.Linear, sizes: list[int]) -> nn.Module:
        """Return this rank's share of a layer's outputs."""
        begin = sum(sizes[: self.place])
        rows = slice(begin, begin + sizes[self.place])
        part = copy.copy(layer)
        for kind in ("weight", "bias"):
            of_all = getattr(layer, kind)
            if of_all is not None:
                self._learns |= of_all.requires_grad
                own = Parameter(of_all.data[rows], of_all.requires_grad)
                setattr(part, kind, own)
                self.rows[f"{name}.{kind}"] = own, rows
                self.divided.append(f"{name}.{kind}")
        if rows.start == rows.stop:
            return _Some(lambda x: x[:, :0])
        if isinstance(part, nn.Conv2d):
            part.in_channels, part.out_channels, part.groups = part.weight.shape[1], len(own), 1
        else:
            part.out_features = len(own)
        return part
