"""Kernels of the ops, in several backends of equal signatures.

A kernel is a plain function on arrays: no Tensor, no autograd, no state. ``reference`` is the
specification (NumPy only, written to be studied); ``cpu`` computes the same with Numba and BLAS and
is the default; ``cuda`` launches the project's own CUDA kernels on CuPy's arrays. All modules hold
the functions named in `KERNELS`, with equal signatures.

The device of an array selects the backend. For NumPy's arrays ``TINYALEX_BACKEND=reference`` in the
environment, or `use_backend`, chooses between the two.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np

from tinyalex import threads
from tinyalex.backends import shards
from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.devices import device_of
from tinyalex.backends.types import Array
from tinyalex.choices import Choice

KERNELS = {
    "conv2d": "cross-correlation of NCHW images with OIHW weights, plus bias",
    "conv2d_input_grad": "its gradient with respect to the images",
    "conv2d_weight_grad": "its gradient with respect to the weights",
    "conv2d_bias_grad": "its gradient with respect to the bias",
    "max_pool2d": "maximum of each window, and which tap of the window it was",
    "max_pool2d_input_grad": "its gradient: each output's gradient goes back to the winning tap",
    "local_response_norm": "each value divided by a power of its neighbour channels' energy",
    "local_response_norm_input_grad": "its gradient, with the energy computed anew",
    "within_channel_response_norm": "each value divided by a power of its surroundings' energy",
    "within_channel_response_norm_input_grad": "its gradient, with the energy computed anew",
    "relu": "max(x, 0)",
    "relu_input_grad": "its gradient, from the output",
    "dropout": "zero with probability p, else scaled by 1 / (1 - p); its own gradient",
    "linear": "x @ weight.T + bias",
    "linear_input_grad": "its gradient with respect to x",
    "linear_weight_grad": "its gradient with respect to weight",
    "all_finite": "whether there is no NaN and no infinity",
    "sgd_step": "one update of a parameter and its velocity, in place",
}

# What a backend may have besides: several ops in one pass. Layers in a `Sequential` make use of it
# (`tinyalex.nn.fusion`); without it they run one by one, as in `reference`.
FUSED_KERNELS = {
    "conv2d_relu": "conv2d, then relu",
    "conv2d_relu_grads": "its three gradients",
    "linear_relu": "linear, then relu",
    "norm_max_pool2d": "local_response_norm, then max_pool2d without dilation",
    "norm_max_pool2d_input_grad": "its gradient",
    "norm_max_pool2d_relu_bias_grad": "its gradient, then relu's, and of that conv2d_bias_grad",
}

# What the GPU alone has, so that the host need neither wait nor launch one by one. Elsewhere ops
# and optimiser compute the same with NumPy, or with one call per parameter.
GPU_KERNELS = {
    "cross_entropy": "mean or sum of the losses over class indices",
    "cross_entropy_input_grad": "its gradient with respect to the logits",
    "sgd_steps": "sgd_step for all parameters in one launch",
    "all_finite_many": "all_finite for several arrays",
    "operands": "images and filters in the dtype in which a product's kernels read them",
    "prepare": "crop, mirror and normalise a batch of bytes",
}

CPU_BACKENDS = ("cpu", "reference")


def _checked(name: str, source: str) -> str:
    if name not in CPU_BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(CPU_BACKENDS)}; got {name!r}")
    return name


class use_backend(  # noqa: N801 (reads as a verb, in a `with` statement too)
    Choice, default=os.environ.get("TINYALEX_BACKEND") or "cpu"
):
    """Select the CPU kernels: ``"cpu"`` or ``"reference"``.

    For good, or for a ``with`` block.

    >>> import tinyalex as ta
    >>> with ta.use_backend("reference"):
    ...     pass  # everything in here runs on plain NumPy

    It holds for all threads. Blocks may be nested, overlap, and share one object: the last choice
    that is still open counts. Raises ValueError for an unknown name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(_checked(name, "the backend"))


_loaded: dict[str, ModuleType] = {}


def of(array: Array) -> Any:
    """Return the backend module for ``array``; TypeError if there is none.

    Within `sharded.sharded` its kernels compute each shard of a batch by itself.
    """
    on_cpu = device_of(array) == "cpu"
    name = use_backend.current if on_cpu else "cuda"
    # Loaded at first use: `import tinyalex` must wait for neither Numba nor CuPy.
    if name not in _loaded or (on_cpu and name == "cuda"):
        if on_cpu:
            _checked(name, "the environment variable TINYALEX_BACKEND")
            threads.start()
        _loaded[name] = importlib.import_module(f"tinyalex.backends.{name}")
    return shards.wrapped(_loaded[name])


def operands(x: Array, weight: Array, bias: Array | None) -> tuple[Array, Array, Array | None]:
    """Return the arguments of a product in the dtypes of its kernels."""
    kernels = of(x)
    if not hasattr(kernels, "operands"):
        return x, weight, bias
    return (*kernels.operands(x, weight), None if bias is None else as_float32(bias))


def array_module(array: Array) -> Any:
    """Return the array module of ``array``: NumPy or CuPy."""
    return np if device_of(array) == "cpu" else sys.modules["cupy"]


def current_backend() -> str:
    """Return the name of the backend that serves arrays on the CPU."""
    return _checked(use_backend.current, "the environment variable TINYALEX_BACKEND")
