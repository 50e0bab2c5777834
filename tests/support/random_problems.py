"""Random calls of every differentiable op, with bounds of errors.

A problem is a line of code such as ``F.conv2d(x0, x1, stride=(2, 1))`` and where its arrays come
from. The same line runs on every backend, on PyTorch, and on magnitudes: where a result is a sum of
products, the line applied to absolute values says how large rounding errors may be.
"""

from dataclasses import dataclass, field

import numpy as np
import oracles
from helpers import LAYOUTS
from hypothesis import strategies as st

import tinyalex as ta
import tinyalex.functional as F

DTYPES = ("float32", "float64")
MAGNITUDES = ("ordinary", "zeros", "mixed", "tiny", "huge", "tied")


@dataclass(frozen=True)
class Array:
    """Origin of an array; its repr is the code that makes it."""

    shape: tuple
    seed: int
    dtype: str
    magnitude: str = "ordinary"
    layout: str = "contiguous"

    def make(self):
        """Return the array."""
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal(self.shape)
        if self.magnitude == "zeros":
            x *= rng.random(self.shape) < 0.5
        elif self.magnitude == "tied":
            x = rng.integers(-2, 3, self.shape).astype(float)
        elif self.magnitude == "mixed":
            x *= 10.0 ** rng.integers(-15, 16, self.shape)
        elif self.magnitude != "ordinary":
            x *= {"tiny": 1e-30, "huge": 1e30, "positive": 1}[self.magnitude]
        if self.magnitude == "positive":
            x = 0.5 + np.abs(x)
        return LAYOUTS[self.layout](np.asarray(x, self.dtype))


@dataclass(frozen=True)
class Problem:
    """One call; see the module. ``terms`` bounds how many terms any element of a result sums."""

    call: str
    arrays: tuple
    terms: int = 1
    torch: str | None = None
    """The call in PyTorch's words, where they differ; "" where it has none."""
    sizes: str | None = None
    """The call for magnitudes: `call` with sums in the place of differences."""
    errors: object = None
    """A function of the arrays and the cotangent, in float64, for what is no sum of products: the
    errors to expect of output and gradients, in units of the last place (eps)."""
    oracle: object = None
    """A function of the arrays and the cotangent, in plain loops: the output, and the gradients."""
    seed: int = field(default=0)

    def __repr__(self):
        lines = ["", "import numpy as np, tinyalex as ta, tinyalex.functional as F"]
        lines += ["from random_problems import Array, cotangent  # PYTHONPATH=tests/support"]
        for i, array in enumerate(self.arrays):
            lines.append(f"x{i} = ta.Tensor({array!r}.make(), requires_grad=True)")
        lines += [f"y = {self.call}", f"y.backward(cotangent(y.data, {self.seed}))"]
        return "\n".join(lines) + "\n"


def cotangent(y, seed):
    """Return the gradient that is sent into an output."""
    rng = np.random.default_rng(seed)
    layout = sorted(LAYOUTS)[seed % len(LAYOUTS)]
    return LAYOUTS[layout](rng.standard_normal(y.shape).astype(y.dtype))


def run(call, arrays, gradient, backend):
    """Return the output of a call and the gradients of its arrays; ``gradient`` makes the seed."""
    tensors = [ta.Tensor(a, requires_grad=True) for a in arrays]
    names = {f"x{i}": t for i, t in enumerate(tensors)}
    ta.manual_seed(7)
    with ta.use_backend(backend):
        y = eval(call, {"F": F, "ta": ta, "np": np, **names})
        y.backward(gradient(y.data))
    return y.data, [t.grad for t in tensors]


def run_torch(call, arrays, gradient):
    """Return the same of PyTorch, for contiguous float64 arrays."""
    import torch
    import torch.nn.functional as functional

    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    names = {f"x{i}": t for i, t in enumerate(tensors)}
    y = eval(call, {"F": functional, "ta": torch, "np": np, **names})
    y.backward(torch.tensor(gradient(y.detach().numpy())))
    return y.detach().numpy(), [t.grad.numpy() for t in tensors]


