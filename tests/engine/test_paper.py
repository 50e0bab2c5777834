"""The map from the paper to the code, and the paper's numbers."""

import ast
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tinyalex.backends.geometry import PoolOptions, pool_output_size
from tinyalex.data import TrainTransform
from tinyalex.models import VARIANTS
from tinyalex.models.alexnet import output_shape, parameter_shapes
from tinyalex.models.spec import Conv, Linear, Pool, ReLU

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "paper.md"
PAPER = VARIANTS["paper"]
LAYERS = (*PAPER.features, *PAPER.classifier)
SHAPES = parameter_shapes(PAPER, 1000)

# --- the map --------------------------------------------------------------------------------------

TEXT = PAGE.read_text(encoding="utf-8")
TABLE = TEXT.split("<!-- paper-map -->\n")[1].split("<!-- /paper-map -->")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE.splitlines()[2:]]
POINTER = re.compile(r"\[`[^`]+`\]\(([^)]+)\)(?:: (`[^;]+))?")


def pointers(cell):
    """Return each file of a cell with the names behind it."""
    found = [
        (PAGE.parent / path, re.findall(r"`([^`]+)`", names))
        for path, names in POINTER.findall(cell)
    ]
    assert found, f"{cell} points nowhere"
    return found


def defined(path):
    """Return the names that a file defines at its top level and in its classes: a, A.a."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef):
                    names.add(f"{node.name}.{inner.name}")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def test_the_map_has_forty_rows_in_the_order_of_the_paper():
    assert len(ROWS) >= 40
    assert all(len(row) == 4 for row in ROWS)
    sections = list(dict.fromkeys(row[0] for row in ROWS))
    figure_2 = sections.index("Figure 2")  # at the end of section 3.5
    assert sections[figure_2 - 1] == "3.5"
    numbers = [s.split(",")[0] for s in sections if s[0].isdigit()]
    assert numbers == sorted(numbers, key=float)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_a_row_of_the_map_leads_to_code_and_to_a_test(row):
    _, _, code, held_by = row
    for path, names in pointers(code):
        assert names, f"{path.name} without a name"
        assert set(names) <= defined(path), path.name
        assert "tests" not in path.parts
    for path, names in pointers(held_by):
        assert names, f"{path.name} without a test"
        assert all(name.startswith("test_") for name in names)
        assert set(names) <= defined(path), path.name
        assert "tests" in path.parts


# --- its numbers ----------------------------------------------------------------------------------


def sizes():
    """Return the number of outputs of each layer with weights."""
    channels, size, found = 3, PAPER.input_size, []
    for layer in PAPER.features:
        channels, size = output_shape(layer, channels, size)
        if isinstance(layer, Conv):
            found.append(channels * size * size)
    return [
        *found,
        *(layer.features or 1000 for layer in PAPER.classifier if isinstance(layer, Linear)),
    ]


def test_sixty_million_parameters():
    count = sum(math.prod(shape) for shape in SHAPES.values())
    assert count == 60_965_224
    assert round(count / 1e6, -1) == 60


def test_neurons():
    """The caption of Figure 2 has 253,440 for layer 1; the abstract's 650,000 fit 290,400."""
    assert 3 * PAPER.input_size**2 == 150_528
    found = sizes()
    assert found == [55 * 55 * 96, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert sum(found) == 659_272
    caption = [253_440, *found[1:]]
    assert abs(sum(found) - 650_000) < abs(sum(caption) - 650_000)


def test_kernels_of_section_3_5():
    weights = [shape for shape in SHAPES.values() if len(shape) > 1]
    assert weights == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
        (4096, 256 * 6 * 6),
        (4096, 4096),
        (1000, 4096),
    ]
    assert LAYERS[0].stride == 4


def test_a_relu_follows_every_layer_but_the_last():
    followers = [after for layer, after in pairwise(LAYERS) if isinstance(layer, (Conv, Linear))]
    assert len(followers) == 7
    assert all(isinstance(after, ReLU) for after in followers)


def test_overlapping_pools_are_as_large_as_others():
    pools = [layer for layer in LAYERS if isinstance(layer, Pool)]
    assert [(pool.kernel, pool.stride) for pool in pools] == [(3, 2)] * 3
    for size, expected in ((55, 27), (27, 13), (13, 6)):
        for kernel in (2, 3):
            options = PoolOptions((kernel, kernel), (2, 2))
            assert pool_output_size((size, size), options) == (expected, expected)


def test_views_of_an_image():
    """The paper counts 32 offsets along each axis; with both edges there are 33."""
    transform, rng = TrainTransform(PAPER.input_size), np.random.default_rng(0)
    region = np.empty((256, 256, 3), np.uint8)
    drawn = {transform.choose(region, rng) for _ in range(30_000)}
    assert len(drawn) == 33 * 33 * 2
    assert 32 * 32 * 2 == 2048
