"""Pictures of filters, predictions and curves."""

import os
import subprocess
import sys
from importlib.machinery import PathFinder

import numpy as np
import pytest
from commands import ROOT, TRAIN, load, run
from PIL import Image, ImageDraw, ImageFont
from PIL._util import DeferredError

from tinyalex.cli.predict import describe
from tinyalex.data import ImageFolder
from tinyalex.models import VARIANTS, alexnet
from tinyalex.optional import PackageError
from tinyalex.pictures.charts import confusion_matrix, curves_as_svg, learning_curves, shots_chart
from tinyalex.pictures.features import feature_sheet, neighbour_sheet
from tinyalex.pictures.sheets import (
    INK,
    PALE,
    caption_lines,
    captions_height,
    contact_sheet,
    drawable,
    filter_grid,
    first_filters,
    font,
    shorten,
)
from tinyalex.training import Answers, read_metrics

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")


def test_filter_grid_stretches_each_kernel():
    weight = np.zeros((3, 3, 2, 2), np.float32)
    weight[0, 0, 0, 0] = 1e-3  # red, as bright as it gets, though it is small
    weight[1, :, 1, 1] = -5.0  # black
    grid = filter_grid(weight, scale=4, gap=1)
    pixels = np.asarray(grid)
    assert grid.size == (3 * 9 + 1, 9 + 1)
    assert pixels[1, 1].tolist() == [255, 128, 128]
    assert pixels[8, 10 + 7].tolist() == [0, 0, 0]
    assert (pixels[1:9, 19:27] == 128).all()
    assert (pixels[:, 0] == 0).all()  # the gap
    assert filter_grid(np.ones((96, 1, 11, 11))).size[0] == 16 * (11 * 6 + 2) + 2
    with pytest.raises(ValueError, match="1 or 3 colours"):
        filter_grid(np.ones((4, 2, 3, 3)))


def test_first_filters_are_one_tower_above_the_other():
    paper, one_tower = (
        first_filters(alexnet(VARIANTS[name].thinner(6, 67), 2)) for name in ("paper", "one_tower")
    )
    assert one_tower.size == (16 * 68 + 2, 68 + 2)  # 16 filters
    assert paper.size == (6 * 68 + 2, 2 * (2 * 68 + 2) + 8)  # 8 above 8
    pixels = np.asarray(paper)
    white = (pixels == 255).all(axis=(1, 2))
    assert np.flatnonzero(white).tolist() == list(range(138, 146))
    with pytest.raises(ValueError, match="3 filters cannot be divided among 2 towers"):
        filter_grid(np.ones((3, 1, 2, 2)), towers=2)


def test_contact_sheet_draws_probabilities_to_scale():
    image = np.full((50, 80, 3), 77, np.uint8)
    shares = np.array([[0.25, 0.75], [0.5, 0.5]])
    titles = ["a", "a name that is far too long for the space that there is below an image.png"]
    sheet = np.asarray(contact_sheet([image, image], titles, shares, ["cat", "dog"], size=100))
    assert (sheet[20, 20] == 77).all()
    below = 14 + 100 + captions_height(titles, 100)
    assert below == 14 + 100 + 7 + 3 * 15
    first_bar, second_bar = (sheet[below + y, 14:114] for y in (3, 21 + 3))
    assert (first_bar == (0xD3, 0xDE, 0xEC)).all(axis=1).sum() == pytest.approx(75, abs=1)
    assert (second_bar == (0xD3, 0xDE, 0xEC)).all(axis=1).sum() == pytest.approx(25, abs=1)


