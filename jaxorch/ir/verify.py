"""Verification of a graph: every pass leaves a graph that this accepts.

Input: a graph.  Output: nothing, or a `VerifyError` that names the node, the operand and what was
expected.  Invariant: what is checked by value is what ranges cannot decide, and only on sets of at
most `EVALUATED` points; a larger undecided index is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn, assert_never

import numpy as np

from jaxorch.errors import VerifyError
from jaxorch.ir import index as ix
from jaxorch.ir.graph import (
    Array,
    Const,
    Contract,
    Graph,
    Input,
    Map,
    Node,
    Opaque,
    Reduce,
    Scatter,
    operands_of,
    outputs_of,
)
from jaxorch.ir.index import Bound, Dim, Expr, Guard, Lookup, Segment
from jaxorch.ir.place import inverse
from jaxorch.ir.region import unfilled, unfilled_reads
from jaxorch.ir.simplify import simplify
from jaxorch.ir.text import expr_text, node_text, value_text
from jaxorch.ir.view import Piece, Value, View, lookups

__all__ = ["COMBINES", "EVALUATED", "verify"]

EVALUATED = 4096
"""The largest set of points over which an undecided index is evaluated."""

COMBINES = ("set", "add", "mul", "min", "max")
"""What a Scatter may do with an element and its update."""

_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"))
# operands and result have one dtype
_UNARY = frozenset(("copy", "neg", "sign", "floor", "ceil", "round", "exp", "exp2", "expm1", "log", "log1p", "sqrt"))
_BINARY = frozenset(("add", "sub", "mul", "div", "rem", "max", "min", "and", "or", "xor", "atan2", "nextafter"))
_UNIFORM = _UNARY | _BINARY | {"clamp"}
_ARITY = {
    **dict.fromkeys(_UNARY, 1),
    **dict.fromkeys(_BINARY | _COMPARISONS, 2),
    "iota": 0,
    "empty": 0,
    "convert_element_type": 1,
    "bitcast_convert_type": 1,
    "clamp": 3,
}


@dataclass(frozen=True, slots=True)
class _Place:
    number: int
    node: Node
    operand: int | None = None
    piece: int | None = None

    def at(self, operand: int) -> _Place:
        return _Place(self.number, self.node, operand)

    def of(self, piece: int) -> _Place:
        return _Place(self.number, self.node, self.operand, piece)

    def fail(self, what: str, got: object, expected: object) -> NoReturn:
        where = f"node %{self.number}"
        where += f", operand {self.operand}" if self.operand is not None else ""
        where += f", piece {self.piece}" if self.piece is not None else ""
        raise VerifyError(f"{where}: {what}: got {got}, expected {expected}\n  %{self.number} = {node_text(self.node)}")


def verify(graph: Graph) -> None:
    """Checks the graph's invariants.

    Raises:
        VerifyError: a node reads something that is not an earlier output, a view does not fit its node's domain or the
            value it reads, or a shape or dtype does not follow from the operands'.
    """
    arrays: list[tuple[Array, ...]] = []
    for k, node in enumerate(graph.nodes):
        place = _Place(k, node)
        for j, view in enumerate(operands_of(node)):
            _view(view, arrays, place.at(j))
        _node(node, arrays, place)
        arrays.append(outputs_of(node))
    _positions(graph)
    for k, value in enumerate(graph.outputs):
        if not _exists(value, arrays):
            raise VerifyError(f"output {k} of the graph: got {value_text(value)}, expected an output of a node")
    _filled(graph)


def _exists(value: Value, arrays: Sequence[Sequence[Array]]) -> bool:
    return 0 <= value.node < len(arrays) and 0 <= value.output < len(arrays[value.node])


def _positions(graph: Graph) -> None:
    seen: dict[int, int] = {}
    for k, node in enumerate(graph.nodes):
        if isinstance(node, Input) and seen.setdefault(node.position, k) != k:
            _Place(k, node).fail("input position", f"that of %{seen[node.position]}", "one node a position")


def _filled(graph: Graph) -> None:
    """Checks that what starts as empty memory is read only once writes have filled it, each element by one of them."""
    for reader, value in unfilled_reads(graph, unfilled(graph.nodes)):
        number = value.node if reader is None else reader
        got = f"{value_text(value)}, whose writes so far do not fill it or meet"
        what = "value returned" if reader is None else "value read"
        _Place(number, graph.nodes[number]).fail(what, got, "an array each of whose elements is written once")


# Views


def _view(view: View, arrays: Sequence[Sequence[Array]], place: _Place) -> None:
    if len(view.pieces) == 1 and _exists(view.pieces[0].value, arrays):
        (piece,) = view.pieces
        if not piece.guard and _fits(piece.index, view.domain, arrays[piece.value.node][piece.value.output].shape):
            return
    if not view.pieces:
        place.fail("pieces", 0, "at least one")
    for p, piece in enumerate(view.pieces):
        _piece(view, piece, arrays, place.of(p))
    dtypes = dict.fromkeys(arrays[p.value.node][p.value.output].dtype for p in view.pieces)
    if len(dtypes) > 1:
        place.fail("dtypes of the pieces", ", ".join(d.name for d in dtypes), "one dtype")
    if 0 not in view.domain:
        _bounds(view, [arrays[p.value.node][p.value.output].shape for p in view.pieces], place)


@lru_cache(maxsize=1 << 14)
def _fits(index: tuple[Expr, ...], domain: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an index that looks nothing up uses axes of the domain only, and is inside an array of `shape`."""
    inside = len(index) == len(shape) and all(0 <= a < len(domain) for a in ix.coords_dims(index))
    inside = inside and not ix.coords_lookups(index)
    return inside and all(_lies_in(ix.range_of(e, domain), size) for e, size in zip(index, shape, strict=True))


