"""The picture of a graph: its nodes, arrows and bytes."""

import doctest
import os
import re
import shutil
import tracemalloc
from xml.etree import ElementTree

import numpy as np
import pytest

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import graph, models, nn

NUMPY = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
PATH = os.environ.get("PATH", "")
SVG = "{http://www.w3.org/2000/svg}"
FUSED = ["Conv2dReLU", "LocalResponseNormMaxPool2d"] * 2 + ["Conv2dReLU"] * 3
SINGLE = ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"] * 2 + ["Conv2d", "ReLU"] * 3
LINEAR = ["MaxPool2d", "Reshape", *["Linear", "ReLU", "Dropout"] * 2, "Linear", "CrossEntropy"]


@pytest.fixture(autouse=True)
def _without_graphviz(monkeypatch):
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def x():
    return ta.randn(3, 5, requires_grad=True)


def texts(drawing):
    """Return the lines of each text in the picture, in the order of its rows."""
    found = ElementTree.fromstring(drawing.svg).iter(f"{SVG}text")
    return [tuple(line.text for line in text) for text in found]


@pytest.mark.parametrize(("fused", "operations"), [(True, FUSED), (False, SINGLE)])
def test_a_network_has_its_operations_and_the_names_of_its_parameters(fused, operations):
    model = models.alexnet(models.VARIANTS["paper"].thinner(16, 67), num_classes=5)
    with ta.use_backend("cpu"), ta.use_fusion(fused):
        drawing = ta.draw_graph(F.cross_entropy(model(ta.ones(2, 3, 67, 67)), [0, 3]), model)
    numbered = [f"{number} {name}" for number, name in enumerate([*operations, *LINEAR], 1)]
    names = {kind: [n.lines[0] for n in drawing.nodes if n.kind == kind] for kind in graph.COLOURS}
    assert names["operation"] + names["result"] == numbered
    assert names["leaf"] == [name for name, _ in model.named_parameters()]
    *boxes, title = texts(drawing)
    assert sorted(boxes) == sorted(node.lines for node in drawing.nodes)
    assert title == tuple(drawing.title.split("\n"))


def arrows(drawing):
    return [
        (drawing.nodes[place].lines[0], node.lines[0])
        for node in drawing.nodes
        for place in node.inputs
    ]


def test_a_node_used_twice_is_one_box_with_two_arrows(x):
    y = x.exp()
    drawing = ta.draw_graph((y * x + y).sum())
    assert arrows(drawing) == [
        ("leaf 1", "1 Exp"),
        ("1 Exp", "2 Mul"),
        ("leaf 1", "2 Mul"),
        ("2 Mul", "3 Add"),
        ("1 Exp", "3 Add"),
        ("3 Add", "4 Sum"),
    ]
    assert drawing.svg.count("marker-end") == len(arrows(drawing))
    assert drawing.source.count(" -> ") == len(arrows(drawing))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_operand_used_more_than_once_has_as_many_arrows_to_be_seen(x, times):
    y = x.exp()
    drawing = ta.draw_graph(ta.cat([y.tanh().sum(1), *[y.sum(1)] * times, *[x[:, 0]] * times]))
    lines = re.findall(r'<path d="([^"]+)" marker-end', drawing.svg)
    assert len({*lines}) == len(lines) == len(arrows(drawing)) == 6 + 2 * times


class Hoarder(ta.Function):
    """Keeps arrays in each way that Python has."""

    def forward(self, x):
        self.save(x[:1], None, [x.T, np.ones(3)])
        self.table = {"copy": x.copy(), "tensor": ta.Tensor(x + 1), "name": "x"}
        self.view = np.broadcast_to(np.ones(7), (9, 7))
        return x.sum(keepdims=True)

    def backward(self, grad):
        return grad


