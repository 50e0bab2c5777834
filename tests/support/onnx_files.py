"""Thin networks, and ONNX files of them."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime

import tinyalex as ta
from tinyalex import nn
from tinyalex.interop import Weights
from tinyalex.interop.weights import array_names
from tinyalex.models import VARIANTS, alexnet

THIN = 16


def thin_variant(name, input_size=None, **changes):
    variant = replace(VARIANTS[name], **changes)
    return variant.thinner(THIN, input_size or variant.input_size)


def thin(name, input_size=None, **changes):
    """Return a thin network with weights of a size that all layers see."""
    model = alexnet(thin_variant(name, input_size, **changes), num_classes=7)
    with ta.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0, 0.05 if parameter.ndim > 1 else 0.2)
    return model.eval()


def know_thin_variants(monkeypatch, *names):
    """Put thin variants into the table, as a contributor puts a row."""
    for name in names or list(VARIANTS):
        variant = thin_variant(name)
        monkeypatch.setitem(VARIANTS, variant.name, variant)


def images(model, count, size=None, scale=1.0):
    size = size or model.variant.input_size
    shape = (count, model.variant.in_channels, size, size)
    return np.random.default_rng(count).normal(0, scale, shape).astype(np.float32)


def logits(model, x):
    with ta.no_grad():
        return model.eval()(ta.Tensor(x)).numpy()


def session(model):
    """Return onnxruntime's session for a path or a model."""
    content = model if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # weights among the inputs, as IR 3 has them, are no news
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(model, x, output=None):
    runtime = session(model)
    (name,) = (value.name for value in runtime.get_inputs())
    return runtime.run(output and [output], {name: x})[0]


def agree(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def equal(ours, theirs):
    """Hold the arrays of two `Weights` to the same bits."""
    assert list(ours.arrays) == list(theirs.arrays)
    for name, array in ours.arrays.items():
        assert array.tobytes() == theirs.arrays[name].tobytes(), name
        assert array.dtype == np.float32


def weights_of(model, **facts):
    names = array_names(model.variant)
    arrays = dict(zip(names, model.state_dict().values(), strict=True))
    return Weights(arrays, model.variant.name, "test", **facts)


def same_logits(path, tolerance=2e-6, model=None, scale=1.0):
    """Read a file, hold its logits to onnxruntime's, and return its weights."""
    if model is not None:
        onnx.save(model, path)
    weights = ta.load_weights(path)
    network = weights.network()
    x = images(network, 2, weights.input_size, scale)
    agree(logits(network, x), run(path, x), tolerance)
    return weights
