"""The recorded graph as a picture: operations, leaves, memory kept for backward."""

from __future__ import annotations

import html
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tinyalex.autograd import Function
from tinyalex.backends.memory import memory_of
from tinyalex.folders import write_atomically
from tinyalex.nn import Module
from tinyalex.tensor import Tensor
from tinyalex.text import counted, escaped

COLOURS = {"operation": "#e8effc", "leaf": "#e6f4e6", "result": "#fdf0cf"}
LINE, LETTER = 15, 7.25  # pixels, of monospaced text of 12 pixels
GAP, MARGIN = 34, 12
APART = 10  # pixels between the arrows of ``x * x``
DOT_SECONDS = 20  # that ``dot`` gets: thousands of nodes may take it minutes


class Node(NamedTuple):
    """An operation or a leaf of a `Drawing`."""

    kind: str
    """One of `COLOURS`."""
    lines: tuple[str, ...]
    """The name, the shape and dtype of the result and, one per line, what is kept."""
    inputs: tuple[int, ...]
    """Indices of the nodes that arrows come from; none for a leaf."""


@dataclass(frozen=True, repr=False)
class Drawing:
    """Result of `draw_graph`, which notebooks show, ``print`` lists, `save` writes."""

    nodes: tuple[Node, ...]
    """Inputs before results; the last one is the result."""
    saved_bytes: int
    """Memory that operations keep for backward, beside the leaves, which stay anyway."""

    @property
    def title(self) -> str:
        """Numbers of nodes and bytes, and how to read the picture."""
        leaves = sum(node.kind == "leaf" for node in self.nodes)
        return (
            f"{counted(len(self.nodes) - leaves, 'operation')}, "
            f"{counted(leaves, 'leaf', 'leaves')}; beside the leaves, {_size(self.saved_bytes)} "
            "are kept for backward.\n"
            "Arrows lead from inputs to results; backward visits the highest number first."
        )

    def __repr__(self) -> str:
        return "\n".join([*("\n    ".join(node.lines) for node in self.nodes), self.title])

    @cached_property
    def source(self) -> str:
        """The graph in DOT, the language of Graphviz: ``graphviz.Source(drawing.source)``."""
        lines = [
            "digraph {",
            'node [shape=box, style="rounded,filled", fontname=Courier, fontsize=12]',
            f"graph [labelloc=t, fontname=Courier, fontsize=12, label={_quoted(self.title)}]",
        ]
        for number, node in enumerate(self.nodes):
            label = _quoted("\n".join(node.lines))
            lines.append(f'{number} [label={label}, fillcolor="{COLOURS[node.kind]}"]')
            lines += [f"{place} -> {number}" for place in node.inputs]
        return "\n".join([*lines, "}", ""])

    @cached_property
    def svg(self) -> str:
        """The picture, arranged by Graphviz's program ``dot`` if installed, else here."""
        if dot := shutil.which("dot"):
            with suppress(OSError, subprocess.SubprocessError):
                return subprocess.run(
                    [dot, "-Tsvg"],
                    input=self.source,
                    capture_output=True,
                    encoding="utf-8",
                    check=True,
                    timeout=DOT_SECONDS,
                ).stdout
        return _draw(self.nodes, self.title)

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture (``.svg``) or its source (``.dot``, ``.gv``).

        Raises ValueError for another ending.
        """
        ending = Path(path).suffix.lower()
        if ending not in (".svg", ".dot", ".gv"):
            raise ValueError(
                f"a drawing is saved as .svg, .dot or .gv, got {escaped(os.fspath(path))!r}; "
                "the package graphviz makes other formats of its .source"
            )
        content = (self.svg if ending == ".svg" else self.source).encode()
        write_atomically(path, lambda file: file.write(content))


def draw_graph(loss: Tensor, model: Module | None = None) -> Drawing:
    """Draw the operations behind ``loss``, and what they keep for backward.

    Operations are numbered in the order of their birth. Each shows the shape and dtype of its
    result and the arrays that its node keeps alive. A view keeps all that it is a view of, and
    memory that several keep counts once. Leaves have their names in ``model``. What needs no
    gradient, like images, is no part of the graph.

    >>> import tinyalex as ta
    >>> x = ta.tensor([1.0, 2.0], requires_grad=True)
    >>> ta.draw_graph(x.exp().sum())
    leaf 1
        [2] float32, 8 B
    1 Exp
        [2] float32
        keeps [2] float32, 8 B
    2 Sum
        scalar float32
        keeps nothing
    2 operations, 1 leaf; beside the leaves, 8 B are kept for backward.
    Arrows lead from inputs to results; backward visits the highest number first.

    Raises RuntimeError for a tensor without a graph, or with one that `backward` has freed.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"draw_graph expects a Tensor, got {type(loss).__name__}")
    if model is not None and not isinstance(model, Module):
        raise TypeError(f"model must be a Module or None, got {type(model).__name__}")
    root = loss.grad_fn
    if root is None:
        raise RuntimeError(
            "this tensor has no graph: it is a leaf, or it was not computed from any tensor with "
            "requires_grad=True, or it was computed under no_grad()"
        )
    if root.freed:
        raise RuntimeError(
            "backward() has freed the graph of this tensor; draw it before, or call "
            "backward(retain_graph=True)"
        )
    operations = _behind(root)
    names = {id(p): name for name, p in model.named_parameters()} if model else {}
    owners: dict[int, str] = {}  # of memory: the leaf, or the first operation, that has it
    for number, leaf in enumerate(_leaves(operations), 1):
        owners.setdefault(memory_of(leaf.data)[0], names.setdefault(id(leaf), f"leaf {number}"))

    nodes: list[Node] = []
    places: dict[int, int] = {}
    saved = 0

    def add(key: Function | Tensor, kind: str, *lines: str, inputs: Sequence[int] = ()) -> None:
        places[id(key)] = len(nodes)
        nodes.append(Node(kind, tuple(map(escaped, lines)), tuple(inputs)))

    for number, node in enumerate(operations, 1):
        edges = [edge for edge in node.edges if edge is not None]
        for edge in edges:
            if isinstance(edge, Tensor) and id(edge) not in places:
                add(edge, "leaf", names[id(edge)], f"{_kind(edge)}, {_size(edge.data.nbytes)}")
        name = f"{number} {type(node).__name__}"
        kept = {}
        for array in _arrays({k: v for k, v in vars(node).items() if k != "edges"}):
            key, size = memory_of(array)
            if key not in owners:
                saved += size
                part = "" if size <= array.nbytes else "part of "
                kept[key] = f"keeps {_kind(array)}, {part}{_size(size)}"
            kept.setdefault(key, f"keeps {_kind(array)} of {owners.setdefault(key, name)}")
        if node.device != "cpu":
            name += f" on {node.device}"
        state = ["freed by backward"] if node.freed else kept.values() or ["keeps nothing"]
        inputs = [places[id(edge)] for edge in edges]
        kind = "result" if node is root else "operation"
        add(node, kind, name, _kind(node), *state, inputs=inputs)
    return Drawing(tuple(nodes), saved)


