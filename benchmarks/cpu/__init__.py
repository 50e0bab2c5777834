"""The benchmark of whole nets and kernels on the CPU."""
