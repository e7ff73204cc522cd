"""Images with their features side by side, whatever order the program has them in.

    y[n, c, h, w] = f(x[n, c, h, w])  =  y'[n, h, w, c] = f(x'[n, h, w, c]),  y[n, c, h, w] = y'[n, h, w, c]

A product of windows reads the features of a pixel in one run, and neighbours in a row only in shifted ones. Where
convolutions and what is made of them elementwise have their features first, the arrays between them are kept in the
other order, in which nobody but their readers sees them: what the program is given and returns stays as it is, so that
a kernel at either end transposes by the way. Weights get the order in which they are read. XLA makes no array in an
order that is not the program's, so this is a variant: all convolutions between are kernels in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import (
    Array,
    Contract,
    Graph,
    Map,
    Node,
    Opaque,
    Origin,
    Scatter,
    operands_of,
    outputs_of,
    pieces_of,
    reads,
    with_operands,
)
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.simplify import coefficient
from jaxorch.ir.view import Piece, Value, View, lookups, simplify_view
from jaxorch.options import Options
from jaxorch.passes.derive.arrange import varied_axes
from jaxorch.passes.rewrite import rename

__all__ = ["features_last"]

type _Orders = Mapping[int, tuple[int, ...]]
"""By node: which of its axes lies where, as the permutation of a transpose."""


def features_last(graph: Graph, options: Options) -> Graph:
    """The graph with images and weights between convolutions in the order in which products read them."""
    del options
    orders = _orders(graph)
    if not orders:
        return graph
    nodes: list[Node] = []
    new: dict[int, int] = {}
    for number, old in enumerate(graph.nodes):
        node = with_operands(old, [_read(view, orders) for view in operands_of(old)])
        node = rename(node, lambda v: Value(new[v.node], v.output))
        if isinstance(node, Contract) and node.convolves:
            node = _with_weights(node, nodes)
        new[number] = len(nodes)
        nodes.append(_moved(node, orders[number]) if number in orders else node)
    return Graph(tuple(nodes), tuple(Value(new[v.node], v.output) for v in graph.outputs))


# Whose order changes


def _orders(graph: Graph) -> _Orders:
    """Convolutions with their features first, and what is made of them elementwise, where nobody else sees it."""
    seen = {v.node for v in graph.outputs}
    for node in graph.nodes:
        if isinstance(node, Opaque | Scatter):
            seen.update(v.node for v in reads(node))
        seen.update(lookup.value.node for piece in pieces_of(node) for lookup in lookups(piece))
    found: dict[int, tuple[int, ...]] = {}
    for number, node in enumerate(graph.nodes):
        order = None if number in seen else _order(node, found)
        if order is not None:
            found[number] = order
    return found


def _order(node: Node, known: _Orders) -> tuple[int, ...] | None:
    if isinstance(node, Contract) and node.convolves:
        rank, feature = len(node.array.shape), _feature(node)
        if feature in (None, rank - 1) or node.axes != tuple(range(rank, len(node.domain))):
            return None
        return (*(a for a in range(rank) if a != feature), feature)
    if not isinstance(node, Map):
        return None
    pieces = (p for view in node.operands for p in view.pieces if p.value.node in known)
    return next((known[p.value.node] for p in pieces if _is_aligned(p, node.array.shape)), None)


def _feature(node: Contract) -> int | None:
    """The axis of a convolution's result along which its features lie."""
    right = node.operands[1].pieces[0].index
    found = [e.axis for e in right if isinstance(e, Dim) and e.axis not in node.axes]
    return found[0] if len(found) == 1 else None


def _is_aligned(piece: Piece, shape: tuple[int, ...]) -> bool:
    """Whether the piece reads along its own axes, from anywhere on."""
    along = (
        ix.dims_of(e) <= {a} and (shape[a] == 1 or coefficient(e, a, shape) == 1) for a, e in enumerate(piece.index)
    )
    return len(piece.index) == len(shape) and all(along)


# What changes


def _read(view: View, orders: _Orders) -> View:
    pieces = [
        replace(p, index=tuple(p.index[a] for a in orders[p.value.node])) if p.value.node in orders else p
        for p in view.pieces
    ]
    return View(view.domain, tuple(pieces))


def _moved(node: Node, order: tuple[int, ...]) -> Node:
    """The node with its result's axes in another order; no traced variable holds that."""
    assert isinstance(node, Map | Contract)
    coords = [Dim(order.index(a)) for a in range(len(order))]
    views: list[View] = []
    for view in operands_of(node):
        rest = range(len(order), len(view.domain))
        at = [*coords, *map(Dim, rest)]
        domain = tuple(view.domain[a] for a in (*order, *rest))
        moved = (
            Piece(ix.substitute_guard(p.guard, at), p.value, tuple(ix.substitute(e, at) for e in p.index))
            for p in view.pieces
        )
        views.append(simplify_view(View(domain, tuple(moved))))
    array = Array(tuple(node.array.shape[a] for a in order), node.array.dtype)
    return replace(with_operands(node, views), array=array, origin=Origin(node.origin.equations))


def _with_weights(node: Contract, nodes: list[Node]) -> Contract:
    """The convolution reading a copy of its weights, appended to `nodes`, if its features are not last in them."""
    left, right = node.operands
    (piece, *rest), feature = right.pieces, _feature(node)
    if rest or feature is None or piece.index[-1] == Dim(feature) or not {*varied_axes(right)} <= {*node.axes, feature}:
        return node
    axes = (*node.axes, feature)
    shape = tuple(node.domain[a] for a in axes)
    coords: list[Expr] = [Dim(axes.index(a)) if a in axes else ix.Const(0) for a in range(len(node.domain))]
    view = View(shape, (Piece((), piece.value, tuple(ix.substitute(e, coords) for e in piece.index)),))
    dtype = outputs_of(nodes[piece.value.node])[piece.value.output].dtype
    nodes.append(Map("copy", (view,), Array(shape, dtype), (), Origin(node.origin.equations)))
    ordered = View(node.domain, (Piece((), Value(len(nodes) - 1), tuple(map(Dim, axes))),))
    return replace(node, operands=(left, ordered))
