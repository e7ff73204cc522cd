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

__all__ = ["Structure", "carry_over", "structure_of"]


@dataclass(frozen=True, slots=True)
class Structure:
    """The digest, and the set it was taken of: its nodes, and the values from outside by place."""

    digest: str
    nodes: tuple[int, ...]
    outside: tuple[Value, ...]


def structure_of(graph: Graph, nodes: Sequence[int], outputs: Sequence[Value]) -> Structure:
    """The structure of a set of nodes (ascending) that stores `outputs`."""
    local = {number: k for k, number in enumerate(nodes)}
    outside: dict[Value, int] = {}

    def name(value: Value) -> Value:
        if value.node in local:
            return Value(local[value.node], value.output)
        return Value(-1 - outside.setdefault(value, len(outside)), 0)

    lines = [repr(rename(replace(graph.nodes[n], origin=Origin()), name)) for n in nodes]
    lines += [repr(name(v)) for v in outputs]
    for value in outside:
        node = graph.nodes[value.node]
        lines.append(repr((graph.array(value), node.value if isinstance(node, Const) else None)))
    return Structure(hashlib.sha256("\n".join(lines).encode()).hexdigest(), tuple(nodes), tuple(outside))


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
    )
