"""Boxes of views, and partitions of arrays by writes, against counting."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxorch.ir.index import Add, Bound, Const, Dim, Lookup, Mod, Mul
from jaxorch.ir.region import boxes, partitioned, written
from jaxorch.ir.view import Piece, Value, View, evaluate_view

i, j = Dim(0), Dim(1)
X = Value(0)


def ranges(size):
    """Non-empty ranges of an axis."""
    three = st.tuples(st.integers(0, size - 1), st.integers(1, size), st.integers(1, 3))
    return three.map(lambda r: range(r[0], max(r[0] + 1, r[1]), r[2])).map(
        lambda r: range(r.start, r[-1] + 1, r.step if len(r) > 1 else 1)
    )


@st.composite
def regions(draw):
    shape = tuple(draw(st.integers(1, 4)) for _ in range(draw(st.integers(1, 2))))
    return shape, draw(st.lists(st.tuples(*map(ranges, shape)), min_size=1, max_size=4))


@given(regions())
def test_partitions(case):
    shape, found = case
    count = np.zeros(shape, int)
    for region in found:
        count[np.ix_(*region)] += 1
    assert partitioned(shape, found) == bool((count == 1).all())


def test_a_region_outside_is_no_partition():
    assert partitioned((4,), [(range(2),), (range(2, 4),)])
    assert not partitioned((4,), [(range(2),), (range(3, 5),)])
    assert not partitioned((4,), [(range(-2, 0),), (range(2),)])


bounds = st.builds(
    lambda axis, shift, step, low, length: Bound(
        Mod(Add(Dim(axis), Const(shift)), step) if step > 1 else Dim(axis), low, low + length
    ),
    st.integers(0, 1),
    st.integers(0, 2),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 4),
)


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.lists(st.lists(bounds, max_size=2).map(tuple), max_size=3))
def test_boxes_are_where_their_pieces_are_selected(shape, guards):
    view = View(shape, (*(Piece(g, Value(k), ()) for k, g in enumerate(guards)), Piece((), Value(len(guards)), ())))
    selected = evaluate_view(view, lambda value: np.asarray(value.node))
    found = boxes(view)
    assert found is not None
    assert partitioned(shape, [region for _, region in found])
    for piece, region in found:
        assert (selected[np.ix_(*region)] == piece).all()


def test_the_rim_of_a_padded_array_is_four_boxes():
    inside = Piece((Bound(i, 1, 4), Bound(j, 1, 6)), X, (i, j))
    found = boxes(View((6, 8), (inside, Piece((), Value(1), ()))))
    assert found is not None
    assert [piece for piece, _ in found] == [0, 1, 1, 1, 1]
    assert found[0][1] == (range(1, 4), range(1, 6))


def test_first_and_last_are_one_box_with_a_stride():
    found = boxes(View((5,), (Piece((Bound(i, 1, 4),), X, (i,)), Piece((), Value(1), ()))))
    assert found == [(0, (range(1, 4),)), (1, (range(0, 5, 4),))]


@pytest.mark.parametrize(
    "guard",
    [
        (Bound(Add(i, j), 0, 3),),
        (Bound(Lookup(Value(1), (), 0, 3), 0, 2),),
        (Bound(Add(i, Lookup(Value(1), (), 0, 3)), 0, 2),),
    ],
    ids=["two axes", "run time", "run time and an axis"],
)
def test_no_boxes(guard):
    assert boxes(View((5, 8), (Piece(guard, X, ()), Piece((), Value(1), ())))) is None


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_written(rows, columns, step, start, turned):
    index = (j, Add(Mul(i, step), Const(start))) if turned else (Add(Mul(i, step), Const(start)), j)
    region = written(Piece((), X, index), (rows, columns))
    assert region is not None
    assert math.prod(map(len, region)) == rows * columns
    at = range(start, start + step * (rows - 1) + 1, step)
    assert region == ((range(columns), at) if turned else (at, range(columns)))


@pytest.mark.parametrize(
    "place",
    [
        Piece((), X, (i,)),
        Piece((), X, (i, i)),
        Piece((), X, (Add(i, j), Const(0))),
        Piece((), X, (Mul(i, -1), j)),
        Piece((Bound(i, 0, 2),), X, (i, j)),
        Piece((), X, (i, Mod(j, 2))),
    ],
)
def test_what_is_written_is_no_box(place):
    assert written(place, (3, 4)) is None
