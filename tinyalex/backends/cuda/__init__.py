"""The GPU backend: the project's own CUDA kernels on CuPy's arrays.

The kernels are those of `KERNELS`, `FUSED_KERNELS` and `GPU_KERNELS` in `tinyalex.backends`. What
each computes is written out most plainly in `tinyalex.backends.reference`, and how, in
``kernels/*.cu``.
"""

from tinyalex.backends.cuda.batch import prepare
from tinyalex.backends.cuda.conv.choose import (
    conv2d,
    conv2d_bias_grad,
    conv2d_input_grad,
    conv2d_relu,
    conv2d_relu_grads,
    conv2d_weight_grad,
)
from tinyalex.backends.cuda.elementwise import (
    all_finite,
    all_finite_many,
    dropout,
    relu,
    relu_input_grad,
)
from tinyalex.backends.cuda.linear import linear, linear_input_grad, linear_relu, linear_weight_grad
from tinyalex.backends.cuda.loss import cross_entropy, cross_entropy_input_grad
from tinyalex.backends.cuda.lrn import local_response_norm, local_response_norm_input_grad
from tinyalex.backends.cuda.lrn_pool import (
    norm_max_pool2d,
    norm_max_pool2d_input_grad,
    norm_max_pool2d_relu_bias_grad,
)
from tinyalex.backends.cuda.operands import operands
from tinyalex.backends.cuda.pool import max_pool2d, max_pool2d_input_grad
from tinyalex.backends.cuda.sgd import sgd_step, sgd_steps
from tinyalex.backends.cuda.within_norm import (
    within_channel_response_norm,
    within_channel_response_norm_input_grad,
)

__all__ = [
    "all_finite",
    "all_finite_many",
    "conv2d",
    "conv2d_bias_grad",
    "conv2d_input_grad",
    "conv2d_relu",
    "conv2d_relu_grads",
    "conv2d_weight_grad",
    "cross_entropy",
    "cross_entropy_input_grad",
    "dropout",
    "linear",
    "linear_input_grad",
    "linear_relu",
    "linear_weight_grad",
    "local_response_norm",
    "local_response_norm_input_grad",
    "max_pool2d",
    "max_pool2d_input_grad",
    "norm_max_pool2d",
    "norm_max_pool2d_input_grad",
    "norm_max_pool2d_relu_bias_grad",
    "operands",
    "prepare",
    "relu",
    "relu_input_grad",
    "sgd_step",
    "sgd_steps",
    "within_channel_response_norm",
    "within_channel_response_norm_input_grad",
]
