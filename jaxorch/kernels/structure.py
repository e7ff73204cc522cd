"""Equal kernels in different places: what makes two sets of nodes the same kernel.

Input: nodes and outputs of a graph.  Output: a digest that equal sets share, and the values from outside in
the order in which the digest names them, so that one set's kernel can be carried over to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxorch.ir.graph import Const, Graph, Origin
from jaxorch.ir.value import Value
from jaxorch.kernels.kernel import Kernel, Output
from jaxorch.passes.rewrite import rename

__all__ = ["Structure", "Structures", "carry_over"]


@dataclass(frozen=True, slots=True)
class Structure:
    """The digest, and the set it was taken of: its nodes, and the values from outside by place."""

    digest: str
    nodes: tuple[int, ...]
    outside: tuple[Value, ...]


class Structures:
    """Takes the structures of sets of nodes of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.texts: dict[int, tuple[str, tuple[Value, ...]]] = {}

    def of(self, nodes: Sequence[int], outputs: Sequence[Value]) -> Structure:
        """The structure of a set of nodes (ascending) that stores `outputs`."""
        local = {number: k for k, number in enumerate(nodes)}
        outside: dict[Value, int] = {}

        def name(value: Value) -> str:
            if value.node in local:
                return f"{local[value.node]}.{value.output}"
            return f"outside {outside.setdefault(value, len(outside))}"

        lines: list[str] = []
        for number in nodes:
            text, values = self.text(number)
            lines += (text, *map(name, values))
        lines += map(name, outputs)
        for value in outside:
            node = self.graph.nodes[value.node]
            lines.append(repr((self.graph.array(value), node.value if isinstance(node, Const) else None)))
        return Structure(hashlib.sha256("\n".join(lines).encode()).hexdigest(), tuple(nodes), tuple(outside))

    def text(self, number: int) -> tuple[str, tuple[Value, ...]]:
        """A node with the values it reads numbered from 0, and those values in that order."""
        if number not in self.texts:
            values: dict[Value, Value] = {}
            node = rename(
                replace(self.graph.nodes[number], origin=Origin()),
                lambda value: values.setdefault(value, Value(len(values))),
            )
            self.texts[number] = repr(node), tuple(values)
        return self.texts[number]


def carry_over(kernel: Kernel, known: Structure, to: Structure) -> Kernel:
    """The kernel of `known` for the equal set `to`."""
    numbers = dict(zip(known.nodes, to.nodes, strict=True))
    values = dict(zip(known.outside, to.outside, strict=True))

    def new(value: Value) -> Value:
        return Value(numbers[value.node], value.output) if value.node in numbers else values[value]

    return Kernel(
        tuple(sorted(numbers[n] for n in kernel.nodes)),
        tuple(new(v) for v in kernel.inputs),
        tuple(Output(new(o.value), o.per_row) for o in kernel.outputs),
        kernel.schedule,
        kernel.frames,
        tuple(sorted(numbers[n] for n in kernel.unrolled)),
        kernel.core and kernel.core.renamed(new),
    )
