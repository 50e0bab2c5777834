"""The fast backend: Numba and BLAS, channels last in memory.

It computes in float32 and float64. The kernels are those of `tinyalex.backends.KERNELS`; what each
computes is written out most plainly in `tinyalex.backends.reference`.
"""

from tinyalex.backends.cpu.compiling import announce
from tinyalex.backends.cpu.conv.bias_grad import conv2d_bias_grad
from tinyalex.backends.cpu.conv.choose import (
    conv2d,
    conv2d_input_grad,
    conv2d_relu,
    conv2d_relu_grads,
    conv2d_weight_grad,
)
from tinyalex.backends.cpu.elementwise import all_finite, dropout, relu, relu_input_grad
from tinyalex.backends.cpu.linear import linear, linear_input_grad, linear_weight_grad
from tinyalex.backends.cpu.lrn import local_response_norm, local_response_norm_input_grad
from tinyalex.backends.cpu.lrn_pool import norm_max_pool2d, norm_max_pool2d_input_grad
from tinyalex.backends.cpu.pool import max_pool2d, max_pool2d_input_grad
from tinyalex.backends.cpu.runtime import MOST_THREADS, set_num_threads
from tinyalex.backends.cpu.sgd import sgd_step
from tinyalex.backends.cpu.shard_kernels import SHARD_KERNELS
from tinyalex.backends.cpu.threading_layer import choose
from tinyalex.backends.cpu.within_norm import (
    within_channel_response_norm,
    within_channel_response_norm_input_grad,
)
from tinyalex.threads import follow

__all__ = [
    "SHARD_KERNELS",
    "all_finite",
    "conv2d",
    "conv2d_bias_grad",
    "conv2d_input_grad",
    "conv2d_relu",
    "conv2d_relu_grads",
    "conv2d_weight_grad",
    "dropout",
    "linear",
    "linear_input_grad",
    "linear_weight_grad",
    "local_response_norm",
    "local_response_norm_input_grad",
    "max_pool2d",
    "max_pool2d_input_grad",
    "norm_max_pool2d",
    "norm_max_pool2d_input_grad",
    "relu",
    "relu_input_grad",
    "set_num_threads",
    "sgd_step",
    "within_channel_response_norm",
    "within_channel_response_norm_input_grad",
]

announce()
follow(set_num_threads, MOST_THREADS, choose())
