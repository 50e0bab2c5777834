"""Kernels that compute each shard of a batch by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any

from tinyalex.backends import array_module
from tinyalex.backends.geometry import ConvOptions, NormOptions, PoolOptions
from tinyalex.backends.numerics import by_rows
from tinyalex.backends.shards import Part, in_use, tree_sum
from tinyalex.backends.types import Array, Shape


def sharded(part: Part | None) -> AbstractContextManager[None]:
    """Let this thread's kernels compute shards in a ``with`` block."""
    if part is None:
        return in_use(None, None)
    return in_use(part, lambda kernels: ShardedKernels(kernels, part))


def joined(outputs: Sequence[Array]) -> Array:
    """Return the outputs of shards one behind the other, laid out alike."""
    if len(outputs) == 1:
        return outputs[0]
    first = outputs[0]
    shape = (sum(map(len, outputs)), *first.shape[1:])
    whole = array_module(first).empty_like(first, shape=shape)
    end = 0
    for output in outputs:
        whole[end : end + len(output)] = output
        end += len(output)
    return whole


OUTPUTS = dict.fromkeys(("linear", "linear_relu", "linear_input_grad", "conv2d", "conv2d_relu"), 1)
"""Kernels with an output per image, and how many of their first arguments have one."""
SUMS = {"linear_weight_grad": 2, "conv2d_weight_grad": 2, "conv2d_bias_grad": 1}
"""Kernels with a sum over images, and how many of their first arguments have a row per image."""


class ShardedKernels:
    """Kernels of a backend, each shard of a batch by itself.

    Those in which images do not meet, neither in sums nor in the choice of an algorithm, are the
    backend's own. A backend may compute several shards at once where that gives the same bits: by
    functions in its ``SHARD_KERNELS`` that take the `Part` before the kernel's own arguments, and
    return None where it does not.
    """

    def __init__(self, kernels: ModuleType, part: Part) -> None:
        self._kernels, self._part = kernels, part
        self._own: dict[str, Callable[..., Any]] = getattr(kernels, "SHARD_KERNELS", {})

    def __getattr__(self, name: str) -> Any:
        one_by_one = self._one_by_one(name)
        if name in self._own:
            return partial(self._together, self._own[name], one_by_one)
        return one_by_one

    def _together(
        self, own: Callable[..., Any], one_by_one: Callable[..., Any], images: Array, *rest: Any
    ) -> Any:
        found = own(self._part.of(len(images)), images, *rest) if len(images) else None
        return one_by_one(images, *rest) if found is None else found

    def _one_by_one(self, name: str) -> Any:
        kernel = getattr(self._kernels, name)
        if name in OUTPUTS:
            return partial(self._outputs, kernel, OUTPUTS[name])
        if name in SUMS:
            if name == "linear_weight_grad":
                kernel = partial(by_rows, kernel)
            return partial(self._sum, kernel, SUMS[name])
        return getattr(self, f"_{name}", kernel)

    def _outputs(self, kernel: Callable[..., Array], count: int, *arguments: Any) -> Array:
        images, rest = arguments[:count], arguments[count:]
        slices = self._part.of(len(images[0])).slices()
        return joined([kernel(*(x[rows] for x in images), *rest) for rows in slices])

    def _sum(self, kernel: Callable[..., Array], count: int, *arguments: Any) -> Array:
        images, rest = arguments[:count], arguments[count:]
        slices = self._part.of(len(images[0])).slices()
        return tree_sum(lambda i: kernel(*(x[slices[i]] for x in images), *rest), 0, len(slices))

    def _operands(self, x: Array, weight: Array) -> tuple[Array, Array]:
        return self._kernels.operands(x, weight, max(self._part.sizes))

    def _dropout(self, x: Array, p: float, key: int) -> Array:
        first = self._part.of(len(x)).rows.start * math.prod(x.shape[1:])
        return self._kernels.dropout(x, p, key, first)

    def _conv2d_input_grad(
        self, grad: Array, weight: Array, input_shape: Shape, options: ConvOptions
    ) -> Array:
        kernel = self._kernels.conv2d_input_grad
        return joined(
            [
                kernel(grad[rows], weight, _shape_of(rows, input_shape), options)
                for rows in self._part.of(len(grad)).slices()
            ]
        )

    def _conv2d_relu_grads(
        self,
        grad: Array,
        y: Array,
        x: Array | None,
        weight: Array | None,
        needs: tuple[bool, ...],
        shapes: tuple[Shape, Shape],
        options: ConvOptions,
    ) -> tuple[Array | None, ...]:
        found = [
            self._kernels.conv2d_relu_grads(
                grad[rows],
                y[rows],
                None if x is None else x[rows],
                weight,
                needs,
                (_shape_of(rows, shapes[0]), shapes[1]),
                options,
            )
            for rows in self._part.of(len(grad)).slices()
        ]
        dx, dweight, dbias = zip(*found, strict=True)
        need_x, need_weight, need_bias = needs
        return (
            joined(dx) if need_x else None,
            added(dweight) if need_weight else None,
            added(dbias) if need_bias else None,
        )

    def _norm_max_pool2d_relu_bias_grad(
        self, grad: Array, taps: Array, y: Array, norm: NormOptions, window: PoolOptions
    ) -> tuple[Array, Array]:
        found = [
            self._kernels.norm_max_pool2d_relu_bias_grad(
                grad[rows], taps[rows], y[rows], norm, window
            )
            for rows in self._part.of(len(grad)).slices()
        ]
        dy, dbias = zip(*found, strict=True)
        return joined(dy), added(dbias)


def added(terms: Sequence[Array]) -> Array:
    """Return the sum of terms, into which it writes."""
    return tree_sum(lambda i: terms[i], 0, len(terms))


def _shape_of(rows: slice, shape: Shape) -> Shape:
    return (rows.stop - rows.start, *shape[1:])
