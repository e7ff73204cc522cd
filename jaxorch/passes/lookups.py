"""Folds lookups of values that are made of positions, or of other run-time integers: the index becomes an expression.

Input and output: a graph.  Gathers with computed indices (diagonals, `x[arange(n), i]`, constant starts) lose
their run-time index here, and what jnp does to indices that may be negative joins the lookup.  Invariant: the
clamp of a Lookup is kept where ranges do not imply it.
"""

from __future__ import annotations

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, Node, operands_of, with_operands
from jaxorch.ir.index import Expr, Lookup
from jaxorch.ir.simplify import clamp
from jaxorch.ir.view import View, lookups, map_piece, simplify_view
from jaxorch.options import Options
from jaxorch.passes.integers import index_values, run_time_values
from jaxorch.passes.rewrite import drop_unused
from jaxorch.passes.tables import tabulated

__all__ = ["fold_lookups"]


def fold_lookups(graph: Graph, options: Options) -> Graph:
    """The graph with each Lookup of an index-only value replaced by that value's expression."""
    del options
    known = index_values(graph)
    looked_up = [k.value for n in graph.nodes for v in operands_of(n) for p in v.pieces for k in lookups(p)]
    known |= tabulated(graph, (v for v in looked_up if v.node not in known))
    known = run_time_values(graph) | known
    nodes: list[Node] = []
    for node in graph.nodes:
        operands = operands_of(node)
        folded = tuple(_folded(v, known) for v in operands)
        nodes.append(node if folded == operands else with_operands(node, folded))
    if all(a is b for a, b in zip(nodes, graph.nodes, strict=True)):
        return graph
    return drop_unused(Graph(tuple(nodes), graph.outputs))


def _folded(view: View, known: dict[int, Expr]) -> View:
    if not any(k.value.node in known for p in view.pieces for k in lookups(p)):
        return view

    def new(lookup: Lookup) -> Expr:
        if lookup.value.node not in known:
            return lookup
        expr = ix.substitute(known[lookup.value.node], lookup.index)
        return clamp(expr, lookup.low, lookup.high, view.domain)

    return simplify_view(View(view.domain, tuple(map_piece(p, new) for p in view.pieces)))
