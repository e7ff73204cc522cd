"""Places: index maps on the side of the write, and when they can be read backwards.

Input: a piece over the domain of what is written, whose value is the array written to.  Output: the inverse of its
index map, where there is one.  Invariant: a map with an inverse writes no element twice.
"""

from __future__ import annotations

from jaxorch.ir import index as ix
from jaxorch.ir.index import Bound, Const, Dim, Expr, Guard
from jaxorch.ir.simplify import coefficient, simplify, simplify_guard
from jaxorch.ir.view import Piece

__all__ = ["inverse"]

type _Coords = tuple[Expr, ...]


def inverse(place: Piece, domain: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Guard, _Coords] | None:
    """Which element of `domain` is written to each element of the array of `shape`, and where one is.

    Both are over the array's axes.  None where the map cannot be read backwards axis by axis, or nothing is written.
    """
    solved: dict[int, Expr] = {a: Const(0) for a, n in enumerate(domain) if n == 1}
    bounds: list[Bound] = []
    index = [simplify(e, domain) for e in place.index]
    left = list(range(len(index)))
    while (step := _solvable(index, left, domain, solved)) is not None:
        p, axis, factor = step
        left.remove(p)
        # x = c*a + r: a = (x - r) // c where c divides x - r
        rest = ix.substitute(ix.sub(index[p], ix.mul(Dim(axis), factor)), _at(solved, domain))
        distance = ix.sub(Dim(p), rest) if factor > 0 else ix.sub(rest, Dim(p))
        solved[axis] = simplify(ix.floordiv(distance, abs(factor)), shape)
        bounds += [Bound(ix.mod(distance, abs(factor)), 0, 1)] if abs(factor) > 1 else []
        bounds.append(Bound(solved[axis], 0, domain[axis]))
    if len(solved) < len(domain):
        return None
    coords = tuple(solved[a] for a in range(len(domain)))
    bounds += [Bound(ix.sub(Dim(p), ix.substitute(index[p], coords)), 0, 1) for p in left]
    guard = simplify_guard((*bounds, *ix.substitute_guard(place.guard, coords)), shape)
    return None if guard is None else (guard, coords)


def _solvable(
    index: list[Expr], left: list[int], domain: tuple[int, ...], solved: dict[int, Expr]
) -> tuple[int, int, int] | None:
    """The first coordinate left that is linear in one axis not solved yet, that axis and its coefficient."""
    for p in left:
        unknown = [a for a in sorted(ix.dims_of(index[p])) if a not in solved]
        factor = coefficient(index[p], unknown[0], domain) if len(unknown) == 1 else None
        if factor:
            return p, unknown[0], factor
    return None


def _at(solved: dict[int, Expr], domain: tuple[int, ...]) -> list[Expr]:
    return [solved.get(a, Const(0)) for a in range(len(domain))]
