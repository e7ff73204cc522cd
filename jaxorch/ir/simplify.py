"""The normal form of index expressions: a constant plus integer multiples of atoms.

Input: an expression or a guard and the sizes of the domain's axes.  Output: an equal one, shorter where the axes'
ranges allow it; its atoms are Dim, FloorDiv, Mod, Select and Lookup, in a fixed order.  Invariant: the value is the
same at every point of the domain, and a normal form is its own normal form.  Each rule carries its identity as its
comment.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import assert_never

from jaxorch.ir.index import (
    Add,
    Bound,
    Const,
    Dim,
    Expr,
    FloorDiv,
    Guard,
    Lookup,
    Mod,
    Mul,
    Select,
    Sizes,
    add,
    decide,
    delinearize,
    dims_of,
    mul,
    range_of,
    substitute,
)

__all__ = ["clamp", "coefficient", "coords_of", "linear_terms", "simplify", "simplify_guard"]

type _Linear = tuple[dict[Expr, int], int]

_ROUNDS = 4  # one rule's result may, seldom, be another's start; more than two rounds have not been seen


def simplify(expr: Expr, sizes: Sizes) -> Expr:
    """An equal expression in normal form, shorter where the axes' ranges allow it."""
    return _simplified(expr, tuple(sizes))


@lru_cache(maxsize=1 << 17)  # the same index expressions come back in every candidate that holds a node
def _simplified(expr: Expr, sizes: tuple[int, ...]) -> Expr:
    for _ in range(_ROUNDS):
        simple = _rebuild(*_normal(expr, sizes))
        if simple == expr:
            break
        expr = simple
    return expr


def clamp(expr: Expr, low: int, high: int, sizes: Sizes) -> Expr:
    """`expr`, at least `low` and at most `high`, in normal form."""
    if isinstance(expr, Lookup):  # clamp(clamp(v, a, b), c, d) = clamp(v, clamp(a, c, d), clamp(b, c, d))
        ends = (min(max(end, low), high) for end in (expr.low, expr.high))
        return simplify(replace(expr, low=next(ends), high=next(ends)), sizes)
    least, most = range_of(expr, sizes)
    if most > high:  # min(e, high) = select(e <= high, e, high)
        expr = Select((Bound(expr, least, high + 1),), expr, Const(high))
    if least < low:
        expr = Select((Bound(expr, low, most + 1),), expr, Const(low))
    return simplify(expr, sizes)


def coords_of(flat: Expr, shape: Sizes, sizes: Sizes) -> tuple[Expr, ...]:
    """The coordinates in an array of `shape` of the row-major index `flat`, in normal form over axes of `sizes`."""
    return tuple(simplify(e, sizes) for e in delinearize(flat, shape))


def linear_terms(expr: Expr, sizes: Sizes) -> tuple[tuple[tuple[Expr, int], ...], int]:
    """The normal form: ((atom, coefficient), ...) in a fixed order, and the constant."""
    return _terms(expr, tuple(sizes))


@lru_cache(maxsize=1 << 16)
def _terms(expr: Expr, sizes: tuple[int, ...]) -> tuple[tuple[tuple[Expr, int], ...], int]:
    terms, const = _normal(expr, sizes)
    return tuple((a, terms[a]) for a in _ordered(terms)), const


def coefficient(expr: Expr, axis: int, sizes: Sizes) -> int | None:
    """C if expr = c*Dim(axis) + (something free of that axis), else None."""
    terms, _ = _normal(expr, sizes)
    found = 0
    for atom, k in terms.items():
        if atom == Dim(axis):
            found = k
        elif axis in dims_of(atom):
            return None
    return found


def simplify_guard(guard: Guard, sizes: Sizes) -> Guard | None:
    """An equal guard without bounds that always hold; None if it never holds."""
    kept: dict[Expr, tuple[int, int]] = {}
    for bound in guard:
        b = _simplify_bound(bound, sizes)
        match decide(b, sizes):
            case True:
                continue
            case False:
                return None
            case None:
                low, high = kept.get(b.expr, (b.low, b.high))
                low, high = max(low, b.low), min(high, b.high)
                if low >= high:
                    return None
                kept[b.expr] = low, high
    return tuple(Bound(e, *kept[e]) for e in _ordered(kept))


