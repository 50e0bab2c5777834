"""Caffe's networks: three generations, OpenCV's answers, refusals."""

import os

import cv2
import numpy as np
import pytest
from caffemodels import caffemodel, field, layers, prototxt
from damage import peak, spoilt
from helpers import assert_close

import tinyalex as ta
from tinyalex.files import FileError
from tinyalex.interop import load_weights
from tinyalex.interop.means import IMAGENET_MEAN
from tinyalex.models import VARIANTS

GENERATIONS = {"V0": 0, "V1": 1, "V2": 2}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_every_generation_has_the_same_weights(load, thin, generation, packed, dtype):
    name, variant, arrays = thin
    writing = {"packed": packed, "dtype": dtype}
    weights = load(caffemodel(layers(variant, arrays), GENERATIONS[generation], **writing))
    assert weights.variant == name
    for key, array in arrays.items():
        assert np.array_equal(weights.arrays[key], array), key
    assert weights.mean == IMAGENET_MEAN
    assert (weights.resize, weights.shorter_side, weights.input_size) == ("warp", 256, 227)
    assert (weights.std, weights.channels, weights.classes) == ((1, 1, 1), "BGR", None)


@pytest.mark.parametrize(("name", "generation"), [("caffe", 1), ("caffenet", 2)])
def test_answers_are_opencv_s(tmp_path, rng, draw, name, generation):
    """In BGR there, in RGB here; and in the memory of the weights."""
    variant = VARIANTS[name]
    drawn = draw(variant, 1000)
    theirs = layers(variant, drawn)
    (tmp_path / "net.prototxt").write_text(prototxt(theirs, 227))
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(theirs, generation))
    size = sum(array.nbytes for array in drawn.values())
    del drawn, theirs
    weights, most = peak(load_weights, tmp_path / "net.caffemodel")
    assert most < 1.2 * size  # a truth value per number of fc6, to find what is not finite
    blocks = rng.integers(0, 256, (3, 12, 12)).repeat(19, 1).repeat(19, 2)[:, :227, :227]
    image = (blocks + rng.normal(0, 10, blocks.shape)).clip(0, 255)
    image = (image - np.reshape(weights.mean, (3, 1, 1))).astype(np.float32)[None]
    net = cv2.dnn.readNetFromCaffe(
        *(str(tmp_path / f"net.{end}") for end in ("prototxt", "caffemodel"))
    )
    net.setInput(np.ascontiguousarray(image[:, ::-1]))
    expected = net.forward()
    network = weights.network().eval()
    with ta.no_grad():
        actual = network(ta.Tensor(image)).data
        with ta.use_backend("reference"):
            exact = network.to(np.float64)(ta.Tensor(image.astype(np.float64))).data
    assert_close(actual, exact, 2e-6)
    assert_close(expected, exact, 4e-6)  # OpenCV's rounding: 1.3e-6 to 2.8e-6


def test_scale_and_mean_of_the_data_layer_travel_with_the_weights(load, thin):
    theirs = layers(*thin[1:])
    theirs[0][2].update({"scale": 1 / 256, "mean_value": [104.0, 117.0, 123.0]})
    for generation in (1, 2):
        weights = load(caffemodel(theirs, generation))
        assert weights.mean == (123, 117, 104)
        assert weights.std == pytest.approx((256,) * 3)
    theirs[0][2].update({"mean_value": 120.0})
    assert load(caffemodel(theirs, 2)).mean == (120, 120, 120)
    for wrong in (b"", [104.0, 117.0]):
        theirs[0][2].update({"mean_value": wrong})
        with pytest.raises(FileError, match=r"its mean is \[.*\], where one number is expected"):
            load(caffemodel(theirs, 2))


def test_weights_alone_are_read_as_what_is_asked_for(load, thin):
    name, variant, arrays = thin
    raw = caffemodel([layer for layer in layers(variant, arrays) if layer[3]], 2)
    assert load(raw, variant=name).variant == name


def test_a_network_is_not_read_as_another_variant(load, thin):
    name, variant, arrays = thin
    other = {"caffe": "caffenet", "caffenet": "caffe"}[name]
    with pytest.raises(FileError, match=r"layer '(pool|norm)1' is .* where the variant"):
        load(caffemodel(layers(variant, arrays), 2), variant=other)
    with pytest.raises(FileError, match="variant must be one of paper"):
        load(caffemodel(layers(variant, arrays), 2), variant="alexnet")


def changed(place, **settings):
    def change(theirs):
        next(layer for layer in theirs if layer[1] == place)[2].update(settings)

    return change


def without(place):
    return lambda theirs: theirs.remove(next(layer for layer in theirs if layer[1] == place))


def swapped(one, other):
    def change(theirs):
        names = [layer[1] for layer in theirs]
        i, j = names.index(one), names.index(other)
        theirs[i], theirs[j] = theirs[j], theirs[i]

    return change


def arrays_of(place, function):
    def change(theirs):
        layer = next(layer for layer in theirs if layer[1] == place)
        layer[3][:] = function(*layer[3])

    return change


