"""MatConvNet's networks: SimpleNN old and new, DagNN, refusals, damaged files."""

import os
import struct

import numpy as np
import pytest
import scipy.io
from caffemodels import layers
from damage import peak, spoilt
from matconvnets import cell, dag, mat, simple

from tinyalex.files import FileError
from tinyalex.interop.matlab_files import read_variables
from tinyalex.interop.means import IMAGENET_MEAN

CLASSES = ["tench", "goldfish", "great white shark", "tiger shark", "hammerhead", "ray", "cock"]


def settings(image, **more):
    return {
        "imageSize": np.array([[227.0, 227, 3]]),
        "averageImage": image,
        "interpolation": "bicubic",
        "keepAspect": False,
        "border": np.array([[29.0, 29]]),
        **more,
    }


WAYS = {
    "weights": lambda theirs: {"layers": cell(simple(theirs))},
    "filters and biases": lambda theirs: {"layers": cell(simple(theirs, old=True))},
    "DagNN": lambda theirs: dag(simple(theirs)),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_has_the_same_weights(load, rng, thin, way, inside, packed):
    name, variant, arrays = thin
    image = rng.uniform(90, 120, (227, 227, 3)).astype(np.float32)
    meta = {"normalization": settings(image), "classes": {"description": cell(CLASSES)}}
    net = WAYS[way](layers(variant, arrays))
    net |= {"meta": meta} if inside else meta
    weights = load(mat(packed, **({"net": net} if inside else net)))
    assert weights.variant == name
    for key, array in arrays.items():
        assert np.array_equal(weights.arrays[key], array), key
    assert np.array_equal(weights.mean, image)
    assert (weights.resize, weights.shorter_side, weights.input_size) == ("warp", 227, 227)
    assert weights.classes == CLASSES


@pytest.mark.parametrize("shape", [(1, 1, 3), (3,), (3, 1)])
def test_a_mean_colour_is_subtracted_from_a_larger_image(load, thin, shape):
    net = WAYS["weights"](layers(*thin[1:]))
    image = np.reshape([123.0, 117, 104], shape)
    weights = load(mat(normalization=settings(image, keepAspect=True), **net))
    assert weights.mean == (123, 117, 104)
    assert (weights.resize, weights.shorter_side) == ("shorter_side", 256)
    weights = load(mat(normalization=settings(np.zeros((1, 2))), **net))
    assert weights.mean == IMAGENET_MEAN
    assert weights.classes is None


def test_numbers_and_names_are_scipy_s(tmp_path, rng):
    """Every type of number, in its own class or stored in fewer bytes, and empty arrays."""
    numbers = {
        kind: rng.integers(0, 100, (3, 2)).astype(kind)
        for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
    }
    numbers |= {"empty": np.zeros((0, 3)), "deep": rng.uniform(size=(2, 3, 4, 5))}
    for packed in (False, True):
        (tmp_path / "x.mat").write_bytes(mat(packed, text="über", **numbers))
        with open(tmp_path / "x.mat", "rb") as file:
            found = read_variables(file, (tmp_path / "x.mat").stat().st_size)
        assert found.pop("text") == "über"
        assert found.keys() == numbers.keys()
        for name, array in numbers.items():
            assert np.array_equal(found[name], array.astype(np.float32)), name


def test_what_is_no_data_is_skipped(tmp_path):
    sparse = scipy.sparse.csc_array(np.eye(3))
    raw = mat(sparse=sparse, z=np.ones(2) * 1j, logical=np.array([True, False]), x=1.0)
    (tmp_path / "x.mat").write_bytes(raw)
    with open(tmp_path / "x.mat", "rb") as file:
        found = read_variables(file, len(raw))
    assert (found["x"], found["sparse"], found["z"]) == (1, None, None)
    assert found["logical"].tolist() == [[1, 0]]


def refused(change=None, **variables):
    def file(theirs):
        net = simple(theirs)
        if change:
            change(net)
        return mat(layers=cell(net), **variables)

    return file


def at(place, **settings):
    def change(net):
        next(layer for layer in net if layer["name"] == place).update(settings)

    return change


BGR = np.array([[[104.0, 117, 123]]])
REFUSALS = {
    "7.3": (lambda _: b"MATLAB 7.3 MAT-file" + bytes(493), "version 7.3, which is HDF5"),
    "big-endian": (lambda _: b"MATLAB 5.0".ljust(124) + b"\1\0MI", "no little-endian MATLAB file"),
    "no network": (lambda _: mat(x=1.0), "no layers of MatConvNet"),
    "layers of numbers": (lambda _: mat(layers=cell([1.0, 2.0])), "no layers of MatConvNet"),
    "no weights": (refused(at("conv1", weights=np.zeros((0, 0)))), "'conv1': a weight and a bias"),
    "text for weights": (refused(at("conv1", weights=cell("ab"))), "its weights are no arrays"),
    "stride": (refused(at("conv1", stride=2.0)), "layer 'conv1' is .* stride 2"),
    "strides": (refused(at("conv1", stride=np.array([4.0, 2]))), r"its stride is \[2.0, 4.0\]"),
    "padding": (refused(at("pool5", pad=np.array([0.0, 1, 0, 1]))), r"'pool5': its pad is"),
    "mean": (refused(at("pool1", method="avg")), "'pool1': it pools by another rule"),
    "norm": (refused(at("norm1", param=np.array([5, 1, 1e-4, 0.75]))), r"is LRN\(alpha 0.0005"),
    "short norm": (refused(at("norm1", param=np.ones(3))), "'norm1': it has 3 numbers where 4"),
    "leak": (refused(at("relu3", leak=0.1)), r"'relu3': its leak is \[0.1\], .* whole number"),
    "leak of 1": (refused(at("relu3", leak=1.0)), "'relu3': it lets negative values through"),
    "dilation": (refused(at("conv3", dilate=2.0)), "'conv3': its filters are dilated"),
    "type": (refused(at("relu3", type="bnorm")), "'relu3': an AlexNet has no .* 'bnorm'"),
    "missing": (refused(lambda net: net.pop(0)), "layer 'relu1' is ReLU"),
    "BGR": (refused(normalization=settings(BGR)), "wrong order: RGB is expected"),
    "small mean": (refused(normalization=settings(np.full((99, 99, 3), 9.0))), "99 pixels, 227"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_no_network_is_refused(load, thin, file, message):
    with pytest.raises(FileError, match=message) as failure:
        load(file(layers(*thin[1:])))
    assert "\n" not in str(failure.value)


def element(kind, raw):
    return struct.pack("<II", kind, len(raw)) + raw + bytes(-len(raw) % 8)


def array(kind, sizes, *rest):
    """Return an array of a class (1 cell, 2 struct, 7 float32) with sizes of any type."""
    code = {"<i4": 5, "<f4": 7}[sizes.dtype.str]
    head = element(6, struct.pack("<II", kind, 0)) + element(code, sizes.tobytes())
    return element(14, head + element(1, b"x") + b"".join(rest))


def struct_array(count, width=b"\x08\0\0\0"):
    return array(2, np.array([count, 1], "<i4"), element(5, width), element(1, b""))


@pytest.mark.parametrize(
    "value",
    [
        array(7, np.array([np.nan, 1], "<f4")),
        array(7, np.array([np.inf, 1], "<f4")),
        array(2, np.array([1, 1], "<i4"), element(2, b"a"), element(1, b"")),
        struct_array(1, b""),
        array(1, np.array([100, 1], "<i4"), *[struct_array(90_000)] * 100),
    ],
    ids=["size nan", "size inf", "short width", "no width", "structs without names"],
)
def test_damaged_elements_are_refused_in_little_memory(load, value):
    result, most = peak(load, b"MATLAB 5.0".ljust(124) + b"\0\1IM" + value)
    assert isinstance(result, FileError)
    assert most < 2**22


def test_what_unpacks_to_much_is_refused(load):
    result, most = peak(
        load, mat(True, layers=np.zeros(2**24, np.float32), x=np.zeros(2**26, "u1"))
    )
    assert isinstance(result, FileError)
    assert most < 2**27


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("way", ["weights", "DagNN"])
def test_spoilt_files_are_refused_in_little_memory(load, thin, way, packed):
    """`TINYALEX_SPOILT=10000` tries as many."""
    raw = mat(packed, **WAYS[way](layers(*thin[1:])))
    refused = 0
    for number in range(int(os.environ.get("TINYALEX_SPOILT", 50))):
        result, most = peak(load, spoilt(raw, number))
        assert most < 8 * len(raw) + 2**25
        refused += isinstance(result, FileError)
    assert refused > number / 4