def test_contact_sheet_with_labels_has_the_right_class_in_green():
    image = np.full((50, 80, 3), 77, np.uint8)
    shares = np.array([[0.25, 0.75], [0.25, 0.75], [0.25, 0.75]])
    sheet = contact_sheet(
        [image] * 3, list("abc"), shares, ["cat", "dog"], size=100, labels=[0, 1, -1]
    )
    pixels = np.asarray(sheet)
    green = (pixels == (0xB5, 0xDC, 0xAB)).all(axis=2)
    upper, lower = (green[14 + 100 + 22 + y] for y in (3, 21 + 3))
    by_image = [(int(bar[14:114].sum()), int(bar[128:228].sum()), int(bar[242:342].sum()))
                for bar in (upper, lower)]  # fmt: skip
    assert by_image == [(0, 75, 0), (26, 0, 0)]
    unknown = contact_sheet([image] * 3, list("abc"), shares, ["cat", "dog"], size=100)
    assert sheet.height - unknown.height == 22  # a line that says what green means


@pytest.mark.parametrize("number", [2, 12, 100])
def test_confusion_matrix_has_what_is_right_in_rows(number, tmp_path):
    pytest.importorskip("matplotlib")
    counts = np.zeros((number, number), np.int64)
    counts[0, -1] = 7  # the first class, taken for the last
    path = tmp_path / "confusion.png"
    confusion_matrix(counts, [f"$_{i}_$" for i in range(number)], path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    assert max(height, width) < 2000
    bluest = (pixels[..., 2] - pixels[..., 0] > 90) & (pixels[..., 0] < 20)
    _, columns = np.nonzero(bluest[: int(0.15 * height)])  # above the colour bar
    assert len(columns) > 50
    assert columns.mean() > 0.5 * width


def test_learning_curves_are_a_png(trained, tmp_path):
    pytest.importorskip("matplotlib")
    rows = read_metrics(trained / "metrics.jsonl")
    learning_curves(rows, 3, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1300, 520)
        assert len(image.convert("RGB").getcolors(2**16)) > 100


def curve(steps, losses):
    """Return the rows of one epoch, with losses at some steps."""
    rows = [
        {"kind": "step", "epoch": 1, "step": step, "loss": loss, "top1": 0.5, "lr": 0.1}
        for step, loss in zip(steps, losses, strict=True)
    ]
    last = {"val_loss": 1.0, "val_top1": 0.5, "val_top5": 1.0}
    return [*rows, {**rows[-1], "kind": "epoch", **last}]


def test_the_training_curve_of_a_short_epoch_is_seen(tmp_path):
    pytest.importorskip("matplotlib")
    learning_curves(curve([7], [2.0]), 3, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    above = pixels[:250]
    assert (above == (0x7F, 0x9C, 0xC0)).all(axis=2).sum() > 20


def test_curves_have_no_points_of_few_steps():
    pytest.importorskip("matplotlib")
    steps = [10, 20, 25, 30, 40, 41]
    svg = curves_as_svg(curve(steps, [1.0, 1.0, 0.8, 1.0, 1.0, 9.0]), 3)["loss"]
    same = curves_as_svg(curve([10, 20, 30, 41], [1.0, 1.0, 0.9, 19 / 11]), 3)["loss"]
    assert svg == same


@pytest.mark.parametrize(("points", "least", "most"), [(1, 30_000, 10**6), (2, 50, 10_000)])
def test_a_single_number_of_shots_is_drawn_as_bars(tmp_path, points, least, most):
    pytest.importorskip("matplotlib")
    curves = {name: [(5, 0.75, 0.02), (20, 0.8, 0.01)][:points] for name in ("fc7", "b", "pixels")}
    shots_chart(curves, 2, tmp_path / "probe.png")
    with Image.open(tmp_path / "probe.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert least < (pixels == (0xC0, 0x39, 0x2B)).all(axis=2).sum() < most


def test_small_shares_have_digits_on_sheets_and_in_answers():
    shares = np.full((1, 1000), 0.0007, np.float32)
    drawn = [
        contact_sheet([np.zeros((9, 9, 3), np.uint8)], [""], shares * scale, [""] * 1000)
        for scale in (1, 1.5)
    ]
    assert drawn[0] != drawn[1]
    assert describe("a.png", shares[0], [*map(str, range(1000))]).count("0.07%") == 5


def test_there_are_no_curves_before_the_first_epoch(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="before the end of the first epoch"):
        learning_curves([], 3, tmp_path / "curves.png")


# --- names and packages


def test_letters_that_the_font_has_are_drawn_and_others_escaped():
    pytest.importorskip("matplotlib")
    face = font(12)
    for text in ("Käse, Ωμέγα, Ёлка, 50 €", "a b", "e\u0301"):
        assert drawable(text, face) == text
    assert drawable("猫\U0001f9ff", face) == r"\u732b\U0001f9ff"
    plain = ImageFont.load_default(12)
    assert drawable("Käse 猫", plain) == r"K\xe4se \u732b"


def test_without_matplotlib_there_is_the_font_of_pillow(monkeypatch):
    monkeypatch.setattr(PathFinder, "find_spec", lambda name: None)
    font.cache_clear()
    try:
        assert drawable("Käse", font(12)) == r"K\xe4se"
        monkeypatch.setattr(ImageFont, "core", DeferredError(ImportError("no FreeType")))
        font.cache_clear()
        assert drawable("Käse 猫", font(12)) == r"Käse \u732b"
    finally:
        monkeypatch.undo()
        font.cache_clear()


def test_a_name_of_any_length_is_cut_to_its_place():
    draw, face = ImageDraw.Draw(Image.new("RGB", (9, 9))), font(12)
    for text in ("a" * 100_000, "猫" * 1000, "abc", "m"):
        for width in (5, 30, 100):
            cut = shorten(draw, text, face, width)
            assert draw.textlength(cut, face) <= width or len(cut) <= 2
            assert cut == text or "…" in cut


def test_a_long_caption_has_lines_of_its_own():
    image, name = np.zeros((9, 9, 3), np.uint8), "sunflowers_from-the garden behind_houses_20.jpg"
    lines = caption_lines(f"{name}\ndistance 12", 208)
    assert [colour for _, colour in lines] == [INK, INK, PALE]
    shown = "".join(line for line, _ in lines)
    assert shown.replace(" ", "") == f"{name}distance12".replace(" ", "")
    assert all(font(12).getlength(line) <= 208 for line, _ in lines)
    assert len(caption_lines("a_" * 10_000, 208)) == 3
    for sheet in (
        lambda title: contact_sheet([image], [title], np.ones((1, 1)), ["a"]),
        lambda title: neighbour_sheet([[image, image]], [[title, title]]),
    ):
        assert sheet(name).height > sheet("short").height


@pytest.mark.parametrize(
    "names", [["a\nb", "\x1b[2J"], ["猫", "Ж"], ["  ", "$x$"], ["\udcff", "😀"]]
)
def test_every_picture_takes_every_name(names, tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    image, shares = np.full((50, 80, 3), 77, np.uint8), np.array([[0.25, 0.75], [0.5, 0.5]])
    contact_sheet([image, image], names, shares, names, labels=[0, 1])
    neighbour_sheet([[image, image]], [names])
    feature_sheet(image, names[0], {"conv1": np.ones((1, 3, 5, 5), np.float32)})
    confusion_matrix(np.eye(2, dtype=np.int64), names, tmp_path / "confusion.png")
    assert not recwarn.list


PROGRAM = """if True:
    import sys
    import numpy as np
    from tinyalex.pictures.charts import confusion_matrix
    from tinyalex.pictures.sheets import failure
    from tinyalex.progress import one_sentence
    path = sys.argv[1]
    error = failure(lambda: confusion_matrix(np.eye(2, dtype=np.int64), ["a", "猫"], path))
    print(one_sentence(error) if error else "drawn")
"""


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, "drawn"),
        ({"MPLBACKEND": "nonsense"}, "drawn"),
        ({"MPLCONFIGDIR": "/proc/nowhere"}, "drawn"),
        ({"MPLCONFIGDIR": "{folder}"}, "drawn"),  # with a matplotlibrc
        (
            {"matplotlib.py": "raise AttributeError('_ARRAY_API not found')"},
            "does not work here (At",
        ),
        ({"matplotlib.py": "import nowhere"}, "does not work here (ModuleNotFoundError: No module"),
        ({"matplotlib.py": "import warnings; warnings.warn('x'); 1 / 0"}, "(ZeroDivisionError: "),
        ({"matplotlib.py": ""}, "does not work here ("),
        ({"kiwisolver.py": "raise ImportError('two\\nlines')"}, "(ImportError: two lines)"),
    ],
)
def test_a_matplotlib_that_is_broken_costs_its_pictures_alone(tmp_path, broken, expected):
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for name, text in broken.items():
        if name.endswith(".py"):
            (tmp_path / name).write_text(text)
        else:
            environment[name] = text.format(folder=tmp_path)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nnonsense\nbackend: module://x\n\xff")
    command = [sys.executable, "-c", PROGRAM, tmp_path / "confusion.png"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert expected in done.stdout
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert (tmp_path / "confusion.png").exists() == (expected == "drawn")


def failing(error):
    def draw(*arguments):
        raise error

    return draw


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PackageError("matplotlib is missing"), "matplotlib is missing"),
        (KeyError("val_loss"), "KeyError: 'val_loss'"),
        (OSError(28, "No space left"), "No space left, there is no room for the file"),
        (RuntimeError("\x1b"), r"\x1b"),
    ],
)
def test_a_picture_that_fails_ends_no_run(photos, tmp_path, monkeypatch, error, reason):
    monkeypatch.setattr("tinyalex.cli.finish.learning_curves", failing(error))
    monkeypatch.setattr("tinyalex.cli.finish.first_filters", failing(error))
    arguments = ("--variant", "tiny", "--data", photos, "--epochs", 1, "--out", tmp_path / "run")
    code, said, complaints = run(TRAIN, *arguments)
    assert (code, complaints) == (0, "")
    assert f"no filters.png: {reason}\nno curves.png: {reason}\n" in said
    assert said.splitlines()[-1].endswith("IMAGES")


