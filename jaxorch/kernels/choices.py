"""Views whose pieces differ by the grid's point alone: one load, from the array that the point chooses.

Input: the pieces of a view at a scope's coordinates.  Output: the arrays with what chooses them, the offset that they
have in common, and the lanes that load; None where a load does not suffice.  Invariant: what chooses has one truth
value in a program, and of the choices one holds wherever the lanes do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Graph
from jaxorch.ir.index import Bound, Dim, Expr, Guard
from jaxorch.ir.simplify import linear_terms, simplify
from jaxorch.ir.view import Value
from jaxorch.kernels.access import Coords
from jaxorch.kernels.frame import GRID

__all__ = ["OneLoad", "one_load"]

type _Piece = tuple[Guard, Value, Coords]
type _Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OneLoad:
    """The first of `choices` that holds says which array is read, and where it begins; the last one has no guard.

    Every lane where `lanes` holds reads at `offset` from there.
    """

    choices: tuple[tuple[Guard, Value, Expr], ...]
    offset: Expr
    lanes: Guard


def one_load(
    graph: Graph, members: Collection[int], pieces: Sequence[_Piece], sizes: _Sizes
) -> tuple[OneLoad, Sequence[_Piece]] | None:
    """What the first pieces, of arrays outside the kernel, are as one load, and at most one piece that is left."""
    found: list[tuple[Guard, Value, Expr]] = []
    common: tuple[Guard, Expr] | None = None
    for guard, value, index in pieces:
        outside = value.node not in members and not isinstance(graph.nodes[value.node], Const)
        if not outside or any(ix.guard_lookups(guard)) or any(ix.coords_lookups(index)):
            break
        lanes, scalars = _parted(guard, sizes)
        start, offset = _begun(simplify(ix.linearize(index, graph.array(value).shape), sizes), sizes)
        if (lanes, offset) != (common or (lanes, offset)):
            break
        common = lanes, offset
        found.append((scalars, value, start))
    if common is None or len(found) < 2 or len({graph.array(value).dtype for _, value, _ in found}) > 1:
        return None
    if found[-1][0] and not _cover([guard for guard, _, _ in found], sizes):
        return None
    rest = pieces[len(found) :]
    if len(rest) != bool(common[0]):  # where no lane loads
        return None
    *others, (_, value, start) = found
    return OneLoad((*others, ((), value, start)), common[1], common[0]), rest


def _parted(guard: Guard, sizes: _Sizes) -> tuple[Guard, Guard]:
    """The bounds on lanes, and those that have one truth value in a program where the former hold."""
    inside = list(sizes)
    for b in guard:
        if isinstance(b.expr, Dim) and b.low <= 0:
            inside[b.expr.axis] = min(inside[b.expr.axis], b.high)
    coarse = [(b, _coarser(b, tuple(inside))) for b in guard]
    scalars = tuple(c for _, c in coarse if ix.dims_of(c.expr) <= {GRID})
    return tuple(b for b, c in coarse if not ix.dims_of(c.expr) <= {GRID}), scalars


def _coarser(bound: Bound, sizes: _Sizes) -> Bound:
    """An equal bound without terms that decide it nowhere: 48 g + r < 368 is g < 8 for r from 0 to 15."""
    terms, const = linear_terms(bound.expr, sizes)
    low, high = ix.range_of(bound.expr, sizes)
    if bound.low > high or bound.high <= low:
        return bound
    for factor in sorted({abs(c) for _, c in terms if abs(c) > 1}, reverse=True):
        rest = [(atom, c) for atom, c in terms if c % factor]
        least, most = ix.range_of(_sum(rest, const), sizes)
        # m + r >= limit, for multiples m of the factor, is m >= limit - least if no m is between that and limit - most
        limits = [limit for limit in (bound.low, bound.high) if low < limit <= high]
        if rest and all(-((most - limit) // factor) == -((least - limit) // factor) for limit in limits):
            whole = _sum([(atom, c // factor) for atom, c in terms if not c % factor], 0)
            first, last = ix.range_of(whole, sizes)
            return Bound(
                whole,
                -((least - bound.low) // factor) if bound.low in limits else first,
                -((least - bound.high) // factor) if bound.high in limits else last + 1,
            )
    return bound


def _sum(terms: Sequence[tuple[Expr, int]], const: int) -> Expr:
    total: Expr = ix.Const(const)
    for atom, factor in terms:
        total = ix.add(total, ix.mul(atom, factor))
    return total


def _begun(offset: Expr, sizes: _Sizes) -> tuple[Expr, Expr]:
    """An offset as what the grid's point says, and the rest."""
    terms, const = linear_terms(offset, sizes)
    start = [(atom, c) for atom, c in terms if ix.dims_of(atom) <= {GRID}]
    rest = [(atom, c) for atom, c in terms if not ix.dims_of(atom) <= {GRID}]
    return _sum(start, const), _sum(rest, 0)


def _cover(guards: Sequence[Guard], sizes: _Sizes) -> bool:
    """Whether one of the guards holds everywhere: bounds on one expression, without a gap between them."""
    bounds = [b for guard in guards if len(guard) == 1 for b in guard]
    if len(bounds) < len(guards) or len({b.expr for b in bounds}) > 1:
        return False
    reached, most = ix.range_of(bounds[0].expr, sizes)
    for b in sorted(bounds, key=lambda b: b.low):
        reached = max(reached, b.high) if b.low <= reached else reached
    return reached > most
