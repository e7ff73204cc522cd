"""Views made arrays again, where reads through them would touch a sector for a few bytes of it, again and again.

    f(x[k, j] over (i, j, k))  =  f(y[j, k] over (i, j, k)),  y = copy(x[k, j] over (j, k))

Reads are classed by how many bytes lie side by side along the axes that their reader walks fastest. Of those below a
sector, the large ones that are repeated get a copy in the reader's order. Whether that pays is the estimate's to say:
this is a variant, and in it too a kernel may make the copy's elements by the way, if it alone wants them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.graph import (
    Array,
    Const,
    Contract,
    Graph,
    Map,
    Node,
    Opaque,
    Origin,
    Reduce,
    operands_of,
    with_operands,
)
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.simplify import simplify
from jaxorch.ir.view import Piece, Value, View, lookups
from jaxorch.options import Options
from jaxorch.passes.derive import SECTOR
from jaxorch.passes.rewrite import rename

__all__ = ["LARGE", "MOST_COPIES", "materialize"]

LARGE = 1 << 20
"""Bytes of an array from which its reads may be worth a copy."""

MOST_COPIES = 4
"""Copies in a graph, at most; those that are read most come first."""

_SAMPLE = 64  # points along the fastest axes among which neighbours are looked for


@dataclass(frozen=True, slots=True)
class _Copy:
    """A value as an array of `shape` in a reader's order; equal ones serve all that read them."""

    value: Value
    shape: tuple[int, ...]
    index: tuple[Expr, ...]

    def node(self, array: Array, source: Value, origin: Origin) -> Map:
        view = View(self.shape, (Piece((), source, self.index),))
        return Map("copy", (view,), Array(self.shape, array.dtype), (), origin)


@dataclass(frozen=True, slots=True)
class _Read:
    """A view that could read a copy: along which of its axes, and at how many points in all."""

    copy: _Copy
    axes: tuple[int, ...]
    points: int

    def through(self, copy: Value, domain: tuple[int, ...]) -> View:
        return View(domain, (Piece((), copy, tuple(Dim(a) for a in self.axes)),))


def materialize(graph: Graph, options: Options) -> Graph:
    """The graph with copies of large arrays whose reads are uncoalesced and repeated."""
    del options
    times = _times(graph)
    reads = [[_read(graph, n, view, times[k]) for view in operands_of(n)] for k, n in enumerate(graph.nodes)]
    chosen = _chosen(graph, [read for found in reads for read in found if read is not None])
    if not chosen:
        return graph
    nodes: list[Node] = []
    new: dict[int, int] = {}
    copies: dict[_Copy, Value] = {}
    for number, old in enumerate(graph.nodes):
        node = rename(old, lambda v: Value(new[v.node], v.output))
        wanted = [read if read is not None and read.copy in chosen else None for read in reads[number]]
        for copy in (read.copy for read in wanted if read is not None and read.copy not in copies):
            source = Value(new[copy.value.node], copy.value.output)
            copies[copy] = Value(len(nodes))
            nodes.append(copy.node(graph.array(copy.value), source, Origin(old.origin.equations)))
        if any(wanted):
            views = zip(operands_of(node), wanted, strict=True)
            node = with_operands(node, [v if r is None else r.through(copies[r.copy], v.domain) for v, r in views])
        new[number] = len(nodes)
        nodes.append(node)
    return Graph(tuple(nodes), tuple(Value(new[v.node], v.output) for v in graph.outputs))


def _chosen(graph: Graph, reads: Sequence[_Read]) -> frozenset[_Copy]:
    """The copies that are read more often than the array has elements, or by several readers."""
    by_copy: dict[_Copy, list[int]] = {}
    for read in reads:
        by_copy.setdefault(read.copy, []).append(read.points)
    weights = {
        copy: sum(points) * graph.array(copy.value).dtype.itemsize
        for copy, points in by_copy.items()
        if len(points) > 1 or points[0] > graph.array(copy.value).size
    }
    return frozenset(sorted(weights, key=lambda copy: -weights[copy])[:MOST_COPIES])


def _times(graph: Graph) -> list[int]:
    """How often each node's elements are computed, about: a map with one reader is redone wherever it is read."""
    users, returned = graph.users(), {v.node for v in graph.outputs}
    times = [1] * len(graph.nodes)
    for number in reversed(range(len(graph.nodes))):
        node = graph.nodes[number]
        if not isinstance(node, Map) or number in returned or len(users[number]) != 1:
            continue
        (user,) = users[number]
        if not isinstance(graph.nodes[user], Map | Reduce):
            continue
        read = [math.prod(v.domain) for v in operands_of(graph.nodes[user]) if Value(number) in v.values]
        times[number] = max(1, times[user] * max(read, default=0) // max(node.array.size, 1))
    return times


def _read(graph: Graph, node: Node, view: View, times: int) -> _Read | None:
    """How the view would read a copy, if it reads a large array with few bytes side by side."""
    # a product reads its operands in tiles of two axes
    if isinstance(node, Contract | Opaque) or len(view.pieces) != 1 or any(lookups(view.pieces[0])):
        return None
    (piece,) = view.pieces
    array = graph.array(piece.value)
    if isinstance(graph.nodes[piece.value.node], Const) or piece.guard or array.nbytes < LARGE:
        return None
    walked = [a for a in _order(node, len(view.domain)) if view.domain[a] > 1]
    used = frozenset[int]().union(*map(ix.dims_of, piece.index))
    axes = tuple(a for a in walked if a in used)
    shape = tuple(view.domain[a] for a in axes)
    if not axes or axes[-1] != walked[-1] or math.prod(shape) > array.size:
        return None
    new: list[Expr] = [Dim(axes.index(a)) if a in axes else ix.Const(0) for a in range(len(view.domain))]
    index = tuple(simplify(ix.substitute(e, new), shape) for e in piece.index)
    if _run(index, shape, array) >= SECTOR:
        return None
    return _Read(_Copy(piece.value, shape, index), axes, math.prod(view.domain) * times)


def _order(node: Node, rank: int) -> list[int]:
    """The axes of a node's operands as they are walked, the fastest last."""
    reduced = node.axes if isinstance(node, Reduce) else ()
    return [a for a in range(rank) if a not in reduced] + list(reduced)


def _run(index: Sequence[Expr], shape: tuple[int, ...], array: Array) -> int:
    """The bytes side by side that a walk over `shape` reads from its start; a sector's if all that is sampled are."""
    count = min(math.prod(shape), _SAMPLE)
    points: list[Any] = list(np.unravel_index(np.arange(count), shape))
    offsets = np.broadcast_to(ix.evaluate(ix.linearize(index, array.shape), points), count)
    apart = np.flatnonzero(np.abs(np.diff(offsets)) > 1)
    if not apart.size:
        return SECTOR
    first = offsets[: int(apart[0]) + 1]
    return int(np.ptp(first) + 1) * array.dtype.itemsize
