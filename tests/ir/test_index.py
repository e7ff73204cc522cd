"""Index expressions: simplification preserves every point, ranges are sound, guards mean what they say."""

import functools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxorch.ir import index as ix
from jaxorch.ir.index import Add, Bound, Const, Dim, FloorDiv, Mod, Mul, Select
from jaxorch.ir.simplify import coefficient, linear_terms, simplify, simplify_guard

moderate = settings(max_examples=150, deadline=None)

sizes_ = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
divisors = st.integers(1, 12)


@functools.cache
def expressions(rank: int, depth: int = 3):
    leaves = st.one_of(st.integers(-9, 9).map(Const), st.integers(0, rank - 1).map(Dim))

    def extend(inner):
        bound = st.builds(lambda e, low, n: Bound(e, low, low + n), inner, st.integers(-6, 12), st.integers(0, 12))
        return st.one_of(
            st.builds(Add, inner, inner),
            st.builds(Mul, inner, st.integers(-6, 12)),
            st.builds(FloorDiv, inner, divisors),
            st.builds(Mod, inner, divisors),
            st.builds(Select, st.lists(bound, max_size=2).map(tuple), inner, inner),
        )

    return st.recursive(leaves, extend, max_leaves=2**depth)


@functools.cache
def guards(rank: int):
    bound = st.builds(
        lambda e, low, n: Bound(e, low, low + n), expressions(rank, 2), st.integers(-6, 12), st.integers(0, 12)
    )
    return st.lists(bound, max_size=3).map(tuple)


@st.composite
def cases(draw):
    sizes = draw(sizes_)
    return sizes, draw(expressions(len(sizes)))


@st.composite
def guard_cases(draw):
    sizes = draw(sizes_)
    return sizes, draw(guards(len(sizes)))


def points(sizes):
    return np.indices(sizes).reshape(len(sizes), math.prod(sizes))


def table(expr, sizes):
    return np.broadcast_to(ix.evaluate(expr, points(sizes)), math.prod(sizes))


def truth(guard, sizes):
    return np.broadcast_to(ix.holds(guard, points(sizes)), math.prod(sizes)).astype(bool)


@moderate
@given(cases())
def test_simplify_preserves_every_point(case):
    sizes, expr = case
    np.testing.assert_array_equal(table(simplify(expr, sizes), sizes), table(expr, sizes))


@moderate
@given(cases())
def test_simplify_is_idempotent(case):
    sizes, expr = case
    once = simplify(expr, sizes)
    assert simplify(once, sizes) == once


@moderate
@given(cases())
def test_linear_terms_sum_to_the_expression(case):
    sizes, expr = case
    terms, const = linear_terms(expr, sizes)
    np.testing.assert_array_equal(sum((k * table(a, sizes) for a, k in terms), const), table(expr, sizes))


@moderate
@given(cases())
def test_range_is_sound(case):
    sizes, expr = case
    low, high = ix.range_of(expr, sizes)
    values = table(expr, sizes)
    assert low <= values.min()
    assert values.max() <= high


@moderate
@given(cases())
def test_dims_and_coefficient(case):
    sizes, expr = case
    assert ix.dims_of(simplify(expr, sizes)) <= ix.dims_of(expr)
    for axis in range(len(sizes)):
        k = coefficient(expr, axis, sizes)
        if k is not None:
            steps = np.diff(table(expr, sizes).reshape(sizes), axis=axis)
            assert (steps == k).all()


@moderate
@given(cases(), st.integers(-6, 12), st.integers(0, 12))
def test_decide(case, low, width):
    sizes, expr = case
    bound = Bound(expr, low, low + width)
    match ix.decide(bound, sizes):
        case True:
            assert truth((bound,), sizes).all()
        case False:
            assert not truth((bound,), sizes).any()
        case None:
            pass


@moderate
@given(guard_cases())
def test_simplify_guard(case):
    sizes, guard = case
    simple = simplify_guard(guard, sizes)
    if simple is None:
        assert not truth(guard, sizes).any()
    else:
        np.testing.assert_array_equal(truth(simple, sizes), truth(guard, sizes))
        assert simplify_guard(simple, sizes) == simple


@moderate
@given(st.data())
def test_substitute(data):
    inner, outer = data.draw(sizes_), data.draw(sizes_)
    expr = data.draw(expressions(len(inner)))
    coords = [data.draw(expressions(len(outer), 1)) for _ in inner]
    at = [table(c, outer) for c in coords]
    np.testing.assert_array_equal(
        table(ix.substitute(expr, coords), outer), np.broadcast_to(ix.evaluate(expr, at), math.prod(outer))
    )


