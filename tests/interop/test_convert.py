"""Weights from any format into any other."""

import re
from dataclasses import replace

import numpy as np
import pytest
from commands import assert_refused, run

import tinyalex as ta
from tinyalex.interop.weights import expected_shapes
from tinyalex.models import VARIANTS
from tinyalex.training import Classifier, load_classifier, save_classifier

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")
FILES = ("moved.safetensors", "moved.pth", "moved.pt", "moved.onnx", "moved")


@pytest.mark.parametrize("name", FILES)
def test_a_run_becomes_any_file_and_stays_the_same(name, trained, photos, tmp_path):
    out = tmp_path / name
    code, said, complaints = run("convert", trained, out)
    assert (code, complaints) == (0, "")
    before, after = load_classifier(trained), load_classifier(out)
    assert (after.classes, after.mean, after.std) == (before.classes, before.mean, before.std)
    assert (after.input_size, after.resizing) == (before.input_size, before.resizing)
    for key, array in before.weights().arrays.items():
        np.testing.assert_array_equal(after.weights().arrays[key], array)
    assert re.search(rf"^{trained}/best.safetensors\n  .*\n  tiny, 3 classes\n  pixels", said)
    assert "\n  conv1 8 x 3 x 5 x 5, fc2 64 x 200, fc3 3 x 64\n" in said.replace("288", "200")
    assert re.search(rf"\n{out}: .*, 0\.\d MB\n$", said)
    again = tmp_path / "again"
    assert run("convert", out, again)[0] == 0
    for key, array in before.weights().arrays.items():
        np.testing.assert_array_equal(ta.load_weights(again).arrays[key], array)


def test_a_converted_network_predicts_and_is_evaluated(trained, photos, tmp_path):
    out = tmp_path / "moved"
    run("convert", trained, out)
    images = (photos / "elm/00.png", "--out", tmp_path / "sheet.png")
    assert run("predict", out, *images) == run("predict", trained, *images)
    code, _, complaints = run("evaluate", out)
    assert_refused(code, complaints, "has no run that held out images: give a folder")
    code, _, complaints = run("train", "--resume", out)
    assert_refused(code, complaints, "there is no checkpoint in")


def test_what_is_there_stays(trained, tmp_path):
    for name in FILES:
        (tmp_path / name).touch()
        code, said, complaints = run("convert", trained, tmp_path / name)
        assert_refused(code, complaints, f"{name} is there already: give another name")
        assert (said, (tmp_path / name).read_bytes()) == ("", b"")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["new.h5"], "OUT must end in .safetensors, .pth, .pt, .onnx, or be a new folder, got"),
        (["gone/new.pth"], "OUT must lie in a folder that is there"),
        (["new.pth", "--pixels"], "--softmax and --pixels are for an OUT that ends in .onnx"),
        (["new.pth", "--variant", "paper"], "it is of the variant 'tiny', not 'paper'"),
        (["new.pth", "--classes", "names.txt"], "the network has 3 classes, got 2 names"),
    ],
)
def test_what_cannot_be_converted(arguments, expected, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("oak\nelm\n")
    code, _, complaints = run("convert", trained, *arguments)
    assert_refused(code, complaints, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["names.txt"]


def test_names_are_given_on_the_way(trained, tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"0": "oak", "1": "fir", "2": "yew"}')
    assert run("convert", trained, tmp_path / "new.pth", "--classes", names)[0] == 0
    assert ta.load_weights(tmp_path / "new.pth").classes == ["oak", "fir", "yew"]


def test_an_onnx_file_for_pixels_gives_probabilities(trained, photos, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "new.onnx"
    assert run("convert", trained, out, "--pixels", "--softmax")[0] == 0
    classifier = load_classifier(trained)
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    classifier.shorter_side = 28
    (found,) = runtime.InferenceSession(out).run(
        None, {"images": image.transpose(2, 0, 1)[None].astype(np.float32)}
    )
    np.testing.assert_allclose(found, classifier.probabilities([image]), atol=1e-5)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_goes_out_and_comes_in(name, tmp_path, monkeypatch):
    variant = VARIANTS[name]
    thin = replace(variant.thinner(16, variant.input_size), name=name)
    monkeypatch.setitem(VARIANTS, name, thin)
    rng = np.random.default_rng(0)
    arrays = {
        key: rng.standard_normal(shape).astype(np.float32)
        for key, shape in expected_shapes(thin, 5).items()
    }
    start = Classifier.from_weights(ta.Weights(arrays, name, "a test", resize="warp"))
    save_classifier(start, tmp_path / "start")
    for file in FILES:
        assert run("convert", tmp_path / "start", tmp_path / file)[::2] == (0, "")
        found = ta.load_weights(tmp_path / file)
        assert (found.variant, found.resize) == (name, "warp")
        for key, array in arrays.items():
            np.testing.assert_array_equal(found.arrays[key], array, err_msg=f"{file} {key}")
