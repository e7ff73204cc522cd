"""Decides how each scatter is written: in place, as a view, with atomic operations, or by XLA.

Input and output: a graph.  `settle_scatters` proves where it can that no two updates have one place; what may meet
there is combined atomically if the hardware can, else left to XLA.  `scatters_to_views`: an overwriting scatter whose
array nobody needs as such, or whose base would be made for it alone, becomes a copy with two pieces (the updates where
they were written, the base elsewhere), which readers then read through; every other scatter is written into its base's
memory.  Invariant: after both, a scatter's writes give one result in any order, up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import is_narrow_float
from jaxorch.ir.graph import Array, Const, Graph, Map, Node, Opaque, Origin, Scatter, is_empty, outputs_of, reads
from jaxorch.ir.index import Dim
from jaxorch.ir.place import inverse
from jaxorch.ir.region import unfilled, unfilled_reads
from jaxorch.ir.simplify import simplify
from jaxorch.ir.view import Piece, Value, View, identity, simplify_view
from jaxorch.options import Options
from jaxorch.passes.rewrite import drop_unused, rename
from jaxorch.passes.virtualize import MAX_PIECES

__all__ = ["empty_bases", "scatters_to_views", "settle_scatters"]

# Combine -> the dtypes that a GPU combines atomically; narrow floats are added up in float32, as by XLA.
_ATOMIC: Mapping[str, frozenset[str]] = {
    "add": frozenset(("float32", "float64", "int32", "uint32", "int64", "uint64")),
    "max": frozenset(("int32", "uint32", "int64", "uint64")),
    "min": frozenset(("int32", "uint32", "int64", "uint64")),
}


def settle_scatters(graph: Graph, options: Options) -> Graph:
    """The graph with every scatter either unique, atomic in its dtype, or opaque."""
    del options
    nodes: list[Node] = []
    new: dict[int, int] = {}
    for number, old in enumerate(graph.nodes):
        node = rename(old, lambda v: Value(new[v.node], v.output))
        nodes += _settled(node, nodes) if isinstance(node, Scatter) and not node.unique else [node]
        new[number] = len(nodes) - 1
    if len(nodes) == len(graph.nodes) and all(a is b for a, b in zip(nodes, graph.nodes, strict=True)):
        return graph
    return Graph(tuple(nodes), tuple(Value(new[v.node], v.output) for v in graph.outputs))


def _settled(node: Scatter, nodes: list[Node]) -> list[Node]:
    """The nodes, to be appended to `nodes`, that stand for a scatter whose updates may meet; the last has its value."""
    if inverse(node.place, node.updates.domain, node.array.shape) is not None:
        return [replace(node, unique=True)]
    if node.array.dtype.name in _ATOMIC.get(node.combine, ()):
        return [node]
    if node.combine == "add" and is_narrow_float(node.array.dtype):
        return _widened(node, len(nodes))
    if node.combine == "set":
        return [_left(node, nodes, "several updates may be written to one place, in no given order")]
    return [_left(node, nodes, f"{node.combine} of {node.array.dtype.name} updates that may meet in one place")]


def _left(node: Scatter, nodes: list[Node], reason: str) -> Opaque:
    values = (v for v in reads(node) if v not in node.updates.values)
    operands = (node.updates, *(identity(v, outputs_of(nodes[v.node])[v.output].shape) for v in values))
    return Opaque(f"scatter_{node.combine}", reason, operands, (node.array,), node.origin)


def _widened(node: Scatter, number: int) -> list[Node]:
    """scatter_add(b, u) = narrow(scatter_add(wide(b), wide(u))), numbered from `number` on."""
    shape, origin = node.array.shape, Origin(node.origin.equations)
    base = _converted(identity(node.base, shape), np.dtype(np.float32), origin)
    updates = _converted(node.updates, np.dtype(np.float32), origin)
    wide = Scatter(
        node.combine,
        replace(node.place, value=Value(number)),
        identity(Value(number + 1), node.updates.domain),
        node.unique,
        base.array,
        origin,
    )
    return [base, updates, wide, _converted(identity(Value(number + 2), shape), node.array.dtype, node.origin)]


def _converted(view: View, dtype: np.dtype[np.generic], origin: Origin) -> Map:
    array = Array(view.domain, dtype)
    return Map("convert_element_type", (view,), array, (("new_dtype", dtype.name),), origin)


def scatters_to_views(graph: Graph, options: Options) -> Graph:
    """The graph with each scatter that need not be written in place replaced by a copy of pieces."""
    del options
    users = graph.users()
    nodes: list[Node] = list(graph.nodes)
    for number, node in enumerate(graph.nodes):
        if isinstance(node, Scatter) and node.combine == "set" and not _in_place(graph, number, node, users):
            nodes[number] = _as_copy(node)
    if all(a is b for a, b in zip(nodes, graph.nodes, strict=True)):
        return graph
    return drop_unused(Graph(tuple(nodes), graph.outputs))


def _in_place(graph: Graph, number: int, node: Scatter, users: tuple[tuple[int, ...], ...]) -> bool:
    """Whether the array is needed, and its base is there in memory: else writing the array whole moves no more."""
    needed = Value(number) in graph.outputs or any(
        isinstance(graph.nodes[u], Opaque) or _base_of(graph.nodes[u]) == Value(number) for u in users[number]
    )
    base = graph.nodes[node.base.node]
    made_for_it = isinstance(base, Map) and users[node.base.node] == (number,) and node.base not in graph.outputs
    return needed and not made_for_it and not isinstance(base, Const)


def _base_of(node: Node) -> Value | None:
    return node.base if isinstance(node, Scatter) else None


def _as_copy(node: Scatter) -> Node:
    shape = node.array.shape
    backwards = inverse(node.place, node.updates.domain, shape)
    if backwards is None or len(node.updates.pieces) >= MAX_PIECES:
        return node
    guard, coords = backwards
    pieces = [
        Piece(
            ix.both(guard, ix.substitute_guard(p.guard if p is not node.updates.pieces[-1] else (), coords)),
            p.value,
            tuple(simplify(ix.substitute(e, coords), shape) for e in p.index),
        )
        for p in node.updates.pieces
    ]
    pieces.append(Piece((), node.base, tuple(Dim(a) for a in range(len(shape)))))
    return Map("copy", (simplify_view(View(shape, tuple(pieces))),), node.array, (), node.origin)


def empty_bases(graph: Graph, options: Options) -> Graph:
    """The graph with `lax.empty` as empty memory where scatters fill it before it is read; elsewhere XLA makes it."""
    del options
    nodes = [_emptied(node) for node in graph.nodes]
    if not any(map(is_empty, nodes)):
        return graph
    roots = unfilled(nodes)
    seen = {roots[value.node] for _, value in unfilled_reads(Graph(tuple(nodes), graph.outputs), roots)}
    kept = tuple(graph.nodes[k] if k in seen else node for k, node in enumerate(nodes))
    return graph if kept == graph.nodes else Graph(kept, graph.outputs)


def _emptied(node: Node) -> Node:
    if not isinstance(node, Opaque) or node.primitive != "empty":
        return node
    return Map("empty", (), node.arrays[0], (), node.origin)
