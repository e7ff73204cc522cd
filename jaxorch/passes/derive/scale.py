"""Factors of whole rows taken out of products of few rows, where a kernel would wait for them.

    sum over k of (x[i, k] * r[i]) * w[k, j]  =  r[i] * (sum over k of x[i, k] * w[k, j])

A product of few rows takes as long as its other operand takes to arrive. A norm's factor is known once its row has been
read: before the product that is a wait, beside it, in the product's own loop, it costs nothing. What is rounded before
the sum is rounded once less; the sum itself and the factor meet in the dtype of accumulation. float16 is left out:
its values may be too large for it before they are normed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Array, Contract, Graph, Map, Origin, Reduce, reads
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.simplify import simplify
from jaxorch.ir.value import Value
from jaxorch.ir.view import Piece, View, identity
from jaxorch.options import Options
from jaxorch.passes.derive.arrange import varied_axes
from jaxorch.passes.derive.build import NOWHERE, Builder
from jaxorch.passes.derive.match import Point, map_at, of_contractions, source_at
from jaxorch.passes.rewrite import drop_unused, rename, rename_view

__all__ = ["MOST_ROWS", "scale_after_products"]

MOST_ROWS = 64  # up to here the other operand's bytes are the product's time

_DTYPES = frozenset(("bfloat16", "float32"))


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A factor of a product of Maps, over the axes of its result; `under`: it is divided by."""

    point: Point
    under: bool


@dataclass(frozen=True, slots=True)
class _Taken:
    """An operand of a Contract whose factors `outer` do not vary along what is summed; the others are `inner`."""

    operand: int
    source: Value
    inner: tuple[_Leaf, ...]
    outer: tuple[_Leaf, ...]


def scale_after_products(graph: Graph, options: Options) -> Graph:
    """The graph with statistics' factors applied to products of few rows, rather than to their operands."""
    del options
    found = {n: t for n, node in enumerate(graph.nodes) if isinstance(node, Contract) and (t := _taken(graph, node))}
    users, scores = graph.users(), of_contractions(graph)
    found = {
        n: t
        for n, t in found.items()
        if {*users[t.source.node]} <= found.keys() and t.source not in graph.outputs and t.source.node not in scores
    }
    if not found:
        return graph
    builder = Builder()
    for number, old in enumerate(graph.nodes):
        node = rename(old, builder.image)
        if number in found and isinstance(old, Contract):
            builder.replaced[Value(number)] = _scaled(builder, graph, old, found[number])
        else:
            builder.moved[number] = builder.add(node).node
    return drop_unused(Graph(tuple(builder.nodes), tuple(map(builder.image, graph.outputs))))


def _taken(graph: Graph, node: Contract) -> _Taken | None:
    """The factors of one of the operands that can be applied afterwards, and are worth it."""
    own = [varied_axes(view) for view in node.operands]
    for k, axes in enumerate(own):
        rows = math.prod(node.domain[a] for a in axes if a not in node.axes and a not in own[1 - k])
        source = source_at(node.operands[k], tuple(map(Dim, range(len(node.domain)))), node.domain)
        if source is None or rows > MOST_ROWS or graph.array(source[0]).dtype.name not in _DTYPES:
            continue
        shape = graph.array(source[0]).shape
        leaves = tuple(_leaves(graph, (source[0], tuple(map(Dim, range(len(shape))))), shape, under=False))
        outer = tuple(f for f in leaves if not _along(f, source[1], node.axes) and _waits(graph, f.point[0], node))
        inner = tuple(f for f in leaves if f not in outer)
        if outer and inner and not inner[0].under:
            return _Taken(k, source[0], inner, outer)
    return None


