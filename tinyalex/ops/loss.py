"""Cross-entropy, the objective of the paper (section 3.5: mean log-probability of the label)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.devices import device_of, same_device, using
from tinyalex.backends.types import Array
from tinyalex.ops.activation import stable_log_softmax
from tinyalex.ops.arguments import floating


class CrossEntropy(Function):
    """``loss_i = -sum_c w_c q_ic log(softmax(x_i))_c`` with target distribution q_i.

    For class indices t, q is one at t and zero elsewhere, and an index equal to ``ignore_index``
    contributes nothing. Label smoothing e mixes q with the uniform distribution:
    ``q <- (1 - e) q + e / C``. The mean divides by the sum of the targets' class weights for class
    indices, and by the number of targets for class probabilities, as in torch.

    With ``a_ic = w_c q_ic``, the gradient is ``dx_ic = softmax(x_i)_c sum(a_i) - a_ic``.

    The usual case, the mean or the sum over class indices without weights, is one kernel where the
    backend has it. On a GPU an index that is no class makes the loss NaN: to raise an error, the
    host would have to wait for it.
    """

    def forward(
        self,
        logits: Array,
        *,
        target: Array,
        weight: Array | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> Array:
        """Take logits [N, C, ...] or [C]; targets are indices [N, ...] or probabilities."""
        kernels = backends.of(logits)
        usual = target.dtype.kind != "f" and weight is None and reduction != "none"
        self.in_one_kernel = usual and hasattr(kernels, "cross_entropy")
        if self.in_one_kernel:
            mean = reduction == "mean"
            value, found = kernels.cross_entropy(
                logits, target, ignore_index, mean, label_smoothing
            )
            self.save(logits, found)
            return value

        xp = array_module(logits)
        axis = min(1, logits.ndim - 1)
        classes = logits.shape[axis]
        log_p = stable_log_softmax(logits, axis)
        per_class = xp.ones(classes, logits.dtype) if weight is None else weight
        per_class = per_class.reshape(-1, *[1] * (logits.ndim - axis - 1))

        if target.dtype.kind == "f":
            total_weight = target.size / classes
            q = target.astype(logits.dtype)
        else:
            # Signed: ignore_index is negative as a rule.
            target = target.astype(np.int64, copy=False)
            is_class = (target >= 0) & (target < classes)
            index = xp.where(is_class, target, 0)
            q = xp.zeros_like(log_p)
            xp.put_along_axis(q, xp.expand_dims(index, axis), 1, axis)
            counted = xp.where(is_class, 1, np.nan).astype(logits.dtype)
            counted = xp.where(target == ignore_index, 0, counted)
            total_weight = ((per_class * q).sum(axis) * counted).sum()
        a = per_class * ((1 - label_smoothing) * q + label_smoothing / classes)
        if target.dtype.kind != "f":
            a = a * xp.expand_dims(counted, axis)

        # Where the target has no mass, 0 * log(0) is meant to be 0.
        losses = -(a * xp.where(a != 0, log_p, 0)).sum(axis)
        self.axis, self.reduction = axis, reduction
        self.save(log_p, a, total_weight)
        if reduction == "none":
            return xp.asarray(losses)
        total = losses.sum(dtype=logits.dtype)
        if reduction == "sum":
            return xp.asarray(total)
        with np.errstate(invalid="ignore"):  # no targets at all: 0 / 0 is NaN, as in torch
            return xp.asarray(total / total_weight)

    def backward(self, grad: Array) -> Array:
        """Return softmax times the target's mass, minus the target, times the incoming gradient."""
        if self.in_one_kernel:
            return backends.of(grad).cross_entropy_input_grad(grad, *self.saved)
        log_p, a, total_weight = self.saved
        dx = array_module(log_p).exp(log_p) * a.sum(self.axis, keepdims=True) - a
        if self.reduction == "mean":
            # By 1 if no target counts: then all of dx is 0, and is to stay so, as in torch.
            grad = grad / (total_weight + (total_weight == 0))
        elif self.reduction == "none":
            grad = array_module(grad).expand_dims(grad, self.axis)
        return dx * grad


def read_options(
    logits: Array,
    target: Array,
    weight: Array | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> dict[str, Any]:
    """Check the arguments of cross-entropy and return them as options of `CrossEntropy`."""
    floating("cross_entropy", logits)
    same_device("cross_entropy", logits, target, weight)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    if logits.ndim == 0:
        raise ValueError("cross_entropy expects logits [N, C], [C] or [N, C, ...], got a number")
    axis = min(1, logits.ndim - 1)
    classes = logits.shape[axis]
    if classes == 0:
        raise ValueError(
            f"cross_entropy expects at least one class, got logits of shape {logits.shape}"
        )
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"weight must have shape ({classes},), one a class, got {weight.shape}")
    if target.dtype.kind == "f":
        if target.shape != logits.shape:
            raise ValueError(
                f"class probabilities must have the logits' shape {logits.shape}, "
                f"got {target.shape} (class indices must be integers)"
            )
    elif target.dtype.kind not in "iu":
        raise TypeError(f"targets must be integers or floating point, got {target.dtype}")
    else:
        expected = logits.shape[:axis] + logits.shape[axis + 1 :]
        if target.shape != expected:
            raise ValueError(
                f"for logits of shape {logits.shape} the class indices must have shape {expected}, "
                f"got {target.shape}"
            )
        if device_of(target) == "cpu":  # looking at what lies on a GPU would wait for it
            wrong = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
            if wrong.size:
                raise ValueError(f"class indices must be in [0, {classes}), got {wrong.flat[0]}")
    if weight is not None:
        with using(device_of(weight)):
            weight = weight.astype(logits.dtype)
    return {
        "target": target,
        "weight": weight,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
