"""Cross-entropy, the objective of the paper (section 3.5: mean log-probability of the label)."""

from __future__ import annotations

import numpy as np

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.devices import device_of, same_device
from tinyalex.backends.numerics import total
from tinyalex.backends.types import Array
from tinyalex.ops.activation import stable_log_softmax
from tinyalex.ops.arguments import floating


class CrossEntropy(Function):
    """``loss_i = -sum_c w_c q_ic log(softmax(x_i))_c`` with target distribution q_i.

    For class indices t, q is one at t and zero elsewhere, and an index equal to ``ignore_index``
    contributes nothing. Label smoothing e mixes q with the uniform distribution:
    ``q <- (1 - e) q + e / C``. The mean divides by the sum of the targets' class weights for class
    indices, and by the number of targets for class probabilities, as in torch.

    With ``a_ic = w_c q_ic``, the gradient is ``dx_ic = softmax(x_i)_c sum(a_i) - a_ic``; those of
    class probabilities p and, beside them, of the class weights are
    ``dp_ic = -(1 - e) w_c log(softmax(x_i))_c`` and ``dw_c = -sum_i q_ic log(softmax(x_i))_c``.

    The usual case, the mean or the sum over class indices without weights, is one kernel where the
    backend has it. On a GPU an index that is no class makes the loss NaN: to raise an error, the
    host would have to wait for it.
    """

    def forward(
        self,
        logits: Array,
        probabilities: Array | None,
        weight: Array | None,
        *,
        indices: Array | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> Array:
        """Take logits [N, C, ...] or [C], and probabilities or indices [N, ...]."""
        kernels = backends.of(logits)
        usual = indices is not None and weight is None and reduction != "none"
        self.in_one_kernel = usual and hasattr(kernels, "cross_entropy")
        if self.in_one_kernel:
            mean = reduction == "mean"
            kept = array_module(logits).array(indices)  # the caller's to change, and read again
            value, found = kernels.cross_entropy(logits, kept, ignore_index, mean, label_smoothing)
            self.save(logits, found)
            return value

        xp = array_module(logits)
        axis = min(1, logits.ndim - 1)
        classes = logits.shape[axis]
        log_p = stable_log_softmax(logits, axis)
        per_class = xp.ones(classes, logits.dtype) if weight is None else weight
        per_class = per_class.reshape(-1, *[1] * (logits.ndim - axis - 1))

        q: Array
        if indices is None:
            q, total_weight = probabilities, logits.size / classes
        else:
            # Signed: ignore_index is negative as a rule.
            indices = indices.astype(np.int64, copy=False)
            is_class = (indices >= 0) & (indices < classes)
            q = xp.zeros_like(log_p)
            index = xp.where(is_class, indices, 0)
            xp.put_along_axis(q, xp.expand_dims(index, axis), 1, axis)
            counted = xp.where(is_class, 1, np.nan).astype(logits.dtype)
            counted = xp.where(indices == ignore_index, 0, counted)
            of_targets = total(per_class * q, (axis,)) * counted
            total_weight = total(of_targets, tuple(range(of_targets.ndim)))
        q = (1 - label_smoothing) * q + label_smoothing / classes
        a = per_class * q
        if indices is not None:
            a = a * xp.expand_dims(counted, axis)

        # Where the target has no mass, 0 * log(0) is meant to be 0.
        losses = xp.asarray(total(-a * xp.where(a != 0, log_p, 0), (axis,)))
        self.axis, self.reduction, self.label_smoothing = axis, reduction, label_smoothing
        _, need_probabilities, need_weight = self.needs_input_grad
        self.save(
            log_p,
            a,
            total_weight,
            per_class if need_probabilities else None,
            q if need_weight else None,
        )
        if reduction == "none":
            return losses
        # Of no targets at all the mean is 0 / 0, NaN, as in torch.
        divisor = total_weight if reduction == "mean" else 1
        return xp.asarray(total(losses, tuple(range(losses.ndim)), divisor=divisor))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        """Return the gradients of logits, class probabilities and class weights."""
        if self.in_one_kernel:
            return backends.of(grad).cross_entropy_input_grad(grad, *self.saved), None, None
        log_p, a, total_weight, per_class, q = self.saved
        xp = array_module(log_p)
        if self.reduction == "mean":
            # By 1 if no target counts: then all of dx is 0, and is to stay so, as in torch.
            grad = grad / (total_weight + (total_weight == 0))
        elif self.reduction == "none":
            grad = xp.expand_dims(grad, self.axis)
        need_logits, need_probabilities, need_weight = self.needs_input_grad
        dx = dp = dw = None
        if need_logits:
            dx = (xp.exp(log_p) * total(a, (self.axis,), True) - a) * grad
        if need_probabilities:
            dp = (self.label_smoothing - 1) * per_class * log_p * grad
        if need_weight:
            others = tuple(i for i in range(log_p.ndim) if i != self.axis)
            dw = total(-q * xp.where(q != 0, log_p, 0) * grad, others)
        return dx, dp, dw


def check(
    logits: Array,
    target: Array,
    weight: Array | None,
    ignore_index: int,
    reduction: str,
) -> None:
    """Raise ValueError or TypeError unless the arguments of cross-entropy fit together."""
    floating("cross_entropy", logits)
    same_device("cross_entropy", logits, target, weight)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if logits.ndim == 0:
        raise ValueError("cross_entropy expects logits [N, C], [C] or [N, C, ...], got a number")
    axis = min(1, logits.ndim - 1)
    classes = logits.shape[axis]
    if classes == 0:
        raise ValueError(
            f"cross_entropy expects at least one class, got logits of shape {logits.shape}"
        )
    if weight is not None and weight.dtype.kind not in "fiu":
        raise TypeError(f"class weights must be numbers, got {weight.dtype}")
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"weight must have shape ({classes},), one per class, got {weight.shape}")
    if target.dtype.kind == "f":
        if target.shape != logits.shape:
            raise ValueError(
                f"class probabilities must have the logits' shape {logits.shape}, "
                f"got {target.shape} (class indices must be integers)"
            )
        if ignore_index >= 0:
            raise ValueError(
                f"ignore_index={ignore_index} is for class indices, and the target holds class "
                "probabilities; leave it out, or give the targets to ignore a mass of 0"
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
