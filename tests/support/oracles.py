"""Expected results of the layers' ops, as plain loops.

Nothing here is fast or clever, nothing imports tinyalex, and everything is float64: these
functions are read once, believed, and then every backend has to agree with them.

Names, as in backends/reference.py: N images, C channels, H x W pixels, K filters of R x S taps,
Ho x Wo outputs, Cg channels per group.
"""

import math
from itertools import product

import numpy as np


def _grid(*sizes):
    return product(*(range(size) for size in sizes))


def _double(x):
    return np.asarray(x, dtype=np.float64)


# --- convolution -------------------------------------------------------------------------------


def conv_output_size(size, window, stride, padding, dilation):
    """Positions at which a dilated window fits; ``padding`` is the sum of both sides."""
    return (size + padding - dilation * (window - 1) - 1) // stride + 1


def _conv_taps(x_shape, w_shape, stride, padding, dilation, groups):
    """Yield every multiplication of a convolution: output (n, k, i, j), weight tap, input pixel."""
    N, _, height, width = x_shape
    K, Cg, R, S = w_shape
    (top, bottom), (left, right) = padding
    Ho = conv_output_size(height, R, stride[0], top + bottom, dilation[0])
    Wo = conv_output_size(width, S, stride[1], left + right, dilation[1])
    for n, k, i, j in _grid(N, K, Ho, Wo):
        group = k // (K // groups)
        for c, r, s in _grid(Cg, R, S):
            h = i * stride[0] + r * dilation[0] - top
            w = j * stride[1] + s * dilation[1] - left
            if 0 <= h < height and 0 <= w < width:
                yield (n, k, i, j), (k, c, r, s), (n, group * Cg + c, h, w)


def conv2d(x, weight, bias, stride, padding, dilation, groups):
    """Cross-correlation; ``padding`` is ((top, bottom), (left, right))."""
    x, weight = _double(x), _double(weight)
    (top, bottom), (left, right) = padding
    Ho = conv_output_size(x.shape[2], weight.shape[2], stride[0], top + bottom, dilation[0])
    Wo = conv_output_size(x.shape[3], weight.shape[3], stride[1], left + right, dilation[1])
    y = np.zeros((x.shape[0], weight.shape[0], Ho, Wo))
    for out, tap, pixel in _conv_taps(x.shape, weight.shape, stride, padding, dilation, groups):
        y[out] += weight[tap] * x[pixel]
    if bias is not None:
        for k in range(len(bias)):
            y[:, k] += float(bias[k])
    return y


def conv2d_input_grad(grad, weight, input_shape, stride, padding, dilation, groups):
    """Gradient of ``sum(grad * conv2d(x, weight))`` with respect to ``x``."""
    grad, weight = _double(grad), _double(weight)
    dx = np.zeros(input_shape)
    for out, tap, pixel in _conv_taps(input_shape, weight.shape, stride, padding, dilation, groups):
        dx[pixel] += weight[tap] * grad[out]
    return dx


def conv2d_weight_grad(grad, x, weight_shape, stride, padding, dilation, groups):
    """Gradient of ``sum(grad * conv2d(x, weight))`` with respect to ``weight``."""
    grad, x = _double(grad), _double(x)
    dw = np.zeros(weight_shape)
    for out, tap, pixel in _conv_taps(x.shape, weight_shape, stride, padding, dilation, groups):
        dw[tap] += x[pixel] * grad[out]
    return dw


def conv2d_bias_grad(grad):
    """One sum per output channel."""
    grad = _double(grad)
    db = np.zeros(grad.shape[1])
    for n, k, i, j in _grid(*grad.shape):
        db[k] += grad[n, k, i, j]
    return db


# --- pooling -----------------------------------------------------------------------------------


