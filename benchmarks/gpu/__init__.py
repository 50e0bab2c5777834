"""The benchmark of whole nets, layers and kernels on a GPU."""
