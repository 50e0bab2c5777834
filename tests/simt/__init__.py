"""CUDA kernels executed on the CPU: a shim that runs them, and a stand-in for CuPy on top."""
