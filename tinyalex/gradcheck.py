"""Check backward() against central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyalex.backends.devices import device_of, move, using
from tinyalex.backends.types import Array
from tinyalex.grad_mode import no_grad
from tinyalex.tensor import Tensor


class GradcheckError(AssertionError):
    """A wrong gradient; the message names input, element and both numbers."""


def gradcheck(
    fn: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Tensor | Sequence[Tensor],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Compare backward() with central differences, for every element of every input.

    For the scalar ``L = sum(w * fn(inputs))`` with random weights w, each element x of each input
    that requires a gradient must satisfy ``|dL/dx - (L(x + eps) - L(x - eps)) / (2 eps)| <= atol +
    rtol * |difference quotient|``. (With w = 1 a permuted gradient could pass.) The defaults
    of eps, atol and rtol are those of `torch.autograd.gradcheck`.

    Inputs must be float64, and ``fn`` smooth around them and a function of them alone: a dropout in
    it needs a `manual_seed` inside. Returns True. Raises GradcheckError, an AssertionError, for a
    wrong gradient or a ``fn`` that gives two results for one input; TypeError and ValueError for
    inputs that cannot be checked.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    if not checked:
        raise ValueError("gradcheck needs at least one input with requires_grad=True")
    for i in checked:
        if inputs[i].dtype != np.float64:
            raise TypeError(
                f"gradcheck needs float64 for steps of {eps:g}, input {i} is {inputs[i].dtype}"
            )

    rng = np.random.default_rng(0)
    outputs = _outputs(fn, inputs)
    weights = [rng.standard_normal(y.shape) for y in outputs]
    with no_grad():
        again = _outputs(fn, inputs)
    if any(
        not np.array_equal(move(a.data, "cpu"), move(b.data, "cpu"), equal_nan=True)
        for a, b in zip(outputs, again, strict=True)
    ):
        raise GradcheckError("fn is not deterministic: two calls with the same inputs differ")

    analytic = _gradients(outputs, weights, [inputs[i] for i in checked])

    def weighted_sum() -> float:
        with no_grad():
            ys = _outputs(fn, inputs)
            return sum(
                float((w * move(y.data, "cpu")).sum()) for w, y in zip(weights, ys, strict=True)
            )

    for i, gradient in zip(checked, analytic, strict=True):
        data = inputs[i].data
        for element in np.ndindex(data.shape):
            numeric = _difference_quotient(weighted_sum, data, element, eps)
            got = float(gradient[element])
            if not abs(got - numeric) <= atol + rtol * abs(numeric):  # so that NaN fails
                raise GradcheckError(
                    f"gradient of input {i} at element {element} is wrong: backward() gives "
                    f"{got:.9g}, finite differences give {numeric:.9g} (difference "
                    f"{abs(got - numeric):.3g}, allowed {atol + rtol * abs(numeric):.3g})"
                )
    return True


def _outputs(fn: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    result = fn(*inputs)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _gradients(outputs: list[Tensor], weights: list[Array], leaves: list[Tensor]) -> list[Array]:
    """Return d(sum of weights * outputs)/d(leaf); the leaves' .grad stays."""
    before = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        used = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
        for y, w in used:
            y.backward(move(w, y.device), retain_graph=True)
        return [np.zeros(t.shape) if t.grad is None else move(t.grad, "cpu") for t in leaves]
    finally:
        for leaf, grad in zip(leaves, before, strict=True):
            leaf.grad = grad


def _difference_quotient(
    f: Callable[[], float], data: Array, element: tuple[int, ...], eps: float
) -> float:
    with using(device_of(data)):
        original = data[element].item()  # a number: what CuPy's indexing returns would change too
        try:
            data[element] = original + eps
            above = f()
            data[element] = original - eps
            below = f()
        finally:
            data[element] = original
    return (above - below) / (2 * eps)