# --- drawing --------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 6)


@st.composite
def arrays(draw, shape, dtype, magnitudes=MAGNITUDES, without=""):
    """Draw an array of this shape, in any layout but ``without``."""
    layout = draw(st.sampled_from(sorted(set(LAYOUTS) - {without})))
    return Array(tuple(shape), draw(seeds), dtype, draw(st.sampled_from(magnitudes)), layout)


def shapes(least=0, most=4, empty=True):
    """Draw a shape, with axes of length 1 and 0."""
    return st.lists(st.integers(0 if empty else 1, 5), min_size=least, max_size=most).map(tuple)


@st.composite
def elementwise(draw):
    """An operator of two tensors whose shapes broadcast."""
    shape = list(draw(shapes()))
    other = [draw(st.sampled_from((1, n))) for n in shape[draw(st.integers(0, len(shape))) :]]
    dtype = draw(st.sampled_from(DTYPES))
    call, sizes, magnitudes = draw(
        st.sampled_from(
            [
                ("x0 + x1", None, MAGNITUDES),
                ("x0 - x1", "x0 + x1", MAGNITUDES),
                ("x0 * x1", None, MAGNITUDES),
                ("x0 / x1", None, ("ordinary", "positive", "tiny", "huge")),
                ("2.5 - x0 * x1", "2.5 + x0 * x1", ("ordinary", "mixed")),
                ("-x0 * (x1 / 3)", "x0 * (x1 / 3)", MAGNITUDES),
            ]
        )
    )
    pair = [draw(arrays(s, dtype, magnitudes)) for s in draw(st.permutations([shape, other]))]
    return Problem(call, tuple(pair), terms=625, sizes=sizes, seed=draw(seeds))


def _powers(a, b, g):
    y = a**b
    return 8 * y, [16 * np.abs(g * b * a ** (b - 1)), 16 * np.abs(g * y) * (1 + np.abs(np.log(a)))]


UNARY = {
    # derivative's terms: |f'| and, where it is a difference, what is subtracted
    "exp": (lambda x: np.exp(x), lambda x: np.exp(x)),
    "log": (lambda x: np.log(x), lambda x: 1 / x),
    "sqrt": (lambda x: np.sqrt(x), lambda x: 0.5 / np.sqrt(x)),
    "tanh": (lambda x: np.tanh(x), lambda x: 1 + np.tanh(x) ** 2),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (1 + np.exp(-x))),
    "abs": (lambda x: np.abs(x), lambda x: np.ones_like(x)),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.ones_like(x)),
}


@st.composite
def unary(draw):
    """An elementwise function of one tensor."""
    name = draw(st.sampled_from(sorted(UNARY)))
    function, derivative = UNARY[name]
    magnitudes = {"log": ("positive",), "sqrt": ("positive",), "exp": ("ordinary", "zeros")}
    some = magnitudes.get(name, MAGNITUDES)
    array = draw(arrays(draw(shapes()), draw(st.sampled_from(DTYPES)), some))

    def errors(x, g):
        with np.errstate(over="ignore"):
            return 8 * np.abs(function(x)), [8 * np.abs(g * derivative(x))]

    return Problem(f"x0.{name}()", (array,), errors=errors, seed=draw(seeds))


@st.composite
def power(draw):
    """A power of positive numbers."""
    shape, dtype = draw(shapes()), draw(st.sampled_from(DTYPES))
    pair = draw(arrays(shape, dtype, ("positive",))), draw(arrays(shape, dtype, ("ordinary",)))
    return Problem("x0 ** x1", pair, errors=_powers, seed=draw(seeds))


