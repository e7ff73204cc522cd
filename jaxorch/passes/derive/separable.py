"""Windows of many elements in stages of few: one axis after another, and long ones as windows of windows.

    max over a, b of x[f(i, a), g(j, b)]  =  max over b of P[i, g(j, b)]   where  P[i, y] = max over a of x[f(i, a), y]
    max over w < n of x[i + w]  =  max over u < q of P[i + u*s]   where  P[y] = max over w < n - (q-1)*s of x[y + w]

and likewise for min, and, or; the second rule takes s = n // q, so that the short windows leave no gap, and for sums
a q that divides n, so that they do not overlap. A window that is unrolled reads all its elements at every point; the
stages read the sum of their sizes, and write an intermediate. Maxima are exact; sums are held as wide as they are
accumulated, and differ in order only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.graph import Array, Const, Graph, Node, Origin, Reduce, outputs_of
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.monoid import neutral
from jaxorch.ir.simplify import coefficient
from jaxorch.ir.view import Piece, Value, View, expressions, simplify_view
from jaxorch.options import Options
from jaxorch.passes.derive import MOST_TAPS
from jaxorch.passes.derive.match import is_window, overlap
from jaxorch.passes.rewrite import rename

__all__ = ["SEPARATED", "separate_windows"]

SEPARATED = 25
"""A window of more elements over several axes is taken apart: through the first-level cache some 26 reads of two bytes
take as long as writing an intermediate to memory and reading it."""

_IDEMPOTENT = frozenset(("max", "min", "and", "or"))

type _Stages = tuple[Reduce, Callable[[Value], Reduce]]
"""The first reduction, and the second as a function of the first's value."""


def separate_windows(graph: Graph, options: Options) -> Graph:
    """Applies both rules until no window is larger than what is unrolled, where they match."""
    del options
    nodes: list[Node] = []
    new: dict[int, int] = {}
    for number, old in enumerate(graph.nodes):
        _append(nodes, rename(old, lambda v: Value(new[v.node], v.output)))
        new[number] = len(nodes) - 1
    if len(nodes) == len(graph.nodes):
        return graph
    return Graph(tuple(nodes), tuple(Value(new[v.node], v.output) for v in graph.outputs))


def _append(nodes: list[Node], node: Node) -> None:
    stages = None
    if isinstance(node, Reduce) and node.op in _IDEMPOTENT | {"sum"} and is_window(node):
        stages = _separated(nodes, node) or _composed(nodes, node)
    if stages is None:
        nodes.append(node)
        return
    first, second = stages
    _append(nodes, first)
    _append(nodes, second(Value(len(nodes) - 1)))


def _held(nodes: list[Node], node: Reduce) -> np.dtype[Any]:
    """The dtype of an intermediate: sums stay as wide as they are accumulated."""
    value = node.operands[0].values[0]
    dtype = outputs_of(nodes[value.node])[value.output].dtype
    return compute_dtype(dtype) if node.op == "sum" else dtype


# One axis after another


def _separated(nodes: list[Node], node: Reduce) -> _Stages | None:
    (view,) = node.operands
    piece, *rest = view.pieces
    if node.count <= SEPARATED or len(node.axes) < 2 or len(rest) > 1:
        return None
    dtype = _held(nodes, node)
    fill = rest[0].value if rest else None
    if fill is not None and (rest[0].index or not _may_fill(nodes[fill.node], node.op, dtype)):
        return None
    value = outputs_of(nodes[piece.value.node])[piece.value.output]
    found = [(value.shape[k] / node.domain[o], b, o, k) for b in node.axes for o, k in _slides(piece, b, node)]
    if not found:
        return None
    _, b, o, k = min(found)
    if fill is not None and node.op == "sum":
        nodes.append(Const(neutral("sum", dtype), Array((), dtype)))
        fill = Value(len(nodes) - 1)
    first = _along_the_others(node, b, o, k, value.shape[k], dtype)
    return first, lambda inner: _along(node, b, o, piece, k, inner, fill)


def _may_fill(node: Node, op: str, dtype: np.dtype[Any]) -> bool:
    # max(c, c, ...) = c, whatever c is; a sum of fills must be one
    return op in _IDEMPOTENT or (isinstance(node, Const) and node.value == neutral("sum", dtype))


def _slides(piece: Piece, b: int, node: Reduce) -> list[tuple[int, int]]:
    """(kept axis o, operand axis k) if b occurs in index k alone, with o, which occurs nowhere else."""
    holders = [k for k, e in enumerate(piece.index) if b in ix.dims_of(e)]
    if len(holders) != 1:
        return []
    (k,) = holders
    if overlap(piece.index[k], node) < 2:  # what every element is read for once or twice needs no intermediate
        return []
    together = ix.dims_of(piece.index[k]) - {b}
    if len(together) != 1 or together & set(node.axes):
        return []
    (o,) = together
    own = {b, o}
    elsewhere = [e for j, e in enumerate(piece.index) if j != k and ix.dims_of(e) & own]
    mixed = [g for g in piece.guard if ix.dims_of(g.expr) & own and not ix.dims_of(g.expr) <= own]
    return [] if elsewhere or mixed else [(o, k)]


