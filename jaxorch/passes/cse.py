"""Common subexpressions: equal nodes become one.

Input and output: a graph.  Invariant: two nodes are equal if they agree in everything but their origin;
opaque nodes are never merged, since they may be random or have effects.
"""

from __future__ import annotations

from dataclasses import replace

from jaxorch.ir.graph import Const, Contract, Graph, Input, Map, Node, Opaque, Origin, Reduce, Scatter, outputs_of
from jaxorch.ir.view import Value
from jaxorch.options import Options
from jaxorch.passes.rewrite import drop_unused, rename, replace_values

__all__ = ["cse"]


def cse(graph: Graph, options: Options) -> Graph:
    """Merges equal nodes, first come first kept."""
    del options
    nodes = list(graph.nodes)
    seen: dict[str, int] = {}
    merged: dict[Value, Value] = {}
    for number, node in enumerate(graph.nodes):
        node = rename(node, lambda v: merged.get(v, v))
        key = _key(node)
        if key is None:
            continue
        first = seen.setdefault(key, number)
        if first != number:
            merged.update({Value(number, k): Value(first, k) for k in range(len(outputs_of(node)))})
            nodes[first] = replace(nodes[first], origin=nodes[first].origin.joined(node.origin))
    return drop_unused(replace_values(Graph(tuple(nodes), graph.outputs), merged)) if merged else graph


def _key(node: Node) -> str | None:
    match node:
        case Const() | Map() | Reduce() | Contract() | Scatter():
            # by text: 0.0 and -0.0, and nan, must be told apart as their bits are
            return repr(replace(node, origin=Origin()))
        case Input() | Opaque():
            return None
