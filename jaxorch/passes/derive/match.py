"""What the derivation rules share: where an operand comes from, and reductions of one row joined into one pass.

Input: a graph.  Output: sources, or the graph with pairs of reductions joined.  Invariant: two
reductions are joined only over the same axes of the same values, in rows longer than a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Map, Node, Reduce, reads
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.ir.value import Value
from jaxorch.ir.view import View
from jaxorch.passes.derive import LONGEST_TILE_ROW
from jaxorch.passes.rewrite import drop_unused, replace_values

__all__ = [
    "Point",
    "is_window",
    "join_reductions",
    "map_at",
    "of_contractions",
    "overlap",
    "same_rows",
    "source_at",
]

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
    """Whether a node is a reduction along an axis where neighbouring results share elements, as o + w in an index."""
    if not isinstance(node, Reduce):
        return False
    every = (e for view in node.operands for piece in view.pieces for e in piece.index)
    return any(overlap(e, node) > 1 for e in every)


def overlap(expr: Expr, node: Reduce | Contract) -> float:
    """How many neighbours along a kept axis share one value of an index: its extent over the reduced axes by its step.

    0 if it does not depend on both.
    """
    dims, reduced = ix.dims_of(expr), frozenset(node.axes)
    if not dims & reduced or not dims - reduced:
        return 0
    steps = {a: coefficient(expr, a, node.domain) for a in sorted(dims)}
    if None in steps.values():  # elements apart: as if they overlapped
        return math.inf
    extent = 1 + sum(abs(steps[a] or 0) * (node.domain[a] - 1) for a in sorted(dims & reduced))
    return extent / min(abs(steps[a] or 1) for a in sorted(dims - reduced))


def of_contractions(graph: Graph) -> frozenset[int]:
    """Nodes that Maps and Reduces make of a contraction: what reduces scores is left whole, for the online rule."""
    found: set[int] = set()
    for number, node in enumerate(graph.nodes):
        sources = [v.node for v in reads(node)] if isinstance(node, Map | Reduce) else []
        if any(k in found or isinstance(graph.nodes[k], Contract) for k in sources):
            found.add(number)
    return frozenset(found)


def source_at(view: View, coords: tuple[Expr, ...], sizes: tuple[int, ...]) -> Point | None:
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
    return source_at(reduce.operands[0], here, sizes) == x