def _simplify_bound(bound: Bound, sizes: Sizes) -> Bound:
    terms, const = _normal(bound.expr, sizes)
    low, high = bound.low - const, bound.high - const  # low <= e + c < high  =  low-c <= e < high-c
    if not terms:
        return Bound(Const(0), low, high)
    if terms[min(terms, key=_order)] < 0:  # low <= -e < high  =  1-high <= e < 1-low
        low, high, terms = 1 - high, 1 - low, {atom: -c for atom, c in terms.items()}
    k = math.gcd(*terms.values())
    if k > 1:  # low <= k*e < high  =  ceil(low/k) <= e < ceil(high/k)
        low, high, terms = -(-low // k), -(-high // k), {atom: c // k for atom, c in terms.items()}
    (atom, c), *others = terms.items()
    if not others and c == 1 and isinstance(atom, FloorDiv):  # low <= e//k < high  =  low*k <= e < high*k
        return _simplify_bound(Bound(atom.expr, low * atom.divisor, high * atom.divisor), sizes)
    expr = _rebuild(terms, 0)
    lo, hi = range_of(expr, sizes)
    for g in sorted({abs(c) for c in terms.values()} - {1}, reverse=True):
        # low*g <= g*a + b < high*g  =  low <= a < high  if 0 <= b < g
        small = range_of(_rebuild({atom: c for atom, c in terms.items() if c % g}, 0), sizes)
        if small[0] >= 0 and small[1] < g and (low % g == 0 or low <= lo) and (high % g == 0 or high > hi):
            big = _rebuild({atom: c // g for atom, c in terms.items() if c % g == 0}, 0)
            return _simplify_bound(Bound(big, low // g, -(-high // g)), sizes)
    low, high = (max(low, lo), min(high, hi + 1)) if max(low, lo) < min(high, hi + 1) else (low, high)
    return Bound(expr, low, high)


def _order(expr: Expr) -> tuple[int, str]:
    # Dims first, then by text: a fixed order that does not depend on hashes.
    return (0, f"{expr.axis:04d}") if isinstance(expr, Dim) else (1, _text(expr))


_text = lru_cache(maxsize=1 << 16)(repr)


def _ordered(atoms: Collection[Expr]) -> Collection[Expr]:
    return atoms if len(atoms) < 2 else sorted(atoms, key=_order)


def _rebuild(terms: Mapping[Expr, int], const: int) -> Expr:
    total: Expr | None = None
    for atom in _ordered(terms):
        if terms[atom]:
            term = mul(atom, terms[atom])
            total = term if total is None else add(total, term)
    if total is None:
        return Const(const)
    return add(total, Const(const))


def _normal(expr: Expr, sizes: Sizes) -> _Linear:
    """The normal form: terms, which nobody changes, and a constant."""
    return _normal_form(expr, tuple(sizes))


@lru_cache(maxsize=1 << 17)
def _normal_form(expr: Expr, sizes: tuple[int, ...]) -> _Linear:
    match expr:
        case Const(value):
            return {}, value
        case Dim(axis):
            return ({}, 0) if sizes[axis] == 1 else ({expr: 1}, 0)  # x = 0 if 0 <= x < 1
        case Add(a, b):
            return _recombine(*_plus(_normal(a, sizes), _normal(b, sizes)), sizes)
        case Mul(a, k):
            terms, const = _normal(a, sizes)
            return ({atom: c * k for atom, c in terms.items()}, const * k) if k else ({}, 0)
        case FloorDiv(a, k):
            return _normal_div(_normal(a, sizes), k, sizes)
        case Mod(a, k):
            return _normal_mod(_normal(a, sizes), k, sizes)
        case Lookup(_, index, low, high):
            if low == high:  # a clamp to one value
                return {}, low
            return {replace(expr, index=tuple(simplify(e, sizes) for e in index)): 1}, 0
        case Select(guard, a, b):
            return _normal_select(guard, a, b, sizes)
        case _:
            assert_never(expr)


def _plus(a: _Linear, b: _Linear) -> _Linear:
    terms = dict(a[0])
    for atom, k in b[0].items():
        terms[atom] = terms.get(atom, 0) + k
    return {atom: k for atom, k in terms.items() if k}, a[1] + b[1]


def _normal_select(guard: Guard, then: Expr, otherwise: Expr, sizes: Sizes) -> _Linear:
    simple = simplify_guard(guard, sizes)
    if simple is None:  # select(false, a, b) = b
        return _normal(otherwise, sizes)
    # select(x == c, a, b) = select(x == c, a[x := c], b)
    a, b = _normal(substitute(then, _pinned(simple, sizes)), sizes), _normal(otherwise, sizes)
    if not simple or a == b:  # select(true, a, b) = a;  select(g, a, a) = a
        return a
    if a == _normal(substitute(otherwise, _pinned(simple, sizes)), sizes):  # select(x == c, b[x := c], b) = b
        return b
    if b == _normal(substitute(then, _pinned(_complement(simple, sizes), sizes)), sizes):
        return _normal(then, sizes)  # select(x != c, a, a[x := c]) = a
    indicator = _indicator(simple, sizes) if a[0] == b[0] else None
    if indicator is not None:  # select(x == 1, b + c, b) = b + c*x, with x either 0 or 1
        step = a[1] - b[1]
        return _plus(b, ({atom: step * k for atom, k in indicator[0].items()}, step * indicator[1]))
    # select(g, a+c, b+c) = select(g, a, b) + c
    common = {atom: k for atom, k in a[0].items() if b[0].get(atom) == k}
    const = min(a[1], b[1])
    rest_a = _rebuild({atom: k for atom, k in a[0].items() if atom not in common}, a[1] - const)
    rest_b = _rebuild({atom: k for atom, k in b[0].items() if atom not in common}, b[1] - const)
    atom = Select(simple, rest_a, rest_b)
    return {**common, atom: common.get(atom, 0) + 1}, const


def _indicator(guard: Guard, sizes: Sizes) -> _Linear | None:
    """1 where the guard holds, else 0, if that is linear: one bound that tells an expression's two values apart."""
    if len(guard) != 1:
        return None
    (b,), (lo, hi) = guard, range_of(guard[0].expr, sizes)
    if hi != lo + 1:
        return None
    terms, const = _normal(b.expr, sizes)
    holds_above = b.low == hi
    return (terms, const - lo) if holds_above else ({atom: -k for atom, k in terms.items()}, hi - const)


def _pinned(guard: Guard, sizes: Sizes) -> Sequence[Expr]:
    """The axes of the domain, as constants where the guard leaves them one value."""
    fixed = {b.expr: Const(b.low) for b in guard if isinstance(b.expr, Dim) and b.high == b.low + 1}
    return [fixed.get(Dim(a), Dim(a)) for a in range(len(sizes))]


def _complement(guard: Guard, sizes: Sizes) -> Guard:
    """The guard that holds where `guard` does not, if that is one bound too, else ()."""
    if len(guard) != 1:
        return ()
    (b,), (lo, hi) = guard, range_of(guard[0].expr, sizes)
    if b.high == hi + 1:
        return (Bound(b.expr, lo, b.low),)
    return (Bound(b.expr, b.high, hi + 1),) if b.low == lo else ()


def _normal_div(linear: _Linear, k: int, sizes: Sizes) -> _Linear:
    terms, const = linear
    # (k*q + r)//k = q + r//k
    whole = {atom: c // k for atom, c in terms.items() if c % k == 0}
    rest = {atom: c for atom, c in terms.items() if c % k}
    whole_const, const = const // k, const % k
    quotient: _Linear = _div_rest(rest, const, k, sizes) if rest else ({}, 0)
    return _recombine(*_plus((whole, whole_const), quotient), sizes)


def _div_rest(rest: dict[Expr, int], const: int, k: int, sizes: Sizes) -> _Linear:
    lo, hi = range_of(_rebuild(rest, const), sizes)
    if lo // k == hi // k:  # r//k = c if c*k <= r < (c+1)*k
        return {}, lo // k
    for g, big, small in _splits(rest, const, k, sizes):  # (g*a + b)//k = a//(k/g) if 0 <= b < g
        del small
        return _normal_div(({a: c // g for a, c in big[0].items()}, big[1] // g), k // g, sizes)
    if len(rest) == 1 and const == 0:
        ((atom, c),) = rest.items()
        if c == 1 and isinstance(atom, Mod) and atom.divisor % k == 0:  # (x % (a*b))//b = (x//b) % a
            return _normal_mod(_normal_div(_normal(atom.expr, sizes), k, sizes), atom.divisor // k, sizes)
    for atom in _ordered(rest):
        if rest[atom] == 1 and isinstance(atom, FloorDiv):  # (x//a + y)//b = (x + a*y)//(a*b)
            others = {other: c * atom.divisor for other, c in rest.items() if other != atom}
            joined = _plus(_normal(atom.expr, sizes), (others, const * atom.divisor))
            return _normal_div(_recombine(*joined, sizes), atom.divisor * k, sizes)
    return {FloorDiv(_rebuild(rest, const), k): 1}, 0


def _normal_mod(linear: _Linear, k: int, sizes: Sizes) -> _Linear:
    # (k*q + r) % k = r % k;  (c*(x % m)) % k = (c*x) % k if k divides c*m
    terms: dict[Expr, int] = {}
    const = linear[1] % k
    changed = False
    for atom, c in linear[0].items():
        if c % k == 0:
            continue
        if isinstance(atom, Mod) and (c * atom.divisor) % k == 0:
            inner, shift = _normal(atom.expr, sizes)
            terms, const = _plus((terms, const), ({a: v * c for a, v in inner.items()}, shift * c))
            changed = True
        else:
            terms, const = _plus((terms, const), ({atom: c}, 0))
    if changed:
        return _normal_mod(_recombine(terms, const, sizes), k, sizes)
    if not terms:
        return {}, const
    lo, hi = range_of(_rebuild(terms, const), sizes)
    if lo // k == hi // k:  # r % k = r - c*k if c*k <= r < (c+1)*k
        return terms, const - (lo // k) * k
    reduced = {a: c % k for a, c in terms.items()}
    if reduced != terms:  # coefficients modulo k, when that stays in range of the rule above or is shorter
        lo, hi = range_of(_rebuild(reduced, const), sizes)
        if lo // k == hi // k:
            return reduced, const - (lo // k) * k
    for g, big, small in _splits(terms, const, k, sizes):  # (g*a + b) % k = g*(a % (k/g)) + b if 0 <= b < g
        inner = _normal_mod(({a: c // g for a, c in big[0].items()}, big[1] // g), k // g, sizes)
        return _plus(({a: c * g for a, c in inner[0].items()}, inner[1] * g), small)
    return {Mod(_rebuild(terms, const), k): 1}, 0


def _splits(terms: dict[Expr, int], const: int, k: int, sizes: Sizes):
    """Ways to write terms + const = g*a + b with 1 < g, g | k and 0 <= b < g, largest g first."""
    divisors = sorted({math.gcd(c, k) for c in terms.values()} - {1, k}, reverse=True)
    for g in divisors:
        big = {a: c for a, c in terms.items() if c % g == 0}
        small = {a: c for a, c in terms.items() if c % g}
        low_const = const % g
        lo, hi = range_of(_rebuild(small, low_const), sizes)
        if lo >= 0 and hi < g and big:
            yield g, (big, const - low_const), (small, low_const)


def _recombine(terms: dict[Expr, int], const: int, sizes: Sizes) -> _Linear:
    # c*k*(x//k) + c*(x % k) = c*x;  c*k*((x//k) % m) + c*(x % k) = c*(x % (k*m))
    for atom in _ordered([atom for atom in terms if isinstance(atom, Mod)]):
        assert isinstance(atom, Mod)
        c, k, x = terms[atom], atom.divisor, atom.expr
        quotient, shift = _normal_div(_normal(x, sizes), k, sizes)
        if quotient and all(terms.get(a) == v * c * k for a, v in quotient.items()):
            kept = {a: v for a, v in terms.items() if a not in quotient and a != atom}
            inner, inner_const = _normal(x, sizes)
            joined = _plus((kept, const - shift * c * k), ({a: v * c for a, v in inner.items()}, inner_const * c))
            return _recombine(*joined, sizes)
        for other, v in sorted(terms.items(), key=lambda item: _order(item[0])):
            if isinstance(other, Mod) and v == c * k and _normal(other.expr, sizes) == (quotient, shift):
                kept = {a: w for a, w in terms.items() if a not in (atom, other)}
                inner = _normal_mod(_normal(x, sizes), k * other.divisor, sizes)
                joined = _plus((kept, const), ({a: w * c for a, w in inner[0].items()}, inner[1] * c))
                return _recombine(*joined, sizes)
    return terms, const