@moderate
@given(st.data())
def test_folding_constructors(data):
    sizes = data.draw(sizes_)
    a, b = data.draw(expressions(len(sizes), 2)), data.draw(expressions(len(sizes), 2))
    k, d = data.draw(st.integers(-5, 5)), data.draw(divisors)
    for folded, plain in [
        (ix.add(a, b), table(a, sizes) + table(b, sizes)),
        (ix.sub(a, b), table(a, sizes) - table(b, sizes)),
        (ix.mul(a, k), table(a, sizes) * k),
        (ix.floordiv(a, d), table(a, sizes) // d),
        (ix.mod(a, d), table(a, sizes) % d),
    ]:
        np.testing.assert_array_equal(table(folded, sizes), plain)


@given(sizes_)
def test_linearize_and_delinearize_are_inverse(shape):
    dims = tuple(Dim(a) for a in range(len(shape)))
    flat = ix.linearize(dims, shape)
    np.testing.assert_array_equal(table(flat, shape), np.arange(math.prod(shape)))
    there_and_back = tuple(simplify(e, shape) for e in ix.delinearize(flat, shape))
    assert there_and_back == tuple(simplify(d, shape) for d in dims)
    count = (math.prod(shape),)
    back_and_there = ix.linearize(ix.delinearize(Dim(0), shape), shape)
    assert simplify(back_and_there, count) == simplify(Dim(0), count)


@moderate
@given(st.data())
def test_reshapes_through_any_shape_cancel(data):
    shape = data.draw(sizes_)
    factors = [f for n in shape for f in ((2, n // 2) if n % 2 == 0 else (n,))]
    other = tuple(data.draw(st.permutations(factors)))
    assume(math.prod(other) == math.prod(shape))
    dims = tuple(Dim(a) for a in range(len(shape)))
    there = ix.delinearize(ix.linearize(dims, shape), other)
    back = ix.delinearize(ix.linearize(there, other), shape)
    assert tuple(simplify(e, shape) for e in back) == tuple(simplify(d, shape) for d in dims)


x, y, z = Dim(0), Dim(1), Dim(2)

IDENTITIES = {
    "x = 0 if 0 <= x < 1": ((1, 5), x, Const(0)),
    "(4*x + y)//4 = x if y < 4": ((5, 4), FloorDiv(Add(Mul(x, 4), y), 4), x),
    "(4*x + y) % 4 = y if y < 4": ((5, 4), Mod(Add(Mul(x, 4), y), 4), y),
    "(8*x + y)//4 = 2*x + y//4": ((5, 8), FloorDiv(Add(Mul(x, 8), y), 4), Add(Mul(x, 2), FloorDiv(y, 4))),
    "(4*x + y)//8 = x//2 if y < 4": ((6, 4), FloorDiv(Add(Mul(x, 4), y), 8), FloorDiv(x, 2)),
    "(4*x + y) % 8 = 4*(x % 2) + y if y < 4": ((6, 4), Mod(Add(Mul(x, 4), y), 8), Add(y, Mul(Mod(x, 2), 4))),
    "(x//2)//3 = x//6": ((50, 1), FloorDiv(FloorDiv(x, 2), 3), FloorDiv(x, 6)),
    "(x//2 + 1)//3 = (x + 2)//6": ((50, 1), FloorDiv(Add(FloorDiv(x, 2), Const(1)), 3), FloorDiv(Add(x, Const(2)), 6)),
    "(x % 6)//2 = (x//2) % 3": ((50, 1), FloorDiv(Mod(x, 6), 2), Mod(FloorDiv(x, 2), 3)),
    "(x % 12) % 4 = x % 4": ((50, 1), Mod(Mod(x, 12), 4), Mod(x, 4)),
    "x//7 = 1 if 7 <= x < 14": ((5, 1), FloorDiv(Add(x, Const(7)), 7), Const(1)),
    "x % 7 = x - 7 if 7 <= x < 14": ((5, 1), Mod(Add(x, Const(7)), 7), x),
    "4*(x//4) + x % 4 = x": ((50, 1), Add(Mul(FloorDiv(x, 4), 4), Mod(x, 4)), x),
    "4*((x//4) % 3) + x % 4 = x % 12": ((50, 1), Add(Mul(Mod(FloorDiv(x, 4), 3), 4), Mod(x, 4)), Mod(x, 12)),
    "x - x = 0": ((5, 5), Add(Add(x, y), Add(Mul(x, -1), Mul(y, -1))), Const(0)),
    "x + y = y + x": ((5, 5), Add(y, x), Add(x, y)),
    "select(true, a, b) = a": ((5, 5), Select((Bound(x, 0, 5),), x, y), x),
    "select(false, a, b) = b": ((5, 5), Select((Bound(x, 5, 9),), x, y), y),
    "select(g, a, a) = a": ((5, 5), Select((Bound(x, 2, 9),), y, y), y),
    "select(x == c, x, b) = select(x == c, c, b)": (
        (5, 5),
        Select((Bound(x, 2, 3),), x, y),
        Select((Bound(x, 2, 3),), Const(2), y),
    ),
    "select(x == c, c, x) = x": ((5, 5), Select((Bound(x, 2, 3),), Const(2), x), x),
    "select(x != c, x, c) = x": ((5, 5), Select((Bound(x, 1, 5),), x, Const(0)), x),
    "select(x == 1, b + c, b) = b + c*x if x < 2": (
        (2, 5),
        Select((Bound(x, 1, 2),), Add(y, Const(7)), Add(y, Const(3))),
        Add(Add(Mul(x, 4), y), Const(3)),
    ),
    "select(x == 0, b + c, b) = b + c - c*x if x < 2": (
        (2, 5),
        Select((Bound(x, 0, 1),), Add(y, Const(7)), Add(y, Const(3))),
        Add(Add(Mul(x, -4), y), Const(7)),
    ),
    "select(x % 2 == 1, c, 0) = c*(x % 2)": (
        (9, 5),
        Select((Bound(Mod(x, 2), 1, 2),), Const(6), Const(0)),
        Mul(Mod(x, 2), 6),
    ),
    "select(x == 0, x, 1) = x if x < 2": ((2, 5), Select((Bound(x, 0, 1),), x, Const(1)), x),
    "select(g, a + c, b + c) = select(g, a, b) + c": (
        (5, 5, 5),
        Select((Bound(x, 0, 2),), Add(x, z), Add(y, z)),
        Add(z, Select((Bound(x, 0, 2),), x, y)),
    ),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity(name):
    sizes, before, after = IDENTITIES[name]
    assert simplify(before, sizes) == after
    np.testing.assert_array_equal(table(before, sizes), table(after, sizes))


GUARDS = {
    "always": ((5,), (Bound(x, 0, 5), Bound(x, -3, 9)), ()),
    "never": ((5,), (Bound(x, 5, 9),), None),
    "contradiction": ((9,), (Bound(x, 0, 4), Bound(x, 4, 9)), None),
    "joined": ((9,), (Bound(x, 2, 9), Bound(x, 0, 7)), (Bound(x, 2, 7),)),
    "low <= e + c < high": ((9,), (Bound(Add(x, Const(-2)), 0, 3),), (Bound(x, 2, 5),)),
    "low <= -e < high": ((9,), (Bound(Mul(x, -1), -4, -1),), (Bound(x, 2, 5),)),
    "low <= k*e < high": ((9,), (Bound(Mul(x, 3), 4, 13),), (Bound(x, 2, 5),)),
    "low <= e//k < high": ((9,), (Bound(FloorDiv(x, 2), 1, 3),), (Bound(x, 2, 6),)),
    "window": (
        (9, 9),
        (Bound(Add(y, Mul(x, -1)), -2, 1), Bound(Add(x, Mul(y, -1)), 0, 9)),
        (Bound(Add(x, Mul(y, -1)), 0, 3),),
    ),
    "low <= k*e + k*f < high": ((9, 9), (Bound(Add(Mul(x, 2), Mul(y, 4)), 3, 12),), (Bound(Add(x, Mul(y, 2)), 2, 6),)),
    "e % k == 0": ((9,), (Bound(Mod(Add(x, Const(3)), 3), 0, 1),), (Bound(Mod(x, 3), 0, 1),)),
}


@pytest.mark.parametrize("name", GUARDS)
def test_guard(name):
    sizes, before, after = GUARDS[name]
    assert simplify_guard(before, sizes) == after


def test_range_of_an_empty_axis_is_that_of_size_one():
    assert ix.range_of(Add(x, y), (0, 4)) == (0, 3)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 3), (4, 1, 5)])
def test_delinearize_has_one_coordinate_an_axis(shape):
    assert [ix.evaluate(c, ()) for c in ix.delinearize(Const(0), shape)] == [0] * len(shape)