@st.composite
def reduction(draw):
    """A sum, mean, maximum or minimum over any axes."""
    name = draw(st.sampled_from(("sum", "mean", "amax", "amin")))
    empty = name == "sum"
    shape = draw(shapes(empty=empty))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), unique=True)) if shape else []
    dim = tuple(a - draw(st.sampled_from((0, len(shape)))) for a in axes) or None
    if dim and len(dim) == 1:
        dim = draw(st.sampled_from((dim, dim[0])))
    options = f"dim={dim}, keepdim={draw(st.booleans())}" if dim is not None else ""
    array = draw(arrays(shape, draw(st.sampled_from(DTYPES))))

    def errors(x, g):  # exact values; the gradient is shared among the largest
        return 0 * g, [2 * np.abs(np.broadcast_to(g.max(initial=0), x.shape)) + 2 * np.abs(g).max()]

    exact = errors if name in ("amax", "amin") else None
    return Problem(
        f"x0.{name}({options})",
        (array,),
        terms=max(1, int(np.prod(shape))),
        errors=exact,
        seed=draw(seeds),
    )


@st.composite
def movement(draw):
    """Elements that only change their places."""
    shape = draw(shapes(least=1))
    n, dtype, count = len(shape), draw(st.sampled_from(DTYPES)), int(np.prod(shape))
    order = draw(st.permutations(range(n)))
    axis = draw(st.integers(-n, n - 1))
    widths = draw(st.lists(st.integers(-1, 3), min_size=2, max_size=2))
    if sum(widths) + shape[-1] < 0 or min(widths) + shape[-1] < 0:
        widths = [1, 2]
    start, end = sorted((draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))))
    index = draw(
        st.sampled_from(
            ["...", "0:1", "1:", "..., None", "..., 0:4:2", "None, 1:3", "np.array([], int)"]
            + (["[0, 0, -1]", "0", "-1", "np.array([[0], [-1]])"] if shape[0] else [])
        )
    )
    call = draw(
        st.sampled_from(
            [
                f"x0.permute({', '.join(map(str, order))})",
                f"x0.reshape({count})",
                f"x0.reshape({', '.join(map(str, shape[::-1]))}, 1)",
                f"x0.flatten({start}, {end})",
                f"x0.transpose({axis}, {order[0]})",
                f"x0.unsqueeze({axis})",
                "x0.squeeze()",
                f"x0.squeeze({axis})",
                f"x0[{index}]",
                f"ta.cat([x0, x0, x0], {axis})",
                f"ta.stack([x0, x0], {axis})",
                f"F.pad(x0, {tuple(widths)})",
                "ta.where(x0 > 0, x0, x0 * 2)",
            ]
        )
    )
    return Problem(call, (draw(arrays(shape, dtype)),), terms=8, seed=draw(seeds))


@st.composite
def product(draw):
    """A matrix product, or a linear layer."""
    n, i, o = (draw(st.integers(0, 6)) for _ in range(3))
    dtype, kind = (
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(("matmul", "batch", "linear"))),
    )
    lead = draw(shapes(most=2))
    if kind == "matmul":
        call, some = (
            "x0 @ x1",
            draw(st.sampled_from([((n, i), (i, o)), ((i,), (i, o)), ((n, i), (i,)), ((i,), (i,))])),
        )
    elif kind == "batch":
        call, some = "x0 @ x1", ((*lead, n, i), (*[1] * len(lead), i, o))
    else:
        bias = draw(st.booleans())
        call = "F.linear(x0, x1, x2)" if bias else "F.linear(x0, x1)"
        some = ((*lead, n, i), (o, i), (o,))[: 2 + bias]
    made = tuple(draw(arrays(s, dtype)) for s in some)
    return Problem(call, made, terms=max(n * int(np.prod(lead)), i, o), seed=draw(seeds))


