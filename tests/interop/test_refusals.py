"""Weights that are damaged or another network's: refused, or loaded right."""

import itertools
import re
from dataclasses import replace

import caffemodels
import numpy as np
import pytest
import torch_twins
from commands import assert_refused, run
from safetensors.numpy import save

import tinyalex as ta
from tinyalex.models import VARIANTS, alexnet
from tinyalex.models.alexnet import parameter_shapes


@pytest.fixture(autouse=True)
def thin_variants(monkeypatch):
    """Let the variants have a sixteenth of their filters: quick to write, all shapes different."""
    for name, variant in list(VARIANTS.items()):
        thin = variant.thinner(16, variant.input_size)
        monkeypatch.setitem(VARIANTS, name, replace(thin, name=name))


def state_of(name="torchvision", num_classes=7):
    """Return the state_dict of a variant, all arrays and axes different."""
    rng = np.random.default_rng(len(name))
    model = alexnet(name, num_classes)
    return {
        key: rng.standard_normal(array.shape).astype(np.float32)
        for key, array in model.state_dict().items()
    }


def tensors(state):
    return {key: torch_twins.Tensor(array) for key, array in state.items()}


CONTAINERS = {
    "safetensors": lambda state: save({k: np.ascontiguousarray(a) for k, a in state.items()}),
    "zip": lambda state: torch_twins.zip_file(tensors(state)),
    "stream": lambda state: torch_twins.stream_file(tensors(state)),
    "tar": lambda state: torch_twins.tar_file(tensors(state)),
}
KEYS = list(parameter_shapes(VARIANTS["torchvision"], 7))
LAYERS = {
    key: f"{layer}.{key.rpartition('.')[2]}"
    for key, layer in zip(
        KEYS,
        np.repeat([f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"], 2).tolist(),
        strict=True,
    )
}


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_that_is_cut_short_should_be_copied_again(container, kept, tmp_path):
    content = CONTAINERS[container](state_of())
    path = tmp_path / "cut.pth"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ta.FileError, match=r"; copy or download it again$"):
        ta.load_weights(path)


def test_a_whole_file_need_not_be_copied_again(tmp_path):
    """The name of an array is no sign of damage."""
    more = {"it is damaged, a damaged one, is cut short": np.ones(3, np.float32)}
    (tmp_path / "net").write_bytes(CONTAINERS["safetensors"]({**state_of(), **more}))
    with pytest.raises(ta.FileError, match="more arrays than an AlexNet: it is damaged") as failure:
        ta.load_weights(tmp_path / "net")
    assert "again" not in str(failure.value)


def changed(key, change):
    """Return a case that changes one array."""
    return lambda state: {**state, key: change(state[key])}


def everywhere(change):
    """Return a case that changes every array."""
    return lambda state: {key: change(array) for key, array in state.items()}


def renamed(change):
    """Return a case that changes every name."""
    return lambda state: {change(key): array for key, array in state.items()}


def swapped(one, other):
    """Return a case that swaps two layers, weights and biases."""
    names = {f"{a}.{part}": f"{b}.{part}" for a, b in ((one, other), (other, one))
             for part in ("weight", "bias")}  # fmt: skip
    return lambda state: {names.get(key, key): array for key, array in state.items()}


def put(value):
    """Return a change of one element."""

    def change(array):
        array = array.copy()
        array.flat[array.size // 2] = value
        return array

    return change


def of_axes(*axes):
    """Return a change of the order of axes, where there are as many."""
    return lambda array: array.transpose(axes) if array.ndim == len(axes) else array


FC6, FC7, FC8 = ("classifier.1", "classifier.4", "classifier.6")
SHAPE = r"{} has shape \(.*\), the variant 'torchvision' expects \(.*\); no variant fits"
REFUSED = {
    **{
        f"without {key}": (
            lambda state, key=key: {k: a for k, a in state.items() if k != key},
            rf"{re.escape(LAYERS[key])} \({re.escape(key)}\) missing",
        )
        for key in KEYS
    },
    **{
        f"NaN in {key}": (changed(key, put(np.nan)), rf"{LAYERS[key]} .*not finite") for key in KEYS
    },
    **{
        f"one more in {key}": (
            changed(key, lambda array: np.concatenate([array, array[:1]])),
            SHAPE.format(LAYERS[key] if key != "classifier.6.bias" else "fc8.weight"),
        )
        for key in KEYS
    },
    "infinity": (changed("features.6.weight", put(-np.inf)), "conv3.weight .*not finite"),
    "float64 beyond float32": (
        changed("features.6.weight", lambda a: put(1e300)(a.astype(np.float64))),
        "conv3.weight .*not finite",
    ),
    "HWIO": (everywhere(of_axes(2, 3, 1, 0)), SHAPE.format("conv1.weight")),
    "IOHW": (everywhere(of_axes(1, 0, 2, 3)), SHAPE.format("conv1.weight")),
    "OHWI": (everywhere(of_axes(0, 2, 3, 1)), SHAPE.format("conv1.weight")),
    "linear layers in, out": (everywhere(of_axes(1, 0)), SHAPE.format("fc6.weight")),
    "one convolution HWIO": (
        changed("features.8.weight", of_axes(2, 3, 1, 0)),
        SHAPE.format("conv4.weight"),
    ),
    "fc6 and fc7 swapped": (swapped(FC6, FC7), SHAPE.format("fc6.weight")),
    "fc6 and fc8 swapped": (swapped(FC6, FC8), SHAPE.format("fc6.weight")),
    "fc7 and fc8 swapped": (swapped(FC7, FC8), "fc7.weight has shape"),
    "conv3 and conv4 swapped": (swapped("features.6", "features.8"), SHAPE.format("conv3.weight")),
    "biases as columns": (
        everywhere(lambda array: array[:, None] if array.ndim == 1 else array),
        SHAPE.format("conv1.bias"),
    ),
    "biases as rows": (
        everywhere(lambda array: array[None] if array.ndim == 1 else array),
        "has shape|no variant",
    ),
    "fc6 as a convolution": (
        changed("classifier.1.weight", lambda array: array.reshape(len(array), -1, 6, 6)),
        SHAPE.format("fc6.weight"),
    ),
    "fc6 of 5 x 5 cells": (
        changed("classifier.1.weight", lambda array: array[:, : array.shape[1] * 25 // 36]),
        SHAPE.format("fc6.weight"),
    ),
    "grey": (changed("features.0.weight", lambda a: a[:, :1]), SHAPE.format("conv1.weight")),
    "with alpha": (
        changed("features.0.weight", lambda a: np.concatenate([a, a[:, :1]], axis=1)),
        SHAPE.format("conv1.weight"),
    ),
    "7 x 7 filters": (
        changed("features.0.weight", lambda array: array[..., 2:-2, 2:-2]),
        SHAPE.format("conv1.weight"),
    ),
    "no classes": (
        lambda state: {k: a[:0] if k.startswith(FC8) else a for k, a in state.items()},
        "fc8|class|empty|size|shape",
    ),
    "a scalar": (changed("features.0.bias", lambda array: array[0]), "conv1.bias"),
    "int8": (everywhere(lambda array: (array * 9).astype(np.int8)), "dtype|int8|floating"),
    "int64": (everywhere(lambda array: array.astype(np.int64)), "dtype|int64|floating"),
    "uint8": (everywhere(lambda array: array.astype(np.uint8)), "dtype|uint8|floating"),
    "one of int64": (
        changed("features.3.weight", lambda array: array.astype(np.int64)),
        "conv2.weight.*(dtype|int64|floating)",
    ),
    "a layer more": (
        lambda state: {**state, "features.13.weight": np.ones((4, 4, 3, 3), np.float32)},
        "more arrays than an AlexNet: features.13.weight",
    ),
    "batch normalisation": (
        lambda state: {
            **state,
            **{
                f"features.1.{part}": np.ones(4, np.float32)
                for part in ("weight", "bias", "running_mean", "running_var")
            },
        },
        "more arrays than an AlexNet: .*batch normalisation",
    ),
    "two networks": (
        lambda state: {f"{one}.{key}": a for one in ("a", "b") for key, a in state.items()},
        r"several networks: under a\., b\.",
    ),
    "twice the same layer": (
        lambda state: {**state, "features.0.W": state["features.0.weight"]},
        "two conv1.weight",
    ),
    "VGG": (
        lambda state: {
            f"features.{n}.{part}": np.ones((8, 8, 3, 3)[: 4 if part == "weight" else 1], "f4")
            for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
            for part in ("weight", "bias")
        },
        "missing",
    ),
    "ResNet": (
        lambda state: {
            name: np.ones(shape, np.float32)
            for name, shape in {
                "conv1.weight": (64, 3, 7, 7),
                "bn1.weight": (64,),
                "bn1.running_mean": (64,),
                "layer1.0.conv1.weight": (64, 64, 3, 3),
                "layer1.0.conv2.weight": (64, 64, 3, 3),
                "fc.weight": (10, 512),
                "fc.bias": (10,),
            }.items()
        },
        "missing; bn1.running_mean is of batch normalisation, which no variant has",
    ),
    "another network": (
        lambda state: {"encoder.layer.0.attention.weight": np.ones((4, 4), np.float32)},
        "none of AlexNet's layers under a known name: its arrays are encoder.layer.0",
    ),
    "features alone": (
        lambda state: {key: a for key, a in state.items() if key.startswith("features")},
        r"fc6.weight \(classifier.1.weight\).* missing",
    ),
    "biases alone": (
        lambda state: {key: a for key, a in state.items() if key.endswith("bias")},
        r"conv1.weight \(features.0.weight\).* missing",
    ),
    "LPIPS' heads": (
        lambda state: {f"lin{n}.model.1.weight": np.ones((1, 4, 1, 1), "f4") for n in range(5)},
        "none of AlexNet's layers under a known name",
    ),
    "nothing": (lambda state: {}, "no arrays|none of AlexNet's|empty"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_are_refused(case, container, tmp_path):
    change, expected = REFUSED[case]
    path = tmp_path / "alexnet.pth"
    path.write_bytes(CONTAINERS[container](change(state_of())))
    with pytest.raises(ta.FileError, match=rf"alexnet\.pth.*({expected})"):
        ta.load_weights(path)


@pytest.mark.parametrize("case", list(REFUSED)[::5])
def test_commands_refuse_in_a_sentence(case, tmp_path):
    change, _ = REFUSED[case]
    path = tmp_path / "alexnet.pth"
    path.write_bytes(CONTAINERS["zip"](change(state_of())))
    code, said, complaints = run("predict", path, "photo.jpg")
    assert_refused(code, complaints, "alexnet.pth")
    assert said == ""


RIGHT = {
    "as it is": (lambda state: state, None),
    "other order": (lambda state: dict(reversed(state.items())), None),
    "module.": (renamed("module.{}".format), None),
    "state_dict.module.": (renamed("state_dict.module.{}".format), None),
    "model.alexnet.": (renamed("model.alexnet.{}".format), None),
    "float64": (everywhere(lambda array: array.astype(np.float64)), None),
    "float16": (
        everywhere(lambda array: array.astype(np.float16)),
        everywhere(lambda array: array.astype(np.float16).astype(np.float32)),
    ),
    "Caffe's names": (renamed(LAYERS.get), None),
    "nested names of Caffe": (renamed(lambda key: f"net.{LAYERS[key]}"), None),
    "W and b": (renamed(lambda key: LAYERS[key].replace("weight", "W").replace("bias", "b")), None),
    "averaged weights beside": (
        lambda state: state | {f"ema.{key}": array + 1 for key, array in state.items()},
        None,
    ),
    "momentum beside": (
        lambda state: (
            state | {f"optimizer.momentum.{key}": array + 1 for key, array in state.items()}
        ),
        None,
    ),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", RIGHT)
def test_weights_that_are_loaded_right(case, container, tmp_path):
    change, meant = RIGHT[case]
    state = state_of()
    expected = meant(state) if meant else state
    path = tmp_path / "alexnet.pth"
    path.write_bytes(CONTAINERS[container](change(state)))
    weights = ta.load_weights(path)
    assert (weights.variant, weights.num_classes) == ("torchvision", 7)
    for key, array in expected.items():
        np.testing.assert_array_equal(weights.arrays[LAYERS[key]], array)


@pytest.mark.parametrize("num_classes", [1, 2, 1000, 21_841])
def test_any_number_of_classes(num_classes, tmp_path):
    path = tmp_path / "alexnet.pth"
    path.write_bytes(CONTAINERS["zip"](state_of(num_classes=num_classes)))
    assert ta.load_weights(path).num_classes == num_classes


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        (
            "paper",
            None,
            r"several variants have its shapes: say which \(paper, source2012, ",
        ),
        (
            "caffe",
            None,
            r"several variants have its shapes: say which \(paper, source2012, ",
        ),
        ("paper", "torchvision", "'torchvision' .*all shapes fit paper, source2012, caffe"),
        ("torchvision", "paper", "'paper' .*all shapes fit torchvision"),
        ("one_tower", "torchvision", "all shapes fit one_tower"),
        ("d2l", "torchvision", "expects .*all shapes fit d2l|has no|missing"),
        ("torchvision", "vgg", "variant must be one of .*; got 'vgg'"),
        ("paper", "paper", None),
        ("paper", "caffe", None),
        ("one_tower", None, None),
        ("d2l", None, None),
    ],
)
def test_variants(own, asked, expected, tmp_path):
    path = tmp_path / "alexnet.safetensors"
    state = state_of(own)
    names = [
        f"{'conv' if number < 5 else 'fc'}{number + 1}.{part}"
        for number in range(8)
        for part in ("weight", "bias")
    ]
    path.write_bytes(CONTAINERS["safetensors"](dict(zip(names, state.values(), strict=True))))
    if expected:
        with pytest.raises(ta.FileError, match=rf"alexnet.safetensors.*({expected})"):
            ta.load_weights(path, asked)
    else:
        assert ta.load_weights(path, asked).variant == asked or own


def assert_refused_or_right(path, state):
    """Fail if a file is loaded with other arrays."""
    try:
        found = ta.load_weights(path).arrays
    except ta.FileError:
        return
    for key, array in state.items():
        np.testing.assert_array_equal(found[LAYERS[key]], array)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("part", [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95])
def test_files_that_end_too_early(container, part, tmp_path):
    content = CONTAINERS[container](state_of())
    path = tmp_path / "alexnet.pth"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ta.FileError, match=r"alexnet\.pth"):
        ta.load_weights(path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_last_bytes_are_missing_or_more_follow(container, tmp_path):
    state = state_of()
    content = CONTAINERS[container](state)
    path = tmp_path / "alexnet.pth"
    for change in (content[:-1], content[:-512], content + b"\0", content + b"<html>error</html>"):
        path.write_bytes(change)
        assert_refused_or_right(path, state)


# Two files of the same format and shapes cannot be told from one, but for a zip's checksums.
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (one, two)
        for one, two in itertools.product(CONTAINERS, repeat=2)
        if one != two or one == "zip"
    ],
)
def test_one_file_begins_and_another_ends(first, second, tmp_path):
    one, two = CONTAINERS[first](state_of()), CONTAINERS[second](everywhere(np.abs)(state_of()))
    path = tmp_path / "alexnet.pth"
    path.write_bytes(one[: len(one) // 2] + two[len(two) // 2 :])
    with pytest.raises(ta.FileError, match=r"alexnet\.pth"):
        ta.load_weights(path)


def of_layer(layer, change):
    """Return a change of the arrays of one of Caffe's layers."""
    return lambda found: [
        (kind, name, settings, change(own) if name == layer else own)
        for kind, name, settings, own in found
    ]


def exchanged(one, other):
    """Return a change that gives two of Caffe's layers each other's arrays."""

    def change(found):
        own = {name: arrays for _, name, _, arrays in found}
        own[one], own[other] = own[other], own[one]
        return [(kind, name, settings, own[name]) for kind, name, settings, _ in found]

    return change


CAFFE = {
    "fc6 and fc7": (exchanged("fc6", "fc7"), "fc6"),
    "fc7 and fc8": (exchanged("fc7", "fc8"), "fc7|fc8"),
    "conv3 and conv4": (exchanged("conv3", "conv4"), "conv3"),
    "NaN": (of_layer("conv2", lambda own: [put(np.nan)(own[0]), own[1]]), "conv2.weight .*finite"),
    "no arrays": (of_layer("conv5", lambda own: []), "conv5"),
    "no bias": (of_layer("fc7", lambda own: own[:1]), "fc7"),
    "HWIO": (of_layer("conv1", lambda own: [own[0].transpose(2, 3, 1, 0), own[1]]), "conv1"),
    "in, out": (of_layer("fc6", lambda own: [own[0].T, own[1]]), "fc6"),
    "no conv3": (lambda found: [one for one in found if one[1] != "conv3"], "conv3|conv4|layer"),
    "no fc8": (lambda found: [one for one in found if one[1] != "fc8"], "fc"),
    "a layer more": (lambda found: [*found[:-1], found[-2], found[-1]], "layer|fc"),
    "only data": (lambda found: found[:1], "layer"),
}


@pytest.mark.parametrize("generation", [0, 1, 2])
@pytest.mark.parametrize("case", CAFFE)
def test_caffemodels_that_are_refused(case, generation, tmp_path):
    change, expected = CAFFE[case]
    arrays = dict(zip(LAYERS.values(), state_of("caffe").values(), strict=True))
    path = tmp_path / "alexnet.caffemodel"
    path.write_bytes(
        caffemodels.caffemodel(change(caffemodels.layers(VARIANTS["caffe"], arrays)), generation)
    )
    with pytest.raises(ta.FileError, match=rf"alexnet\.caffemodel.*({expected})"):
        ta.load_weights(path)
