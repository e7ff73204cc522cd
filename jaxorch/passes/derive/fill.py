"""One buffer filled by several kernels: a copy that joins arrays, as writes of each of them straight into its place.

    concatenate(x, y)  =  set(set(empty, x at its box), y at its box)

and likewise for stacks, pads and interleavings: whatever reads each of several disjoint boxes from one array.  The
kernels that compute the arrays then store them where they are wanted, and nothing is written twice.  Where one kernel
can compute all of them, that is better: this is a variant, for the estimate to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Map, Node, Origin, Reduce, Scatter, reads
from jaxorch.ir.index import Const, Dim, Expr
from jaxorch.ir.region import Region, boxes
from jaxorch.ir.view import Piece, Value, View, simplify_view
from jaxorch.options import Options
from jaxorch.passes.derive.match import is_window
from jaxorch.passes.rewrite import rename

__all__ = ["MOST_WRITES", "fill_by_pieces"]

MOST_WRITES = 8
"""Writes into one array, at most: each is a launch unless a kernel does it by the way."""


def fill_by_pieces(graph: Graph, options: Options) -> Graph:
    """The graph with each copy that joins results of reductions written box by box into an array of its own."""
    del options
    after = _after_reductions(graph)
    nodes: list[Node] = []
    new: dict[int, int] = {}
    for number, old in enumerate(graph.nodes):
        node = rename(old, lambda v: Value(new[v.node], v.output))
        cut = _cut(old, after)
        nodes += [node] if cut is None or not isinstance(node, Map) else _writes(node, cut, len(nodes))
        new[number] = len(nodes) - 1
    if len(nodes) == len(graph.nodes):
        return graph
    return Graph(tuple(nodes), tuple(Value(new[v.node], v.output) for v in graph.outputs))


def _after_reductions(graph: Graph) -> frozenset[int]:
    """Reductions, products, and maps that are computed from their results: what a kernel of points cannot make."""
    found: set[int] = set()
    for number, node in enumerate(graph.nodes):
        reduced = isinstance(node, Reduce | Contract) and not is_window(node)
        if reduced or (isinstance(node, Map) and any(v.node in found for v in reads(node))):
            found.add(number)
    return frozenset(found)


def _cut(node: Node, after: frozenset[int]) -> list[tuple[int, Region]] | None:
    """The boxes of a copy whose pieces are worth a kernel each, if it has any."""
    if not isinstance(node, Map) or node.op != "copy" or len(node.operands[0].pieces) < 2:
        return None
    (view,) = node.operands
    if not any(p.value.node in after for p in view.pieces):
        return None
    found = boxes(view)
    return found if found is not None and 2 <= len(found) <= MOST_WRITES else None


def _writes(node: Map, cut: Sequence[tuple[int, Region]], number: int) -> list[Node]:
    """The nodes, numbered from `number` on, that fill the copy's array; the last has its value."""
    (view,) = node.operands
    between = Origin(node.origin.equations)
    made: list[Node] = [Map("empty", (), node.array, (), between)]
    for piece, region in cut:
        place, updates = _placed(view.pieces[piece], region, Value(number + len(made) - 1))
        made.append(Scatter("set", place, updates, True, node.array, between))
    last = made[-1]
    assert isinstance(last, Scatter)
    return [*made[:-1], replace(last, origin=node.origin)]


def _placed(piece: Piece, region: Region, base: Value) -> tuple[Piece, View]:
    """Where the box lies in the base, and what the piece reads over it."""
    at: list[Expr] = [
        Const(r.start) if len(r) == 1 else ix.add(ix.mul(Dim(a), r.step), Const(r.start)) for a, r in enumerate(region)
    ]
    read = Piece((), piece.value, tuple(ix.substitute(e, at) for e in piece.index))
    return Piece((), base, tuple(at)), simplify_view(View(tuple(map(len, region)), (read,)))
