"""What the derivation rules share: where an operand comes from, and reductions of one row joined into one pass.

Input: a graph.  Output: sources, or the graph with pairs of reductions joined.  Invariant: two
reductions are joined only over the same axes of the same values, in rows longer than a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, Map, Node, Reduce
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.simplify import simplify
from jaxorch.ir.value import Value
from jaxorch.ir.view import View
from jaxorch.passes.derive import LONGEST_TILE_ROW
from jaxorch.passes.rewrite import drop_unused, replace_values

__all__ = ["Point", "is_window", "join_reductions", "map_at", "same_rows", "source_at"]

type Point = tuple[Value, tuple[Expr, ...]]
"""A value and the coordinates at which it is read."""


def join_reductions(graph: Graph, op: str, joined: str, first_of: Callable[[Graph, Reduce], int | None]) -> Graph:
    """Makes each long sum the second output of the `op` reduction that `first_of` finds for it, now called `joined`."""
    nodes = list(graph.nodes)
    replaced: dict[Value, Value] = {}
    for number, node in enumerate(graph.nodes):
        if not (isinstance(node, Reduce) and node.op == "sum" and node.count > LONGEST_TILE_ROW):
            continue
        found = first_of(graph, node)
        first = nodes[found] if found is not None else None
        if found is None or not isinstance(first, Reduce) or first.op != op:  # joined with another sum already
            continue
        arrays, origin = (first.arrays[0], node.arrays[0]), first.origin.with_output(node.origin)
        nodes[found] = replace(first, op=joined, arrays=arrays, origin=origin)
        replaced[Value(number)] = Value(found, 1)
    if not replaced:
        return graph
    return drop_unused(replace_values(Graph(tuple(nodes), graph.outputs), replaced))


def is_window(node: Node) -> bool:
    """Whether a node is a reduction along axes that move together with kept ones, as o*stride + w in an index."""
    if not isinstance(node, Reduce):
        return False
    reduced = frozenset(node.axes)
    every = (ix.dims_of(e) for view in node.operands for piece in view.pieces for e in piece.index)
    return any(dims & reduced and dims - reduced for dims in every)


def source_at(graph: Graph, view: View, coords: tuple[Expr, ...], sizes: tuple[int, ...]) -> Point | None:
    """The one value that `view` reads at `coords`, and where; None if it has several sources."""
    if len(view.pieces) != 1 or view.pieces[0].guard:
        return None
    piece = view.pieces[0]
    return piece.value, tuple(simplify(ix.substitute(e, coords), sizes) for e in piece.index)


def map_at(graph: Graph, point: Point | None, *ops: str) -> tuple[Map, tuple[Expr, ...]] | None:
    """The Map that makes a point's value, and the coordinates there, if its op is one of `ops`."""
    if point is None:
        return None
    node = graph.nodes[point[0].node]
    return (node, point[1]) if isinstance(node, Map) and node.op in ops else None


def same_rows(graph: Graph, point: Point, x: Point, like: Reduce) -> bool:
    """Whether a point is a reduction of `x` over the axes that `like` reduces, read at `like`'s own row."""
    sizes = like.domain
    reduce = graph.nodes[point[0].node]
    kept = tuple(simplify(Dim(a), sizes) for a in range(len(sizes)) if a not in like.axes)
    if not isinstance(reduce, Reduce) or (reduce.domain, reduce.axes, point[1]) != (sizes, like.axes, kept):
        return False
    here = tuple(Dim(a) for a in range(len(sizes)))
    return source_at(graph, reduce.operands[0], here, sizes) == x
