"""Index expressions: integer arithmetic over the axes of a domain.

Input: the axes of a domain and their sizes.  Output: expressions for coordinates of another
array, and guards that say where they hold.  Invariant: constructors fold constants, equality is
structural.  The normal form is in `ir.simplify`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

import numpy as np

from jaxorch.ir.memo import remembered
from jaxorch.ir.value import Value

__all__ = [
    "Add",
    "Bound",
    "Const",
    "Dim",
    "Expr",
    "FloorDiv",
    "Guard",
    "Lookup",
    "Mod",
    "Mul",
    "Reader",
    "Segment",
    "Select",
    "Sizes",
    "add",
    "both",
    "coords_dims",
    "coords_lookups",
    "decide",
    "delinearize",
    "dims_of",
    "evaluate",
    "floordiv",
    "guard_dims",
    "guard_lookups",
    "holds",
    "linearize",
    "lookups_in",
    "map_guard",
    "map_lookups",
    "mod",
    "mul",
    "range_of",
    "sub",
    "substitute",
    "substitute_guard",
]


@dataclass(frozen=True, slots=True)
class Const:
    """An integer."""

    value: int


@dataclass(frozen=True, slots=True)
class Dim:
    """The coordinate along one axis of the domain: 0 <= Dim(a) < sizes[a]."""

    axis: int


@dataclass(frozen=True, slots=True)
class Add:
    """`left` + `right`."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Mul:
    """`expr` times a constant."""

    expr: Expr
    factor: int


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """Division by a positive constant, rounding towards minus infinity."""

    expr: Expr
    divisor: int


@dataclass(frozen=True, slots=True)
class Mod:
    """Remainder of `FloorDiv`: 0 <= Mod(e, k) < k."""

    expr: Expr
    divisor: int


@dataclass(frozen=True, slots=True)
class Select:
    """`then` where every bound of `guard` holds, else `otherwise`."""

    guard: Guard
    then: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True)
