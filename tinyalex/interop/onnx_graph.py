"""ONNX graphs as chains of steps from image to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tinyalex.files import FileError
from tinyalex.interop.onnx_layers import LAYERS
from tinyalex.interop.onnx_nodes import Context, Maps, Node, Value
from tinyalex.interop.onnx_shapes import SHAPES

OPERATORS = LAYERS | SHAPES
"""Functions of a node and the values of its inputs."""

BATCH = 7919
"""Number of images where the file leaves it open: no other size in an AlexNet."""

INTEGER = ("QLinear", "Integer", "QGemm", "DynamicQuantizeLinear")


class Graph:
    """A file's graph: its constants, and the values of its nodes."""

    def __init__(self, model: Any, load: Callable[[Any], np.ndarray], budget: int) -> None:
        self.model, self.budget = model, budget
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        versions = [e.version for e in model.opset_import if e.domain in ("", "ai.onnx")]
        self.opset = max(versions, default=1)
        inputs = [value for value in model.graph.input if value.name not in self.constants]
        outputs = model.graph.output
        if len(inputs) != 1 or len(outputs) != 1:
            raise FileError(
                f"expected one input and one output, got {len(inputs)} and {len(outputs)}"
            )
        self.input, self.output = inputs[0], outputs[0]
        shape = [d.dim_value for d in self.input.type.tensor_type.shape.dim]
        if len(shape) != 4 or min(shape) < 0 or max(shape) > 2**14:
            raise FileError(f"the input {self.input.name!r} must be [N, C, H, W], got {shape}")
        batch, self.channels, *sides = shape[0] or BATCH, *shape[1:]
        if len({*sides}) > 1 or not self.channels:
            raise FileError(f"the input {self.input.name!r} must be square images, got {shape}")
        self.size: int = sides[0]
        """Side of the images; 0 where the file leaves it open."""
        self.context = Context(batch, load, notes=[])

    def needed(self) -> list[Any]:
        """Return the nodes that the output depends on, in the file's order."""
        nodes = self.model.graph.node
        makers = {name: place for place, node in enumerate(nodes) for name in node.output}
        wanted, found = [self.output.name], set()
        while wanted:
            place = makers.get(wanted.pop())
            if place is not None and place not in found:
                found.add(place)
                branches = (a.g.node for a in nodes[place].attribute if a.HasField("g"))
                for node in (nodes[place], *(node for branch in branches for node in branch)):
                    wanted.extend(node.input)
        return [nodes[place] for place in sorted(found)]

    def follow(self, size: int) -> Maps:
        """Return the output for images of a size."""
        values: dict[str, Value] = {self.input.name: Maps((self.channels, size, size))}
        self._run(self.needed(), values)
        answer = values.get(self.output.name)
        if not isinstance(answer, Maps) or len(answer.shape) != 1:
            raise FileError(f"the output {self.output.name!r} is no list of logits")
        return answer

    def _run(self, nodes: Iterable[Any], values: dict[str, Value]) -> None:
        """Give the outputs of nodes their values."""

        def value_of(name: str) -> Value:
            if name and name not in values and name in self.constants:
                values[name] = self.context.load(self.constants[name])
            return values[name] if name else None

        for proto in nodes:
            node = Node(proto, self.context)
            try:
                inputs = [value_of(name) for name in proto.input]
                if node.op == "If":  # torch's squeeze has one that asks for a shape
                    chosen = node.attributes["then_branch" if inputs[0].all() else "else_branch"]
                    self._run(chosen.node, values)
                    results = [value_of(output.name) for output in chosen.output]
                else:
                    results = self._evaluate(node, inputs)
            except FileError:
                raise
            except KeyError as error:
                raise node.refuse(f"no node before it makes {error}") from error
            except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
                raise node.refuse(f"is malformed ({error})") from error
            new = (r for r in results if isinstance(r, np.ndarray) and r.base is None)
            self.budget -= sum(array.nbytes for array in new)
            if self.budget < 0:
                raise node.refuse("the file would unfold to many times its size")
            values.update(zip(proto.output, results, strict=False))

    def _evaluate(self, node: Node, inputs: list[Value]) -> list[Value]:
        if node.op in OPERATORS:
            result = OPERATORS[node.op](node, *inputs)
        elif any(word in node.op for word in INTEGER):
            raise node.refuse(
                "operators on 8-bit integers are not read; take the float file, or the QDQ one"
            )
        else:
            raise node.refuse("is no layer of an AlexNet here")
        return result if isinstance(result, list) else [result]
