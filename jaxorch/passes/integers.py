"""Integers as index expressions: those that depend on the position alone, and what is made of run-time indices.

Input: a graph.  Output: nodes with the expression of their value over their own axes.  Invariant: an expression is
given only if ranges prove that its exact value fits the dtype at every point, so that it means over the integers
what it means in its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Graph, Map, Node, outputs_of
from jaxorch.ir.index import Bound, Dim, Expr, Lookup, Select
from jaxorch.ir.simplify import clamp, simplify
from jaxorch.ir.view import Value, View
from jaxorch.passes.derive.match import Point, map_at, source_at

__all__ = ["COMPARISONS", "expression_of", "index_values", "run_time_values"]

type _Shape = tuple[int, ...]
type _Leaf = Callable[[Value], Expr | None]
"""The expression, over its own axes, of a value that has none from what it is made of."""

_INT32 = np.iinfo(np.int32)

# op -> (low, high) of a - b where its case applies, given the range of a - b, and its truth there
COMPARISONS: dict[str, Callable[[int, int], tuple[int, int, bool]]] = {
    "eq": lambda low, high: (0, 1, True),
    "ne": lambda low, high: (0, 1, False),
    "lt": lambda low, high: (low, 0, True),
    "le": lambda low, high: (low, 1, True),
    "gt": lambda low, high: (1, high + 1, True),
    "ge": lambda low, high: (0, high + 1, True),
}


def index_values(graph: Graph) -> dict[Value, Expr]:
    """The integer nodes that depend on the position alone, each with its value over its own axes."""
    return _values(graph, lambda value: None)


def run_time_values(graph: Graph) -> dict[Value, Expr]:
    """The integer nodes made of run-time integers by what an index is normalised with, as expressions of Lookups.

    An expression holds for the node's value as an index: one of 64 bits may be clamped to 32.
    """

    def leaf(value: Value) -> Expr | None:
        array = graph.array(value)
        if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int32):
            return None
        low, high = _limits(array.dtype)
        return Lookup(value, tuple(Dim(a) for a in range(len(array.shape))), low, high)

    found = _values(graph, leaf)
    for k, node in enumerate(graph.nodes):
        wide = _wide_index(graph, node) if Value(k) not in found else None
        found |= {} if wide is None else {Value(k): wide}
    return found


def expression_of(view: View, integers: Mapping[Value, Expr]) -> Expr | None:
    """What `view` reads, if all its pieces are of values that have expressions."""
    result: Expr | None = None
    for piece in reversed(view.pieces):
        expr = integers.get(piece.value)
        if expr is None:
            return None
        expr = ix.substitute(expr, piece.index)
        result = expr if result is None else Select(piece.guard, expr, result)
    return None if result is None else simplify(result, view.domain)


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _values(graph: Graph, leaf: _Leaf) -> dict[Value, Expr]:
    found: dict[Value, Expr] = {}
    leaves: dict[Value, Expr] = {}
    for k, node in enumerate(graph.nodes):
        expr = _fitting(graph, node, {**leaves, **found}) if isinstance(node, Const | Map) else None
        if expr is not None:
            found[Value(k)] = expr
            continue
        for value in (Value(k, output) for output in range(len(outputs_of(node)))):
            if (own := leaf(value)) is not None:
                leaves[value] = own
    return found


def _fitting(graph: Graph, node: Const | Map, known: Mapping[Value, Expr]) -> Expr | None:
    if node.array.dtype.kind not in "iu":
        return None
    expr = _integer(graph, node, known)
    if expr is None:
        return None
    expr = simplify(expr, node.array.shape)
    (low, high), (least, most) = ix.range_of(expr, node.array.shape), _limits(node.array.dtype)
    return expr if least <= low and high <= most else None


def _integer(graph: Graph, node: Const | Map, known: Mapping[Value, Expr]) -> Expr | None:
    match node:
        case Const(value):
            return ix.Const(int(value))
        case Map("iota"):
            dimension = dict(node.params)["dimension"]
            assert isinstance(dimension, int)
            return Dim(dimension)
        case Map("select_n") if len(node.operands) == 3:
            return _floored(graph, node, known) or _wrapped(graph, node, known) or _selected(graph, node, known)
        case Map() if node.op in _OPERATIONS:
            operands = [expression_of(v, known) for v in node.operands]
            exprs = [e for e in operands if e is not None]
            return _OPERATIONS[node.op](node.array.shape, exprs) if len(exprs) == len(operands) > 0 else None
        case _:
            return None


# Operations


def _product(shape: _Shape, operands: Sequence[Expr]) -> Expr | None:
    match operands:
        case (ix.Const(k), e) | (e, ix.Const(k)):
            return ix.mul(e, k)
        case _:
            return None


def _division(rule: Callable[[Expr, int], Expr], shape: _Shape, operands: Sequence[Expr]) -> Expr | None:
    # lax rounds div towards zero and gives rem the sign of e: //, % if 0 <= e and 0 < k
    match operands:
        case (e, ix.Const(k)) if k > 0 and ix.range_of(e, shape)[0] >= 0:
            return rule(e, k)
        case _:
            return None


def _where(shape: _Shape, difference: Expr, op: str, then: Expr, otherwise: Expr) -> Expr:
    """`then` where `difference` compares with 0 as `op` says."""
    simple = simplify(difference, shape)
    low, high, truth = COMPARISONS[op](*ix.range_of(simple, shape))
    sides = (then, otherwise) if truth else (otherwise, then)
    return Select((Bound(simple, low, high),), *sides)


def _extremum(op: str, shape: _Shape, operands: Sequence[Expr]) -> Expr | None:
    match operands:
        case (ix.Const(c), e) | (e, ix.Const(c)):
            low, high = ix.range_of(e, shape)
            return clamp(e, c, max(high, c), shape) if op == "gt" else clamp(e, min(low, c), c, shape)
        case (a, b) if not any(_is_whole(k) for e in operands for k in ix.lookups_in(e)):
            return _where(shape, ix.sub(a, b), op, a, b)  # max(a, b) = a where a - b > 0, else b
        case _:
            return None


def _clamp(shape: _Shape, operands: Sequence[Expr]) -> Expr | None:
    match operands:
        case (ix.Const(low), e, ix.Const(high)) if low <= high:
            return clamp(e, low, high, shape)
        case _:
            return None


_OPERATIONS: dict[str, Callable[[_Shape, Sequence[Expr]], Expr | None]] = {
    "copy": lambda shape, e: e[0],
    "convert_element_type": lambda shape, e: e[0],
    "neg": lambda shape, e: ix.mul(e[0], -1),
    "add": lambda shape, e: ix.add(e[0], e[1]),
    "sub": lambda shape, e: ix.sub(e[0], e[1]),
    "mul": _product,
    "div": lambda shape, e: _division(ix.floordiv, shape, e),
    "rem": lambda shape, e: _division(ix.mod, shape, e),
    "max": lambda shape, e: _extremum("gt", shape, e),
    "min": lambda shape, e: _extremum("lt", shape, e),
    "clamp": _clamp,
    "abs": lambda shape, e: _where(shape, e[0], "ge", e[0], ix.mul(e[0], -1)),
}

# What jnp writes for x // k, x % k and a negative index


def _operands(graph: Graph, node: Map, coords: tuple[Expr, ...], sizes: _Shape) -> list[Point | None]:
    return [source_at(v, coords, sizes) for v in node.operands]


def _made(graph: Graph, point: Point | None, sizes: _Shape, *ops: str) -> tuple[Point | None, ...]:
    """The operands of the Map that makes a point, if its op is one of `ops`; else ()."""
    found = map_at(graph, point, *ops)
    return () if found is None else tuple(_operands(graph, *found, sizes))


def _constant(graph: Graph, point: Point | None) -> int | None:
    while (copied := map_at(graph, point, "copy")) is not None:
        point = source_at(copied[0].operands[0], copied[1], ())
    node = graph.nodes[point[0].node] if point is not None else None
    return int(node.value) if isinstance(node, Const) else None


def _tests(graph: Graph, point: Point | None, sizes: _Shape, op: str, value: int) -> Point | None:
    """x, if the point is `op`(x, value); ne(x, False) counts as x."""
    if (outer := _made(graph, point, sizes, "ne")) and _constant(graph, outer[1]) == 0 and op != "ne":
        point = outer[0]
    operands = _made(graph, point, sizes, op)
    return operands[0] if operands and _constant(graph, operands[1]) == value else None


def _choice(graph: Graph, node: Map) -> list[Point | None]:
    return _operands(graph, node, tuple(Dim(a) for a in range(len(node.array.shape))), node.array.shape)


def _floored(graph: Graph, node: Map, known: Mapping[Value, Expr]) -> Expr | None:
    """X // k or x % k, which jnp makes of what lax rounds towards zero: one less, or k more, if the signs differ."""
    sizes = node.array.shape
    predicate, plain, moved = _choice(graph, node)
    both, step = _made(graph, predicate, sizes, "and"), _made(graph, moved, sizes, "add", "sub")
    if not both or not step or step[0] != plain or plain is None:
        return None
    for op, rule in (("div", ix.floordiv), ("rem", ix.mod)):
        made = _made(graph, plain, sizes, op)
        if not made or (k := _constant(graph, made[1])) is None or k <= 0:
            continue
        x = made[0]
        if op == "div":
            inexact = _made(graph, _tests(graph, both[1], sizes, "ne", 0), sizes, "rem")
            signs = _made(graph, _tests(graph, both[0], sizes, "ne", 1), sizes, "sign")
            holds = signs == (x,) and inexact == made and _constant(graph, step[1]) == 1
        else:
            holds = plain in (_tests(graph, both[0], sizes, "ne", 0), _tests(graph, both[1], sizes, "ne", 0))
            holds &= plain in (_tests(graph, both[0], sizes, "lt", 0), _tests(graph, both[1], sizes, "lt", 0))
            holds &= _constant(graph, step[1]) == k
        moves_down = map_at(graph, moved, "sub") is not None
        expr = _at(x, known, sizes) if holds and moves_down == (op == "div") else None
        if expr is not None:
            return _divided(graph, rule, expr, k)
    return None


