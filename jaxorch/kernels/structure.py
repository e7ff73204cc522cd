"""Equal kernels in different places: what makes two sets of nodes the same kernel.

Input: nodes and outputs of a graph.  Output: a digest that equal sets share, and the values from outside in
the order in which the digest names them, so that one set's kernel can be carried over to another.
"""

from __future__ import annotations

import hashlib
from array import array
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
        self.texts: dict[int, tuple[bytes, tuple[Value, ...]]] = {}
        self.sources: dict[Value, bytes] = {}

    def of(self, nodes: Sequence[int], outputs: Sequence[Value]) -> Structure:
        """The structure of a set of nodes (ascending) that stores `outputs`."""
        local = {number: k for k, number in enumerate(nodes)}
        outside: dict[Value, int] = {}
        names: list[int] = [len(nodes), len(outputs)]

        digests: list[bytes] = []
        read: list[Value] = []
        for number in nodes:
            digest, values = self.text(number)
            digests.append(digest)
            read += values
        for value in (*read, *outputs):
            inside = local.get(value[0])
            if inside is None:
                names += (-1 - outside.setdefault(value, len(outside)), 0)
            else:
                names += (inside, value[1])
        digests += map(self.source, outside)
        content = b"".join([*digests, array("q", names).tobytes()])
        return Structure(hashlib.sha256(content).hexdigest(), tuple(nodes), tuple(outside))

    def text(self, number: int) -> tuple[bytes, tuple[Value, ...]]:
        """A digest of a node with the values it reads numbered from 0, and those values in that order."""
        if number not in self.texts:
            values: dict[Value, Value] = {}
            node = rename(
                replace(self.graph.nodes[number], origin=Origin()),
                lambda value: values.setdefault(value, Value(len(values))),
            )
            self.texts[number] = hashlib.sha256(repr(node).encode()).digest(), tuple(values)
        return self.texts[number]

    def source(self, value: Value) -> bytes:
        """A digest of what is known of a value from outside: its type, and what a constant is."""
        if value not in self.sources:
            node = self.graph.nodes[value.node]
            known = repr((self.graph.array(value), node.value if isinstance(node, Const) else None))
            self.sources[value] = hashlib.sha256(known.encode()).digest()
        return self.sources[value]


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