@st.composite
def windows(draw, size, dilated=True):
    """Draw (kernel, stride, dilation) of which at least one window fits into ``size``."""
    dilation = draw(st.integers(1, 2)) if dilated else 1
    kernel = draw(st.integers(1, max(1, (size - 1) // dilation + 1)))
    return kernel, draw(st.integers(1, 4)), dilation


@st.composite
def convolution(draw):
    """A convolution with every option."""
    groups, dtype = draw(st.integers(1, 3)), draw(st.sampled_from(DTYPES))
    n, c, k = draw(st.integers(0, 3)), groups * draw(sides), groups * draw(sides)
    h, w = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    (r, stride_h, dil_h), (s, stride_w, dil_w) = draw(windows(h)), draw(windows(w))
    padding = draw(st.sampled_from((0, 1, (0, 2), (3, 1), "valid", "same")))
    if padding == "same":
        stride_h = stride_w = 1
    options = (
        f"stride={(stride_h, stride_w)}, padding={padding!r}, dilation={(dil_h, dil_w)}, "
        f"groups={groups}"
    )
    bias = draw(st.booleans())
    some = ((n, c, h, w), (k, c // groups, r, s), (k,))[: 2 + bias]
    made = tuple(draw(arrays(x, dtype)) for x in some)
    names = "x0, x1, x2" if bias else "x0, x1"
    terms = max(c * r * s, k * r * s, n * (h + 6) * (w + 6))

    def loops(x, weight, *more):
        (*bias, g) = more
        top = [0 if padding == "valid" else d * (m - 1) // 2 for m, d in ((r, dil_h), (s, dil_w))]
        rest = [d * (m - 1) - t for t, m, d in zip(top, (r, s), (dil_h, dil_w), strict=True)]
        pair = padding if isinstance(padding, tuple) else (padding, padding)
        border = [(p, p) for p in ((0, 0) if padding == "valid" else pair)]
        border = list(zip(top, rest, strict=True)) if padding == "same" else border
        options = (stride_h, stride_w), border, (dil_h, dil_w), groups
        y = oracles.conv2d(x, weight, *(bias or [None]), *options)
        dx = oracles.conv2d_input_grad(g, weight, x.shape, *options)
        dweight = oracles.conv2d_weight_grad(g, x, weight.shape, *options)
        return y, [dx, dweight, oracles.conv2d_bias_grad(g)][: 2 + len(bias)]

    few = n * k * h * w * (c // groups) * r * s < 10_000
    oracle = loops if few else None
    call = f"F.conv2d({names}, {options})"
    return Problem(call, made, terms, oracle=oracle, seed=draw(seeds))


@st.composite
def pooling(draw):
    """A pooling with every option."""
    n, c = draw(st.integers(0, 2)), draw(sides)
    h, w = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    kind = draw(st.sampled_from(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")))
    array = draw(arrays((n, c, h, w), draw(st.sampled_from(DTYPES))))
    if kind == "adaptive_avg_pool2d":
        size = draw(st.integers(1, 9)), draw(st.sampled_from((None, 1, 2, 5)))
        return Problem(f"F.{kind}(x0, {size})", (array,), 64, seed=draw(seeds))
    dilated = kind == "max_pool2d"
    (r, stride_h, dil_h), (s, stride_w, dil_w) = (
        draw(windows(h, dilated)),
        draw(windows(w, dilated)),
    )
    padding = draw(st.integers(0, r // 2)), draw(st.integers(0, s // 2))
    options = f"{(r, s)}, {(stride_h, stride_w)}, {padding}"
    ceil = draw(st.booleans())
    if dilated:
        options += f", dilation={(dil_h, dil_w)}, ceil_mode={ceil}"

        def errors(x, g):
            return 0 * g, [64 * np.full(x.shape, np.abs(g).max(initial=0))]

        return Problem(f"F.{kind}(x0, {options})", (array,), errors=errors, seed=draw(seeds))
    options += f", ceil_mode={ceil}, count_include_pad={draw(st.booleans())}"
    options += f", divisor_override={draw(st.sampled_from((None, 1, 3)))}"
    return Problem(f"F.{kind}(x0, {options})", (array,), terms=r * s + 4, seed=draw(seeds))


def _energies(x, size, groups):
    """Return a matrix [C, C] of which channels are neighbours."""
    c = x.shape[1]
    i, j = np.arange(c)[:, None], np.arange(c)[None]
    near = (j >= i - size // 2) & (j <= i + (size - 1) // 2)
    return near & (i // (c // groups) == j // (c // groups))


@st.composite
def normalization(draw):
    """A response normalisation, across channels."""
    groups = draw(st.integers(1, 2))
    shape = (draw(st.integers(0, 2)), groups * draw(st.integers(0, 6)), *draw(shapes(1, 3)))
    size = draw(st.integers(1, 9))
    alpha, beta = (
        draw(st.sampled_from((0.0, 1e-4, 0.5, 3.0))),
        draw(st.sampled_from((0.0, 0.5, 0.75, 1.0, 2.0))),
    )
    k = draw(st.sampled_from((0.5, 1.0, 2.0)))
    array = draw(arrays(shape, draw(st.sampled_from(DTYPES)), ("ordinary", "zeros", "tied")))

    def errors(x, g):
        near = _energies(x, size, groups).astype(float)
        flat, grad = (a.reshape(*x.shape[:2], np.prod(x.shape[2:])) for a in (x, g))
        scale = k + alpha / size * np.einsum("cd,ndp->ncp", near, flat**2)
        y = np.abs(flat) * scale**-beta
        cross = np.einsum("dc,ndp->ncp", near, np.abs(grad * flat) * scale ** (-beta - 1))
        dx = np.abs(grad) * scale**-beta + 2 * alpha * beta / size * np.abs(flat) * cross
        relative = 8 + 2 * (1 + beta) * (size + 4)
        return relative * y.reshape(x.shape), [relative * dx.reshape(x.shape)]

    def loops(x, g):
        if x.size == 0:
            return x, [g]
        images = x.reshape(*x.shape[:2], -1, 1)
        options = size, alpha, beta, k, groups
        y = oracles.local_response_norm(images, *options)
        dx = oracles.local_response_norm_input_grad(g.reshape(images.shape), images, *options)
        return y.reshape(x.shape), [dx.reshape(x.shape)]

    oracle = loops if np.prod(shape) < 200 else None
    call = f"F.local_response_norm(x0, {size}, {alpha}, {beta}, {k}"
    torch = call + ")" if groups == 1 else ""
    tail = ")" if groups == 1 else f", {groups})"
    made = {"torch": torch, "errors": errors, "oracle": oracle}
    return Problem(call + tail, (array,), **made, seed=draw(seeds))


def _box(x, size):
    """Sum size x size windows around every pixel."""
    reach = size // 2
    padded = np.pad(x, [(0, 0), (0, 0), (reach, reach), (reach, reach)])
    h, w = x.shape[2:]
    return sum(padded[..., i : i + h, j : j + w] for i in range(size) for j in range(size))


@st.composite
def normalization_within(draw):
    """A response normalisation within each channel."""
    shape = (draw(st.integers(0, 2)), *(draw(sides) for _ in range(3)))
    size, alpha, k = draw(st.sampled_from((1, 3, 5, 7))), 0.5, draw(st.sampled_from((0.5, 1.0)))
    beta = draw(st.sampled_from((0.0, 0.5, 0.75, 1.0, 2.0)))
    array = draw(arrays(shape, draw(st.sampled_from(DTYPES)), ("ordinary", "zeros", "tied")))

    def errors(x, g):
        scale = k + alpha / size**2 * _box(x**2, size)
        cross = _box(np.abs(g * x) * scale ** (-beta - 1), size)
        dx = np.abs(g) * scale**-beta + 2 * alpha * beta / size**2 * np.abs(x) * cross
        relative = 8 + 2 * (1 + beta) * (size**2 + 4)
        return relative * np.abs(x) * scale**-beta, [relative * dx]

    def loops(x, g):
        y = oracles.within_channel_response_norm(x, size, alpha, beta, k)
        return y, [oracles.within_channel_response_norm_input_grad(g, x, size, alpha, beta, k)]

    oracle = loops if np.prod(shape) < 100 else None
    call = f"F.within_channel_response_norm(x0, {size}, {alpha}, {beta}, {k})"
    made = {"torch": "", "errors": errors, "oracle": oracle}
    return Problem(call, (array,), **made, seed=draw(seeds))


@st.composite
def dropout(draw):
    """A dropout, of which the seed is fixed."""
    p = draw(st.sampled_from((0.0, 1e-9, 0.25, 0.5, 0.999, 1.0)))
    array = draw(arrays(draw(shapes()), draw(st.sampled_from(DTYPES))))
    return Problem(f"F.dropout(x0, {p}) * 1", (array,), 4, torch="", seed=draw(seeds))


@st.composite
def fused(draw):
    """Layers in one pass, where rounding chooses no other maximum and turns no sign."""
    dtype = draw(st.sampled_from(DTYPES))
    n, h, w = draw(st.integers(0, 2)), draw(st.integers(3, 9)), draw(st.integers(3, 9))
    magnitudes = ("tied",) if dtype == "float32" else ("ordinary",)
    c, k, groups = 2 * draw(sides), 2 * draw(sides), draw(st.integers(1, 2))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    some = ((n, c, h, w), (k, c // groups, 3, 3), (k,))
    # Without columns that are equal, between whose maxima rounding would choose.
    made = tuple(draw(arrays(x, dtype, magnitudes, without="broadcast")) for x in some)
    call = f"F.conv2d_relu(x0, x1, x2, {stride}, {padding}, 1, {groups})"
    sizes = call.replace("_relu", "")
    if dtype == "float64" and draw(st.booleans()):
        norm, window = "(5, 0.5, 0.75, 2.0, 1)", f"(2, {stride}, 1, {draw(st.booleans())})"
        options = f"({stride}, {padding}, 1, {groups}), {norm}, {window}"
        call = f"F.conv2d_relu_norm_max_pool2d(x0, x1, x2, {options})"

        def errors(x, weight, bias, g):  # of sums of at most so many numbers of ordinary size
            largest = 1e4 * (1 + max(np.abs(a).max(initial=0) for a in (x, weight, bias, g))) ** 4
            return largest, [largest] * 3

        return Problem(call, made, torch="", errors=errors, seed=draw(seeds))
    terms = max(c * 9, k * 9, n * h * w * 9)
    return Problem(call, made, terms, torch="", sizes=sizes, seed=draw(seeds))


@st.composite
def wide_convolution(draw):
    """A convolution of many channels, which takes Winograd's way: errors are those of images."""
    dtype, r = draw(st.sampled_from(DTYPES)), draw(st.sampled_from((3, 5, 11)))
    n, h, w = draw(st.integers(1, 4)), draw(st.integers(r, 16)), draw(st.integers(r, 16))
    c, k, groups = 16 * draw(st.integers(1, 2)), 16 * draw(st.integers(1, 2)), 1
    stride = draw(st.sampled_from((1, 4 if r == 11 else 1)))
    magnitudes = ("ordinary", "zeros", "tied", "huge", "tiny")
    some = ((n, c, h, w), (k, c // groups, r, r), (k,))
    made = [draw(arrays(x, dtype, m)) for x, m in zip(some, (magnitudes,) * 3, strict=True)]

    def errors(x, weight, bias, g):
        of_x, of_g = (np.abs(a).max(axis=(1, 2, 3), keepdims=True, initial=0) for a in (x, g))
        of_kernels = np.abs(weight).sum((1, 2, 3))[:, None, None]
        of_channels = np.abs(weight).sum((0, 2, 3))[:, None, None]
        y = 64 * of_x * of_kernels + 4 * np.abs(bias)[:, None, None]
        positions = g.shape[2] * g.shape[3]
        dw = np.full(weight.shape, 16 * positions * (of_x * of_g).sum())
        db = len(x) * positions * np.abs(g).sum((0, 2, 3))
        return y * np.ones_like(g), [64 * of_g * of_channels * np.ones_like(x), dw, db]

    call = f"F.conv2d(x0, x1, x2, {stride}, {draw(st.integers(0, 2))})"
    return Problem(call, tuple(made), errors=errors, seed=draw(seeds))


def _log_softmax(x, axis):
    shifted = x - x.max(axis, keepdims=True, initial=-np.inf)
    y = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    return y, 2 * np.abs(shifted) + np.abs(y) + x.shape[axis] + 6


@st.composite
def softmax(draw):
    """Softmax or its logarithm along any axis."""
    shape = draw(shapes(least=1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    name = draw(st.sampled_from(("softmax", "log_softmax")))
    array = draw(arrays(shape, draw(st.sampled_from(DTYPES)), ("ordinary", "zeros", "tied")))

    def errors(x, g):
        logs, error = _log_softmax(x, axis)
        p, size = np.exp(logs), np.abs(g)
        if name == "softmax":
            relative = 2 * error
            sums = (size * p).sum(axis, keepdims=True)
            return relative * p, [4 * relative.max(initial=0) * p * (size + sums)]
        return error, [4 * (error.max(initial=0) * p * size.sum(axis, keepdims=True) + size)]

    return Problem(f"F.{name}(x0, {axis})", (array,), errors=errors, seed=draw(seeds))


@st.composite
def cross_entropy(draw):
    """Cross-entropy with every option."""
    classes, dtype = draw(sides), draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(classes,), (0, classes), (3, classes), (2, classes, 3)]))
    axis = min(1, len(shape) - 1)
    smoothing = draw(st.sampled_from((0.0, 0.1, 1.0)))
    reduction = draw(st.sampled_from(("sum", "none") if 0 in shape else ("mean", "sum", "none")))
    soft, weighted = draw(st.booleans()), draw(st.booleans())
    options = f"reduction={reduction!r}, label_smoothing={smoothing}"
    logits = draw(arrays(shape, dtype, ("ordinary", "zeros", "tied")))
    if soft:
        some = [logits, draw(arrays(shape, dtype, ("positive",)))]
        some += [draw(arrays((classes,), dtype, ("positive",)))] if weighted else []
        call = f"F.cross_entropy({', '.join(f'x{i}' for i in range(len(some)))}, {options})"
        torch = None
    else:
        rest = shape[:axis] + shape[axis + 1 :]
        target = np.random.default_rng(draw(seeds)).integers(0, classes, rest).tolist()
        ignored = draw(st.integers(0, classes - 1)) if classes > 1 and reduction != "mean" else -100
        some, options = [logits], f"{options}, ignore_index={ignored}"
        text = f"{target}, dtype=TYPE"
        call = f"F.cross_entropy(x0, ta.tensor({text}), {options})"
        call, torch = call.replace("TYPE", "'int64'"), call.replace("TYPE", "ta.int64")

    def errors(x, *others):
        (*more, g) = others
        logs, error = _log_softmax(x, axis)
        q = more[0] if soft else 1.0
        w = more[1].reshape(-1, *[1] * (x.ndim - axis - 1)) if len(more) > 1 else 1.0
        mass = np.abs(w * q) + np.abs(w) * np.ones_like(x)  # an upper bound of the target's
        g = np.abs(np.expand_dims(g, axis) if reduction == "none" else g)
        count = x.size / classes if reduction == "mean" else 1
        terms = x.size + 8
        losses = (mass * (error + terms * np.abs(logs))).sum(axis)
        y = losses if reduction == "none" else losses.sum() / count
        top = error.max(initial=0) + terms
        dx = 4 * top * g * mass.sum(axis, keepdims=True) / count * np.ones_like(x)
        dq = 4 * g * w * (error + 4 * np.abs(logs)) / count * np.ones_like(x)
        others = tuple(i for i in range(x.ndim) if i != axis)
        dw = (g * (q + 1) * (error + terms * np.abs(logs)) / count).sum(others)
        return y, [dx, dq, dw][: 1 + len(more)]

    return Problem(call, tuple(some), torch=torch, errors=errors, seed=draw(seeds))


FAMILIES = {
    family.__name__: family
    for family in (
        *(elementwise, unary, power, reduction, movement, product),
        *(convolution, wide_convolution, fused, dropout, pooling),
        *(normalization, normalization_within, softmax, cross_entropy),
    )
}