@pytest.mark.parametrize(
    ("error", "expected"), [(PackageError("it is missing"), 0), (OSError(28, "No space left"), 1)]
)
def test_each_picture_fails_alone(trained, tmp_path, monkeypatch, capsys, error, expected):
    evaluate = load("evaluate")
    monkeypatch.setattr(evaluate, "confusion_matrix", failing(error))
    assert evaluate.main([str(trained), "--crops", "1", "--out", str(tmp_path)]) == expected
    assert "\n  no confusion.png: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["mistakes.png"]


def test_mistakes_of_another_time_go_where_there_are_none(tmp_path, photos, capsys):
    (tmp_path / "mistakes.png").write_bytes(b"old")
    dataset, evaluate = ImageFolder(photos), load("evaluate")
    right = np.log(np.eye(3)[dataset.labels] * 0.9 + 0.05)
    answers = Answers(np.arange(len(dataset)), dataset.labels, right)
    assert evaluate.draw(answers, dataset, tmp_path) == 0
    assert "no mistakes.png: every answer was right" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]


def test_a_sheet_that_fails_loses_no_answer(trained, photos, tmp_path, monkeypatch, capsys):
    predict = load("predict")
    monkeypatch.setattr(predict, "save_png", failing(OSError(28, "No space left", "s.png")))
    arguments = (
        trained,
        photos / "elm",
        "--out",
        tmp_path / "s.png",
        "--sort",
        tmp_path / "sorted",
    )
    assert predict.main([str(argument) for argument in arguments]) == 1
    said, complaints = capsys.readouterr()
    assert complaints.startswith("error: no contact sheet: s.png: No space left")
    assert said.splitlines()[-1].startswith("copied 24 images into")