def _divided(graph: Graph, rule: Callable[[Expr, int], Expr], expr: Expr, k: int) -> Expr | None:
    if rule is ix.mod and isinstance(expr, Lookup) and _is_leaf(graph, expr):
        return replace(expr, low=0, high=k - 1, modulus=k)
    return None if any(map(_is_whole, ix.lookups_in(expr))) else rule(expr, k)


def _is_leaf(graph: Graph, lookup: Lookup) -> bool:
    """Whether a Lookup is an element as it is, neither clamped nor changed."""
    own = _limits(graph.array(lookup.value).dtype)
    return not lookup.wrap and not lookup.modulus and (lookup.low, lookup.high) == own


def _is_whole(lookup: Lookup) -> bool:
    """Whether a run-time integer may be as large as its type holds: sums with it could overflow."""
    return lookup.high - lookup.low >= 2**16


def _at(point: Point | None, known: Mapping[Value, Expr], sizes: _Shape) -> Expr | None:
    expr = known.get(point[0]) if point is not None else None
    return simplify(ix.substitute(expr, point[1]), sizes) if expr is not None and point is not None else None


def _negative(graph: Graph, node: Node) -> tuple[Point, int] | None:
    """X and n, if the node is x + n where x < 0, else x."""
    if not isinstance(node, Map) or node.op != "select_n" or len(node.operands) != 3:
        return None
    sizes = node.array.shape
    predicate, plain, moved = _choice(graph, node)
    step, n = _made(graph, moved, sizes, "add"), None
    if step and plain is not None and step[0] == plain == _tests(graph, predicate, sizes, "lt", 0):
        n = _constant(graph, step[1])
    return (plain, n) if plain is not None and n is not None and n > 0 else None


