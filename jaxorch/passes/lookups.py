"""Folds lookups of values that are made of positions, or of other run-time integers: the index becomes an expression.

Input and output: a graph.  Gathers with computed indices (diagonals, `x[arange(n), i]`, constant starts) lose
their run-time index here, and what jnp does to indices that may be negative joins the lookup.  Invariant: the
clamp of a Lookup is kept where ranges do not imply it.
"""

from __future__ import annotations

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, pieces_of
from jaxorch.ir.index import Expr, Lookup, Segment
from jaxorch.ir.simplify import clamp, simplify, simplify_guard
from jaxorch.ir.view import Piece, Value, View, lookups, map_piece, simplify_view
from jaxorch.options import Options
from jaxorch.passes.integers import index_values, run_time_values
from jaxorch.passes.rewrite import drop_unused, rewritten
from jaxorch.passes.tables import tabulated

__all__ = ["fold_lookups"]


def fold_lookups(graph: Graph, options: Options) -> Graph:
    """The graph with each Lookup of an index-only value replaced by that value's expression."""
    del options
    known = index_values(graph)
    looked_up = [k.value for n in graph.nodes for p in pieces_of(n) for k in lookups(p)]
    known |= tabulated(graph, (v for v in looked_up if v not in known))
    known = run_time_values(graph) | known
    nodes = [rewritten(n, lambda v: _folded(v, known), lambda p, u: _place(p, u.domain, known)) for n in graph.nodes]
    if all(a is b for a, b in zip(nodes, graph.nodes, strict=True)):
        return graph
    return drop_unused(Graph(tuple(nodes), graph.outputs))


def _folded(view: View, known: dict[Value, Expr]) -> View:
    if not any(k.value in known for p in view.pieces for k in lookups(p)):
        return view
    return simplify_view(View(view.domain, tuple(_piece(p, view.domain, known) for p in view.pieces)))


def _place(place: Piece, sizes: tuple[int, ...], known: dict[Value, Expr]) -> Piece:
    if not any(k.value in known for k in lookups(place)):
        return place
    folded = _piece(place, sizes, known)
    guard = simplify_guard(folded.guard, sizes)
    index = tuple(simplify(e, sizes) for e in folded.index)
    return Piece(folded.guard if guard is None else guard, folded.value, index)


def _piece(piece: Piece, sizes: tuple[int, ...], known: dict[Value, Expr]) -> Piece:
    def new(lookup: Lookup) -> Expr:
        if lookup.value not in known or isinstance(lookup, Segment):
            return lookup
        expr = ix.substitute(known[lookup.value], lookup.index)
        return clamp(expr, lookup.low, lookup.high, sizes)

    return map_piece(piece, new)
