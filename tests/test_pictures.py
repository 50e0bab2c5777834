"""Pictures of kernels, predictions and curves."""

import numpy as np
import pytest
from PIL import Image

from tinyalex.training import read_metrics
from tinyalex.training.pictures import contact_sheet, filter_grid, learning_curves

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


def test_contact_sheet_draws_probabilities_to_scale():
    image = np.full((50, 80, 3), 77, np.uint8)
    shares = np.array([[0.25, 0.75], [0.5, 0.5]])
    titles = ["a", "a name that is far too long for the space that there is below an image.png"]
    sheet = np.asarray(contact_sheet([image, image], titles, shares, ["cat", "dog"], size=100))
    assert (sheet[20, 20] == 77).all()
    first_bar, second_bar = (sheet[14 + 100 + 22 + y, 14:114] for y in (3, 21 + 3))
    assert (first_bar == (0xF0, 0xA8, 0xA0)).all(axis=1).sum() == pytest.approx(75, abs=1)
    assert (second_bar == (0xD3, 0xDE, 0xEC)).all(axis=1).sum() == pytest.approx(25, abs=1)


def test_learning_curves_are_a_png(trained, tmp_path):
    pytest.importorskip("matplotlib")
    rows = read_metrics(trained / "metrics.jsonl")
    learning_curves(rows, 3, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1300, 520)
        assert len(image.convert("RGB").getcolors(2**16)) > 100
