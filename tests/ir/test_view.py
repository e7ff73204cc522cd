"""Views: composition by evaluation, its laws, and what simplification merges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.ir.index import Add, Bound, Const, Dim, FloorDiv, Mod, Mul, Segment, Select
from jaxorch.ir.view import (
    Piece,
    Value,
    View,
    compose,
    evaluate_view,
    identity,
    is_identity,
    is_reshape,
    simplify_view,
)
from tests.ir.build import counting

moderate = settings(max_examples=150, deadline=None)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
filled = st.lists(st.integers(1, 4), max_size=3).map(tuple)
i, j = Dim(0), Dim(1)
a, b = Value(0), Value(1)


@st.composite
def views(draw, sources, domain=None):
    """A view over a random domain whose pieces read `sources`, (value, shape) pairs that are not all empty."""
    domain = draw(shapes) if domain is None else domain
    readable = [s for s in sources if 0 not in s[1]] if 0 not in domain else list(sources)
    pieces = []
    for _ in range(draw(st.integers(1, 3))):
        value, shape = draw(st.sampled_from(readable))
        index = tuple(draw(inside(domain, max(n, 1))) for n in shape)
        guard = tuple(draw(bounds(domain)) for _ in range(draw(st.integers(0, 2)))) if domain else ()
        pieces.append(Piece(guard, value, index))
    pieces[-1] = Piece((), pieces[-1].value, pieces[-1].index)
    return View(domain, tuple(pieces))


@st.composite
def expressions(draw, domain):
    terms = [Const(draw(st.integers(-3, 8)))]
    for axis in range(len(domain)):
        term = Mul(Dim(axis), draw(st.sampled_from([-1, 0, 1, 1, 2, 3])))
        terms.append(FloorDiv(term, draw(st.integers(1, 3))) if draw(st.booleans()) else term)
    total = terms[0]
    for term in terms[1:]:
        total = Add(total, term)
    return total


def inside(domain, size):
    return expressions(domain).map(lambda e: Mod(e, size))


@st.composite
def bounds(draw, domain):
    low = draw(st.integers(-2, 6))
    return Bound(draw(expressions(domain)), low, low + draw(st.integers(0, 6)))


@st.composite
def tables(draw, shapes_):
    return {
        Value(k): counting(shape, start=1000 * k)
        for k, shape in enumerate(draw(st.lists(shapes_, min_size=1, max_size=3)))
    }


def sources_of(table):
    return [(v, x.shape) for v, x in table.items()]


@moderate
@given(st.data())
def test_simplify_view_preserves_every_point(data):
    table = data.draw(tables(filled))
    view = data.draw(views(sources_of(table)))
    simple = simplify_view(view)
    np.testing.assert_array_equal(
        evaluate_view(simple, table.__getitem__), evaluate_view(view, table.__getitem__), strict=True
    )
    assert simplify_view(simple) == simple
    assert len(simple.pieces) <= len(view.pieces)


@moderate
@given(st.data())
def test_composition_reads_through(data):
    table = data.draw(tables(filled))
    inner = {Value(10 + k): data.draw(views(sources_of(table))) for k in range(2)}
    kept = Value(20)
    middle = {v: evaluate_view(w, table.__getitem__) for v, w in inner.items()} | {kept: counting((3, 2), start=9000)}
    outer = data.draw(views(sources_of(middle)))
    composed = compose(outer, inner.get)
    assert not set(composed.values) & set(inner)
    got = evaluate_view(composed, lambda v: table[v] if v in table else middle[v])
    np.testing.assert_array_equal(got, evaluate_view(outer, middle.__getitem__), strict=True)


@moderate
@given(st.data())
def test_composition_is_associative(data):
    table = data.draw(tables(filled))
    first = data.draw(views(sources_of(table), data.draw(filled)))
    second = data.draw(views([(Value(10), first.domain)], data.draw(filled)))
    third = data.draw(views([(Value(20), second.domain)]))
    inner = {Value(10): first}.get
    middle = {Value(20): second}.get
    left = compose(compose(third, middle), inner)
    right = compose(third, {Value(20): compose(second, inner)}.get)
    np.testing.assert_array_equal(
        evaluate_view(left, table.__getitem__), evaluate_view(right, table.__getitem__), strict=True
    )


def test_neighbouring_pieces_of_one_place_are_one():
    def parts(*bounds):
        pieces = (Piece((Bound(Dim(0), low, high),), v, (Dim(0),)) for low, high, v in bounds)
        return View((9,), tuple(pieces))

    joined = simplify_view(parts((0, 3, a), (3, 6, a), (6, 9, b)))
    assert joined == simplify_view(parts((0, 6, a), (6, 9, b)))
    assert len(joined.pieces) == 2
    assert simplify_view(parts((0, 3, a), (3, 9, a), (5, 9, b))) == simplify_view(identity(a, (9,)))
    apart = simplify_view(parts((0, 3, a), (6, 9, a), (0, 9, b)))
    assert len(apart.pieces) == 3


@moderate
@given(st.data())
def test_identity_is_neutral(data):
    table = data.draw(tables(filled))
    view = simplify_view(data.draw(views(sources_of(table))))
    through = {v: identity(v, x.shape) for v, x in table.items()}
    assert compose(view, through.get) == view
    whole = identity(Value(9), view.domain)
    assert compose(whole, {Value(9): view}.get) == view


@given(shapes)
def test_identity(shape):
    view = identity(a, shape)
    x = counting(shape)
    np.testing.assert_array_equal(evaluate_view(view, lambda _: x), x, strict=True)
    assert is_identity(view, shape)
    assert is_identity(simplify_view(view), shape)
    assert is_reshape(view, shape)


def test_is_identity_refuses():
    assert not is_identity(View((2, 3), (Piece((), a, (j, i)),)), (2, 3))
    assert not is_identity(identity(a, (2, 3)), (3, 2))
    assert not is_identity(View((4,), (Piece((), a, (i,)),)), (8,))
    assert not is_identity(View((4,), (Piece((Bound(i, 0, 2),), a, (i,)), Piece((), b, (i,)))), (4,))


def test_is_reshape():
    flat = View((12,), (Piece((), a, (FloorDiv(i, 4), Mod(i, 4))),))
    assert is_reshape(flat, (3, 4))
    assert not is_reshape(View((4, 3), (Piece((), a, (j, i)),)), (3, 4))
    assert not is_reshape(View((4,), (Piece((), a, (i,)),)), (8,))


MERGES = {
    "what always holds hides the rest": (
        (4,),
        [Piece((Bound(i, 0, 4),), a, (i,)), Piece((), b, (i,))],
        [Piece((), a, (i,))],
    ),
    "what never holds is dropped": (
        (4,),
        [Piece((Bound(i, 4, 8),), a, (i,)), Piece((), b, (i,))],
        [Piece((), b, (i,))],
    ),
    "one value at one index": (
        (4,),
        [Piece((Bound(i, 0, 2),), a, (i,)), Piece((Bound(i, 2, 4),), a, (i,))],
        [Piece((), a, (i,))],
    ),
    "one value at two indices": (
        (4,),
        [Piece((Bound(i, 0, 2),), a, (Add(i, Const(2)),)), Piece((), a, (Add(i, Const(-2)),))],
        [Piece((), a, (Add(Add(i, Select((Bound(i, 0, 2),), Const(4), Const(0))), Const(-2)),))],
    ),
    "one value beside another": (
        (6,),
        [Piece((Bound(i, 0, 2),), b, (i,)), Piece((Bound(i, 2, 4),), a, (i,)), Piece((), a, (i,))],
        [Piece((Bound(i, 0, 2),), b, (i,)), Piece((), a, (i,))],
    ),
}


@pytest.mark.parametrize("name", MERGES)
def test_merging(name):
    domain, before, after = MERGES[name]
    view = View(domain, tuple(before))
    assert simplify_view(view) == View(domain, tuple(after))
    table = {a: counting((8,)), b: counting((8,), start=100)}
    np.testing.assert_array_equal(
        evaluate_view(simplify_view(view), table.__getitem__), evaluate_view(view, table.__getitem__)
    )


def test_values_are_in_order_without_repeats():
    view = View((4,), (Piece((Bound(i, 0, 1),), b, (i,)), Piece((Bound(i, 1, 2),), a, (i,)), Piece((), b, (i,))))
    assert view.values == (b, a)


def test_evaluation_refuses_to_read_outside():
    view = View((4,), (Piece((Bound(i, 0, 3),), a, (Add(i, Const(1)),)), Piece((), b, ())))
    with pytest.raises(IndexError, match=r"piece 0 .* outside a value of shape \(3,\)"):
        evaluate_view(view, {a: counting((3,)), b: counting(())}.__getitem__)


def test_evaluation_of_scalars_and_empty_domains():
    scalar = View((), (Piece((), a, (Const(2),)),))
    assert evaluate_view(scalar, lambda _: counting((4,))) == 2
    assert evaluate_view(scalar, lambda _: counting((4,))).shape == ()
    empty = View((0, 3), (Piece((), a, (i,)),))
    assert evaluate_view(empty, lambda _: counting((0,))).shape == (0, 3)
    assert math.prod(evaluate_view(empty, lambda _: counting((0,))).shape) == 0


def test_a_segment_is_where_a_place_lies_among_lengths():
    lengths, x = np.int32([2, 0, -4, 3]), np.arange(5.0)
    view = View((7,), (Piece((), b, (Segment(a, (i,), 0, 4),)),))
    read = {a: lengths, b: x}.__getitem__
    assert evaluate_view(view, read).tolist() == [0, 0, 3, 3, 3, 4, 4]
    shifted = View((7,), (Piece((), b, (Segment(a, (Add(i, Const(-3)),), 1, 3),)),))
    assert evaluate_view(shifted, read).tolist() == [1, 1, 1, 1, 1, 3, 3]


def test_a_segment_is_not_read_through_a_view():
    """It needs all lengths, of which a view says where one is."""
    view = View((7,), (Piece((), b, (Segment(a, (i,), 0, 3),)),))
    backwards = View((4,), (Piece((), Value(2), (Add(Mul(i, -1), Const(3)),)),))
    assert compose(view, lambda v: backwards if v == a else None) == view
