"""Views (virtual tensors): an array described by where each of its elements is read.

A `View` maps every coordinate of its domain to a coordinate of some value (a pull-back).  Its pieces
are tried in order and the last one applies wherever no earlier one does, so a view always covers its
domain; a pad's fill is a last piece that reads a rank-0 value.  Invariant: wherever a piece's guard
holds, its index lies inside the value it reads: no more is asked before it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.index import Dim, Expr, Guard, Lookup, Segment, Select
from jaxorch.ir.simplify import linear_terms, simplify, simplify_guard
from jaxorch.ir.value import Value

__all__ = [
    "Piece",
    "Value",
    "View",
    "compose",
    "evaluate_view",
    "expressions",
    "identity",
    "is_identity",
    "is_reshape",
    "look_through",
    "lookups",
    "map_piece",
    "simplify_view",
]

_MOST_PLACES = 64  # of an axis, that are looked at one by one


@dataclass(frozen=True, slots=True)
class Piece:
    """Where `guard` holds on the domain, read `value` at `index` (one expression an axis of the value)."""

    guard: Guard
    value: Value
    index: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class View:
    """An array of shape `domain`, each element read from the first piece whose guard holds."""

    domain: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """The values read, in order of their first piece, then those looked up as indices; without repeats."""
        looked_up = [lookup.value for p in self.pieces for lookup in lookups(p)]
        return tuple(dict.fromkeys((*(p.value for p in self.pieces), *looked_up)))


def expressions(piece: Piece) -> Iterator[Expr]:
    """The index expressions of a piece, its guard's included."""
    yield from (b.expr for b in piece.guard)
    yield from piece.index


def lookups(piece: Piece) -> Iterator[Lookup]:
    """Every Lookup in a piece, inner ones before those that need them."""
    yield from ix.guard_lookups(piece.guard)
    yield from ix.coords_lookups(piece.index)


def map_piece(piece: Piece, new: Callable[[Lookup], Expr]) -> Piece:
    """The piece with its Lookups replaced."""
    index = tuple(ix.map_lookups(e, new) for e in piece.index)
    return Piece(ix.map_guard(piece.guard, new), piece.value, index)


def identity(value: Value, shape: Sequence[int]) -> View:
    """All of `value`, which has `shape`, unchanged."""
    return View(tuple(shape), (Piece((), value, tuple(Dim(a) for a in range(len(shape)))),))


def is_identity(view: View, shape: Sequence[int]) -> bool:
    """Whether the view is all of one value of `shape`, unchanged."""
    if view.domain != tuple(shape) or len(view.pieces) != 1 or view.pieces[0].guard:
        return False
    coords = tuple(simplify(Dim(a), view.domain) for a in range(len(shape)))
    return tuple(simplify(e, view.domain) for e in view.pieces[0].index) == coords


def is_reshape(view: View, shape: Sequence[int]) -> bool:
    """Whether the view reads one value of `shape` in row-major order, every element once."""
    if len(view.pieces) != 1 or view.pieces[0].guard or np.prod(view.domain) != np.prod(shape):
        return False
    axes = tuple(Dim(a) for a in range(len(view.domain)))
    flat = simplify(ix.linearize(view.pieces[0].index, shape), view.domain)
    return flat == simplify(ix.linearize(axes, view.domain), view.domain)


def compose(outer: View, replacement: Callable[[Value], View | None]) -> View:
    """`outer` with each value v for which `replacement(v)` is a view read through that view instead.

    A Lookup is read through it too where one unguarded piece supplies the looked-up element; a Segment, which needs all
    lengths, never.
    """
    pieces: list[Piece] = []
    for piece in outer.pieces:
        piece = look_through(piece, outer.domain, replacement)
        inner = replacement(piece.value)
        if inner is None:
            pieces.append(piece)
            continue
        for q in inner.pieces:
            guard = piece.guard + ix.substitute_guard(q.guard, piece.index)
            pieces.append(Piece(guard, q.value, tuple(ix.substitute(e, piece.index) for e in q.index)))
    return simplify_view(View(outer.domain, tuple(pieces)))


def look_through(piece: Piece, sizes: tuple[int, ...], replacement: Callable[[Value], View | None]) -> Piece:
    """The piece with each Lookup of a value v read through `replacement(v)` where that is a view, as in `compose`."""
    return map_piece(piece, lambda lookup: _look_through(lookup, sizes, replacement))


def _look_through(lookup: Lookup, sizes: tuple[int, ...], replacement: Callable[[Value], View | None]) -> Lookup:
    inner = replacement(lookup.value)
    if inner is None or isinstance(lookup, Segment):
        return lookup
    for q in inner.pieces:
        guard = simplify_guard(ix.substitute_guard(q.guard, lookup.index), sizes)
        if guard is None:
            continue
        if guard and q is not inner.pieces[-1]:
            return lookup
        index = tuple(simplify(ix.substitute(e, lookup.index), sizes) for e in q.index)
        return _look_through(replace(lookup, value=q.value, index=index), sizes, replacement)
    return lookup