class Lookup:
    """An integer known at run time: value[index], clamped to low..high as lax clamps start indices.

    With a rank-0 value (index ()) it is a run-time scalar, such as a decode step's position. Before the clamp, `wrap`
    is added once if it is negative, and with a `modulus` > 0 its remainder is taken, which is never negative.
    """

    value: Value
    index: tuple[Expr, ...]
    low: int
    high: int
    wrap: int = 0
    modulus: int = 0

    def clamped(self, found: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """What is used of elements `found`."""
        found = np.where(found < 0, found + self.wrap, found) if self.wrap else found
        found = np.mod(found, self.modulus) if self.modulus else found
        return np.clip(found, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Segment(Lookup):
    """Which of consecutive segments a place lies in, as known at run time: `value` holds the lengths of all of them.

    `index` is the place, counted from the first one's start; past the last segment it lies in one more. So it never
    falls as the place grows.
    """

    def among(self, lengths: np.ndarray[Any, Any], place: Any) -> Any:
        """The segment of each `place`, clamped."""
        ends = np.cumsum(np.maximum(lengths.astype(np.int64), 0))
        return self.clamped(np.searchsorted(ends, np.asarray(place, np.int64), side="right"))


@dataclass(frozen=True, slots=True)
class Bound:
    """The condition low <= expr < high."""

    expr: Expr
    low: int
    high: int


type Expr = Const | Dim | Add | Mul | FloorDiv | Mod | Select | Lookup
type Guard = tuple[Bound, ...]
"""A conjunction; () always holds."""

type Reader = Callable[[Lookup, tuple[Any, ...]], Any]
"""Gives the value of a Lookup at an evaluated index."""

type Sizes = Sequence[int]
"""The sizes of the axes of a domain."""


# Folding constructors


def add(left: Expr, right: Expr) -> Expr:
    """`left` + `right`."""
    match left, right:
        case Const(a), Const(b):
            return Const(a + b)
        case Const(0), e:
            return e
        case e, Const(0):
            return e
        case _:
            return Add(left, right)


def mul(expr: Expr, factor: int) -> Expr:
    """`expr` * `factor`."""
    match expr:
        case Const(a):
            return Const(a * factor)
        case _ if factor == 0:
            return Const(0)
        case _ if factor == 1:
            return expr
        case Mul(e, k):
            return mul(e, k * factor)
        case _:
            return Mul(expr, factor)


def sub(left: Expr, right: Expr) -> Expr:
    """`left` - `right`."""
    return add(left, mul(right, -1))


def floordiv(expr: Expr, divisor: int) -> Expr:
    """`expr` // `divisor`, for a divisor > 0."""
    assert divisor > 0
    match expr:
        case Const(a):
            return Const(a // divisor)
        case _ if divisor == 1:
            return expr
        case _:
            return FloorDiv(expr, divisor)


def mod(expr: Expr, divisor: int) -> Expr:
    """`expr` % `divisor`, never negative, for a divisor > 0."""
    assert divisor > 0
    match expr:
        case Const(a):
            return Const(a % divisor)
        case _ if divisor == 1:
            return Const(0)
        case _:
            return Mod(expr, divisor)


def linearize(coords: Sequence[Expr], shape: Sizes) -> Expr:
    """The row-major flat index of `coords` in an array of `shape`."""
    flat: Expr = Const(0)
    for coord, size in zip(coords, shape, strict=True):
        flat = add(mul(flat, size), coord)
    return flat


def delinearize(expr: Expr, shape: Sizes) -> tuple[Expr, ...]:
    """The coordinates in an array of `shape` of the row-major flat index `expr`."""
    coords: list[Expr] = []
    stride = 1
    for axis in reversed(range(len(shape))):
        quotient = floordiv(expr, stride)
        coords.append(quotient if axis == 0 else mod(quotient, max(shape[axis], 1)))
        stride *= max(shape[axis], 1)
    return tuple(reversed(coords))


# Structure


def substitute(expr: Expr, coords: Sequence[Expr]) -> Expr:
    """`expr` with Dim(a) replaced by coords[a]."""
    match expr:
        case Const():
            return expr
        case Dim(axis):
            return coords[axis]
        case Add(a, b):
            return add(substitute(a, coords), substitute(b, coords))
        case Mul(a, k):
            return mul(substitute(a, coords), k)
        case FloorDiv(a, k):
            return floordiv(substitute(a, coords), k)
        case Mod(a, k):
            return mod(substitute(a, coords), k)
        case Select(guard, a, b):
            return Select(substitute_guard(guard, coords), substitute(a, coords), substitute(b, coords))
        case Lookup(_, index):
            return replace(expr, index=tuple(substitute(e, coords) for e in index))
        case _:
            assert_never(expr)


def substitute_guard(guard: Guard, coords: Sequence[Expr]) -> Guard:
    """`guard` with Dim(a) replaced by coords[a]."""
    return tuple(Bound(substitute(b.expr, coords), b.low, b.high) for b in guard)


def both(guard: Guard, other: Guard) -> Guard:
    """Where both guards hold; a bound they share stands once."""
    return tuple(dict.fromkeys(guard + other))


def dims_of(expr: Expr) -> frozenset[int]:
    """The axes that `expr` depends on."""
    match expr:
        case Const():
            return frozenset()
        case Dim(axis):
            return frozenset((axis,))
        case Add(a, b):
            return dims_of(a) | dims_of(b)
        case Mul(a, _) | FloorDiv(a, _) | Mod(a, _):
            return dims_of(a)
        case Select(guard, a, b):
            return guard_dims(guard) | dims_of(a) | dims_of(b)
        case Lookup(_, index):
            return frozenset[int]().union(*(dims_of(e) for e in index))
        case _:
            assert_never(expr)


@remembered
def guard_dims(guard: Guard) -> frozenset[int]:
    """The axes that `guard` depends on."""
    return frozenset[int]().union(*(dims_of(b.expr) for b in guard))


@remembered
def coords_dims(coords: tuple[Expr, ...]) -> frozenset[int]:
    """The axes that any of `coords` depends on."""
    return frozenset[int]().union(*map(dims_of, coords))


def evaluate(expr: Expr, coords: Sequence[Any], lookup: Reader | None = None) -> Any:
    """The value of `expr`; `coords` are ints or NumPy integer arrays that broadcast together.

    `lookup` gives the value of a Lookup from it and its evaluated index; without one there must be none.
    """
    match expr:
        case Const(value):
            return value
        case Dim(axis):
            return coords[axis]
        case Add(a, b):
            return evaluate(a, coords, lookup) + evaluate(b, coords, lookup)
        case Mul(a, k):
            return evaluate(a, coords, lookup) * k
        case FloorDiv(a, k):
            return evaluate(a, coords, lookup) // k
        case Mod(a, k):
            return evaluate(a, coords, lookup) % k
        case Select(guard, a, b):
            where = holds(guard, coords, lookup)
            return where * evaluate(a, coords, lookup) + (1 - where) * evaluate(b, coords, lookup)
        case Lookup(_, index):
            assert lookup is not None, f"{expr} is known at run time only"
            return lookup(expr, tuple(evaluate(e, coords, lookup) for e in index))
        case _:
            assert_never(expr)


def holds(guard: Guard, coords: Sequence[Any], lookup: Reader | None = None) -> Any:
    """1 where the guard holds, else 0."""
    result: Any = 1
    for b in guard:
        value = evaluate(b.expr, coords, lookup)
        result = result * ((value >= b.low) & (value < b.high))
    return result


def lookups_in(expr: Expr) -> Iterator[Lookup]:
    """Every Lookup in `expr`, inner ones before those that need them."""
    match expr:
        case Const() | Dim():
            return
        case Add(a, b):
            yield from lookups_in(a)
            yield from lookups_in(b)
        case Mul(a, _) | FloorDiv(a, _) | Mod(a, _):
            yield from lookups_in(a)
        case Select(guard, a, b):
            for e in (*(bound.expr for bound in guard), a, b):
                yield from lookups_in(e)
        case Lookup(_, index):
            for e in index:
                yield from lookups_in(e)
            yield expr
        case _:
            assert_never(expr)


@remembered
def guard_lookups(guard: Guard) -> tuple[Lookup, ...]:
    """Every Lookup in `guard`, each once."""
    return tuple(dict.fromkeys(k for b in guard for k in lookups_in(b.expr)))


@remembered
def coords_lookups(coords: tuple[Expr, ...]) -> tuple[Lookup, ...]:
    """Every Lookup in `coords`, each once."""
    return tuple(dict.fromkeys(k for e in coords for k in lookups_in(e)))


def map_lookups(expr: Expr, new: Callable[[Lookup], Expr]) -> Expr:
    """`expr` with each Lookup (its index already mapped) replaced by `new` of it; itself if it has none."""
    match expr:
        case Const() | Dim():
            return expr
        case Add(a, b):
            return add(map_lookups(a, new), map_lookups(b, new))
        case Mul(a, k):
            return mul(map_lookups(a, new), k)
        case FloorDiv(a, k):
            return floordiv(map_lookups(a, new), k)
        case Mod(a, k):
            return mod(map_lookups(a, new), k)
        case Select(guard, a, b):
            return Select(map_guard(guard, new), map_lookups(a, new), map_lookups(b, new))
        case Lookup(_, index):
            return new(replace(expr, index=tuple(map_lookups(e, new) for e in index)))
        case _:
            assert_never(expr)


def map_guard(guard: Guard, new: Callable[[Lookup], Expr]) -> Guard:
    """`map_lookups` on every bound."""
    return tuple(Bound(map_lookups(b.expr, new), b.low, b.high) for b in guard)


# Ranges


def range_of(expr: Expr, sizes: Sizes) -> tuple[int, int]:
    """Inclusive bounds of `expr` over the domain (of an empty axis: as if it had size 1)."""
    match expr:
        case Const(value):
            return value, value
        case Dim(axis):
            return 0, max(sizes[axis] - 1, 0)
        case Add(a, b):
            (la, ha), (lb, hb) = range_of(a, sizes), range_of(b, sizes)
            return la + lb, ha + hb
        case Mul(a, k):
            lo, hi = range_of(a, sizes)
            return (lo * k, hi * k) if k >= 0 else (hi * k, lo * k)
        case FloorDiv(a, k):
            lo, hi = range_of(a, sizes)
            return lo // k, hi // k
        case Mod(a, k):
            lo, hi = range_of(a, sizes)
            return (lo % k, hi % k) if lo // k == hi // k else (0, k - 1)
        case Select(guard, a, b):
            (la, ha), (lb, hb) = _range_where(guard, a, sizes, True), _range_where(guard, b, sizes, False)
            return min(la, lb), max(ha, hb)
        case Lookup(_, _, low, high):
            return low, high
        case _:
            assert_never(expr)


def _range_where(guard: Guard, side: Expr, sizes: Sizes, truth: bool) -> tuple[int, int]:
    """The range of one side of a Select: narrower where the guard bounds that expression, or it without a constant."""
    low, high = range_of(side, sizes)
    if len(guard) != 1:
        return low, high
    (b,) = guard
    match side:
        case Add(e, Const(c)) if e == b.expr:
            shift = c
        case _ if side == b.expr:
            shift = 0
        case _:
            return low, high
    least, most = b.low + shift, b.high - 1 + shift
    if truth:
        narrow = max(low, least), min(high, most)
    elif least <= low:  # not e < high  =  e >= high
        narrow = max(low, most + 1), high
    elif most >= high:
        narrow = low, min(high, least - 1)
    else:
        return low, high
    return narrow if narrow[0] <= narrow[1] else (low, high)


def decide(bound: Bound, sizes: Sizes) -> bool | None:
    """Whether the bound holds everywhere (True), nowhere (False), or it depends (None)."""
    lo, hi = range_of(bound.expr, sizes)
    if bound.low <= lo and hi < bound.high:
        return True
    if hi < bound.low or bound.high <= lo:
        return False
    return None
