"""PyTorch's calls for single passes of single layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as T

from gpu.contestant_torch import DEVICE, LAYOUTS
from gpu.layer_rows import Row
from tinyalex.backends.geometry import ConvOptions, NormOptions, PoolOptions, SGDOptions

Call = Callable[[], Any]
aten = torch.ops.aten
KINDS = {"C": torch.bfloat16, "float64": torch.float64}


def calls(row: Row, precision: str) -> dict[str, Callable[[], Call]]:
    """Return builders of the same pass in PyTorch, by name of layout.

    Class C has its numbers in bfloat16. What is more than one operation is compiled as well.
    """
    images = any(getattr(a, "ndim", 0) == 4 for a in row.arguments)
    layouts = list(LAYOUTS) if images else ["NCHW"]
    several = row.kernel.startswith("norm_max_pool2d")
    found: dict[str, Callable[[], Call]] = {}
    for layout in layouts:
        for compiled in (False, True) if several else (False,):
            name = f"torch {layout}{' compile' if compiled else ''}"

            def build(layout: str = layout, compiled: bool = compiled) -> Call:
                return _call(row, _Placer(layout, precision), compiled)

            found[name] = build
    return found


def expected(row: Row) -> torch.Tensor:
    """Return the result in float64, on the GPU."""
    return _call(row, _Placer("NCHW", "float64"), False)()


def distance(got: Any, want: torch.Tensor) -> float:
    """Return `cases.distance` of a CuPy array or tensor, on the GPU."""
    got = got if isinstance(got, torch.Tensor) else torch.from_dlpack(got)
    got = got.detach().double()
    error = float((got - want).norm() / want.norm()) if got.shape == want.shape else math.nan
    return error if math.isfinite(error) else math.inf


class _Placer:
    """Turns arrays into tensors of one layout and format."""

    def __init__(self, layout: str, precision: str) -> None:
        self.layout = LAYOUTS[layout]
        self.kind = KINDS.get(precision, torch.float32)

    def __call__(self, array: Any) -> torch.Tensor:
        tensor = torch.from_dlpack(array).to(DEVICE, self.kind)
        return tensor.contiguous(memory_format=self.layout) if tensor.ndim == 4 else tensor

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, device=DEVICE, dtype=self.kind, memory_format=self.layout)


def _call(row: Row, place: _Placer, compiled: bool) -> Call:
    a = row.arguments
    match row.kernel:
        case "conv2d":
            x, weight, bias = map(place, a[:3])
            stride, ((top, _), (left, _)), dilation, groups = a[3]
            return lambda: T.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
        case "conv2d_input_grad":
            return _convolution_backward(place, a[0], a[1], a[2], a[3], 0)
        case "conv2d_weight_grad":
            return _convolution_backward(place, a[0], a[2], a[1], a[3], 1)
        case "linear":
            x, weight, bias = map(place, a)
            return lambda: T.linear(x, weight, bias)
        case "linear_input_grad":
            grad, weight = map(place, a)
            return lambda: torch.mm(grad, weight)
        case "linear_weight_grad":
            grad, x = map(place, a)
            return lambda: torch.mm(grad.t(), x)
        case "relu":
            x = place(a[0])
            return lambda: torch.relu(x)
        case "relu_input_grad":
            grad, y = map(place, a)
            return lambda: aten.threshold_backward(grad, y, 0)
        case "max_pool2d":
            x, window = place(a[0]), a[1]
            return lambda: T.max_pool2d(x, *window)
        case "norm_max_pool2d":
            x, pass_on = place(a[0]), _norm_and_pool(a[1], a[2])
            function = torch.compile(pass_on) if compiled else pass_on
            return lambda: function(x)
        case "max_pool2d_input_grad":
            window = a[3]
            return _by_autograd(place, a[0], row.pooled, lambda x: T.max_pool2d(x, *window))
        case "norm_max_pool2d_input_grad":
            pass_on = _norm_and_pool(a[3], a[4])
            function = torch.compile(pass_on) if compiled else pass_on
            return _by_autograd(place, a[0], row.pooled, function)
        case "sgd_step":
            return _sgd(place, *a)
    raise KeyError(f"no call of PyTorch for {row.kernel}")


def _convolution_backward(
    place: _Placer, grad: Any, weight: Any, x: Any, options: ConvOptions, which: int
) -> Call:
    """Return gradient number ``which``, of whose array only the shape is given."""
    stride, ((top, _), (left, _)), dilation, groups = options
    grad = place(grad)
    x, weight = (place.empty(t) if isinstance(t, tuple) else place(t) for t in (x, weight))
    mask = [which == 0, which == 1, False]
    rest = (stride, (top, left), dilation, False, (0, 0), groups, mask)
    return lambda: aten.convolution_backward(grad, x, weight, None, *rest)[which]


def _norm_and_pool(
    norm: NormOptions, window: PoolOptions
) -> Callable[[torch.Tensor], torch.Tensor]:
    size, alpha, beta, k, _ = norm

    def pass_on(x: torch.Tensor) -> torch.Tensor:
        return T.max_pool2d(T.local_response_norm(x, size, alpha, beta, k), *window)

    return pass_on


def _by_autograd(place: _Placer, grad: Any, x: Any, function: Callable[..., Any]) -> Call:
    # Or compiled code would reuse for its results what the next call needs again.
    torch._functorch.config.donated_buffer = False
    x = place(x).requires_grad_()
    y, grad = function(x), place(grad)
    return lambda: torch.autograd.grad(y, x, grad, retain_graph=True)[0]


def _sgd(place: _Placer, weight: Any, grad: Any, velocity: Any, options: SGDOptions) -> Call:
    """Return the fused update of one parameter, giving the velocity."""
    # bfloat16 is for products only.
    place.kind = torch.promote_types(place.kind, torch.float32)
    parameter, gradient, buffer = (place(a).clone() for a in (weight, grad, velocity))
    parameter = torch.nn.Parameter(parameter)
    parameter.grad = gradient
    lr, momentum, dampening, decay, *_ = options
    optimizer = torch.optim.SGD([parameter], lr, momentum, dampening, decay, fused=True)
    optimizer.state[parameter]["momentum_buffer"] = buffer

    def step() -> Any:
        optimizer.step()
        return buffer

    return step
