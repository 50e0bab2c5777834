"""Code blocks of the documents, run as printed with thin networks."""

import re
import shlex
import shutil

import numpy as np
import pytest
from caffemodels import blob, caffemodel, layers
from commands import ROOT, draw_photos, run
from PIL import Image

from tinyalex.cli.main import COMMANDS
from tinyalex.cli.train_parser import make_parser
from tinyalex.interop.weights import Weights, expected_shapes
from tinyalex.interop.writing import save_torch
from tinyalex.models import VARIANTS

pytest_plugins = ("trained",)
pytestmark = pytest.mark.documents

DOCUMENTS = sorted((*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")))
FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    """Return the code blocks of a document in a language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def lines_in(path):
    """Return the words of each line of a document's shell commands."""
    lines = "".join(blocks(path, "sh")).replace("$run", "runs/cluster").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def calls_in(path):
    """Yield the words of each call of tinyalex."""
    for words in lines_in(path):
        for place, word in enumerate(words[:-1]):
            if word.rpartition("/")[2] == "tinyalex" and words[place + 1] in COMMANDS:
                yield [word for word in words[place + 1 :] if word != "&"]


@pytest.fixture
def place(thin, tmp_path, monkeypatch, rng):
    """Enter a folder that has what the documents' commands take."""
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos", 14)  # 34 to learn from: more than a batch
    (tmp_path / "photos/ash").rename(tmp_path / "photos/tulips")
    shutil.copytree("photos", "others")
    shutil.copytree("photos/elm", "new-photos")
    for animal in ("tench", "goldfish"):
        shutil.copytree("photos/elm", f"imagenet/{animal}")
    for part in ("train", "val"):
        for flower in FLOWERS:
            shutil.copytree("photos/elm", f"flowers/{part}/{flower}")
            shutil.copytree("photos/elm", f"{'three' if flower < 's' else 'two'}/{part}/{flower}")
    for photo in ("photo.jpg", "another.jpg"):
        Image.new("RGB", (40, 36), "red").save(photo)

    def arrays(variant):
        shapes = expected_shapes(VARIANTS[variant], 1000)
        return {key: rng.standard_normal(shape).astype("f4") / 20 for key, shape in shapes.items()}

    save_torch(Weights(arrays("torchvision"), "torchvision", "drawn"), "alexnet.pth")
    model = caffemodel(layers(VARIANTS["caffe"], arrays("caffe")), 1)
    (tmp_path / "bvlc_alexnet.caffemodel").write_bytes(model)
    (tmp_path / "imagenet_mean.binaryproto").write_bytes(blob(np.full((1, 3, 256, 256), 120.0)))


RUN_ELSEWHERE = ("tour.md", "exercises.md", "no-learning.md")  # by tests of their own names
WITH_CODE = [p for p in DOCUMENTS if [*calls_in(p)] or blocks(p, "python")]


@pytest.mark.parametrize("path", [p for p in WITH_CODE if p.name not in RUN_ELSEWHERE], ids=name)
def test_commands_run_one_after_the_other_and_then_python(path, place):
    for words in calls_in(path):
        if "--epochs" in words:
            words[words.index("--epochs") + 1] = "1"
        if words[0] == "gradcheck" or "--measure" in words:
            continue  # minutes; tests of these commands run them
        if {"--device", "/data/imagenet"} & {*words}:  # needs a GPU, or ImageNet
            make_parser().parse_args(words[1:])
            continue
        code, said, complaints = run(*words)
        assert code == 0, f"{shlex.join(words)}\n{said}\n{complaints}"
    scope = {}
    for code in blocks(path, "python"):
        if not code.startswith("def conv2d_input_grad("):  # the README's, of backends/reference.py
            exec(code, scope)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_files_and_extras_of_other_commands_exist(path):
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for words in lines_in(path):
        for word in words:
            if re.fullmatch(r"(tests|benchmarks|examples|docs|\.ci)/\S+", word):
                assert (ROOT / word).exists(), word
            for extra in re.findall(r"\[([\w,]+)\]", word):
                assert all(f"\n{one} = [" in extras for one in extra.split(",")), word