def simplify_view(view: View) -> View:
    """An equal view: simplified indices, no unreachable pieces, neighbours of one value merged."""
    pieces: list[Piece] = []
    for piece in view.pieces:
        guard = simplify_guard(piece.guard, view.domain)
        if guard is None:
            continue
        index = tuple(simplify(e, view.domain) for e in piece.index)
        pieces.append(Piece(guard, piece.value, index))
        if not guard:
            break  # nothing behind an unguarded piece is reached
    if not pieces:  # an empty domain selects nothing
        last = view.pieces[-1]
        pieces.append(replace(last, index=tuple(simplify(e, view.domain) for e in last.index)))
    pieces[-1] = replace(pieces[-1], guard=()) if len(pieces) == 1 else pieces[-1]
    return View(view.domain, _evened(_merge(pieces, view.domain), view.domain))


def _merge(pieces: list[Piece], sizes: tuple[int, ...]) -> tuple[Piece, ...]:
    # [g & h: v[i]], [g: v[j]]  =  [g: v[select(h, i, j)]]; the last piece counts as unguarded when
    # all pieces before it are merged into it, since it applies wherever they do not.
    # [g & a <= e < b: v[i]], [g & b <= e < c: v[i]]  =  [g & a <= e < c: v[i]]
    merged: list[Piece] = []
    for k in range(len(pieces) - 1, -1, -1):
        piece = pieces[k]
        if merged and merged[0].value == piece.value:
            later = merged[0]
            guard = () if len(merged) == 1 and all(p.value == piece.value for p in pieces[: k + 1]) else later.guard
            if set(guard) <= set(piece.guard):
                extra = tuple(b for b in piece.guard if b not in guard)
                index = tuple(_choose(extra, i, j, sizes) for i, j in zip(piece.index, later.index, strict=True))
                merged[0] = Piece(guard, piece.value, index)
                continue
            joined = _joined(piece.guard, later.guard) if piece.index == later.index else None
            if joined is not None:
                everywhere = not simplify_guard(joined, sizes)
                merged[0] = Piece(() if everywhere else joined, piece.value, piece.index)
                merged = merged[:1] if everywhere else merged
                continue
        merged.insert(0, piece)
    return tuple(merged)


def _evened(pieces: tuple[Piece, ...], sizes: tuple[int, ...]) -> tuple[Piece, ...]:
    # [x == 0 & g(0): v[i(0)]], [x == 0: w[j(0)]], [x == 1 & g(1): v[i(1)]], ...  =  [g(x): v[i(x)]], [w[j(x)]]
    # if i, j and the ends of g go on by even steps: a stack of slices is one window that slides.
    for axis in sorted(frozenset[int]().union(*(_told_apart(piece) for piece in pieces))):
        if 1 < sizes[axis] <= _MOST_PLACES:
            pieces = _in_even_steps(pieces, axis, sizes) or pieces
    return pieces


def _told_apart(piece: Piece) -> frozenset[int]:
    """The axes of which guards single out places."""
    guards = [piece.guard, *(guard for e in piece.index for guard in _guards_in(e))]
    return frozenset(b.expr.axis for g in guards for b in g if isinstance(b.expr, Dim) and b.high == b.low + 1)


@lru_cache(maxsize=1 << 14)
def _guards_in(expr: Expr) -> tuple[Guard, ...]:
    match expr:
        case ix.Add(a, b):
            return (*_guards_in(a), *_guards_in(b))
        case ix.Mul(a, _) | ix.FloorDiv(a, _) | ix.Mod(a, _):
            return _guards_in(a)
        case Select(guard, a, b):
            return (guard, *_guards_in(a), *_guards_in(b))
        case _:
            return ()


def _in_even_steps(pieces: tuple[Piece, ...], axis: int, sizes: tuple[int, ...]) -> tuple[Piece, ...] | None:
    """The pieces written for all places of an axis at once, if they are so at each of them."""
    places = [_at_place(pieces, axis, place, sizes) for place in range(sizes[axis])]
    longest = max(places, key=len)
    found: list[Piece] = []
    for k, piece in enumerate(longest):
        values = [p.value for p in longest[: k + 1]]
        alike = {c: at[k] for c, at in enumerate(places) if [p.value for p in at[: k + 1]] == values}
        steps = [s for d in range(len(piece.index)) if (s := _step(alike, d, sizes)) is not None]
        if len(steps) < len(piece.index):
            return None
        first = min(alike)
        back = ix.add(Dim(axis), ix.Const(-first))
        moved = (ix.add(e, ix.mul(back, s)) for e, s in zip(alike[first].index, steps, strict=True))
        index = tuple(simplify(e, sizes) for e in moved)
        found.append(Piece(_guard_in_steps(alike, steps, axis, sizes), piece.value, index))
    whole = tuple(found)
    if any(axis in _told_apart(piece) for piece in whole):
        return None
    same = all(_at_place(whole, axis, c, sizes) == at for c, at in enumerate(places))
    return whole if same else None


