"""The GPU backend: the project's own CUDA kernels on CuPy's arrays.

The kernels are those of `tinyalex.backends.KERNELS`; what each computes is written out most plainly
in `tinyalex.backends.reference`, and how, in ``kernels/*.cu``.
"""

from tinyalex.backends.cuda.batch import prepare
from tinyalex.backends.cuda.elementwise import (
    all_finite,
    all_finite_many,
    dropout,
    relu,
    relu_input_grad,
)
from tinyalex.backends.cuda.loss import cross_entropy, cross_entropy_input_grad
from tinyalex.backends.cuda.sgd import sgd_step, sgd_steps

__all__ = [
    "all_finite",
    "all_finite_many",
    "cross_entropy",
    "cross_entropy_input_grad",
    "dropout",
    "prepare",
    "relu",
    "relu_input_grad",
    "sgd_step",
    "sgd_steps",
]
