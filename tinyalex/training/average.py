"""Running average of the weights, to be validated and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tinyalex.backends import array_module
from tinyalex.backends.devices import move, using
from tinyalex.backends.types import Array
from tinyalex.nn import Module

EVERY = 8
"""Steps from one update to the next: each goes through as much memory as a step of SGD."""


class WeightAverage:
    """Average of a model's weights w over the last steps.

    They are about the last `share` of all so far: ``a <- a + (w - a) min(1, EVERY / (share step))``
    after every `EVERY` steps, and after each of the first. That is polynomial-decay averaging
    (Shamir, Zhang: Stochastic gradient descent for non-smooth optimization, ICML 2013), an
    exponential moving average whose memory grows: it forgets the beginning, and a longer run needs
    no other number.
    """

    def __init__(self, model: Module, share: float) -> None:
        self._model, self._share = model, share
        self.arrays: dict[str, Array] = {}
        """Averages by the names of the parameters."""
        self.load({name: p.data for name, p in model.named_parameters()})

    def after_step(self, step: int) -> None:
        """Take the weights after update number `step`, counted from 1, into the average."""
        if step % EVERY and step > EVERY:
            return
        gain = min(1.0, EVERY / (self._share * step))
        for name, parameter in self._model.named_parameters():
            average = self.arrays[name]
            with using(parameter.device):
                change = parameter.data - average
                change *= average.dtype.type(gain)
                average += change

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model have the averages as its weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.data, self.arrays[name] = self.arrays[name], parameter.data

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Begin again from copies of these averages."""
        for name, parameter in self._model.named_parameters():
            with using(parameter.device):
                copy = array_module(parameter.data).empty_like(parameter.data)
                copy[...] = move(arrays[name], parameter.device)
            self.arrays[name] = copy