def _piece(view: View, piece: Piece, arrays: Sequence[Sequence[Array]], place: _Place) -> None:
    if not _exists(piece.value, arrays):
        place.fail("value read", value_text(piece.value), "an output of an earlier node")
    for lookup in lookups(piece):
        _lookup(lookup, arrays, place)
    rank = len(arrays[piece.value.node][piece.value.output].shape)
    if len(piece.index) != rank:
        place.fail(f"index into {value_text(piece.value)}", f"{len(piece.index)} coordinates", rank)
    outside = sorted(a for a in _dims(piece.guard, piece.index) if not 0 <= a < len(view.domain))
    if outside:
        place.fail("axes used", outside, f"axes of the domain {view.domain}")


def _lookup(lookup: Lookup, arrays: Sequence[Sequence[Array]], place: _Place) -> None:
    if not _exists(lookup.value, arrays):
        place.fail("value looked up", value_text(lookup.value), "an output of an earlier node")
    array = arrays[lookup.value.node][lookup.value.output]
    if array.dtype.kind not in "iu" or len(array.shape) != len(lookup.index):
        place.fail(
            "value looked up", f"{array.dtype.name}{list(array.shape)} at {len(lookup.index)} coordinates", "integers"
        )
    if isinstance(lookup, Segment) and len(lookup.index) != 1:
        place.fail("lengths of segments", f"{list(array.shape)}", "one axis")
    if lookup.low > lookup.high:
        place.fail("clamp of a lookup", (lookup.low, lookup.high), "low <= high")


def _dims(guard: Guard, index: tuple[Expr, ...]) -> frozenset[int]:
    return ix.guard_dims(guard) | ix.coords_dims(index)


def _bounds(view: View, shapes: Sequence[tuple[int, ...]], place: _Place) -> None:
    earlier: list[Guard] = []
    for p, (piece, shape) in enumerate(zip(view.pieces, shapes, strict=True)):
        here, last = place.of(p), p == len(view.pieces) - 1
        for axis, (expr, size) in enumerate(zip(piece.index, shape, strict=True)):
            if _lies_in(ix.range_of(expr, view.domain), size):
                continue
            if not _lies_in(_range_under(piece.guard, expr, view.domain), size):
                # what other pieces stand for is loaded too, where the guard does not forbid it
                _evaluate(Bound(expr, 0, size), piece.guard, (), view.domain, here, f"index along axis {axis}")
        for b in piece.guard if last else ():  # no other piece is left, so this one's guard must hold
            if ix.decide(b, view.domain) is not True:
                _evaluate(b, (), earlier, view.domain, here, "guard of the last piece")
        earlier.append(piece.guard)


