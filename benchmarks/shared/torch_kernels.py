"""Single operations of PyTorch, forward and backward, in both memory layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Call = Callable[[], Any]
LAYOUTS = {"torch": torch.contiguous_format, "torch channels_last": torch.channels_last}


def calls(
    function: Callable[..., torch.Tensor],
    inputs: tuple[np.ndarray, ...],
    grad: np.ndarray | None = None,
    of: int = 0,
) -> dict[str, Call]:
    """Return calls that calculate ``function(*inputs)``, or its gradient for input number ``of``.

    ``grad`` is the gradient of the output. Without images among the inputs there is one layout.
    """
    images = any(array.ndim == 4 for array in inputs)
    return {
        name: _call(function, [_tensor(array, layout) for array in inputs], grad, layout, of)
        for name, layout in LAYOUTS.items()
        if images or layout == torch.contiguous_format
    }


def _call(
    function: Callable[..., torch.Tensor],
    tensors: list[torch.Tensor],
    grad: np.ndarray | None,
    layout: torch.memory_format,
    of: int,
) -> Call:
    if grad is None:

        def forward() -> np.ndarray:
            with torch.inference_mode():
                return function(*tensors).numpy()

        return forward
    tensors[of].requires_grad_()
    y = function(*tensors)
    grad_of_y = _tensor(grad, layout)

    def backward() -> np.ndarray:
        return torch.autograd.grad(y, tensors[of], grad_of_y, retain_graph=True)[0].numpy()

    return backward


def _tensor(array: np.ndarray, layout: torch.memory_format) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor


def sgd(weight: np.ndarray, grad: np.ndarray, lr: float, **options: Any) -> dict[str, Call]:
    """Return calls that update a copy of ``weight`` and return it."""
    return {
        "torch": _sgd(weight, grad, lr, **options),
        "torch fused": _sgd(weight, grad, lr, fused=True, **options),
    }


def _sgd(weight: np.ndarray, grad: np.ndarray, lr: float, **options: Any) -> Call:
    parameter = torch.nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.from_numpy(grad)
    optimizer = torch.optim.SGD([parameter], lr, **options)

    def step() -> np.ndarray:
        optimizer.step()
        return parameter.detach().numpy()

    return step