def _along_the_others(node: Reduce, b: int, o: int, k: int, size: int, dtype: np.dtype[Any]) -> Reduce:
    """P: reduced over all axes but b, at every place y of the operand's axis k, which takes the place of o."""
    (view,) = node.operands
    domain = tuple(size if a == o else n for a, n in enumerate(node.domain) if a != b)
    coords = [Dim(a - (a > b)) for a in range(len(node.domain))]
    pieces: list[Piece] = []
    for p in view.pieces:
        guard = tuple(g for g in p.guard if not ix.dims_of(g.expr) & {b, o})
        index = tuple(coords[o] if j == k and p.index else ix.substitute(e, coords) for j, e in enumerate(p.index))
        pieces.append(Piece(ix.substitute_guard(guard, coords), p.value, index))
    axes = tuple(coords[a].axis for a in node.axes if a != b)
    out = tuple(n for a, n in enumerate(domain) if a not in axes)
    inner = simplify_view(View(domain, tuple(pieces)))
    return Reduce(node.op, (inner,), axes, (Array(out, dtype),), node.params, Origin(node.origin.equations))


def _along(node: Reduce, b: int, o: int, piece: Piece, k: int, inner: Value, fill: Value | None) -> Reduce:
    """P reduced over b, at the places y that the window has there."""
    kept = [a for a in range(len(node.domain)) if a not in node.axes]
    axes = sorted([*kept, b])
    domain = tuple(node.domain[a] for a in axes)
    coords: list[Expr] = [ix.Const(0)] * len(node.domain)
    for place, a in enumerate(axes):
        coords[a] = Dim(place)
    own = tuple(g for g in piece.guard if ix.dims_of(g.expr) & {b, o})
    index = tuple(ix.substitute(piece.index[k], coords) if a == o else coords[a] for a in kept)
    pieces = [Piece(ix.substitute_guard(own, coords), inner, index)]
    pieces += [Piece((), fill, ())] if fill is not None else []
    view = simplify_view(View(domain, tuple(pieces)))
    return replace(node, operands=(view,), axes=(axes.index(b),))


# A long window as a window of windows


def _composed(nodes: list[Node], node: Reduce) -> _Stages | None:
    if len(node.axes) != 1 or node.count <= MOST_TAPS:
        return None
    (b,), (view,), sizes = node.axes, node.operands, node.domain
    every = [e for p in view.pieces for e in expressions(p)]
    moving = [e for e in every if b in ix.dims_of(e)]
    kept = {a for e in moving for a in ix.dims_of(e)} - {b}
    taps = _taps(node.op, node.count)
    if len(kept) != 1 or taps is None:
        return None
    (o,), (q, step) = kept, taps
    if max(overlap(e, node) for e in moving) < 2:
        return None
    d, s = coefficient(moving[0], b, sizes), coefficient(moving[0], o, sizes)
    if d is None or s is None or d * s <= 0:
        return None
    for e in every:  # all that moves must move with o*s + w*d
        along, across = coefficient(e, b, sizes), coefficient(e, o, sizes)
        if along is None or across is None or along * s != across * d:
            return None
    unit = math.gcd(s, d)
    s, d = s // unit, d // unit
    first = _short(node, o, b, abs(s), abs(d), q, step, _held(nodes, node))
    return first, lambda inner: _spread(node, o, b, abs(s), abs(d) * step, q, inner)


def _taps(op: str, n: int) -> tuple[int, int] | None:
    """(q, step): q windows of n - (q-1)*step elements, step apart, that cover n; for sums, each element once."""
    q = min(math.isqrt(n - 1) + 1, MOST_TAPS)
    if op not in _IDEMPOTENT:
        q = max(k for k in range(1, q + 1) if n % k == 0)
    return (q, n // q) if q > 1 else None


def _short(node: Reduce, o: int, b: int, s: int, d: int, q: int, step: int, dtype: np.dtype[Any]) -> Reduce:
    """P[y]: the short windows, at every place o*s + u*step*d, which takes the place of o."""
    (view,), sizes = node.operands, node.domain
    domain = list(sizes)
    domain[o], domain[b] = (sizes[o] - 1) * s + (q - 1) * step * d + 1, node.count - (q - 1) * step
    coords: list[Expr] = [Dim(a) for a in range(len(sizes))]
    coords[o] = ix.Const(0)

    def at(e: Expr) -> Expr:
        factor = (coefficient(e, o, sizes) or 0) // s
        return ix.add(ix.substitute(e, coords), ix.mul(Dim(o), factor))

    pieces = tuple(
        Piece(tuple(replace(g, expr=at(g.expr)) for g in p.guard), p.value, tuple(map(at, p.index)))
        for p in view.pieces
    )
    inner = simplify_view(View(tuple(domain), pieces))
    out = tuple(n for a, n in enumerate(domain) if a != b)
    return Reduce(node.op, (inner,), node.axes, (Array(out, dtype),), node.params, Origin(node.origin.equations))


def _spread(node: Reduce, o: int, b: int, s: int, step: int, q: int, inner: Value) -> Reduce:
    domain = tuple(q if a == b else n for a, n in enumerate(node.domain))
    place = ix.add(ix.mul(Dim(o), s), ix.mul(Dim(b), step))
    index = tuple(place if a == o else Dim(a) for a in range(len(domain)) if a != b)
    view = simplify_view(View(domain, (Piece((), inner, index),)))
    return replace(node, operands=(view,))
