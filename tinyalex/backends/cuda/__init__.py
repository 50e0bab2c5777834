"""The GPU backend: the project's own CUDA kernels on CuPy's arrays.

The kernels are those of `tinyalex.backends.KERNELS`; what each computes is written out most plainly
in `tinyalex.backends.reference`, and how, in ``kernels/*.cu``.
"""
