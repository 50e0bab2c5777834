"""Convolutions of the GPU backend: `choose` picks the version for a shape."""