def _at_place(pieces: Sequence[Piece], axis: int, place: int, sizes: tuple[int, ...]) -> list[Piece]:
    coords = [ix.Const(place) if a == axis else Dim(a) for a in range(len(sizes))]
    found: list[Piece] = []
    for piece in pieces:
        guard = simplify_guard(ix.substitute_guard(piece.guard, coords), sizes)
        if guard is None:
            continue
        index = tuple(simplify(ix.substitute(e, coords), sizes) for e in piece.index)
        found.append(Piece(guard, piece.value, index))
        if not guard:
            break
    return found


def _step(at: Mapping[int, Piece], axis: int, sizes: tuple[int, ...]) -> int | None:
    """By how much an index grows from one place to the next; None if not evenly, or if there is one place."""
    terms = {place: linear_terms(piece.index[axis], sizes) for place, piece in at.items()}
    (first, (atoms, start)), *others = terms.items()
    if not others or any(other != atoms for _, (other, _) in others):
        return None
    place, (_, const) = others[0]
    step, rest = divmod(const - start, place - first)
    even = all(c == start + step * (p - first) for p, (_, c) in others)
    return step if even and not rest else None


def _guard_in_steps(alike: Mapping[int, Piece], steps: Sequence[int], axis: int, sizes: tuple[int, ...]) -> Guard:
    """A guard over all places: what it tests moves as the indices do, between the least and the most of any place."""
    index = alike[min(alike)].index
    found: list[ix.Bound] = []
    for expr in dict.fromkeys(b.expr for piece in alike.values() for b in piece.guard):
        parts = ((_multiple(expr, e, sizes), step) for e, step in zip(index, steps, strict=True))
        factor, step = next(((factor, step) for factor, step in parts if factor), (1, 0))
        low, high = ix.range_of(expr, sizes)
        whole = ix.Bound(expr, low, high + 1)
        bounds = [(next((b for b in p.guard if b.expr == expr), whole), step * c) for c, p in alike.items()]
        ends = [(factor * b.low + far, factor * (b.high - 1) + far) for b, far in bounds]
        moved = ix.add(ix.mul(expr, factor), ix.mul(Dim(axis), step))
        found.append(ix.Bound(moved, min(low for low, _ in ends), max(high for _, high in ends) + 1))
    return simplify_guard(tuple(found), sizes) or ()


def _multiple(part: Expr, whole: Expr, sizes: tuple[int, ...]) -> int:
    """How many times an expression has another among its terms; 0 if not, or a negative number of times."""
    terms = dict(linear_terms(whole, sizes)[0])
    factors = {divmod(terms.get(atom, 0), c) for atom, c in linear_terms(part, sizes)[0]}
    factor, rest = factors.pop() if len(factors) == 1 else (0, 0)
    return max(factor, 0) if not rest else 0


def _joined(guard: Guard, other: Guard) -> Guard | None:
    """The guard that holds where either does, if they differ in one expression's bounds, which touch or overlap."""
    ours, theirs = ([b for b in one if b not in two] for one, two in ((guard, other), (other, guard)))
    if len(ours) != 1 or len(theirs) != 1 or ours[0].expr != theirs[0].expr:
        return None
    (a,), (b,) = ours, theirs
    if a.low > b.high or b.low > a.high:
        return None
    wide = replace(a, low=min(a.low, b.low), high=max(a.high, b.high))
    return tuple(wide if bound == a else bound for bound in guard)


def _choose(guard: Guard, then: Expr, otherwise: Expr, sizes: tuple[int, ...]) -> Expr:
    return then if then == otherwise or not guard else simplify(Select(guard, then, otherwise), sizes)


def evaluate_view(view: View, read: Callable[[Value], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The array a view stands for, by NumPy: the reference the other handlers are tested against."""

    def look(lookup: Lookup, index: tuple[Any, ...]) -> Any:
        source = read(lookup.value)
        if isinstance(lookup, Segment):
            return lookup.among(source, *index)
        inside = tuple(np.clip(i, 0, size - 1) for i, size in zip(index, source.shape, strict=True))
        return lookup.clamped(source[inside].astype(np.int64))

    count = math.prod(view.domain)
    coords = [c.reshape(count) for c in np.indices(view.domain)]
    result = np.zeros(count, read(view.pieces[0].value).dtype)
    open_ = np.ones(count, bool)
    for k, piece in enumerate(view.pieces):
        last = k == len(view.pieces) - 1
        here = open_ if last else open_ & np.broadcast_to(ix.holds(piece.guard, coords, look), count).astype(bool)
        points = [c[here] for c in coords]
        source, reads = read(piece.value), int(np.count_nonzero(here))
        index = tuple(np.broadcast_to(ix.evaluate(e, points, look), reads) for e in piece.index)
        for i, size in zip(index, source.shape, strict=True):
            if reads and not (i.min() >= 0 and i.max() < size):
                raise IndexError(f"piece {k} of {view} reads outside a value of shape {source.shape}")
        if reads:
            result[here] = source[index]
        open_ = open_ & ~here
    return result.reshape(view.domain)
