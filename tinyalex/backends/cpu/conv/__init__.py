"""Convolutions of the CPU backend: `choose` picks the algorithm for a shape."""
