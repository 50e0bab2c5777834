"""CUDA kernels on the CPU: a shim, and a stand-in for CuPy."""