def _behind(root: Function) -> list[Function]:
    """Return ``root`` and all operations that it depends on, the oldest first."""
    found, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [edge for edge in node.edges if isinstance(edge, Function)]
    return sorted(found, key=lambda node: node.birth)


def _leaves(operations: Sequence[Function]) -> Iterator[Tensor]:
    """Yield each leaf once."""
    leaves = [edge for node in operations for edge in node.edges if isinstance(edge, Tensor)]
    yield from {id(leaf): leaf for leaf in leaves}.values()


def _arrays(value: Any) -> Iterator[Any]:
    """Yield the arrays in a value, NumPy's or CuPy's."""
    if isinstance(value, Tensor):
        value = value.data
    if hasattr(value, "nbytes"):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _arrays(item)


def _kind(array: Any) -> str:
    """Return shape and dtype."""
    return f"{list(array.shape) or 'scalar'} {array.dtype}"


def _size(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.4g} GiB"


def _quoted(text: str) -> str:
    """Return text as a string of DOT, aligned to the left."""
    # In DOT, too, &lt; means <.
    text = text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    lines = text.split("\n")
    return '"' + "".join(f"{line}\\l" for line in lines) + '"'


# --- a picture without Graphviz -------------------------------------------------------------------

Item: TypeAlias = "tuple[int, int]"
"""A node in its row or, as a waypoint of its arrows, in a row below."""


