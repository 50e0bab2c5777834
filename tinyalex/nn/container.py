"""Sequential: layers that run one after another."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, overload

from tinyalex.nn import fusion
from tinyalex.nn.module import Module
from tinyalex.tensor import Tensor


class Sequential(Module):
    """Feed each layer's output to the next: ``Sequential(conv, relu, pool)``.

    Children are called "0", "1", ...; an OrderedDict as the only argument gives them names of your
    own. ``len``, iteration, indexing and slicing (which shares the layers) work as on a list.
    """

    def __init__(self, *layers: Module | OrderedDict[str, Module]) -> None:
        if len(layers) == 1 and isinstance(layers[0], OrderedDict):
            named = list(layers[0].items())
        else:
            named = [(str(i), layer) for i, layer in enumerate(layers)]  # type: ignore[misc]
        for name, layer in named:
            self.add_module(name, layer)

    def append(self, layer: Module) -> Sequential:
        """Add ``layer`` at the end and return this module."""
        # A slice keeps the names of its layers, so the number of layers may be taken.
        free = next(n for n in map(str, itertools.count(len(self))) if not hasattr(self, n))
        self.add_module(free, layer)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Any:
        named = list(self.named_children())
        if isinstance(index, slice):
            return Sequential(OrderedDict(named[index]))
        return named[index][1]

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers in order, some of them fused (`tinyalex.nn.fusion`)."""
        return fusion.run(tuple(iter(self)), x)  # tuple(self) would count them first
