"""tinyalex: AlexNet from scratch, on NumPy, to be read, trusted and used.

>>> import tinyalex as ta
>>> x = ta.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> (x * x).sum().backward()
>>> x.grad
array([2., 4., 6.], dtype=float32)
"""

# isort: off
from tinyalex import ctrl_c as ctrl_c  # first: the rest takes a moment to import

# isort: on
from tinyalex import functional as functional
from tinyalex import models, nn, optim, random, schedule, threads
from tinyalex.autograd import Function
from tinyalex.backends import current_backend, use_backend
from tinyalex.backends.devices import DeviceError
from tinyalex.backends.memory import empty_cache
from tinyalex.backends.precision import (
    get_float32_matmul_precision,
    set_float32_matmul_precision,
)
from tinyalex.files import FileError, load, save
from tinyalex.grad_mode import is_grad_enabled, no_grad
from tinyalex.gradcheck import GradcheckError, gradcheck
from tinyalex.graph import Drawing, draw_graph
from tinyalex.interop import Weights, export_onnx, load_weights
from tinyalex.nn.fusion import use_fusion
from tinyalex.random import manual_seed
from tinyalex.summary import summary
from tinyalex.tensor import (
    Tensor,
    arange,
    cat,
    full,
    ones,
    rand,
    randn,
    stack,
    tensor,
    where,
    zeros,
)
from tinyalex.version import __version__

__all__ = [
    "DeviceError",
    "Drawing",
    "FileError",
    "Function",
    "GradcheckError",
    "Tensor",
    "Weights",
    "__version__",
    "arange",
    "cat",
    "current_backend",
    "draw_graph",
    "empty_cache",
    "export_onnx",
    "full",
    "functional",
    "get_float32_matmul_precision",
    "gradcheck",
    "is_grad_enabled",
    "load",
    "load_weights",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "ones",
    "optim",
    "rand",
    "randn",
    "random",
    "save",
    "schedule",
    "set_float32_matmul_precision",
    "stack",
    "summary",
    "tensor",
    "threads",
    "use_backend",
    "use_fusion",
    "where",
    "zeros",
]