class _Layout:
    """Rows of boxes with inputs above results (after Sugiyama, Tagawa and Toda 1981).

    An operation is one row below the last of its operands, a leaf one above the first that uses it.
    In the rows between the ends of an arrow there is a waypoint, which all arrows of a node share.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.width = [LETTER * max(map(len, node.lines)) + 16 for node in nodes]
        users: list[list[int]] = [[] for _ in nodes]
        row = [0] * len(nodes)
        for number, node in enumerate(nodes):
            for place in node.inputs:
                users[place].append(number)
            row[number] = 1 + max((row[i] for i in node.inputs if self._drives((i, 0))), default=0)
        for number, node in enumerate(nodes):
            if node.kind == "leaf":
                row[number] = min(row[user] for user in users[number]) - 1
        self.rows: list[list[Item]] = [[] for _ in range(max(row) + 1)]
        self.below: dict[Item, list[Item]] = {}
        self.above: dict[Item, list[Item]] = {}
        for number, first in enumerate(row):
            last = max((row[user] for user in users[number]), default=first + 1)
            for at in range(first, last):
                self.rows[at].append((number, at))
                targets = [(user, at + 1) for user in users[number] if row[user] == at + 1]
                self.below[number, at] = targets + [(number, at + 1)] * (at + 1 < last)
                for item in self.below[number, at]:
                    self.above.setdefault(item, []).append((number, at))
        self.is_box = {(number, at) for number, at in enumerate(row)}
        self.x = dict.fromkeys(self.below, 0.0)
        for _ in range(4):
            for neighbours, rows in ((self.above, self.rows), (self.below, self.rows[::-1])):
                for items in rows:
                    self._place(items, neighbours)

    def _drives(self, item: Item) -> bool:
        """Return whether an item decides where its neighbours go: all but leaves."""
        return self.nodes[item[0]].kind != "leaf"

    def _place(self, items: list[Item], neighbours: dict[Item, list[Item]]) -> None:
        """Put the items of a row near their neighbours, without overlaps."""
        wanted = {}
        for item in items:
            near = neighbours.get(item) or self.below[item]
            if item in self.is_box:
                near = list(filter(self._drives, near)) or [item]
            else:  # straight on
                near = [other for other in near if other[0] == item[0]] or near
            wanted[item] = sum(self.x[other] for other in near) / len(near)
        items.sort(key=lambda item: (round(wanted[item]), not self._drives(item), item))
        # Least squares in a fixed order: those that would overlap share their mean.
        shared: list[list[float]] = []  # weight, position, and how many items it is of
        offsets, edge = [], 0.0
        for item in items:
            half = self.width[item[0]] / 2 if item in self.is_box else 2
            offsets.append(edge + half)
            edge += 2 * half + GAP / 2
            shared.append([1.0 if self._drives(item) else 1e-6, wanted[item] - offsets[-1], 1])
            while len(shared) > 1 and shared[-2][1] > shared[-1][1]:
                weight, position, count = shared.pop()
                other = shared[-1]
                other[1] = (other[0] * other[1] + weight * position) / (other[0] + weight)
                other[0], other[2] = other[0] + weight, other[2] + count
        positions = [position for _, position, count in shared for _ in range(int(count))]
        for item, position, offset in zip(items, positions, offsets, strict=True):
            self.x[item] = position + offset


def _draw(nodes: Sequence[Node], title: str) -> str:
    """Return the picture as SVG."""
    layout = _Layout(nodes)
    head = title.split("\n")
    left = min(layout.x[item] - layout.width[item[0]] / 2 for item in layout.is_box) - MARGIN
    right = max(layout.x[item] + layout.width[item[0]] / 2 for item in layout.is_box)
    width = max(right - left, LETTER * max(map(len, head)) + MARGIN) + MARGIN
    x = {item: round(place - left) for item, place in layout.x.items()}
    height = [LINE * len(node.lines) + 10 for node in nodes]
    top = [MARGIN + LINE * len(head) + GAP // 2]
    for items in layout.rows:
        tallest = max(height[number] for number, at in items if (number, at) in layout.is_box)
        top.append(top[-1] + tallest + GAP)
    arrows, boxes = [], []
    for (number, at), targets in layout.below.items():
        item = number, at
        is_box = item in layout.is_box
        start, bottom = top[at] + (height[number] if is_box else 0), top[at + 1] - GAP
        for place, target in enumerate(targets):
            side = 2 * targets[:place].count(target) - targets.count(target) + 1
            to = x[target] + APART * side // 2
            bend = f"C{x[item]},{bottom + GAP * 0.6} {to},{bottom + GAP * 0.4}"
            end = ' marker-end="url(#arrow)"' if target in layout.is_box else ""
            path = f"M{x[item]},{start}V{bottom}{bend} {to},{top[at + 1]}"
            arrows.append(f'<path d="{path}"{end}/>')
        if is_box:
            corner = x[item] - layout.width[number] / 2
            boxes.append(
                f'<rect x="{corner:.0f}" y="{top[at]}" width="{layout.width[number]:.0f}" '
                f'height="{height[number]}" rx="5" fill="{COLOURS[nodes[number].kind]}"/>'
            )
            boxes.append(_text(nodes[number].lines, corner + 8, top[at] + LINE))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{top[-1]}" '
            f'viewBox="0 0 {width:.0f} {top[-1]}" font-family="monospace" font-size="12">',
            '<marker id="arrow" refX="8" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0,0L8,4L0,8z"/></marker>',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<g fill="none" stroke="#667">{"".join(arrows)}</g>',
            f'<g stroke="#667">{"".join(boxes)}</g>',
            _text(head, MARGIN, MARGIN + LINE),
            "</svg>",
        ]
    )


def _text(lines: Sequence[str], x: float, y: float) -> str:
    """Return lines of text, the first in bold."""
    weights = ["bold", *["normal"] * len(lines)]
    spans = "".join(
        f'<tspan x="{x:.0f}" y="{y + LINE * number}" font-weight="{weights[number]}">'
        f"{html.escape(line)}</tspan>"
        for number, line in enumerate(lines)
    )
    return f'<text stroke="none" fill="black" xml:space="preserve">{spans}</text>'
