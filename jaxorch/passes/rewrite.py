"""What passes share: rebuilding a graph with some values replaced and unused nodes dropped.

Input: a graph and replacements.  Output: a graph in topological order again.  Invariant: `Input`
nodes are kept, used or not, since they stand for the program's operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jaxorch.ir.graph import Graph, Input, Node, Scatter, operands_of, reads, with_operands
from jaxorch.ir.index import Lookup
from jaxorch.ir.view import Piece, Value, View, lookups, map_piece

__all__ = ["drop_unused", "rename", "rename_view", "reorder", "replace_values", "rewritten"]


def rewritten(node: Node, view: Callable[[View], View], place: Callable[[Piece, View], Piece]) -> Node:
    """The node with its operands, and a Scatter's place (given with its updates), rewritten; itself if all stays."""
    operands = operands_of(node)
    new = tuple(map(view, operands))
    result = node if new == operands else with_operands(node, new)
    if isinstance(result, Scatter):
        moved = place(result.place, result.updates)
        return result if moved == result.place else replace(result, place=moved)
    return result


def _rename_piece(piece: Piece, new: Callable[[Value], Value]) -> Piece:
    def look(lookup: Lookup) -> Lookup:
        return replace(lookup, value=new(lookup.value))

    value = new(piece.value)
    if any(lookups(piece)):
        return replace(map_piece(piece, look), value=value)
    return piece if value == piece.value else Piece(piece.guard, value, piece.index)


def rename_view(view: View, new: Callable[[Value], Value]) -> View:
    """The view with every value it reads renamed; the view itself if nothing changes."""
    pieces = tuple(_rename_piece(p, new) for p in view.pieces)
    return view if pieces == view.pieces else View(view.domain, pieces)


def rename(node: Node, new: Callable[[Value], Value]) -> Node:
    """The node with every value it reads renamed; the node itself if nothing changes."""
    return rewritten(node, lambda v: rename_view(v, new), lambda p, _: _rename_piece(p, new))


def replace_values(graph: Graph, replacements: Mapping[Value, Value]) -> Graph:
    """`graph` with each key of `replacements` read as its image instead (images must come earlier)."""

    def new(value: Value) -> Value:
        while value in replacements:
            value = replacements[value]
        return value

    return Graph(tuple(rename(n, new) for n in graph.nodes), tuple(new(v) for v in graph.outputs))


def drop_unused(graph: Graph) -> Graph:
    """`graph` without the nodes that no output needs; the graph itself if there are none."""
    live = {v.node for v in graph.outputs} | {k for k, n in enumerate(graph.nodes) if isinstance(n, Input)}
    for k in reversed(range(len(graph.nodes))):
        if k in live:
            live |= {v.node for v in reads(graph.nodes[k])}
    if len(live) == len(graph.nodes):
        return graph
    return reorder(graph, sorted(live), graph.nodes)


def reorder(graph: Graph, order: Sequence[int], nodes: Sequence[Node]) -> Graph:
    """The nodes numbered `order`, in that order, with values renumbered."""
    numbers = {old: k for k, old in enumerate(order)}

    def new(value: Value) -> Value:
        return Value(numbers[value.node], value.output)

    return Graph(tuple(rename(nodes[k], new) for k in order), tuple(new(v) for v in graph.outputs))
