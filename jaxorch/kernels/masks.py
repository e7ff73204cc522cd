"""Masks of scores: which constants stand in the place of products, and at which positions.

Input: the view of the scores that an exponential reads, over (GRID, ROW, COLUMN) with the keys as columns.  Output: a
guard that holds wherever a score is no masked value.  Invariant: where nothing can be said the guard is (), everywhere.
"""

from __future__ import annotations

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Graph, Map
from jaxorch.ir.index import Bound, Dim, Expr, Guard
from jaxorch.ir.simplify import linear_terms, simplify_guard
from jaxorch.ir.view import View
from jaxorch.kernels.access import pieces_at
from jaxorch.kernels.frame import COLUMN, ROW

__all__ = ["grows", "in_every_row", "masked_values", "unmasked"]

type Coords = tuple[Expr, ...]


def masked_values(graph: Graph, members: frozenset[int], view: View) -> list[float]:
    """The constants that a score may be instead of a product."""
    found: list[float] = []
    for piece in view.pieces:
        match graph.nodes[piece.value.node]:
            case Const(number):
                found.append(float(number))
            case Map("select_n", (_, *cases)):
                found += (number for case in cases for number in masked_values(graph, members, case))
            case Map("convert_element_type", (operand,)) if piece.value.node in members:
                found += masked_values(graph, members, operand)
            case _:
                continue
    return found


def unmasked(
    graph: Graph, members: frozenset[int], view: View, coords: Coords, sizes: tuple[int, ...]
) -> tuple[Guard, float]:
    """Where scores are not one masked value, as a guard on positions, and that value; () if they are everywhere."""
    while True:
        pieces = pieces_at(view, coords, sizes)
        if len(pieces) != 1:
            break
        node = graph.nodes[pieces[0][1].node]
        if not (isinstance(node, Map) and node.op == "convert_element_type" and pieces[0][1].node in members):
            return (), 0.0
        (view,), coords = node.operands, pieces[0][2]
    (guard, value, _), (_, other, _) = pieces[0], pieces[-1]
    if any(COLUMN in ix.dims_of(k) for b in guard for k in ix.lookups_in(b.expr)):
        return (), 0.0
    masked, kept = (graph.nodes[v.node] for v in (other, value))
    if len(pieces) == 2 and isinstance(masked, Const) and not isinstance(kept, Const):
        return guard, float(masked.value)
    if len(pieces) == 2 and isinstance(kept, Const) and not isinstance(masked, Const) and len(guard) == 1:
        return _complement(guard[0], sizes), float(kept.value)
    return (), 0.0


def grows(live: Guard, sizes: tuple[int, ...]) -> bool:
    """Whether a guard lets a row have the more columns the later it is: it ends behind the row, and begins anywhere."""
    ends = False
    for bound in live:
        terms = dict(linear_terms(bound.expr, sizes)[0])
        step = terms.pop(Dim(COLUMN), 0)
        rows = [factor for atom, factor in terms.items() if ROW in ix.dims_of(atom)]
        if not step or not rows:
            continue
        low, high = ix.range_of(bound.expr, sizes)
        begins, closes = (bound.low > low, bound.high <= high)[:: 1 if step > 0 else -1]
        if begins or any(factor * step > 0 for factor in rows):
            return False
        ends |= closes
    return ends


def in_every_row(live: Guard, sizes: tuple[int, ...]) -> bool:
    """Whether a guard surely holds somewhere in each row: at the first, the last, or the column of the row's number."""
    columns = [ix.Const(0), ix.Const(sizes[COLUMN] - 1), *([Dim(ROW)] if sizes[ROW] <= sizes[COLUMN] else [])]
    coords = [[column if a == COLUMN else Dim(a) for a in range(len(sizes))] for column in columns]
    return any(simplify_guard(ix.substitute_guard(live, c), sizes) == () for c in coords)


def _complement(bound: Bound, sizes: tuple[int, ...]) -> Guard:
    """Where the bound does not hold, if that is one bound too."""
    low, high = ix.range_of(bound.expr, sizes)
    if bound.high > high:
        return (Bound(bound.expr, low, bound.low),)
    return (Bound(bound.expr, bound.high, high + 1),) if bound.low <= low else ()
