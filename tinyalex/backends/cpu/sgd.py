"""Stochastic gradient descent, in one pass over memory."""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends.cpu.runtime import parallel_kernel, plain
from tinyalex.backends.geometry import SGDOptions
from tinyalex.backends.types import Array


@parallel_kernel
def _plain_step(w, g, lr, decay):
    for i in prange(w.size):
        w[i] -= lr * (g[i] + decay * w[i])


@parallel_kernel
def _torch_step(w, g, v, lr, momentum, share, decay, nesterov):
    for i in prange(w.size):
        step = g[i] + decay * w[i]
        v[i] = momentum * v[i] + share * step
        w[i] -= lr * (step + momentum * v[i] if nesterov else v[i])


@parallel_kernel
def _paper_step(w, g, v, lr, momentum, decay):
    for i in prange(w.size):
        v[i] = momentum * v[i] - lr * (decay * w[i] + g[i])
        w[i] += v[i]


def sgd_step(param: Array, grad: Array, velocity: Array | None, options: SGDOptions) -> None:
    """Update ``param`` w and ``velocity`` v in place by the gradient g.

    form "torch":  ``g += decay w;  v = momentum v + (1 - dampening) g;  w -= lr v``, or with
    nesterov ``w -= lr (g + momentum v)``.
    form "paper" (section 5):  ``v = momentum v - decay lr w - lr g;  w += v``.
    """
    lr, momentum, dampening, weight_decay, nesterov, form = options
    real = param.dtype.type
    w, g = plain(param), plain(grad)  # contiguous parameters, the rule, are not copied
    if velocity is None:
        _plain_step(w.reshape(-1), g.reshape(-1), real(lr), real(weight_decay))
    else:
        v = plain(velocity)
        lines = (w.reshape(-1), g.reshape(-1), v.reshape(-1))
        if form == "paper":
            _paper_step(*lines, real(lr), real(momentum), real(weight_decay))
        else:
            factors = (real(momentum), real(1 - dampening), real(weight_decay))
            _torch_step(*lines, real(lr), *factors, nesterov)
        _write_back(v, velocity)
    _write_back(w, param)


def _write_back(values: Array, target: Array) -> None:
    if not np.shares_memory(values, target):
        target[...] = values
