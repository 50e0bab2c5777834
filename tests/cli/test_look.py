"""examples/look.py: outputs of layers, and similar images."""

import os
import re
import shutil
import sys

import images
import numpy as np
import pytest
from commands import TINY, run
from helpers import assert_close
from PIL import Image

from tinyalex.calls import pip_install
from tinyalex.data import EvalTransform, ImageFolder, Loader, Patterns
from tinyalex.models import VARIANTS, alexnet
from tinyalex.pictures.features import (
    feature_sheet,
    hidden_vectors,
    layer_outputs,
    nearest,
    neighbour_sheet,
)
from tinyalex.tensor import Tensor
from tinyalex.training import Checkpoints, load_classifier
from tinyalex.training.datasets import ImageFiles, title

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def model():
    """Return an untrained network."""
    return alexnet(TINY, num_classes=3)


@pytest.fixture
def pixels(rng):
    """Return two images as TINY takes them."""
    return rng.standard_normal((2, 3, 28, 28), np.float32)


def test_outputs_of_all_layers(model, pixels):
    outputs = layer_outputs(model, pixels)
    assert list(outputs) == ["conv1", "relu1", "pool1", "fc2", "relu2", "fc3"]
    np.testing.assert_array_equal(outputs["conv1"], model.features[:1](Tensor(pixels)).data)
    np.testing.assert_array_equal(outputs["relu1"], model.features[:2](Tensor(pixels)).data)
    assert (outputs["conv1"] < 0).any()
    np.testing.assert_array_equal(outputs["fc3"], model(Tensor(pixels)).data)
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_of_ones_own_are_among_them(model, pixels):
    class Own(type(model.features[1])):
        pass

    expected = layer_outputs(model, pixels)
    model.features[1].__class__ = Own
    outputs = layer_outputs(model, pixels)
    assert list(outputs) == list(expected)
    np.testing.assert_array_equal(outputs["relu1"], expected["relu1"])


def test_outputs_of_a_network_on_a_gpu(cuda, model, pixels):
    expected, vectors = layer_outputs(model, pixels), hidden_vectors(model, pixels)
    outputs = layer_outputs(model.to("cuda"), pixels)
    assert outputs.keys() == expected.keys()
    for name, array in outputs.items():
        assert_close(array, expected[name], what=name)
    assert_close(hidden_vectors(model, pixels), vectors)


def test_layers_have_their_usual_names():
    model = alexnet(VARIANTS["source2012"].thinner(16, 67), num_classes=2)
    names = list(layer_outputs(model, np.zeros((1, 3, 67, 67), np.float32)))
    assert names == [
        *("conv1", "norm1", "pool1", "relu1", "conv2", "relu2", "norm2", "rnorm2", "pool2"),
        *("conv3", "relu3", "conv4", "relu4", "conv5", "pool5", "relu5"),
        *("fc6", "relu6", "fc7", "relu7", "fc8"),
    ]


def test_hidden_vectors_are_what_the_last_layer_is_fed(model, pixels):
    model.train()
    vectors = hidden_vectors(model, pixels)
    assert vectors.shape == (2, 64)
    assert (vectors >= 0).all()
    logits = model.weight_layers["fc3"](Tensor(vectors)).data
    np.testing.assert_array_equal(logits, layer_outputs(model, pixels)["fc3"])


def test_titles_have_the_class_where_it_is_known(tmp_path):
    files = ImageFiles([tmp_path / "elm/a.png", tmp_path / "oak/b.png"], ["ash", "elm"])
    assert [title(files, i) for i in (0, 1)] == ["elm: a.png", "b.png"]
    patterns = Patterns("val", 30)
    assert title(patterns, 3) == f"{patterns.classes[patterns.labels[3]]} 3"


def test_nearest_are_those_of_all_distances(model, photos):
    dataset = ImageFolder(photos, shorter_side=32)
    loader = Loader(dataset, 7, EvalTransform(28, 120, 60), shuffle=False)
    every = np.concatenate([batch.images for batch in loader.epoch(0)])
    vectors = hidden_vectors(model, every)
    queries = vectors[[3, 50]] + np.float32(0.01)
    places, distances = nearest(model, queries, loader, count=4)
    expected = np.linalg.norm(vectors[None] - queries[:, None], axis=2)
    np.testing.assert_array_equal(places, expected.argsort(axis=1)[:, :4])
    assert places[:, 0].tolist() == [3, 50]
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :4], rtol=1e-5)
    assert nearest(model, queries, loader, count=100)[0].shape == (2, 72)


def test_feature_sheet_is_white_where_the_output_is_high_and_blue_where_it_is_negative():
    seen = np.full((10, 10, 3), 77, np.uint8)
    maps = np.zeros((1, 2, 2, 2), np.float32)
    maps[0, 0, 0, 0], maps[0, 1, 1, 1] = 4, -4
    sheet = np.asarray(feature_sheet(seen, "a", {"conv1": maps, "fc2": np.ones((1, 3))}, width=160))
    assert (sheet[12 + 22 + 5, 12 + 5] == 77).all()
    band = sheet[12 + 22 + 10 + 12 + 22 :, 12:]
    assert band[2, 2].tolist() == [255, 255, 255]
    assert band[6, 6].tolist() == [0, 0, 0]
    assert band[6, 10 + 6].tolist() == [60, 110, 255]
    assert band[2, 10 + 2].tolist() == [0, 0, 0]
    units = band[10 + 12 + 22 - 2 :]
    assert (units[5, 1:121] == 255).all()
    assert units[5, [0, 121]].tolist() == [[0x8A] * 3] * 2  # the frame