def _leaves(graph: Graph, point: Point, shape: tuple[int, ...], *, under: bool) -> Iterator[_Leaf]:
    """The factors of a value that Maps multiply together, or divide, at the coordinates of one result."""
    found = map_at(graph, point, "mul", "div")
    narrowed = map_at(graph, point, "convert_element_type")
    if found is None and narrowed is not None and not under:  # a float32 product that is rounded
        (view,) = narrowed[0].operands
        inner = source_at(view, narrowed[1], shape)
        found = map_at(graph, inner, "mul", "div") if graph.array(view.values[0]).dtype == np.float32 else None
    sources = [source_at(v, found[1], shape) for v in found[0].operands] if found else [None]
    left, right = sources[0], sources[-1]
    if found is None or left is None or right is None or (under and found[0].op == "div"):
        yield _Leaf(point, under)
        return
    yield from _leaves(graph, left, shape, under=under)
    yield from _leaves(graph, right, shape, under=under != (found[0].op == "div"))


def _along(leaf: _Leaf, index: tuple[Expr, ...], axes: Sequence[int]) -> bool:
    """Whether a factor varies along `axes` of the domain in which the product reads its operand at `index`."""
    return any(ix.dims_of(ix.substitute(e, index)) & {*axes} for e in leaf.point[1])


def _waits(graph: Graph, value: Value, node: Contract) -> bool:
    """Whether a value is made by Maps of a reduction as long as the product's sums."""
    made = graph.nodes[value.node]
    if isinstance(made, Reduce):
        return made.count == node.count
    return isinstance(made, Map) and any(_waits(graph, v, node) for v in reads(made))


def _scaled(builder: Builder, graph: Graph, node: Contract, taken: _Taken) -> Value:
    """The product of what is left of the operand, then its factors."""
    dtype = np.dtype(str(dict(node.params)["accumulate"]))
    (piece,) = node.operands[taken.operand].pieces
    rest = _product(builder, graph, taken)
    operands = [rename_view(view, builder.image) for view in node.operands]
    operands[taken.operand] = View(node.domain, (Piece((), rest, builder.at(piece.index)),))
    shape = node.array.shape
    origin = Origin(node.origin.equations, (), (None,) * len(node.origin.operands))
    left, right = operands
    result = builder.add(Contract((left, right), node.axes, Array(shape, dtype), node.params, origin))
    place = _outer_place(node, piece.index)
    for k, leaf in enumerate(taken.outer):
        value, index = leaf.point
        factor = builder.cast(builder.image(value), graph.array(value).shape, dtype)
        at = builder.at(simplify(ix.substitute(e, place), shape) for e in index)
        last = k == len(taken.outer) - 1 and dtype == node.array.dtype
        op = "div" if leaf.under else "mul"
        views = (identity(result, shape), View(shape, (Piece((), factor, at),)))
        result = builder.map(op, shape, dtype, *views, origin=node.origin if last else NOWHERE)
    return builder.cast(result, shape, node.array.dtype, node.origin)


def _outer_place(node: Contract, index: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """`index` over the axes of the product's result; what is summed over stands at 0, as nothing varies along it."""
    kept = [a for a in range(len(node.domain)) if a not in node.axes]
    axes = [Dim(kept.index(a)) if a in kept else ix.Const(0) for a in range(len(node.domain))]
    return tuple(ix.substitute(e, axes) for e in index)


def _product(builder: Builder, graph: Graph, taken: _Taken) -> Value:
    """The product of the inner factors, as large as the operand was and in its dtype, rounded to it once."""
    array = graph.array(taken.source)
    dtype = max((graph.array(leaf.point[0]).dtype for leaf in taken.inner), key=lambda d: d.itemsize)
    first, *others = (_leaf_view(builder, graph, leaf, array.shape, dtype) for leaf in taken.inner)
    made = builder.map("copy", array.shape, dtype, first) if not others else first.pieces[0].value
    for leaf, factor in zip(taken.inner[1:], others, strict=True):
        made = builder.map("div" if leaf.under else "mul", array.shape, dtype, first, factor)
        first = identity(made, array.shape)
    return builder.cast(made, array.shape, array.dtype)


def _leaf_view(
    builder: Builder, graph: Graph, leaf: _Leaf, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> View:
    value, index = leaf.point
    held = builder.cast(builder.image(value), graph.array(value).shape, dtype)
    return View(shape, (Piece((), held, builder.at(index)),))
