"""The report and the PyTorch twins, for the benchmarks of both devices."""