GRAPHS = {
    "leaf alone": lambda x: x * x,
    "one array twice": lambda x: x.exp().relu() * 2.0,
    "view of a part": lambda x: (x * 2.0)[:1] @ ta.ones(500, 3),
    "view of what the caller has": lambda x: x[:1] @ ta.Tensor(np.ones((600, 500), np.float32).T),
    "indices": lambda x: x[[2, 0, 0]].max(1).values.amax(),
    "counts of a pool": lambda x: F.avg_pool2d(x.reshape(1, 1, 300, 500), 3, 1, 1),
    "kept in attributes": Hoarder.apply,
    "without a gradient": lambda x: (x.detach().exp() * x).sum(),
    "class probabilities": lambda x: F.cross_entropy(x, ta.rand(300, 500)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_bytes_are_those_that_the_graph_keeps_alive(backend, name):
    """Measured: what NumPy gives back when the graph goes."""
    x = ta.randn(300, 500, requires_grad=True)
    GRAPHS[name](x)  # compiles, and fills what is kept for good
    ta.empty_cache()
    tracemalloc.start()
    try:
        loss = GRAPHS[name](x).sum()
        drawing, result = ta.draw_graph(loss), loss.data
        before = held()
        del loss
        freed = before - held()
    finally:
        tracemalloc.stop()
    assert result.nbytes == 4
    rounded_up = 64 * 5 if backend == "cpu" else 0  # so that arrays begin at a cache line
    assert drawing.saved_bytes <= freed <= drawing.saved_bytes + rounded_up


def held():
    ta.empty_cache()
    traces = tracemalloc.take_snapshot().filter_traces([NUMPY]).traces
    return sum(trace.size for trace in traces)


def test_memory_that_is_shared_or_a_view_is_said(x):
    y = x.exp()
    part = y[:, :2]
    kept = {
        line
        for node in ta.draw_graph(part * x[:, :2] * part.detach()[1:2].exp()).nodes
        for line in node.lines[2:]
    }
    assert kept == {
        "keeps [3, 5] float32, 60 B",
        "keeps nothing",
        "keeps [3, 2] float32 of 1 Exp",
        "keeps [3, 2] float32 of leaf 1",
        "keeps [1, 2] float32, 8 B",
    }
    (line,) = ta.draw_graph(ta.ones(4, 3)[:2] @ x).nodes[1].lines[2:]
    assert line == "keeps [2, 3] float32, part of 48 B"


def test_a_loss_without_a_graph_is_refused(x):
    with ta.no_grad():
        constant = x.sum()
    for loss in (x, constant):
        with pytest.raises(RuntimeError, match="has no graph"):
            ta.draw_graph(loss)
    with pytest.raises(TypeError, match="expects a Tensor, got ndarray"):
        ta.draw_graph(x.data)
    with pytest.raises(TypeError, match="must be a Module or None, got list"):
        ta.draw_graph(x.sum(), [x])


def test_a_graph_that_backward_has_freed(x):
    y = x.exp()
    first, second = (-y).sum(), (y + y).sum()
    first.backward(retain_graph=True)
    assert ta.draw_graph(first).saved_bytes == y.data.nbytes
    first.backward()
    with pytest.raises(RuntimeError, match="has freed the graph"):
        ta.draw_graph(first)
    drawing = ta.draw_graph(second)
    assert drawing.nodes[0].lines == ("1 Exp", "[3, 5] float32", "freed by backward")
    assert (len(drawing.nodes), drawing.saved_bytes) == (3, 0)


def test_drawing_changes_nothing(x):
    loss = (x.exp() * x).sum()
    ta.draw_graph(loss).svg  # noqa: B018
    loss.backward()
    assert np.allclose(x.grad, np.exp(x.data) * (x.data + 1))


def test_names_are_text_in_both_languages(x):
    model, name = nn.Module(), 'a<b>&"c\\'
    setattr(model, name, nn.Parameter(x.data))
    drawing = ta.draw_graph(getattr(model, name).sum(), model)
    assert texts(drawing)[0][0] == name
    assert 'a<b>&amp;\\"c\\\\\\l[3, 5]' in drawing.source


def test_a_notebook_and_a_file_have_the_picture(x, tmp_path):
    drawing = ta.draw_graph(x.sum())
    assert drawing._repr_svg_() == drawing.svg
    for name, content in (("a.svg", drawing.svg), ("a.dot", drawing.source)):
        drawing.save(tmp_path / name)
        assert (tmp_path / name).read_text() == content
    with pytest.raises(ValueError, match=r"saved as \.svg, \.dot or \.gv, got 'a.png'"):
        drawing.save("a.png")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pydot's, of pyparsing
def test_the_package_pydot_reads_the_source(x):
    pydot = pytest.importorskip("pydot")
    drawing = named_like_markup(x)
    (graph,) = pydot.graph_from_dot_data(drawing.source)
    found = [(int(edge.get_source()), int(edge.get_destination())) for edge in graph.get_edges()]
    assert found == edges(drawing)
    assert len(graph.get_nodes()) == len(drawing.nodes) + 2  # what holds for all, and the title


def test_the_package_graphviz_draws_the_source(x, monkeypatch):
    graphviz = pytest.importorskip("graphviz")
    monkeypatch.setenv("PATH", PATH)
    if shutil.which("dot") is None:
        pytest.skip("the package graphviz is here, the program dot is not")
    drawing = named_like_markup(x)
    svg = ElementTree.fromstring(graphviz.Source(drawing.source).pipe(format="svg"))
    titles = [title.text for title in svg.iter(f"{SVG}title")]
    assert sorted(t for t in titles if "->" in t) == sorted(f"{a}->{b}" for a, b in edges(drawing))
    lines = [text.text for text in svg.iter(f"{SVG}text")]
    assert sorted(lines) == sorted(
        [*drawing.title.split("\n"), *(line for node in drawing.nodes for line in node.lines)]
    )
    assert [t.text for t in ElementTree.fromstring(drawing.svg).iter(f"{SVG}title")] == titles


def named_like_markup(x):
    """Return the drawing of a square whose leaf has a name that means something in DOT."""
    model, name = nn.Module(), 'a<b>&lt;"c\\N{é}'
    setattr(model, name, nn.Parameter(x.data))
    leaf = getattr(model, name)
    return ta.draw_graph((leaf * leaf).sum(), model)


def edges(drawing):
    return [(place, to) for to, node in enumerate(drawing.nodes) for place in node.inputs]


ECHO = 'echo $1; while read -r l; do echo "$l"; done; exit'


@pytest.mark.parametrize(
    ("program", "drawn_by_dot"),
    [
        (f"#!/bin/sh\n{ECHO} 0\n", True),
        (f"#!/bin/sh\n{ECHO} 1\n", False),
        ("#!/bin/sh\nexec /bin/sleep 60\n", False),
        ("#!/no/such/interpreter\n", False),
    ],
    ids=["draws", "fails", "takes long", "cannot start"],
)
def test_graphviz_draws_where_it_is_installed(x, tmp_path, monkeypatch, program, drawn_by_dot):
    (tmp_path / "dot").write_text(program)
    (tmp_path / "dot").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(graph, "DOT_SECONDS", 0.5)
    drawing = ta.draw_graph(x.sum())
    assert (drawing.svg == "-Tsvg\n" + drawing.source) == drawn_by_dot
    assert drawn_by_dot or drawing.svg.startswith("<svg")


def boxes_of(drawing):
    """Return left, top, right and bottom of each box."""
    rectangles = list(ElementTree.fromstring(drawing.svg).iter(f"{SVG}rect"))[1:]
    for box in rectangles:
        x, y, width, height = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        yield x, y, x + width, y + height


def test_no_box_covers_another_and_arrows_lead_down(x):
    h = x @ ta.ones(5, 3)
    for _ in range(5):
        h = (h @ x @ ta.ones(5, 3)).tanh() + h
    drawing = ta.draw_graph(ta.cat([h.sum(1), h.amax(1), h[0].exp()]).sum())
    boxes = list(boxes_of(drawing))
    assert len(boxes) == len(drawing.nodes)
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:number]:
            assert left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom
    top_of = {text[0]: box[1] for text, box in zip(texts(drawing), boxes, strict=False)}
    assert all(top_of[start] < top_of[end] for start, end in arrows(drawing))


def test_an_arrow_that_passes_rows_goes_round_their_boxes(x):
    """A skipped connection has a waypoint beside each box that it passes."""
    y = x.exp()
    layout = graph._Layout(ta.draw_graph(y.tanh().sigmoid() + y).nodes)
    passed = [item for items in layout.rows for item in items if item not in layout.is_box]
    assert len(passed) == 2
    for number, row in passed:
        (box,) = (item for item in layout.rows[row] if item in layout.is_box)
        away = abs(layout.x[number, row] - layout.x[box])
        assert away > layout.width[box[0]] / 2


def test_the_example_is_right():
    assert doctest.testmod(graph).failed == 0


def test_thousands_of_operations_need_no_recursion():
    y = ta.ones(1, requires_grad=True)
    for _ in range(3000):
        y = y + 1.0
    assert len(list(boxes_of(ta.draw_graph(y)))) == 3001
