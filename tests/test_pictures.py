"""Pictures of kernels, predictions and curves."""

import numpy as np
import pytest
from PIL import Image

from tinyalex.models import VARIANTS, alexnet
from tinyalex.training import read_metrics
from tinyalex.training.pictures import (
    confusion_matrix,
    contact_sheet,
    filter_grid,
    first_kernels,
    learning_curves,
)

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


def test_first_kernels_are_one_tower_above_the_other():
    paper, one_tower = (
        first_kernels(alexnet(VARIANTS[name].thinner(6, 67), 2)) for name in ("paper", "one_tower")
    )
    assert one_tower.size == (16 * 68 + 2, 68 + 2)  # 16 kernels
    assert paper.size == (6 * 68 + 2, 2 * (2 * 68 + 2) + 8)  # 8 above 8
    pixels = np.asarray(paper)
    white = (pixels == 255).all(axis=(1, 2))
    assert np.flatnonzero(white).tolist() == list(range(138, 146))
    with pytest.raises(ValueError, match="3 kernels cannot be divided among 2 towers"):
        filter_grid(np.ones((3, 1, 2, 2)), towers=2)


def test_contact_sheet_draws_probabilities_to_scale():
    image = np.full((50, 80, 3), 77, np.uint8)
    shares = np.array([[0.25, 0.75], [0.5, 0.5]])
    titles = ["a", "a name that is far too long for the space that there is below an image.png"]
    sheet = np.asarray(contact_sheet([image, image], titles, shares, ["cat", "dog"], size=100))
    assert (sheet[20, 20] == 77).all()
    first_bar, second_bar = (sheet[14 + 100 + 22 + y, 14:114] for y in (3, 21 + 3))
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


def test_there_are_no_curves_before_the_first_epoch(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="before the end of the first epoch"):
        learning_curves([], 3, tmp_path / "curves.png")
