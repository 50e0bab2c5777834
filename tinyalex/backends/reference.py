"""Every kernel in plain NumPy: the specification of the other backends.

Written for clarity: slow is fine, obscure is not.

Names: N images, C channels, H x W pixels, K filters of R x S taps, Ho x Wo outputs. G is the number
of groups that a convolution splits its channels into (the paper's two GPUs: G = 2), Cg = C / G. All
kernels take and return NCHW-shaped arrays of float32 or float64 and keep the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tinyalex.backends.geometry import (
    ConvOptions,
    NormOptions,
    Pair,
    PoolOptions,
    SGDOptions,
    conv_output_size,
    window_slice,
)
from tinyalex.backends.numerics import product, sum_of, total
from tinyalex.backends.types import Array, Shape

Reach = list[Pair]  # (before, after) along each axis

# --- convolution ----------------------------------------------------------------------------------


def im2col(x: Array, kernel_size: Pair, options: ConvOptions) -> Array:
    """Copy every window of ``x`` into a column: [N, C, H, W] -> [N, C, R, S, Ho, Wo].

    ``columns[n,c,r,s,i,j] = padded[n, c, i * stride + r * dilation, j * stride + s * dilation]``
    so that a convolution becomes one matrix product over (c, r, s).
    """
    N, C = x.shape[:2]
    R, S = kernel_size
    stride, padding, dilation, _ = options
    Ho, Wo = conv_output_size(x.shape[2:], kernel_size, options)
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    columns = np.empty((N, C, R, S, Ho, Wo), x.dtype)
    for r in range(R):
        h = window_slice(r * dilation[0], Ho, stride[0])
        for s in range(S):
            w = window_slice(s * dilation[1], Wo, stride[1])
            columns[:, :, r, s] = padded[:, :, h, w]
    return columns


def col2im(columns: Array, input_shape: Shape, options: ConvOptions) -> Array:
    """Add every column back to its pixels: the transpose of `im2col`."""
    N, C, H, W = input_shape
    R, S, Ho, Wo = columns.shape[2:]
    stride, ((top, bottom), (left, right)), dilation, _ = options
    padded = np.zeros((N, C, H + top + bottom, W + left + right), columns.dtype)
    for r in range(R):
        h = window_slice(r * dilation[0], Ho, stride[0])
        for s in range(S):
            w = window_slice(s * dilation[1], Wo, stride[1])
            padded[:, :, h, w] += columns[:, :, r, s]
    return padded[:, :, top : top + H, left : left + W]


def conv2d(x: Array, weight: Array, bias: Array | None, options: ConvOptions) -> Array:
    """Correlate ``x`` [N, C, H, W] with ``weight`` [K, C/G, R, S]: columns, then matrix products.

    ``y[n, k, i, j] = bias[k] + sum over c, r, s of weight[k, c, r, s] * window(i, j)[c, r, s]``
    """
    N = x.shape[0]
    K, Cg, R, S = weight.shape
    groups = options.groups
    columns = im2col(x, (R, S), options)
    Ho, Wo = columns.shape[4:]
    columns = columns.reshape(N, groups, Cg * R * S, Ho * Wo)
    filters = weight.reshape(groups, K // groups, Cg * R * S)
    y = product(filters, columns).reshape(N, K, Ho, Wo)
    return y if bias is None else y + bias[:, None, None]


def conv2d_input_grad(
    grad: Array, weight: Array, input_shape: Shape, options: ConvOptions
) -> Array:
    """Return dx: each output's gradient times its filter, added over overlapping windows."""
    N, K, Ho, Wo = grad.shape
    _, Cg, R, S = weight.shape
    groups = options.groups
    filters = weight.reshape(groups, K // groups, Cg * R * S)
    grad = grad.reshape(N, groups, K // groups, Ho * Wo)
    columns = product(filters.transpose(0, 2, 1), grad)
    columns = columns.reshape(N, input_shape[1], R, S, Ho, Wo)
    return col2im(columns, input_shape, options)


def conv2d_weight_grad(grad: Array, x: Array, weight_shape: Shape, options: ConvOptions) -> Array:
    """Return dweight: each output's gradient times its window, summed over outputs."""
    N, K, Ho, Wo = grad.shape
    _, Cg, R, S = weight_shape
    groups = options.groups
    columns = im2col(x, (R, S), options)
    columns = columns.reshape(N, groups, Cg * R * S, Ho * Wo)
    grad = grad.reshape(N, groups, K // groups, Ho * Wo)
    return total(product(grad, columns.transpose(0, 1, 3, 2)), (0,)).reshape(weight_shape)


def conv2d_bias_grad(grad: Array) -> Array:
    """Return dbias: the gradient summed over images and pixels."""
    return total(grad, (0, 2, 3))


# --- pooling --------------------------------------------------------------------------------------


def max_pool2d(x: Array, options: PoolOptions, output_size: Pair) -> tuple[Array, Array]:
    """Return each window's maximum, and its tap: the number r * S + s.

    Padding never wins, not even over minus infinity; the first of equal values wins; NaN wins over
    all.
    """
    N, C, H, W = x.shape
    kernel_size, stride, padding, dilation = options
    (R, S), (Ho, Wo) = kernel_size, output_size
    # With ceil_mode the last windows may reach past the padding: extend it as far as they reach.
    reach = [
        (o - 1) * s + (k - 1) * d + 1
        for o, s, k, d in zip(output_size, stride, kernel_size, dilation, strict=True)
    ]
    after = [max(0, reach[0] - padding[0] - H), max(0, reach[1] - padding[1] - W)]
    widths = ((0, 0), (0, 0), (padding[0], after[0]), (padding[1], after[1]))
    padded = np.pad(x, widths)
    inside = np.pad(np.ones((H, W), bool), widths[2:])

    y = np.full((N, C, Ho, Wo), -np.inf, x.dtype)
    taps = np.zeros((N, C, Ho, Wo), np.min_scalar_type(R * S - 1))
    unclaimed = np.ones((Ho, Wo), bool)
    for r in range(R):
        h = window_slice(r * dilation[0], Ho, stride[0])
        for s in range(S):
            w = window_slice(s * dilation[1], Wo, stride[1])
            value = padded[:, :, h, w]
            first_nan = np.isnan(value) & ~np.isnan(y)
            wins = inside[h, w] & ((value > y) | first_nan | unclaimed)
            y = np.where(wins, value, y)
            taps[wins] = r * S + s
            unclaimed &= ~inside[h, w]
    return y, taps


def max_pool2d_input_grad(
    grad: Array, taps: Array, input_shape: Shape, options: PoolOptions
) -> Array:
    """Return dx: each window's gradient goes to its winning tap; overlaps add."""
    N, C, H, W = input_shape
    (R, S), stride, padding, dilation = options
    Ho, Wo = grad.shape[2:]
    height = max(H + padding[0], (Ho - 1) * stride[0] + (R - 1) * dilation[0] + 1)
    width = max(W + padding[1], (Wo - 1) * stride[1] + (S - 1) * dilation[1] + 1)
    padded = np.zeros((N, C, height, width), grad.dtype)
    for r in range(R):
        h = window_slice(r * dilation[0], Ho, stride[0])
        for s in range(S):
            w = window_slice(s * dilation[1], Wo, stride[1])
            padded[:, :, h, w] += np.where(taps == r * S + s, grad, 0)
    return padded[:, :, padding[0] : padding[0] + H, padding[1] : padding[1] + W]


# --- local response normalisation -----------------------------------------------------------------


def _neighbours(x: Array, reach: Reach, beyond: float = 0) -> Iterator[Array]:
    """Yield, per place in a window, the array shifted to that place.

    ``reach`` says how far the window extends (before, after) along each axis; past the edge there
    is the number ``beyond``.
    """
    padded = np.pad(x, reach, constant_values=beyond)
    for shift in np.ndindex(*(before + after + 1 for before, after in reach)):
        yield padded[tuple(slice(s, s + n) for s, n in zip(shift, x.shape, strict=True))]


def _energy(x: Array, reach: Reach, ratio: float, k: float) -> tuple[Array, Array]:
    """Return m and t with ``s = k + ratio * sum of x_j ** 2 = m ** 2 * t``.

    m is a power of two about as large as the largest of its window, and of k's root: x ** 2 could
    overflow, or vanish if k = 0, but (x / m) ** 2 cannot. One addition per place, never a running
    sum: subtracting what was added leaves the rounding error of the largest value behind for good.
    """
    largest = np.full_like(x, math.sqrt(abs(k)))
    for neighbour in _neighbours(abs(x), reach):
        largest = np.maximum(largest, neighbour)
    m = np.ldexp(np.ones_like(x), np.frexp(largest)[1] - 1)
    return m, k / m / m + ratio * sum_of((near / m) ** 2 for near in _neighbours(x, reach))


def _normalise(x: Array, reach: Reach, ratio: float, beta: float, k: float) -> Array:
    """Return ``x * s ** -beta`` with s over the window that ``reach`` describes."""
    m, t = _energy(x, reach, ratio, k)
    return x / m * t**-beta * m ** (1 - 2 * beta)


def _normalise_grad(
    grad: Array, x: Array, reach: Reach, ratio: float, beta: float, k: float
) -> Array:
    """Return dx of `_normalise`.

    In ``y_c = x_c s_c ** -beta`` with ``s_c = k + ratio * sum of x_j ** 2``, x_j is the factor in
    front where c = j, and in s_c wherever the window of c holds j: ``ds_c / dx_j = 2 ratio x_j``.
    By the product rule and the chain rule ::

        dy_c / dx_j = [c = j] s_c ** -beta - beta x_c s_c ** (-beta - 1) * 2 ratio x_j

    and ``dx_j = sum over c of dy_c (dy_c / dx_j)`` is ::

        dx_j = dy_j s_j ** -beta - 2 beta ratio x_j * sum of dy_c x_c s_c ** (-beta - 1)

    over all c whose window holds j: those in the mirrored window of j. The code has s = m ** 2 * t,
    lest squares overflow.
    """
    m, t = _energy(x, reach, ratio, k)
    direct = grad * (t**-beta * m ** (-2 * beta))
    pull = direct * (x / m) / t
    mirrored = [(after, before) for before, after in reach]
    pairs = zip(_neighbours(pull, mirrored), _neighbours(m, mirrored, 1), strict=True)
    return direct - 2 * beta * ratio * sum_of(pull_c * (x / m_c) for pull_c, m_c in pairs)


def _across(x: Array, groups: int) -> Array:
    """Return [N, C, H, W] as [N, G, C / G, H, W]: windows end at the borders of groups."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def _across_reach(size: int) -> Reach:
    return [(0, 0), (0, 0), (size // 2, (size - 1) // 2), (0, 0), (0, 0)]


def local_response_norm(x: Array, options: NormOptions) -> Array:
    """Return ``x_c * s_c ** -beta`` with ``s_c = k + alpha / size * sum of x_j ** 2``.

    The sum runs over the ``size`` channels j = c - size // 2 .. c + (size - 1) // 2 (paper
    section 3.3).
    """
    size, alpha, beta, k, groups = options
    y = _normalise(_across(x, groups), _across_reach(size), alpha / size, beta, k)
    return y.reshape(x.shape)


def local_response_norm_input_grad(grad: Array, x: Array, options: NormOptions) -> Array:
    """Return dx of `local_response_norm`.

    Its windows are mirrored: c = j - (size - 1) // 2 .. j + size // 2.
    """
    size, alpha, beta, k, groups = options
    slopes, values = _across(grad, groups), _across(x, groups)
    dx = _normalise_grad(slopes, values, _across_reach(size), alpha / size, beta, k)
    return dx.reshape(x.shape)


def _around_reach(size: int) -> Reach:
    return [(0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)]


def within_channel_response_norm(x: Array, options: NormOptions) -> Array:
    """Return ``x * s ** -beta`` with ``s = k + alpha / size ** 2 * sum of x ** 2``.

    The sum runs over the window of an odd ``size`` around each pixel, in its own channel (the 2012
    source's rnorm).
    """
    size, alpha, beta, k, _ = options
    return _normalise(x, _around_reach(size), alpha / size**2, beta, k)


def within_channel_response_norm_input_grad(grad: Array, x: Array, options: NormOptions) -> Array:
    """Return dx of `within_channel_response_norm`."""
    size, alpha, beta, k, _ = options
    return _normalise_grad(grad, x, _around_reach(size), alpha / size**2, beta, k)


# --- elementwise ----------------------------------------------------------------------------------


def relu(x: Array) -> Array:
    """Return max(x, 0); NaN stays NaN."""
    return np.maximum(x, 0)


def relu_input_grad(grad: Array, y: Array) -> Array:
    """Return dx = dy where y > 0, else 0.

    The output will do, as y > 0 exactly where x > 0.
    """
    return np.where(y <= 0, grad.dtype.type(0), grad)  # written so that NaN lets dy through


GOLDEN = 0x9E3779B97F4A7C15
"""Step of the SplitMix64 sequence: 2 ** 64 divided by the golden ratio."""


def random_bits(key: int, count: int) -> Array:
    """Return ``count`` 64-bit random numbers: the SplitMix64 sequence that begins at ``key``.

    Number i depends on (key, i) alone, so that any thread or later pass finds it again, on either
    backend of the CPU; ``cuda`` draws by Philox, in four 32-bit words (Steele, Lea, Flood 2014,
    "Fast splittable pseudorandom number generators").
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2 ** 64 is meant
        z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shifted(key: int, first: int) -> int:
    """Return the key whose sequence begins ``first`` numbers further on."""
    return (key + first * GOLDEN) % 2**64


def dropout(x: Array, p: float, key: int, first: int = 0) -> Array:
    """Zero each element with probability ``p``, scale the others by 1 / (1 - p).

    ``first`` is the position of the first element, where ``x`` is a part of something longer.
    Zeroing is a product with 0: infinity and NaN become NaN, as in torch.

    The top 24 bits of `random_bits` decide, so the mask is never stored: the gradient is the same
    function of the gradient, with the same key.
    """
    if p == 1:
        return x * x.dtype.type(0)
    keep = (random_bits(shifted(key, first), x.size) >> np.uint64(40)) >= np.uint64(
        int(p * 2**24 + 0.5)
    )
    return x * (keep.reshape(x.shape) * x.dtype.type(1 / (1 - p)))


# --- linear layers and the update -----------------------------------------------------------------


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return ``x @ weight.T + bias``: x [N, I], weight [O, I], bias [O] -> [N, O]."""
    y = product(x, weight.T)
    return y if bias is None else y + bias


def linear_input_grad(grad: Array, weight: Array) -> Array:
    """Return dx = grad @ weight: [N, O] @ [O, I]."""
    return product(grad, weight)


def linear_weight_grad(grad: Array, x: Array) -> Array:
    """Return dweight = grad.T @ x: [O, N] @ [N, I]."""
    return product(grad.T, x)


def all_finite(x: Array) -> bool:
    """Return whether no element is NaN or infinite."""
    return bool(np.isfinite(x).all())


def sgd_step(param: Array, grad: Array, velocity: Array | None, options: SGDOptions) -> None:
    """Update ``param`` w and ``velocity`` v in place by the gradient g.

    form "torch":  ``g += decay w;  v = momentum v + (1 - dampening) g;  w -= lr v``, or with
    nesterov ``w -= lr (g + momentum v)``.
    form "paper" (section 5):  ``v = momentum v - decay lr w - lr g;  w += v``.
    """
    lr, momentum, dampening, weight_decay, nesterov, form = options
    if form == "paper":
        step = -lr * (weight_decay * param + grad)
        if velocity is not None:
            velocity *= momentum
            velocity += step
            step = velocity
        param += step
        return
    step = grad + weight_decay * param
    if velocity is not None:
        velocity *= momentum
        velocity += (1 - dampening) * step
        step = step + momentum * velocity if nesterov else velocity
    param -= lr * step