def _lies_in(bounds: tuple[int, int], size: int) -> bool:
    return bounds[0] >= 0 and bounds[1] < size


def _range_under(guard: Guard, expr: Expr, sizes: Sequence[int]) -> tuple[int, int]:
    """Inclusive bounds of `expr` where `guard` holds, from the bounds on single axes and on `expr` itself."""
    coords: list[Expr] = [Dim(a) for a in range(len(sizes))]
    inner, limits = list(sizes), list[tuple[int, int]]()
    for b in guard:
        if isinstance(b.expr, Dim):  # low <= x < high: x = y + low, 0 <= y < high - low
            axis = b.expr.axis
            low, high = max(b.low, 0), min(b.high, sizes[axis])
            coords[axis], inner[axis] = ix.add(Dim(axis), ix.Const(low)), max(high - low, 1)
        difference = simplify(ix.sub(expr, b.expr), sizes)
        if isinstance(difference, ix.Const):
            limits.append((b.low + difference.value, b.high - 1 + difference.value))
    low, high = ix.range_of(simplify(ix.substitute(expr, coords), inner), inner)
    return max([low, *(lo for lo, _ in limits)]), min([high, *(hi for _, hi in limits)])


def _evaluate(
    bound: Bound, guard: Guard, earlier: Sequence[Guard], sizes: Sequence[int], place: _Place, what: str
) -> None:
    """Checks `bound` at every point where `guard` holds and none of `earlier` does, if these are few."""
    if any(True for g in ((bound, *guard), *earlier) for b in g for _ in ix.lookups_in(b.expr)):
        return  # known at run time only
    axes = sorted(_dims((bound, *guard), ()).union(*map(ix.guard_dims, earlier)))
    shape = [sizes[a] for a in axes]
    count = math.prod(shape)
    if count > EVALUATED:
        return
    points = dict(zip(axes, np.indices(shape).reshape(len(axes), count), strict=True))
    coords: list[Any] = [points.get(a, 0) for a in range(len(sizes))]
    selected = _where(guard, coords, count)
    for g in earlier:
        selected = selected & ~_where(g, coords, count)
    values = np.broadcast_to(ix.evaluate(bound.expr, coords), count)[selected]
    if values.size and not (bound.low <= values.min() and values.max() < bound.high):
        text = expr_text(bound.expr, [f"i{a}" for a in range(len(sizes))])
        place.fail(what, f"{text} from {values.min()} to {values.max()}", f"{bound.low} <= {text} < {bound.high}")


