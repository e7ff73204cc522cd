"""Turns copies into views: movement leaves the nodes and lives on the edges.

Input: a graph whose data movement is `Map` "copy" nodes.  Output: a graph where every reader of a copy
reads the copy's source through the composed view.  What remains of a copy is a place where the array
must exist: a graph output, an operand of an opaque node, or the base of a scatter.  Invariant: a view with more than
`MAX_PIECES` pieces is not composed further, its copy stays, and so does one that is to be kept.
"""

from __future__ import annotations

from jaxorch.ir.graph import Graph, Map, Node, Opaque
from jaxorch.ir.view import Value, View, compose, look_through
from jaxorch.options import Options
from jaxorch.passes.rewrite import drop_unused, rewritten

__all__ = ["MAX_PIECES", "virtualize"]

MAX_PIECES = 12


def virtualize(graph: Graph, options: Options) -> Graph:
    """Composes views through copies and drops the copies nobody needs any more."""
    del options
    views: dict[Value, View] = {}  # what each copy's value is a view of, in terms of values that are no copies
    nodes: list[Node] = []
    for number, node in enumerate(graph.nodes):
        if not isinstance(node, Opaque):
            node = rewritten(node, lambda v: _composed(v, views), lambda p, u: look_through(p, u.domain, views.get))
        if isinstance(node, Map) and node.op == "copy" and not _stays(node):
            views[Value(number)] = node.operands[0]
        nodes.append(node)
    if all(a is b for a, b in zip(nodes, graph.nodes, strict=True)):
        return drop_unused(graph)
    return drop_unused(Graph(tuple(nodes), graph.outputs))


def _stays(copy: Map) -> bool:
    """Whether a copy is to be kept, or has more pieces than are composed."""
    return "kept" in dict(copy.params) or len(copy.operands[0].pieces) > MAX_PIECES


def _composed(view: View, views: dict[Value, View]) -> View:
    if not any(v in views for v in view.values):
        return view
    result = compose(view, views.get)
    return result if len(result.pieces) <= 2 * MAX_PIECES else view