REFUSALS = {
    "no weights": (lambda theirs: [layer[3].clear() for layer in theirs], "bring the .caffemodel"),
    "no bias": (arrays_of("conv3", lambda w, b: [w]), "layer 'conv3': it has 1 arrays"),
    "missing layer": (without("fc7"), "layer 'relu7' is ReLU"),
    "missing pool": (without("pool2"), "layer '(conv3|norm2)' is"),
    "no relu": (without("relu4"), "layer 'conv5' is Conv"),
    "swapped layers": (swapped("fc7", "fc8"), "layer 'fc8' is Linear"),
    "swapped convolutions": (swapped("conv4", "conv5"), "layer 'conv5' is Conv"),
    "one norm elsewhere": (swapped("norm2", "pool2"), "layer '(norm|pool)2' is"),
    "stride": (changed("conv1", stride=2), "stride 2.* stride 4"),
    "padding": (changed("conv1", pad=2), "padding 2"),
    "groups": (changed("conv2", group=1), "groups 1"),
    "alpha": (changed("norm1", alpha=5e-4), "alpha 0.0005"),
    "k": (changed("norm1", k=2.0), "k 2"),
    "size": (changed("norm2", local_size=4), "size 4"),
    "mean pooling": (changed("pool5", pool=1), "layer 'pool5': it pools by another rule"),
    "crop": (changed("data", crop_size=224), "it takes 224 pixels"),
    "no scale": (changed("data", scale=0.0), "multiplies pixels by 0"),
    "other filters": (arrays_of("conv3", lambda w, b: [w[:4], b[:4]]), "layer 'conv3' is Conv"),
    "grey": (arrays_of("conv1", lambda w, b: [w[:, :1], b]), r"conv1.weight has shape \(6, 1, 11"),
    "turned": (arrays_of("fc6", lambda w, b: [w.T, b]), "layer 'fc6' is Linear"),
    "turned square": (arrays_of("fc8", lambda w, b: [w.T, b]), "fc8"),
    "not finite": (arrays_of("conv5", lambda w, b: [w * np.nan, b]), "conv5.weight has values"),
    "not square": (arrays_of("conv1", lambda w, b: [w[..., :7], b]), "11 x 7 pixels"),
    "a norm inside maps": (lambda theirs: theirs.append(("norm", "n", {}, [])), "layer 'n' is LRN"),
}  # fmt: skip


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(("change", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_no_variant_is_refused(load, thin, change, message, generation):
    theirs = [
        (kind, name, dict(settings), list(own)) for kind, name, settings, own in layers(*thin[1:])
    ]
    change(theirs)
    with pytest.raises(FileError, match=message) as failure:
        load(caffemodel(theirs, GENERATIONS[generation]))
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize(("place", "unread"), [("fc7", "transpose"), ("relu3", "negative_slope")])
def test_layers_that_compute_something_else_are_refused(load, thin, place, unread, generation):
    theirs = layers(*thin[1:])
    changed(place, **{unread: 1 if unread == "transpose" else 0.1})(theirs)
    with pytest.raises(FileError, match=f"layer '{place}': it has settings that an AlexNet has"):
        load(caffemodel(theirs, generation))


@pytest.mark.parametrize("generation", [1, 2])
def test_settings_that_change_nothing_may_be_written(load, thin, generation):
    theirs = layers(*thin[1:])
    changed("conv2", dilation=1)(theirs)
    changed("norm1", norm_region=0)(theirs)
    changed("pool5", global_pooling=0)(theirs)
    changed("fc6", axis=1, transpose=0)(theirs)
    changed("relu7", negative_slope=0.0)(theirs)
    assert load(caffemodel(theirs, generation)).variant == thin[0]


@pytest.mark.parametrize("kind", ["Concat", "Deconvolution", "BatchNorm"])
def test_other_networks_are_refused_by_their_layers(load, thin, kind):
    raw = caffemodel(layers(*thin[1:]), 2) + field(
        100, field(1, "inception/output") + field(2, kind)
    )
    with pytest.raises(FileError, match=f"layer 'inception/output': an AlexNet has no .* '{kind}'"):
        load(raw)


def test_vgg_is_refused_by_its_first_layer(load, rng, thin):
    weight, bias = rng.standard_normal((64, 3, 3, 3)), rng.standard_normal(64)
    conv = ("conv", "conv1_1", {"num_output": 64, "pad": 1, "kernel_size": 3}, [weight, bias])
    with pytest.raises(FileError, match=r"layer 'conv1_1' is Conv\(channels 64, kernel 3"):
        load(caffemodel([conv], 1, name="VGG"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (field(1, "AlexNet"), "no layers"),
        (field(1, "AlexNet") + field(100, field(1, "x" * 2000)), "a name is too long"),
        (field(1, "AlexNet") + b"\xa2\x06\xff\xff\xff\xff\x0f", "4294967295 bytes lies where"),
        (field(1, "AlexNet") + b"\xa2\x06" + b"\xff" * 11, "does not end, or is too large"),
        (field(1, "AlexNet") + field(100, b"\x0b"), "unknown kind 3"),
        (field(1, "AlexNet") + field(5, 1) * 100_001, "more than 100,000 fields"),
        (b"\n\x07AlexNet", "no layers"),
    ],
)
def test_damaged_fields_are_refused(load, raw, message):
    with pytest.raises(FileError, match=message):
        load(raw)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_spoilt_files_are_refused_in_little_memory(load, draw, monkeypatch, generation, packed):
    """`TINYALEX_SPOILT=10000` tries as many."""
    tiny = VARIANTS["caffe"].thinner(48, 227)
    monkeypatch.setitem(VARIANTS, "caffe", tiny)
    raw = caffemodel(layers(tiny, draw(tiny)), GENERATIONS[generation], packed=packed)
    refused = 0
    for number in range(int(os.environ.get("TINYALEX_SPOILT", 100))):
        result, most = peak(load, spoilt(raw, number))
        assert most < 4 * len(raw) + 2**22
        refused += isinstance(result, FileError)
    assert refused > number / 4
