"""Weights of other people's AlexNets: in from every format, out to others."""

from tinyalex.interop.onnx_export import export_onnx
from tinyalex.interop.reading import load_weights
from tinyalex.interop.weights import Weights

__all__ = ["Weights", "export_onnx", "load_weights"]
