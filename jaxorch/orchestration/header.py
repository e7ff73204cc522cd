"""What nodes are to a reader: the primitives' names, the user's source lines, and the comments over a kernel.

Input: nodes and their trace.  Output: text.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from jaxorch.frontend.trace import Trace
from jaxorch.ir.graph import Contract, Graph, Map, Node, Opaque, Reduce
from jaxorch.kernels.kernel import Kernel

__all__ = ["MOST_SOURCES", "header_of", "names_of", "sources_of"]

MOST_SOURCES = 6


def header_of(trace: Trace, graph: Graph, kernel: Kernel) -> list[str]:
    """Comment lines for a kernel's source: what it computes, from where."""
    lines = [f"schedule: {kernel.schedule}"]
    for number in kernel.nodes:
        node = graph.nodes[number]
        sources = sources_of(trace, [node])
        lines.append(f"{_name(node)}{'  ' if sources else ''}{', '.join(sources)}")
    return lines


def names_of(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The primitives in order, a run of equal ones once."""
    return tuple(name for name, _ in groupby(_name(n) for n in nodes))


def _name(node: Node) -> str:
    match node:
        case Map():
            return node.op
        case Reduce():
            return f"reduce_{node.op}"
        case Contract():
            product = "ragged_dot_general" if node.segment else "dot_general"
            return "conv_general_dilated" if node.convolves else product
        case Opaque():
            return node.primitive
        case _:
            return type(node).__name__.lower()


def sources_of(trace: Trace, nodes: Iterable[Node]) -> tuple[str, ...]:
    """The "file:line:column" of each equation that the nodes come from, the first few, each once."""
    found = dict.fromkeys(trace.equations[k].source for n in nodes for k in n.origin.equations)
    # "path:line:column (function)", of which the file's name and the line say enough
    short = dict.fromkeys(s.split(" ")[0].rsplit("/", 1)[-1] for s in found)
    return tuple(short)[:MOST_SOURCES]