def pool_output_size(size, window, stride, padding, dilation=1, ceil_mode=False):
    """Torch's rule: a window of ceil_mode must start inside the input or its left padding."""
    span = size + 2 * padding - dilation * (window - 1) - 1
    count = (math.ceil(span / stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def max_pool2d(x, kernel_size, stride, padding, dilation, output_size):
    """Return the maxima and the winning tap ``r * S + s`` of each window; the first tap wins."""
    x = _double(x)
    y = np.zeros((*x.shape[:2], *output_size))
    taps = np.zeros(y.shape, dtype=np.int64)
    for n, c, i, j in _grid(*y.shape):
        best = None
        for r, s in _grid(*kernel_size):
            h = i * stride[0] + r * dilation[0] - padding[0]
            w = j * stride[1] + s * dilation[1] - padding[1]
            if not (0 <= h < x.shape[2] and 0 <= w < x.shape[3]):
                continue
            value = x[n, c, h, w]
            if best is None or value > best or (np.isnan(value) and not np.isnan(best)):
                best = value
                taps[n, c, i, j] = r * kernel_size[1] + s
        y[n, c, i, j] = best
    return y, taps


def max_pool2d_input_grad(grad, taps, input_shape, kernel_size, stride, padding, dilation):
    """Each gradient goes to the pixel that won its window."""
    grad = _double(grad)
    dx = np.zeros(input_shape)
    for n, c, i, j in _grid(*grad.shape):
        r, s = divmod(int(taps[n, c, i, j]), kernel_size[1])
        h = i * stride[0] + r * dilation[0] - padding[0]
        w = j * stride[1] + s * dilation[1] - padding[1]
        dx[n, c, h, w] += grad[n, c, i, j]
    return dx


def avg_pool2d(
    x, kernel_size, stride, padding, output_size, count_include_pad=True, divisor_override=None
):
    """Mean of each window; what divides the sum is the only subtle part."""
    x = _double(x)
    height, width = x.shape[2:]
    y = np.zeros((*x.shape[:2], *output_size))
    for n, c, i, j in _grid(*y.shape):
        top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
        total, real, padded = 0.0, 0, 0
        for r, s in _grid(*kernel_size):
            h, w = top + r, left + s
            if 0 <= h < height and 0 <= w < width:
                total += x[n, c, h, w]
                real += 1
            if h < height + padding[0] and w < width + padding[1]:
                padded += 1  # a window of ceil_mode may reach past the padding: not counted
        y[n, c, i, j] = total / (divisor_override or (padded if count_include_pad else real))
    return y


def adaptive_avg_pool2d(x, output_size):
    """Cell i averages the pixels from floor(i * size / out) to ceil((i + 1) * size / out)."""
    x = _double(x)
    y = np.zeros((*x.shape[:2], *output_size))
    for n, c, i, j in _grid(*y.shape):
        top, left = i * x.shape[2] // output_size[0], j * x.shape[3] // output_size[1]
        bottom = math.ceil((i + 1) * x.shape[2] / output_size[0])
        right = math.ceil((j + 1) * x.shape[3] / output_size[1])
        values = [x[n, c, h, w] for h in range(top, bottom) for w in range(left, right)]
        y[n, c, i, j] = sum(values) / len(values)
    return y


# --- normalisation -----------------------------------------------------------------------------


def _lrn_neighbours(c, size, channels, groups):
    """Channels in the window of ``c``: ``size`` of them, cut at the borders of c's group."""
    per_group = channels // groups
    first = c // per_group * per_group
    window = range(c - size // 2, c + (size - 1) // 2 + 1)
    return [j for j in window if first <= j < first + per_group]


def _lrn_scale(x, pixel, size, alpha, k, groups):
    n, c, h, w = pixel
    neighbours = _lrn_neighbours(c, size, x.shape[1], groups)
    return k + alpha / size * sum(x[n, j, h, w] ** 2 for j in neighbours)


def local_response_norm(x, size, alpha, beta, k, groups=1):
    """Compute ``x * (k + alpha / size * sum of squares over the window) ** -beta``."""
    x = _double(x)
    y = np.zeros(x.shape)
    for pixel in _grid(*x.shape):
        y[pixel] = x[pixel] * _lrn_scale(x, pixel, size, alpha, k, groups) ** -beta
    return y


def local_response_norm_input_grad(grad, x, size, alpha, beta, k, groups=1):
    """Term by term: output c depends on x_c directly, and on every x_j of its window."""
    grad, x = _double(grad), _double(x)
    dx = np.zeros(x.shape)
    for n, c, h, w in _grid(*x.shape):
        scale = _lrn_scale(x, (n, c, h, w), size, alpha, k, groups)
        dx[n, c, h, w] += grad[n, c, h, w] * scale**-beta
        for j in _lrn_neighbours(c, size, x.shape[1], groups):
            slope = x[n, c, h, w] * -beta * scale ** (-beta - 1) * alpha / size * 2 * x[n, j, h, w]
            dx[n, j, h, w] += grad[n, c, h, w] * slope
    return dx


def within_channel_response_norm(x, size, alpha, beta, k, groups=1):
    """As local_response_norm, over a size x size window of the same map."""
    x = _double(x)
    y = np.zeros(x.shape)
    for pixel in _grid(*x.shape):
        y[pixel] = x[pixel] * _within_scale(x, pixel, size, alpha, k) ** -beta
    return y


def within_channel_response_norm_input_grad(grad, x, size, alpha, beta, k, groups=1):
    """Term by term: each output depends on its own x directly, and on every x of its window."""
    grad, x = _double(grad), _double(x)
    dx = np.zeros(x.shape)
    for pixel in _grid(*x.shape):
        scale = _within_scale(x, pixel, size, alpha, k)
        dx[pixel] += grad[pixel] * scale**-beta
        for other in _surroundings(x, pixel, size):
            slope = x[pixel] * -beta * scale ** (-beta - 1) * alpha / size**2 * 2 * x[other]
            dx[other] += grad[pixel] * slope
    return dx


def _within_scale(x, pixel, size, alpha, k):
    total = sum(x[other] ** 2 for other in _surroundings(x, pixel, size))
    return k + alpha / size**2 * total


def _surroundings(x, pixel, size):
    """Return the places of the window around a pixel, those that exist."""
    n, c, h, w = pixel
    reach = range(-(size // 2), size // 2 + 1)
    places = ((n, c, h + dh, w + dw) for dh, dw in product(reach, reach))
    return [p for p in places if 0 <= p[2] < x.shape[2] and 0 <= p[3] < x.shape[3]]


# --- elementwise and linear --------------------------------------------------------------------


def relu(x):
    """Larger of x and 0; NaN stays NaN."""
    x = _double(x)
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[i] = x[i] if x[i] > 0 or np.isnan(x[i]) else 0.0
    return y


def relu_input_grad(grad, y):
    """The gradient passes unless the output is 0 (so it passes where the output is NaN)."""
    grad, y = _double(grad), _double(y)
    dx = np.zeros(grad.shape)
    for i in np.ndindex(grad.shape):
        dx[i] = 0.0 if y[i] <= 0 else grad[i]
    return dx


def splitmix64(z):
    """Mix 64 bits (Steele, Lea and Flood 2014)."""
    mask = (1 << 64) - 1
    z &= mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def dropout_keep(shape, p, key):
    """Which elements survive: a hash of (key, position in C order), so no mask need be stored."""
    threshold = math.floor(p * 2**24 + 0.5)
    count = math.prod(shape)
    hashes = [splitmix64(key + (i + 1) * 0x9E3779B97F4A7C15) for i in range(count)]
    return np.array([h >> 40 >= threshold for h in hashes], dtype=bool).reshape(shape)


def dropout(x, p, key):
    """Survivors are scaled by 1 / (1 - p), so that the expectation is x."""
    keep = dropout_keep(x.shape, p, key)
    return np.where(keep, _double(x) / (1 - p), 0.0) if p < 1 else np.zeros(x.shape)


def linear(x, weight, bias):
    """``y[n, o] = sum_i x[n, i] * weight[o, i] + bias[o]``."""
    x, weight = _double(x), _double(weight)
    y = np.zeros((x.shape[0], weight.shape[0]))
    for n, o in _grid(*y.shape):
        y[n, o] = sum(x[n, i] * weight[o, i] for i in range(x.shape[1]))
        if bias is not None:
            y[n, o] += float(bias[o])
    return y


def linear_input_grad(grad, weight):
    """``dx[n, i] = sum_o grad[n, o] * weight[o, i]``."""
    return linear(grad, _double(weight).T, None)


def linear_weight_grad(grad, x):
    """``dw[o, i] = sum_n grad[n, o] * x[n, i]``."""
    return linear(_double(grad).T, _double(x).T, None)


def pad(x, padding, mode="constant", value=0.0):
    """Torch's order: ``padding`` is (left, right, top, bottom, ...), last axis first."""
    x = _double(x)
    pairs = [(0, 0)] * (x.ndim - len(padding) // 2)
    pairs += [tuple(padding[i : i + 2]) for i in range(0, len(padding), 2)][::-1]
    y = np.full(
        [n + before + after for n, (before, after) in zip(x.shape, pairs, strict=True)],
        float(value),
    )
    for target in np.ndindex(y.shape):
        source = [t - before for t, (before, _) in zip(target, pairs, strict=True)]
        if mode != "constant":
            source = [_fold(i, n, mode) for i, n in zip(source, x.shape, strict=True)]
        if all(0 <= i < n for i, n in zip(source, x.shape, strict=True)):
            y[target] = x[tuple(source)]
    return y


def _fold(i, size, mode):
    """Bring an index that fell off the edge back inside."""
    if mode == "replicate":
        return min(max(i, 0), size - 1)
    if mode == "circular":
        return i % size
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i  # reflect


# --- softmax and cross-entropy -----------------------------------------------------------------


def log_softmax(x, dim):
    """``x - log(sum(exp(x)))`` along ``dim``, shifted so that exp cannot overflow."""
    rows = np.moveaxis(_double(x), dim, -1)
    y = np.zeros(rows.shape)
    for i in np.ndindex(rows.shape[:-1]):
        top = max(rows[i])
        y[i] = rows[i] - top - math.log(sum(math.exp(v - top) for v in rows[i]))
    return np.moveaxis(y, -1, dim)


def softmax(x, dim):
    """``exp(x) / sum(exp(x))`` along ``dim``."""
    return np.exp(log_softmax(x, dim))


def cross_entropy(
    logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Classes on axis 1 (axis 0 if 1-D); ``target`` is indices, or probabilities like logits."""
    logits = _double(logits)
    axis = 0 if logits.ndim == 1 else 1
    classes = logits.shape[axis]
    logp = np.moveaxis(log_softmax(logits, axis), axis, -1)
    target = np.asarray(target)
    by_index = target.dtype.kind in "iu"
    if not by_index:
        target = np.moveaxis(_double(target), axis, -1)
    weight = np.ones(classes) if weight is None else _double(weight)

    losses, total = np.zeros(logp.shape[:-1]), 0.0
    for i in np.ndindex(losses.shape):
        if by_index and target[i] == ignore_index:
            continue
        wanted = np.zeros(classes)
        if by_index:
            wanted[target[i]] = 1.0
        else:
            wanted[:] = target[i]
        total += weight[target[i]] if by_index else 1.0
        for c in range(classes):
            smooth = (1 - label_smoothing) * wanted[c] + label_smoothing / classes
            losses[i] -= weight[c] * smooth * logp[(*i, c)]

    if reduction == "none":
        return losses
    return losses.sum() / total if reduction == "mean" else losses.sum()


# --- optimiser ---------------------------------------------------------------------------------


def sgd_step(param, grad, velocity, lr, momentum, dampening, weight_decay, nesterov, form):
    """Return the new (param, velocity), one number at a time; velocity may be None."""
    new_param = _double(param).copy()
    new_velocity = np.zeros(new_param.shape) if velocity is None else _double(velocity).copy()
    for i in np.ndindex(new_param.shape):
        w, g, v = float(param[i]), float(grad[i]), new_velocity[i]
        if form == "paper":
            v = momentum * v - weight_decay * lr * w - lr * g
            w = w + v
        else:
            g = g + weight_decay * w
            v = g if velocity is None else momentum * v + (1 - dampening) * g
            w = w - lr * (g + momentum * v if nesterov else v)
        new_param[i], new_velocity[i] = w, v
    return new_param, new_velocity