def test_neighbour_sheet_has_a_row_for_each_query():
    rows = [[np.full((20, 30, 3), 10 * i + j, np.uint8) for j in range(3)] for i in range(2)]
    sheet = np.asarray(neighbour_sheet(rows, [["a", "b", "c"]] * 2, size=50))
    centres = [[sheet[10 + 80 * i + 25, 10 + 60 * j + 25 + 24 * (j > 0)] for j in range(3)]
               for i in range(2)]  # fmt: skip
    assert np.array(centres)[..., 0].tolist() == [[0, 1, 2], [10, 11, 12]]


@pytest.mark.parametrize("what", ["neighbours", "answers"])
def test_names_of_usual_lengths_are_whole_in_pictures(what, photos, trained, tmp_path):
    pictures, among = set(), ("--among", photos) if what == "neighbours" else ()
    for name in ("100080576_f52e8ee070_n.png", "100080576_f5268ee070_n.png"):
        path, out = tmp_path / name / "elm" / name, tmp_path / "picture.png"
        path.parent.mkdir(parents=True)
        shutil.copy(photos / "elm/00.png", path)
        assert run("look", trained, what, path, *among, "--out", out)[0] == 0
        pictures.add(out.read_bytes())
    assert len(pictures) == 2


PICTURES = ["filters", "kernels", "answers", "neighbours", "features", "why", "curves"]


@pytest.mark.parametrize("what", PICTURES)  # kernels is the former word for filters
def test_each_picture_from_the_run_alone(what, trained, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "picture.png"
    code, said, complaints = run("look", trained, what, "--out", out)
    assert (code, complaints) == (0, "")
    assert said.splitlines()[-1] == f"drawn in {out}"
    with Image.open(out) as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 20


def test_pictures_go_beside_the_checkpoint(trained, tmp_path):
    alone = shutil.copy(Checkpoints(trained).last, tmp_path / "moved.safetensors")
    code, said, _ = run("look", alone, "filters")
    picture = tmp_path / "moved.safetensors-filters.png"
    assert (code, said) == (0, f"drawn in {picture}\n")
    assert picture.read_bytes() == (trained / "filters.png").read_bytes()


def test_answers_know_the_right_class_by_the_folder(photos, trained, tmp_path):
    classifier = load_classifier(trained)
    path = photos / "birch/05.png"
    elsewhere = shutil.copy(path, tmp_path / "unknown.png")
    greens = []
    for image in (path, elsewhere):
        run("look", trained, "answers", image, "--out", tmp_path / "sheet.png")
        sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
        greens.append(int((sheet[:, 15] == (0xB5, 0xDC, 0xAB)).all(axis=1).sum()))
    assert greens[0] > 10
    assert greens[1] == 0
    assert "birch" in classifier.classes


def test_pictures_of_other_images_leave_those_of_the_run(photos, copy):
    mine = copy / "neighbours.png"
    mine.write_text("mine")
    long = shutil.copytree(photos / "elm", copy.parent / ("é" * 125))
    for arguments in (("neighbours", "--among", photos), ("answers", long)):
        assert run("look", copy, *arguments)[::2] == (0, "")
    assert mine.read_text() == "mine"
    assert [*copy.glob("photos-*-neighbours.png")]
    assert [*copy.glob(f"{'é' * 100}-*-answers.png")]


def test_neighbours_among_other_images(photos, trained, tmp_path):
    among = tmp_path / "among"
    shutil.copytree(photos / "ash", among / "ash")
    images.text(among / "broken.png")
    query = shutil.copy(photos / "ash/07.png", among / os.fsdecode(b"caf\xe9.png"))
    out = tmp_path / "sheet.png"
    arguments = (trained, "neighbours", query, "--among", among, "--out", out)
    code, _, complaints = run("look", *arguments)
    assert code == 0
    assert complaints == f"left out: {among}/broken.png: not an image that can be read " + (
        "(JPEG, PNG, WEBP, BMP, GIF)\n"
    )
    sheet = np.asarray(Image.open(out))
    query_cell, first_cell = sheet[10:218, 10:218], sheet[10:218, 252:460]
    assert (query_cell == first_cell).all()  # its copy 07.png; the file itself is left out
    assert (query_cell != sheet[10:218, 470:678]).any()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("answers", "{folder}/gone.png"), "none of 1 image could be read"),
        (
            ("features", "{folder}"),
            "no images (.jpg .jpeg .jpe .jfif .png .webp .bmp .gif) in {folder}",
        ),
        (("filters", "--out", "{folder}"), "--out must name a file, {folder} is a folder"),
        (("neighbours", "--among", "{folder}"), "no images"),
    ],
)
def test_pictures_that_cannot_be_drawn(arguments, expected, trained, tmp_path):
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    code, said, complaints = run("look", trained, *filled)
    assert (code, said) == (2, "")
    assert expected.format(folder=tmp_path) in complaints.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_curves_need_the_folder_of_a_run(trained, tmp_path):
    alone = shutil.copy(Checkpoints(trained).best, tmp_path / "moved.safetensors")
    code, _, complaints = run("look", alone, "curves")
    assert code == 2
    assert re.fullmatch(r"error: curves are drawn from the folder of a run, .*\n", complaints)


def test_curves_need_matplotlib(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, complaints = run("look", trained, "curves", "--out", tmp_path / "curves.png")
    assert (code, complaints) == (
        2,
        f"error: matplotlib is missing ({pip_install('matplotlib')})\n",
    )


def test_a_picture_that_does_not_exist(trained):
    code, _, complaints = run("look", trained, "filter")
    assert code == 2
    assert complaints.count("\n") == 1
    assert "filters" in complaints
