"""Commands on weight files, and names of classes from files."""

import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import assert_refused, run
from images import folder

from tinyalex.cli.network import prefix_of
from tinyalex.data.class_names import distinct, imagenet, read_class_names
from tinyalex.files import FileError
from tinyalex.interop import Weights, reading
from tinyalex.interop.weights import array_names
from tinyalex.models import alexnet

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def weight_file(tmp_path, monkeypatch):
    """Return a function that writes a file of the tiny network with so many classes."""

    def read(request):
        with np.load(io.BytesIO(request.file.read())) as found:
            return Weights(dict(found), "tiny", "a file for tests", resize="warp")

    monkeypatch.setattr(
        reading, "FORMATS", [reading.Format("x", lambda head: head[:2] == b"PK", "a_test")]
    )
    monkeypatch.setitem(sys.modules, "tinyalex.interop.a_test", SimpleNamespace(read=read))

    def written(num_classes):
        network = alexnet("tiny", num_classes)
        names = array_names(network.variant)
        arrays = {name: p.data for name, p in zip(names, network.parameters(), strict=True)}
        np.savez(tmp_path / "weights.npz", **arrays)
        return (tmp_path / "weights.npz").rename(tmp_path / "weights.pth")

    return written


def test_pictures_of_files_in_one_folder_do_not_replace_each_other(trained, photos, tmp_path):
    assert run("convert", trained, tmp_path / "a.safetensors")[0] == 0
    for source, copy in {
        tmp_path / "a.safetensors": "a.pth",
        trained / "best.safetensors": "best.safetensors",
        trained / "last.safetensors": "last.safetensors",
    }.items():
        shutil.copy(source, tmp_path / copy)
    files, made = sorted(tmp_path.iterdir()), []
    for path in files:
        before = set(tmp_path.iterdir())
        data = ("--data", photos)
        assert run("look", path, "filters")[0] == 0
        assert run("evaluate", path, *data, "--crops", 1)[0] == 0
        assert run("probe", path, *data, "--shots", 2, "--draws", 1, "--no-cache")[0] == 0
        made.append({new.name for new in set(tmp_path.iterdir()) - before})
    prefix = prefix_of(Path("best.safetensors"), [photos])
    others = (
        f"{prefix}{name}.png" for name in ("confusion", "mistakes", "probe", "probe-neighbours")
    )
    plain = {"filters.png", *others}
    begin = ["" if path.name == "best.safetensors" else f"{path.name}-" for path in files]
    assert made == [{prefix + picture for picture in plain} for prefix in begin]


def test_pictures_of_other_images_do_not_replace_those_of_the_run(copy, photos, tmp_path):
    def made(*arguments):
        before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
        assert run(arguments[0], copy, *arguments[1:])[0] == 0
        return {path.name for path in copy.iterdir() if path.stat().st_mtime_ns != before.get(path)}

    (tmp_path / "others").mkdir()
    (tmp_path / "others/val").symlink_to(photos)
    assert made("evaluate", "--crops", 1) == {"confusion.png", "mistakes.png"}
    again = ("--data", photos, "--held-out", "--crops", 1)
    assert made("evaluate", *again) == {"confusion.png", "mistakes.png"}
    data = tmp_path / "others/val"
    prefix = prefix_of(copy / "best.safetensors", [data])
    assert re.fullmatch(r"others-val-[0-9a-f]{6}-", prefix)
    others = {f"{prefix}{name}.png" for name in ("confusion", "mistakes")}
    assert made("evaluate", "--data", data, "--crops", 1) == others

    elms = [photos / "elm/00.png", tmp_path / "elm/00.png"]
    elms[1].parent.mkdir()
    shutil.copy(*elms)
    given = ([elms[0]], [elms[1]], elms, elms[:1])
    (first,), (second,), (both,), (again,) = (made("look", "answers", *images) for images in given)
    assert len({first, second, both}) == 3
    assert again == first
    assert re.fullmatch(r"00\.png-[0-9a-f]{6}-answers\.png", first)


