"""Initial weights: fill a parameter in place, drawing from the library's generator.

Names, arguments and formulas are those of torch.nn.init. ``fan_in`` is the number of inputs that
one output sees, ``fan_out`` the number of outputs that see one input; for a weight [O, I, R, S]
they are I*R*S and O*R*S (for a grouped convolution I is already the channels of one group).
"""

from __future__ import annotations

import math

import numpy as np

from tinyalex import random
from tinyalex.backends.devices import move
from tinyalex.backends.numerics import quiet
from tinyalex.backends.types import Array
from tinyalex.grad_mode import no_grad
from tinyalex.ops.arguments import floating, number
from tinyalex.tensor import Tensor


@quiet
def normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Fill with draws from N(mean, std**2); ``std`` must be finite and >= 0."""
    if not (math.isfinite(mean) and math.isfinite(std) and std >= 0):
        raise ValueError(f"normal_ needs a finite mean and a std >= 0, got mean {mean}, std {std}")
    array = _array(tensor)
    values = (generator or random.generator()).standard_normal(array.shape, array.dtype)
    values *= std
    values += mean
    return _fill(tensor, values)


@quiet
def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: np.random.Generator | None = None
) -> Tensor:
    """Fill with draws from the uniform distribution on [a, b).

    No rounding leads out of it; where it holds no number of the tensor's dtype, all become the
    first one above. Raises ValueError unless a <= b and both are finite in that dtype.
    """
    array = _array(tensor)
    kind = array.dtype.type
    bounds = kind(a), kind(b)
    if not (all(map(math.isfinite, bounds)) and a <= b):
        raise ValueError(f"uniform_ needs finite bounds with a <= b, got a {a}, b {b}")
    values = (generator or random.generator()).random(array.shape, array.dtype)
    width = kind(b - a)
    if math.isfinite(width):
        values *= b - a
        values += a
    else:
        values = values * b + (1 - values) * a
    # The first numbers of this dtype that are not below a and b, which it need not have.
    low, end = (
        at if float(at) >= bound else np.nextafter(at, kind(math.inf))
        for at, bound in zip(bounds, (a, b), strict=True)
    )
    last = max(low, np.nextafter(end, kind(-math.inf)))
    return _fill(tensor, values.clip(low, last, out=values))


@quiet
def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with ``val``."""
    _array(tensor)
    with no_grad():
        tensor[...] = number(val, "val")
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: np.random.Generator | None = None
) -> Tensor:
    """Fill uniformly on ±gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    bound = gain * math.sqrt(6.0 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(
    tensor: Tensor, gain: float = 1.0, generator: np.random.Generator | None = None
) -> Tensor:
    """Fill from N(0, gain**2 * 2 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans(tensor))), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Fill uniformly on ``±sqrt(3) * gain / sqrt(fan)`` (He et al., 2015); ``a``: leaky slope."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Fill from ``N(0, gain**2 / fan)`` (He et al., 2015); ``a``: leaky slope."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor by which ``nonlinearity`` shrinks a signal, inverted.

    linear, conv2d, sigmoid 1; tanh 5/3; relu sqrt 2; leaky_relu sqrt(2 / (1 + slope**2)) with slope
    ``param`` (0.01 unless given). Raises ValueError for any other name.
    """
    slope = 0.01 if param is None else param
    gains = {
        "linear": 1.0,
        "conv2d": 1.0,
        "sigmoid": 1.0,
        "tanh": 5.0 / 3,
        "relu": math.sqrt(2.0),
        "leaky_relu": math.sqrt(2.0 / (1 + slope**2)),
    }
    if nonlinearity not in gains:
        raise ValueError(f"nonlinearity must be one of {', '.join(gains)}; got {nonlinearity!r}")
    return gains[nonlinearity]


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    fan_in, fan_out = _fans(tensor)
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = fan_in if mode == "fan_in" else fan_out
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _fans(tensor: Tensor) -> tuple[int, int]:
    shape = _array(tensor).shape
    if len(shape) < 2 or 0 in shape:
        raise ValueError(
            f"fan_in and fan_out need a weight [out, in, ...] that is not empty, got shape {shape}"
        )
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


def reset_like_torch(weight: Tensor, bias: Tensor | None) -> None:
    """Give a Conv2d's or Linear's weight [out, in, ...] and bias torch's initial values.

    ``kaiming_uniform_(a=sqrt(5))`` comes out as uniform on ±1/sqrt(fan_in); the bias is drawn from
    the same interval.
    """
    kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
        uniform_(bias, -bound, bound)


def _array(tensor: Tensor) -> Array:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a Tensor or Parameter, got {type(tensor).__name__}")
    floating("nn.init", tensor.data)
    return tensor.data


def _fill(tensor: Tensor, values: Array) -> Tensor:
    """Fill with ``values`` drawn on the host, equal on every device."""
    with no_grad():
        tensor[...] = move(values, tensor.device)
    return tensor