def _where(guard: Guard, coords: Sequence[Any], count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.broadcast_to(ix.holds(guard, coords), count).astype(np.bool_)


# Nodes


def _node(node: Node, arrays: Sequence[Sequence[Array]], place: _Place) -> None:
    match node:
        case Input(position):
            if position < 0:
                place.fail("input position", position, "0 or more")
        case Const(_, array):
            if array.shape:
                place.fail("shape of a constant", array.shape, ())
        case Map():
            _map(node, [arrays[v.pieces[0].value.node][v.pieces[0].value.output].dtype for v in node.operands], place)
        case Reduce():
            _reduce(node, place)
        case Scatter():
            _scatter(node, arrays, place)
        case Contract():
            _contract(node, place)
        case Opaque():
            pass  # what its primitive asks of operands is XLA's to check
        case _:
            assert_never(node)


def _map(node: Map, dtypes: Sequence[np.dtype[Any]], place: _Place) -> None:
    for j, view in enumerate(node.operands):
        if view.domain != node.array.shape:
            place.at(j).fail("domain", view.domain, f"the node's shape {node.array.shape}")
    if len(dtypes) != _ARITY.get(node.op, len(dtypes)):
        place.fail("number of operands", len(dtypes), _ARITY[node.op])
    if node.op == "iota":
        dimension = dict(node.params).get("dimension")
        if not isinstance(dimension, int) or not 0 <= dimension < len(node.array.shape):
            place.fail("dimension", dimension, f"an axis of {node.array.shape}")
    elif node.op in _COMPARISONS:
        if node.array.dtype != np.bool_:
            place.fail("dtype", node.array.dtype, "bool")
        _same(dtypes, dtypes[0], 0, place)
    elif node.op in _UNIFORM:
        _same(dtypes, node.array.dtype, 0, place)
    elif node.op == "select_n":
        if len(dtypes) < 2:
            place.fail("number of operands", len(dtypes), "a predicate and its cases")
        if dtypes[0] not in (np.dtype(np.bool_), np.dtype(np.int32)):
            place.at(0).fail("dtype of the predicate", dtypes[0], "bool or int32")
        _same(dtypes[1:], node.array.dtype, 1, place)


def _same(dtypes: Sequence[np.dtype[Any]], expected: np.dtype[Any], first: int, place: _Place) -> None:
    for j, dtype in enumerate(dtypes, first):
        if dtype != expected:
            place.at(j).fail("dtype", dtype, expected)


def _reduce(node: Reduce, place: _Place) -> None:
    if not node.operands:
        place.fail("number of operands", 0, "at least one")
    _over_axes(node, node.arrays, place)


def _contract(node: Contract, place: _Place) -> None:
    if sorted(name for name, _ in node.params) != ["accumulate", "precision"]:
        place.fail("parameters", [name for name, _ in node.params], "accumulate and precision")
    if not node.axes:
        place.fail("axes", node.axes, "at least one")
    _over_axes(node, (node.array,), place)


def _over_axes(node: Reduce | Contract, arrays: Sequence[Array], place: _Place) -> None:
    for j, view in enumerate(node.operands):
        if view.domain != node.domain:
            place.at(j).fail("domain", view.domain, f"operand 0's domain {node.domain}")
    if sorted(set(node.axes)) != list(node.axes) or any(not 0 <= a < len(node.domain) for a in node.axes):
        place.fail("axes", node.axes, f"ascending axes of {node.domain}")
    shape = tuple(n for a, n in enumerate(node.domain) if a not in node.axes)
    for array in arrays:
        if array.shape != shape:
            place.fail("shape of an output", array.shape, f"{shape}, the domain without the reduced axes")


def _scatter(node: Scatter, arrays: Sequence[Sequence[Array]], place: _Place) -> None:
    domain = node.updates.domain
    if node.combine not in COMBINES:
        place.fail("combine", node.combine, f"one of {', '.join(COMBINES)}")
    _piece(View(domain, (node.place,)), node.place, arrays, place.of(0))
    base = arrays[node.base.node][node.base.output]
    if node.array != base:
        place.fail("array", node.array, f"the base's, {base}")
    if 0 in domain:
        return
    # where the guard holds, the place lies in the array; elsewhere nothing is written
    nowhere = Piece((), node.base, tuple(ix.Const(0) for _ in base.shape))
    _bounds(View(domain, (node.place, nowhere)), [base.shape, base.shape], place)
    if node.unique and not any(lookups(node.place)) and inverse(node.place, domain, base.shape) is None:
        _distinct(node.place, domain, base.shape, place)


def _distinct(piece: Piece, domain: tuple[int, ...], shape: tuple[int, ...], place: _Place) -> None:
    """Checks that no two points of a small domain have one place, where the map cannot be read backwards."""
    count = math.prod(domain)
    if count > EVALUATED:
        return
    coords = list(np.indices(domain).reshape(len(domain), count))
    written = _where(piece.guard, coords, count)
    flat = np.broadcast_to(ix.evaluate(ix.linearize(piece.index, shape), coords), count)[written]
    if np.unique(flat).size < flat.size:
        place.fail("places", f"{flat.size - np.unique(flat).size} written twice", "each written once")