def test_a_thousand_classes_are_imagenets(weight_file, photos, tmp_path):
    sheet = tmp_path / "sheet.png"
    image = photos / "elm/00.png"
    code, said, complaints = run("predict", weight_file(1000), image, "--out", sheet)
    assert (code, complaints) == (0, "")
    header, answer, _ = said.splitlines()
    assert header == (
        f"{tmp_path}/weights.pth: a file for tests; tiny, 1000 classes; "
        "pixels - 123.675 116.28 103.53, / 60 60 60; stretched to 32 x 32, the central 28 x 28 "
        "seen; the file names no classes: a thousand are ImageNet's; the file has no mean: "
        "ImageNet's colour is subtracted"
    )
    assert answer.startswith(f"{image}: ")
    assert set(re.findall(r"[:,] ([^,:]+?) [\d.]+%", answer)) <= set(imagenet().values())


def test_names_come_from_a_file_or_are_numbers(weight_file, photos, tmp_path):
    network, sheet = weight_file(3), tmp_path / "sheet.png"
    arguments = (network, photos / "elm/00.png", "--out", sheet)
    _, said, _ = run("predict", *arguments)
    assert "3 classes without names, which --classes FILE gives" in said
    assert re.search(r"class [012] [\d.]+%", said)
    _, said, _ = run("predict", *arguments, "--classes", photos)
    assert re.search(r"(ash|birch|elm) [\d.]+%", said)
    names = tmp_path / "names.txt"
    names.write_text("oak\nelm\n")
    code, said, complaints = run("predict", *arguments, "--classes", names)
    assert_refused(code, complaints, "the network has 3 classes, got 2 names: give one for each")


def test_options_of_weight_files_are_for_weight_files(trained, photos):
    for option, value in (("--classes", "elm"), ("--variant", "paper"), ("--mean", "elm")):
        code, _, complaints = run("predict", trained, photos / "elm", option, value)
        assert_refused(
            code, complaints, f"{option} is for weight files; {trained}/best.safetensors"
        )


def test_evaluation_of_a_weight_file(weight_file, photos, tmp_path):
    network = weight_file(3)
    code, _, complaints = run("evaluate", network)
    assert_refused(code, complaints, "weights.pth has no run that held out images")
    code, _, complaints = run("evaluate", network, "--data", photos)
    assert_refused(code, complaints, "does not know: ash, birch, elm; it knows class 0, class 1")
    arguments = ("--data", photos, "--classes", photos, "--crops", 1, "--out", tmp_path)
    code, said, complaints = run("evaluate", network, *arguments)
    assert (code, complaints) == (0, "")
    count = len(list(photos.glob("*/*.png")))
    assert re.search(rf"weights.pth, tiny, on .*\n(.*\n)+all +{count} ", said)


def test_folders_of_imagenet_have_wordnet_ids_or_names(weight_file, tmp_path):
    data = folder(tmp_path / "data", n01440764=2, hen=3, n02012849_crane=1)
    code, said, complaints = run(
        "evaluate", weight_file(1000), "--data", data, "--crops", 1, "--out", tmp_path
    )
    assert (code, complaints) == (0, "")
    counts = dict(re.findall(r"^(tench|hen|crane bird) +(\d+) ", said, re.MULTILINE))
    assert counts == {"tench": "2", "hen": "3", "crane bird": "1"}
    folder(data, n09999999=1)
    code, _, complaints = run("evaluate", weight_file(1000), "--data", data)
    assert_refused(code, complaints, "does not know: n09999999; it knows tench, goldfish")


@pytest.mark.parametrize("what", ["kernels", "answers", "features", "neighbours", "why"])
def test_pictures_of_a_weight_file(what, weight_file, photos, tmp_path):
    images = () if what == "kernels" else (photos / "elm/00.png",)
    among = ("--among", photos / "ash") if what == "neighbours" else ()
    code, said, complaints = run("look", weight_file(3), what, *images, *among)
    assert (code, complaints) == (0, "")
    assert said.startswith(f"{tmp_path}/weights.pth: a file for tests; tiny, 3 classes")
    prefix = prefix_of(tmp_path / "weights.pth", [*map(str, images), *map(str, among[1:])])
    assert prefix.startswith("weights.pth-00.png-" if images else "weights.pth-")
    assert (tmp_path / f"{prefix}{what}.png").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["curves"], "curves are drawn from the folder of a run"),
        (["answers"], "a weight file has no run with images: name some"),
        (["neighbours", "{photos}/elm/00.png"], "for neighbours also --among DIR"),
    ],
)
def test_what_takes_a_run(arguments, expected, weight_file, photos):
    filled = [argument.format(photos=photos) for argument in arguments]
    code, _, complaints = run("look", weight_file(3), *filled)
    assert_refused(code, complaints, expected)


