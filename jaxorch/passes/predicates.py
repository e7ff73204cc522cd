"""Folds selections that depend on the position alone: a `select_n` under such a predicate becomes a copy of pieces.

Input and output: a graph; masks, triangles and one-hot patterns are its usual targets.  Invariant: a
predicate is folded only when ranges prove that none of its integer arithmetic overflows, so that it
means over the integers what it means in its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Graph, Map, Node
from jaxorch.ir.index import Bound, Expr, Guard, Lookup
from jaxorch.ir.simplify import simplify, simplify_guard
from jaxorch.ir.view import Piece, Value, View, simplify_view
from jaxorch.options import Options
from jaxorch.passes.integers import COMPARISONS, expression_of, index_values

__all__ = ["LIMIT", "fold_index_predicates"]

LIMIT = 4
"""The most pieces that a folded selection may read."""

_GROWTH = 16  # cases of a predicate under construction, beyond which it is given up


@dataclass(frozen=True, slots=True)
class _Case:
    guard: Guard
    truth: bool


type _Cases = tuple[_Case, ...]
"""A predicate over a domain: the first case whose guard holds decides, and the last one's always holds."""

type _Shape = tuple[int, ...]


def fold_index_predicates(graph: Graph, options: Options) -> Graph:
    """The graph with each `select_n` whose predicate depends on indices alone replaced by a copy of pieces.

    Predicates are comparisons of integer affine expressions of iota with one another, or with an integer known at run
    time (a length, a position), and what and, or, xor and not make of them.
    A selection that would need more than `LIMIT` pieces stays.  The argument itself is returned if nothing is folded.
    """
    del options
    integers = index_values(graph)
    predicates: dict[int, _Cases] = {}
    nodes: list[Node] = []
    for k, node in enumerate(graph.nodes):
        if isinstance(node, Const | Map) and node.array.dtype == np.bool_:
            cases = _predicate(node, integers, predicates)
            predicates.update({} if cases is None else {k: cases})
        nodes.append(_folded(node, predicates))
    return graph if all(a is b for a, b in zip(nodes, graph.nodes, strict=True)) else replace(graph, nodes=tuple(nodes))


def _folded(node: Node, predicates: Mapping[int, _Cases]) -> Node:
    if not isinstance(node, Map) or node.op != "select_n" or len(node.operands) != 3:
        return node
    cases = _cases_of(node.operands[0], predicates)
    if cases is None or len(cases) > LIMIT:
        return node
    pieces: list[Piece] = []
    for case in cases:  # select_n(p, a, b) = b where p, else a
        chosen = node.operands[2 if case.truth else 1]
        pieces += (replace(p, guard=case.guard + p.guard) for p in chosen.pieces)
    view = simplify_view(View(node.array.shape, tuple(pieces)))
    if len(view.pieces) > LIMIT and len(cases) > 1:
        return node
    return replace(node, op="copy", operands=(view,), params=())


# Predicates


def _predicate(node: Const | Map, integers: Mapping[Value, Expr], predicates: Mapping[int, _Cases]) -> _Cases | None:
    if isinstance(node, Const):
        return (_Case((), bool(node.value)),)
    if node.op in COMPARISONS:
        left, right = (expression_of(v, integers) for v in node.operands)
        if left is None and right is not None:
            left = _run_time(node.operands[0], right)
        elif right is None and left is not None:
            right = _run_time(node.operands[1], left)
        return None if left is None or right is None else _compared(node.op, ix.sub(left, right), node.array.shape)
    operands = [_cases_of(v, predicates) for v in node.operands] if node.op in _LOGIC else []
    known = [c for c in operands if c is not None]
    if not known or len(known) < len(operands):
        return None
    return _simplified(_LOGIC[node.op](known), node.array.shape)


def _run_time(view: View, other: Expr) -> Expr | None:
    """An integer known at run time, compared with the position `other`, if it is the same along an axis of that.

    It is clamped to one below and one above all values of `other`, which changes no comparison with them.
    """
    (piece, *more), low_high = view.pieces, ix.range_of(other, view.domain)
    along = frozenset[int]().union(*(ix.dims_of(e) for e in piece.index))
    if more or any(ix.lookups_in(other)) or ix.dims_of(other) <= along:
        return None
    return Lookup(piece.value, piece.index, low_high[0] - 1, low_high[1] + 1)


def _cases_of(view: View, predicates: Mapping[int, _Cases]) -> _Cases | None:
    found: list[_Case] = []
    for k, piece in enumerate(view.pieces):
        inner = predicates.get(piece.value.node)
        if inner is None:
            return None
        guard = piece.guard if k < len(view.pieces) - 1 else ()  # the last piece is read wherever no other is
        found += (_Case(guard + ix.substitute_guard(c.guard, piece.index), c.truth) for c in inner)
    return _simplified(found, view.domain)


_TRUE, _FALSE = (_Case((), True),), (_Case((), False),)

_LOGIC: dict[str, Callable[[Sequence[_Cases]], Sequence[_Case]]] = {
    "copy": lambda p: p[0],
    "not": lambda p: _chosen(p[0], _TRUE, _FALSE),
    "and": lambda p: _chosen(p[0], _FALSE, p[1]),
    "or": lambda p: _chosen(p[0], p[1], _TRUE),
    "xor": lambda p: _chosen(p[0], p[1], _chosen(p[1], _TRUE, _FALSE)),
    "select_n": lambda p: _chosen(p[0], p[1], p[2]),
}


def _chosen(predicate: _Cases, on_false: Sequence[_Case], on_true: Sequence[_Case]) -> list[_Case]:
    return [replace(c, guard=p.guard + c.guard) for p in predicate for c in (on_true if p.truth else on_false)]


def _compared(op: str, difference: Expr, sizes: _Shape) -> _Cases | None:
    simple = simplify(difference, sizes)
    low, high, truth = COMPARISONS[op](*ix.range_of(simple, sizes))
    return _simplified([_Case((Bound(simple, low, high),), truth), _Case((), not truth)], sizes)


def _simplified(cases: Sequence[_Case], sizes: _Shape) -> _Cases | None:
    kept: list[_Case] = []
    for case in cases:
        guard = simplify_guard(case.guard, sizes)
        if guard is not None:
            kept.append(replace(case, guard=guard))
        if guard == ():
            break
    # [g: t], [h: t] = [h: t] if g implies h
    result: list[_Case] = []
    for case in reversed(kept):
        if not result or case.truth != result[0].truth or not _implies(case.guard, result[0].guard):
            result.insert(0, case)
    return tuple(result) if len(result) <= _GROWTH else None


def _implies(strong: Guard, weak: Guard) -> bool:
    return all(any(s.expr == w.expr and w.low <= s.low and s.high <= w.high for s in strong) for w in weak)
