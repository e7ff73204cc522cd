"""Operands of products arranged as arrays: as the program has them, where a library could not read them in place.

    sum over k of x[p(i, k)] * w[k, j]  =  sum over k of y[i, k] * w[k, j],  y = copy(x[p(i, k)] over (i, k))

A product's kernel reads its operands through any view, a library's through strides alone. With the operand as an
array, what makes its elements (a norm, a shift, windows) writes them in their order, and the library's product may be
the faster one for it. Whether that pays is the estimate's and the clock's to say: this is a variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Array, Contract, Graph, Map, Node, Origin
from jaxorch.ir.index import Dim
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.ir.view import Piece, Value, View, simplify_view
from jaxorch.options import Options
from jaxorch.passes.rewrite import rename

__all__ = ["arrange_operands", "is_readable", "varied_axes"]


def arrange_operands(graph: Graph, options: Options) -> Graph:
    """The graph with the traced operand as a copy wherever a library could not read a product's operand in place."""
    del options
    nodes: list[Node] = []
    new: dict[int, int] = {}
    copies: dict[int, Value] = {}  # by traced variable
    for number, old in enumerate(graph.nodes):
        node = rename(old, lambda v: Value(new[v.node], v.output))
        if isinstance(old, Contract) and isinstance(node, Contract):
            left, right = (_arranged(graph, old, node, k, nodes, copies) for k in range(2))
            node = (
                node
                if (left, right) == node.operands
                else Contract((left, right), node.axes, node.array, node.params, node.origin)
            )
        new[number] = len(nodes)
        nodes.append(node)
    if not copies:
        return graph
    return Graph(tuple(nodes), tuple(Value(new[v.node], v.output) for v in graph.outputs))


def _arranged(graph: Graph, old: Contract, node: Contract, k: int, nodes: list[Node], copies: dict[int, Value]) -> View:
    """Operand k of a product, through a copy (appended to `nodes` the first time) if it is to be arranged."""
    view = node.operands[k]
    traced = None if node.convolves else node.origin.operands[k]
    if traced is None or is_readable(graph, old, old.operands[k], old.operands[1 - k]):
        return view
    variable, axes = traced
    shape = tuple(view.domain[a] for a in axes)
    if variable not in copies:
        coords = [Dim(axes.index(a)) if a in axes else ix.Const(0) for a in range(len(view.domain))]
        pieces = tuple(
            Piece(ix.substitute_guard(p.guard, coords), p.value, tuple(ix.substitute(e, coords) for e in p.index))
            for p in view.pieces
        )
        dtype = graph.array(old.operands[k].pieces[0].value).dtype
        copies[variable] = Value(len(nodes))
        origin = Origin((), ((variable,),))
        nodes.append(Map("copy", (simplify_view(View(shape, pieces)),), Array(shape, dtype), (), origin))
    return View(view.domain, (Piece((), copies[variable], tuple(Dim(a) for a in axes)),))


# What a library reads


def varied_axes(view: View) -> list[int]:
    """The axes that the view varies along."""
    found = frozenset[int]()
    for piece in view.pieces:
        found |= ix.guard_dims(piece.guard).union(*(ix.dims_of(e) for e in piece.index))
    return sorted(found)


def is_readable(graph: Graph, node: Contract, view: View, other: View) -> bool:
    """Whether a library reads the operand where it is: strided groups of axes, one of them contiguous."""
    if len(view.pieces) != 1 or view.pieces[0].guard:
        return False
    (piece,) = view.pieces
    flat = simplify(ix.linearize(piece.index, graph.array(piece.value).shape), view.domain)
    if any(ix.lookups_in(flat)):
        return False
    own, others = varied_axes(view), varied_axes(other)
    strides = {a: coefficient(flat, a, view.domain) for a in own}
    batch = [a for a in own if a in others and a not in node.axes]
    free = [a for a in own if a not in others]
    contracted = [a for a in own if a in node.axes]
    if any(s is None for s in strides.values()):
        return False
    groups = [[(strides[a] or 0, view.domain[a]) for a in axes] for axes in (batch, free, contracted)]
    return all(map(_is_one, groups)) and any(1 in (s for s, _ in group) for group in groups[1:])


def _is_one(group: Sequence[tuple[int, int]]) -> bool:
    """Whether axes of (stride, size) together have one stride."""
    wide = [(s, n) for s, n in group if n > 1]
    return all(a == b * n for (a, _), (b, n) in pairwise(wide))