def test_the_names_of_imagenet():
    names = list(imagenet().values())
    assert len(set(names)) == len(imagenet()) == 1000
    assert list(imagenet()) == sorted(imagenet())
    assert (names[0], names[134], names[517], names[639]) == (
        "tench",
        "crane bird",
        "crane",
        "maillot tank suit",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oak\n\nelm tree \r\n", ["oak", "elm tree"]),
        ("\ufeffoak\nelm", ["oak", "elm"]),
        ("n01440764 tench, Tinca tinca\nn99999999 a, b\nn01443537", ["tench", "a, b", "goldfish"]),
        ("/a/airfield 0\n/a/alley 1", ["/a/airfield", "/a/alley"]),
        ("0: boeing 747\n1: boeing 1", ["boeing 747", "boeing 1"]),
        ("route 66\nroute 67", ["route 66", "route 67"]),
        ("0\n1\n2", ["0", "1", "2"]),
        (json.dumps(["oak", "elm"]), ["oak", "elm"]),
        (json.dumps({"1": "elm", "0": "oak"}), ["oak", "elm"]),
        (json.dumps({"0": ["n01440764", "Tench"], "1": ["n0", "x"]}), ["tench", "n0 x"]),
        (json.dumps({"oak": 1, "elm": 0}), ["elm", "oak"]),
        (json.dumps({"model_type": "x", "id2label": {"0": "oak"}}), ["oak"]),
        ("{0: 'tench, Tinca tinca',\n 1: \"goldfish\"}", ["tench, Tinca tinca", "goldfish"]),
    ],
)
def test_lists_of_names(text, expected, tmp_path):
    path = tmp_path / "names"
    path.write_bytes(text.encode())
    assert read_class_names(path) == expected


def test_folders_are_a_list_of_names(tmp_path):
    assert read_class_names(folder(tmp_path, n01440764=1, elm=1)) == ["elm", "tench"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has no names of classes: expected one per line"),
        (b"\x89PNG\r\n\x1a\n\0", "is no list of names of classes"),
        (b"oak\0elm", "it is no text"),
        (b"[1, 2]", "expected names, found 1"),
        (b"[" * 100_000, "is no list of names of classes"),
        (b'{"0": "oak", "2": "elm"}', "it has no name for the number 1"),
        (b'{"oak": 0, "elm": 0}', "it has no name for the number 1"),
        (b'{"oak": "x"}', "invalid literal for int"),
        (b'{"id2label": 3}', "is no list of names of classes"),
        (b"{0: open('x')}", "is no list of names of classes"),
        (b"oak\n" * 500_001, "it has more than 2,000,000 bytes"),
        (b"{1e999: 'oak'}", "cannot convert float infinity to integer"),
        (b"[" + b"-" * 100_000 + b"1]", "is no list of names of classes"),
    ],
)
def test_no_list_of_names(content, expected, tmp_path):
    path = tmp_path / "names"
    path.write_bytes(content)
    with pytest.raises(FileError, match=rf"names .*{re.escape(expected)}"):
        read_class_names(path)


def test_names_that_occur_twice_get_their_number():
    assert distinct(["crane", "elm", "crane"]) == ["crane (0)", "elm", "crane (2)"]


def test_weights_are_printed_in_one_line(weight_file):
    arrays = dict(np.load(weight_file(3)))
    shown = repr(
        Weights(arrays, "tiny", "a file for tests", mean=np.zeros((36, 36, 3), np.float32))
    )
    assert len(shown) < 300
    assert "tiny" in shown
    assert "array" not in shown
