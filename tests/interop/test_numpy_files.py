"""Weights in NumPy's files: caffe-tensorflow's pickled dict, archives, refusals, damaged files."""

import io
import os
import pickle

import numpy as np
import pytest
from damage import peak, spoilt

from tinyalex.files import FileError
from tinyalex.interop.means import IMAGENET_MEAN


def turned(arrays):
    """Return {layer: (weights, biases)} as caffe-tensorflow lays them out, in BGR."""
    layers = {}
    side = {len(arrays["conv5.weight"]) * n * n: n for n in range(1, 9)}
    for name, array in arrays.items():
        layer, _, part = name.partition(".")
        if part == "bias":
            layers[layer] += (array,)
        elif array.ndim == 4:
            array = array[:, ::-1] if layer == "conv1" else array
            layers[layer] = (np.ascontiguousarray(array.transpose(2, 3, 1, 0)),)
        elif layer == "fc6":
            n = side[array.shape[1]]
            pixels = array.reshape(len(array), -1, n, n).transpose(2, 3, 1, 0)
            layers[layer] = (pixels.reshape(-1, len(array)),)
        else:
            layers[layer] = (array.T,)
    return layers


def npy(value, python2=False, protocol=2):
    """Return a .npy of one object; Python 2's pickles have bytes for texts."""
    file = io.BytesIO()
    array = np.array(None, object)
    array[()] = value
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    raw = pickle.dumps(array, protocol)
    if python2:
        raw = raw.replace(b"numpy._core", b"numpy.core")
    return file.getvalue() + raw


def npz(arrays, save=np.savez):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def lists(layers):
    return {name: list(pair) for name, pair in layers.items()}


def dicts(layers):
    return {
        name: dict(zip(("weights", "biases"), pair, strict=True)) for name, pair in layers.items()
    }


def flat(pattern):
    def named(layers):
        return {
            pattern.format(name, part): array
            for name, pair in layers.items()
            for part, array in zip("Wb", pair, strict=True)
        }

    return named


WAYS = {
    "lists": lambda layers: npy(lists(layers)),
    "dicts": lambda layers: npy(dicts(layers)),
    "Python 2": lambda layers: npy(lists(layers), python2=True),
    "protocol 4": lambda layers: npy(lists(layers), protocol=4),
    "doubles": lambda layers: npy({k: [a.astype("f8") for a in v] for k, v in layers.items()}),
    "npz": lambda layers: npz(flat("{}_{}")(layers)),
    "npz with dots": lambda layers: npz(flat("{}.{}")(layers)),
}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS.keys())
def test_every_way_of_writing_has_the_same_weights(load, thin, write):
    name, _, arrays = thin
    weights = load(write(turned(arrays)), variant=None if name == "caffe" else name)
    assert weights.variant == name
    for key, array in arrays.items():
        assert np.array_equal(weights.arrays[key], array), key
        assert weights.arrays[key].flags.c_contiguous
    assert (weights.mean, weights.std, weights.channels) == (IMAGENET_MEAN, (1, 1, 1), "BGR")
    assert (weights.resize, weights.shorter_side, weights.input_size) == ("warp", 256, 227)
    assert any("CaffeNet" in note for note in weights.notes) == (name == "caffe")


class Evil:
    def __reduce__(self):
        return os.system, ("echo run",)


def changed(**changes):
    """Return a writer of a file in which functions have changed layers."""

    def write(layers):
        content = lists(layers)
        content.update({name: change(*content[name]) for name, change in changes.items()})
        return npy({name: pair for name, pair in content.items() if pair is not None})

    return write


def swapped(layers):
    return npy(lists(layers | {"conv4": layers["conv5"], "conv5": layers["conv4"]}))


REFUSALS = {
    "code": (
        lambda layers: npy({"conv1": [Evil(), 1]}),
        "for the Python object '(posix|nt).system'",
    ),
    "one array": (lambda layers: plain(layers["conv1"][0]), "a dict of layers is expected"),
    "a list": (lambda layers: npy([1, 2]), "no dict of layers"),
    "more layers": (lambda layers: npy(lists(layers) | {"fc9": layers["fc8"]}), "'fc9.weights'"),
    "missing": (changed(fc7=lambda w, b: None), "fc7.weight, fc7.bias missing"),
    "no bias": (changed(conv2=lambda w, b: [w]), "layer 'conv2' is neither"),
    "numbers": (changed(fc8=lambda w, b: [1, 2]), "'weights' of layer 'fc8' is no array"),
    "integers": (
        changed(fc8=lambda w, b: [w.astype(int), b]),
        "fc8.weight must have floating-point",
    ),
    "flat": (
        lambda layers: npy({"fc6": layers["fc6"], "conv5": [np.zeros(4), np.zeros(4)]}),
        r"conv5.weight of shape \(4,\) does not lie",
    ),
    "K, C, H, W": (
        changed(conv1=lambda w, b: [w.transpose(3, 2, 0, 1), b]),
        r"conv1.weight of shape \(6, 3, 11, 11\) does not lie as H, W, C, K",
    ),
    "out, in": (changed(fc8=lambda w, b: [w.T, b]), "fc8.weight has shape"),
    "swapped": (swapped, "conv4.weight has shape"),
    "not finite": (changed(fc7=lambda w, b: [w, b * np.nan]), "fc7.bias has values that are not"),
    "compressed": (
        lambda layers: npz(flat("{}_{}")(layers), np.savez_compressed),
        "compressed",
    ),
    "twice": (
        lambda layers: npz(flat("{}_{}")(layers) | flat("{}.{}")(layers)),
        "besides an AlexNet's",
    ),
    "objects": (lambda _: npz({"conv1_W": np.array([{}])}), "array of object has no numbers"),
}


def plain(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(("write", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_no_network_is_refused(load, thin, capfd, write, message):
    with pytest.raises(FileError, match=message) as failure:
        load(write(turned(thin[2])), variant=thin[0])
    assert "\n" not in str(failure.value)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("way", ["lists", "npz"])
def test_spoilt_files_are_refused_in_little_memory(load, thin, way):
    """`TINYALEX_SPOILT=10000` tries as many."""
    raw = WAYS[way](turned(thin[2]))
    refused = 0
    for number in range(int(os.environ.get("TINYALEX_SPOILT", 50))):
        result, most = peak(load, spoilt(raw, number))
        assert most < 8 * len(raw) + 2**22
        refused += isinstance(result, FileError)
    assert refused > number / 4