def _wrapped(graph: Graph, node: Map, known: Mapping[Value, Expr]) -> Expr | None:
    found = _negative(graph, node)
    expr = _at(found[0], known, node.array.shape) if found is not None else None
    if found is None or not isinstance(expr, Lookup) or not _is_leaf(graph, expr):
        return None
    low, high = _limits(node.array.dtype)
    return replace(expr, low=max(low, _INT32.min), high=min(high, _INT32.max), wrap=found[1])


def _wide_index(graph: Graph, node: Node) -> Expr | None:
    """A wrapped index of 64 bits: as an index it may be clamped to 32, but not as an operand of arithmetic."""
    found = _negative(graph, node)
    if found is None or graph.array(found[0][0]).dtype != np.int64:
        return None
    return Lookup(*found[0], int(_INT32.min), int(_INT32.max), wrap=found[1])


def _selected(graph: Graph, node: Map, known: Mapping[Value, Expr]) -> Expr | None:
    """One of two expressions by a comparison of two others."""
    sizes = node.array.shape
    predicate = _choice(graph, node)[0]
    comparison = map_at(graph, predicate, *COMPARISONS)
    if comparison is None:
        return None
    exprs = [_at(p, known, sizes) for p in _operands(graph, *comparison, sizes)]
    cases = [expression_of(v, known) for v in node.operands[1:]]
    if any(e is None or any(map(_is_whole, ix.lookups_in(e))) for e in (*exprs, *cases)):
        return None
    left, right, otherwise, then = (e for e in (*exprs, *cases) if e is not None)
    return _where(sizes, ix.sub(left, right), comparison[0].op, then, otherwise)
