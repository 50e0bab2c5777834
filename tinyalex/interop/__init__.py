"""Weights of other people's AlexNets: in from every format, out to others."""

from tinyalex.interop.reading import load_weights
from tinyalex.interop.weights import Weights

__all__ = ["Weights", "load_weights"]
