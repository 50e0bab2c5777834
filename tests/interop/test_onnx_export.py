"""ONNX files written here, executed by onnxruntime."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx_files import agree, images, logits, run, thin

import tinyalex as ta
from tinyalex.models import VARIANTS, spec
from tinyalex.training import Classifier


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_onnxruntime_computes_the_same(name, count, tmp_path):
    model = thin(name)
    ta.export_onnx(model, tmp_path / "net.onnx")
    x = images(model, count, scale=30.0)  # so that normalisations have something to do
    agree(logits(model, x), run(tmp_path / "net.onnx", x), 1e-5)


@pytest.mark.parametrize("size", [63, 95, 127, 200, 415])
def test_adaptive_pools_of_every_geometry(size, tmp_path):
    """Maps of 1 x 1, 2 x 2, 3 x 3, 5 x 5 and 12 x 12 become 6 x 6: by products, or evenly."""
    model = thin("torchvision", size)
    ta.export_onnx(model, tmp_path / "net.onnx")
    x = images(model, 2, size)
    agree(logits(model, x), run(tmp_path / "net.onnx", x), 1e-5)


def classifier(name, mean, std, size=None):
    """Return a thin classifier of photographs."""
    model = thin(name, size)
    return Classifier(model, list("abcdefg"), mean, std, model.variant.input_size, 256, "warp")


def mean_image():
    return np.random.default_rng(1).uniform(90, 130, (256, 256, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("torchvision", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("caffe", mean_image(), (1.0, 1.0, 1.0)),
        ("d2l", (90.0,), (255.0,)),
        ("d2l", (123.675, 116.28, 103.53), (255.0,)),
    ],
)
def test_the_graph_normalises_pixels_as_the_classifier_does(name, mean, std, tmp_path):
    trained = classifier(name, mean, std)
    ta.export_onnx(trained, tmp_path / "net.onnx", softmax=True, pixels=True)
    size = trained.input_size
    shape = (256, 256, 3)
    photographs = [np.random.default_rng(i).integers(0, 256, shape, np.uint8) for i in range(2)]
    start = (256 - size) // 2
    crops = np.stack(photographs)[:, start : start + size, start : start + size]
    if trained.channels == "grey":
        crops = (crops @ np.float32([0.299, 0.587, 0.114]))[..., None]
    x = crops.transpose(0, 3, 1, 2).astype(np.float32)
    theirs = run(tmp_path / "net.onnx", x, "probabilities")
    agree(trained.probabilities(photographs), theirs, 1e-5)
    assert np.ptp(theirs[0] - theirs[1]) > 1e-4  # or the images would not matter


def test_metadata_and_description_say_how_to_prepare_an_image(tmp_path):
    trained = classifier("torchvision", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 160)
    ta.export_onnx(trained, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["tinyalex"] == {
        "variant": "torchvision/16",
        "resize": "warp",
        "shorter_side": 256,
        "input_size": 160,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "classes": list("abcdefg"),
    }
    assert model.doc_string == (
        "AlexNet (variant torchvision/16), 7 classes. Resize both sides of an image to 256 "
        "pixels. Take the central 160 x 160 pixels, RGB, as numbers 0..255. Subtract the mean: "
        "[123.675, 116.28, 103.53]. Divide by std: [58.395, 57.12, 57.375]. "
        "Input images: float32 [N, 3, 160, 160]. Output: logits."
    )


def test_old_runtimes_can_read_the_file(tmp_path):
    ta.export_onnx(thin("source2012"), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert [value.name for value in model.graph.input] == ["images"]  # no weights among them
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_same_network_gives_the_same_bytes(tmp_path):
    model = thin("source2012")
    for name in ("a.onnx", "b.onnx"):
        ta.export_onnx(model, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def changed_lrn(**changes):
    layers = VARIANTS["paper"].features
    return tuple(replace(at, **changes) if isinstance(at, spec.LRN) else at for at in layers)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (lambda: thin("paper", features=changed_lrn(size=4)), {}, "ONNX has no LRN of size 4"),
        (lambda: thin("paper"), {"pixels": True}, "needs a mean"),
    ],
)
def test_refusals_leave_the_old_file(network, options, message, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        ta.export_onnx(network(), path, **options)
    assert path.read_bytes() == b"old"
