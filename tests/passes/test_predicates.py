"""Selections by position become pieces, and mean what they meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Map
from jaxorch.ir.index import Add, Bound, Const, Dim, FloorDiv, Mod, Mul
from jaxorch.ir.verify import verify
from jaxorch.ir.view import Piece, View, compose
from jaxorch.options import Options
from jaxorch.passes.predicates import LIMIT, fold_index_predicates
from tests.ir.build import Builder, counting, evaluate

OPTIONS = Options()
i, j = Dim(0), Dim(1)


def fold(graph):
    """The pass, with what every pass promises: a valid graph, and the argument itself where there is nothing to do."""
    verify(graph)
    folded = fold_index_predicates(graph, OPTIONS)
    verify(folded)
    assert fold_index_predicates(folded, OPTIONS) is folded
    return folded


def selection(build, shape, predicate):
    """where(predicate, x, y) of two inputs, and its graph."""
    x, y = build.input(shape), build.input(shape)
    chosen = build.map("select_n", predicate, y, x, shape=shape)
    return x, y, build.graph(chosen)


def comparing(shape, op, make):
    build = Builder()
    left, right = make(build)
    predicate = build.map(op, left, right, shape=shape, dtype="bool")
    x, y, graph = selection(build, shape, predicate)
    return x, y, graph


def guards(graph):
    """The guards of the last node's single operand, which is a copy."""
    node = graph.nodes[-1]
    assert isinstance(node, Map)
    assert node.op == "copy"
    return [p.guard for p in node.operands[0].pieces]


def agree(before, after, shape):
    x, y = counting(shape, np.float32), counting(shape, np.float32, 1000)
    np.testing.assert_array_equal(evaluate(after, x, y)[0], evaluate(before, x, y)[0], strict=True)


def rows_and_columns(shape):
    return lambda build: (build.iota(shape, 0), build.iota(shape, 1))


COMPARED = {
    "lt": Bound(Add(i, Mul(j, -1)), -5, 0),
    "le": Bound(Add(i, Mul(j, -1)), -5, 1),
    "gt": Bound(Add(i, Mul(j, -1)), 1, 4),
    "ge": Bound(Add(i, Mul(j, -1)), 0, 4),
    "eq": Bound(Add(i, Mul(j, -1)), 0, 1),
}


@pytest.mark.parametrize("op", COMPARED)
def test_a_comparison_becomes_one_bound(op):
    x, y, before = comparing((4, 6), op, rows_and_columns((4, 6)))
    after = fold(before)
    assert guards(after) == [(COMPARED[op],), ()]
    assert [p.value for p in after.nodes[-1].operands[0].pieces] == [x, y]
    agree(before, after, (4, 6))


def test_ne_swaps_the_cases():
    x, y, before = comparing((4, 6), "ne", rows_and_columns((4, 6)))
    after = fold(before)
    assert guards(after) == [(COMPARED["eq"],), ()]
    assert [p.value for p in after.nodes[-1].operands[0].pieces] == [y, x]
    agree(before, after, (4, 6))


def test_only_the_selection_changes():
    *_, before = comparing((4, 6), "ge", rows_and_columns((4, 6)))
    after = fold(before)
    assert after.nodes[:-1] == before.nodes[:-1]
    assert after.outputs == before.outputs
    assert (after.nodes[-1].array, after.nodes[-1].params) == (before.nodes[-1].array, ())


def mask(f, shape):
    """where(f(rows, columns), x, y), traced."""

    def whole(x, y):
        rows, columns = (lax.broadcasted_iota(np.int32, shape, d) for d in (0, 1))
        return jnp.where(f(rows, columns), x, y)

    x, y = counting(shape, np.float32), counting(shape, np.float32, 1000)
    before = lift(flatten(jax.make_jaxpr(whole)(x, y)))
    after = fold(before)
    np.testing.assert_array_equal(evaluate(after, x, y)[0], np.asarray(whole(x, y)), strict=True)
    return before, after


FOLDED = {
    "window": (lambda r, c: (c <= r) & (c > r - 3), [(Bound(Add(i, Mul(j, -1)), 0, 3),), ()]),
    "corner": (lambda r, c: (r >= 2) & (c < 3), [(Bound(i, 2, 5), Bound(j, 0, 3)), ()]),
    "not": (lambda r, c: ~((r >= 2) & (c < 3)), [(Bound(i, 2, 5), Bound(j, 0, 3)), ()]),
    "either": (lambda r, c: (r >= 2) | (c < 3), [(Bound(i, 2, 5),), (Bound(j, 0, 3),), ()]),
    "scaled": (lambda r, c: 2 * r + 1 < 7 - 2 * c, [(Bound(Add(i, j), 0, 3),), ()]),
    "divided": (lambda r, c: lax.div(r, 2) == c, [(Bound(Add(j, Mul(FloorDiv(i, 2), -1)), 0, 1),), ()]),
    "remainder": (lambda r, c: lax.rem(c, 2) == 1, [(Bound(Mod(j, 2), 1, 2),), ()]),
    "converted": (lambda r, c: r.astype(np.int8) == c.astype(np.int8), [(Bound(Add(i, Mul(j, -1)), 0, 1),), ()]),
    "always": (lambda r, c: r >= 0, [()]),
    "never": (lambda r, c: -r > c, [()]),
    "implied": (lambda r, c: (r < 2) | (r < 4), [(Bound(i, 0, 4),), ()]),
    "one row": (lambda r, c: r == 2, [(Bound(i, 2, 3),), ()]),
    "exclusive": (
        lambda r, c: (r < 2) ^ (c < 3),
        [(Bound(i, 0, 2), Bound(j, 0, 3)), (Bound(i, 0, 2),), (Bound(j, 0, 3),), ()],
    ),
    "chosen": (
        lambda r, c: jnp.where(r < 2, c < 3, c > 4),
        [(Bound(i, 0, 2), Bound(j, 0, 3)), (Bound(i, 0, 2),), (Bound(j, 5, 6),), ()],
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_masks_fold(name):
    f, expected = FOLDED[name]
    _, after = mask(f, (5, 6))
    assert guards(after) == expected


KEPT = {
    "floating": lambda r, c: r.astype(np.float32) < c.astype(np.float32),
    "product of axes": lambda r, c: r * c < 7,
    "square": lambda r, c: r * r < 7,
    "overflow": lambda r, c: r.astype(np.int8) * np.int8(100) > c.astype(np.int8),
    "wrapped": lambda r, c: r.astype(np.uint8) - np.uint8(3) < c.astype(np.uint8),
    "rounds towards zero": lambda r, c: lax.div(r - 3, 2) == c,
    "too many pieces": lambda r, c: (r == 0) | (r == 2) | (c == 1) | (c == 3),
}


@pytest.mark.parametrize("name", KEPT)
def test_masks_stay(name):
    before, after = mask(KEPT[name], (5, 6))
    assert after is before


def test_a_predicate_on_data_stays():
    build = Builder()
    x = build.input((4,), "int32")
    predicate = build.map("lt", x, build.iota((4,), 0), shape=(4,), dtype="bool")
    graph = build.graph(build.map("select_n", predicate, x, x, shape=(4,), dtype="int32"))
    assert fold(graph) is graph


def test_an_integer_selector_stays():
    build = Builder()
    x = build.input((4,))
    graph = build.graph(build.map("select_n", build.iota((4,), 0), x, x, x, x, shape=(4,)))
    assert fold(graph) is graph


def test_iota_that_wraps_stays():
    build = Builder()
    predicate = build.map("lt", build.iota((300,), 0, "uint8"), build.const(7, "uint8"), shape=(300,), dtype="bool")
    *_, graph = selection(build, (300,), predicate)
    assert fold(graph) is graph


def test_predicates_are_read_through_views():
    build = Builder()
    line = build.map("lt", build.iota((6,), 0), build.const(2, "int32"), shape=(6,), dtype="bool")
    down = View((4, 6), (Piece((), line, (Add(Mul(j, -1), Const(5)),)),))
    *_, before = selection(build, (4, 6), down)
    after = fold(before)
    assert guards(after) == [(Bound(j, 4, 6),), ()]
    agree(before, after, (4, 6))


def test_a_predicate_in_pieces():
    build = Builder()
    rows = build.map("lt", build.iota((4, 6), 0), build.const(2, "int32"), shape=(4, 6), dtype="bool")
    never = build.const(False, "bool")
    halves = View((4, 6), (Piece((Bound(j, 0, 3),), rows, (i, j)), Piece((Bound(j, 3, 6),), never, ())))
    *_, before = selection(build, (4, 6), halves)
    after = fold(before)
    assert guards(after) == [(Bound(i, 0, 2), Bound(j, 0, 3)), ()]
    agree(before, after, (4, 6))


def joined(build, shape, parts):
    """A view of `parts` inputs side by side along the last axis, which they split evenly."""
    width = shape[1] // parts
    values = [build.input((shape[0], width)) for _ in range(parts)]
    pieces = (
        Piece((Bound(j, k * width, (k + 1) * width),), v, (i, Add(j, Const(-k * width)))) for k, v in enumerate(values)
    )
    return View(shape, tuple(pieces))


@pytest.mark.parametrize(("parts", "folds"), [(2, True), (3, True), (6, False)])
def test_cases_keep_their_own_views(parts, folds):
    shape = (4, 6)
    build = Builder()
    predicate = build.map("ge", build.iota(shape, 0), build.iota(shape, 1), shape=shape, dtype="bool")
    chosen = build.map("select_n", predicate, build.const(-1.0), joined(build, shape, parts), shape=shape)
    before = build.graph(chosen)
    after = fold(before)
    assert (after is not before) == folds
    inputs = [counting((4, 6 // parts), np.float32, 100 * k) for k in range(parts)]
    np.testing.assert_array_equal(evaluate(after, *inputs)[0], evaluate(before, *inputs)[0], strict=True)


def test_a_decided_selection_folds_however_many_pieces_it_has():
    shape = (4, 6)
    build = Builder()
    view = joined(build, shape, 6)
    chosen = build.map("select_n", build.const(True, "bool"), build.const(-1.0), view, shape=shape)
    after = fold(build.graph(chosen))
    assert after.nodes[-1].operands == (view,) or len(after.nodes[-1].operands[0].pieces) == 6 > LIMIT


def test_scalars_and_empty_arrays():
    for shape in [(), (0, 3)]:
        build = Builder()
        predicate = build.map("lt", build.const(1, "int32"), build.const(2, "int32"), shape=(), dtype="bool")
        *_, before = selection(build, shape, predicate)
        after = fold(before)
        assert guards(after) == [()]
        agree(before, after, shape)


def test_folding_commutes_with_composition():
    """A folded copy can be read through: the mask reaches its reader's view."""
    *_, before = comparing((4, 6), "ge", rows_and_columns((4, 6)))
    node = fold(before).nodes[-1]
    turned = View((6, 4), (Piece((), before.outputs[0], (j, i)),))
    composed = compose(turned, lambda _: node.operands[0])
    assert [p.guard for p in composed.pieces] == [(Bound(Add(i, Mul(j, -1)), -3, 1),), ()]


# Random predicates against NumPy

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5))
DTYPES = ["int8", "int32", "uint8", "uint32"]


@st.composite
def integer(draw, build, shape, dtype, depth):
    kind = draw(
        st.sampled_from(
            ["iota", "const"] if depth == 0 else ["iota", "const", "add", "sub", "mul", "neg", "div", "rem"]
        )
    )
    if kind == "iota":
        return build.iota(shape, draw(st.integers(0, 1)), dtype)
    if kind == "const":
        return build.const(draw(st.integers(0, 90)), dtype)
    count = 1 if kind == "neg" else 2
    operands = [draw(integer(build, shape, dtype, depth - 1)) for _ in range(count)]
    if kind in ("div", "rem"):
        operands[1] = build.const(draw(st.integers(1, 4)), dtype)
    return build.map(kind, *operands, shape=shape, dtype=dtype)


@st.composite
def predicate(draw, build, shape, depth):
    kind = draw(st.sampled_from(["compare"] if depth == 0 else ["compare", "and", "or", "xor", "not"]))
    if kind == "compare":
        dtype = draw(st.sampled_from(DTYPES))
        operands = [draw(integer(build, shape, dtype, draw(st.integers(0, 2)))) for _ in range(2)]
        kind = draw(st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge"]))
    else:
        operands = [draw(predicate(build, shape, depth - 1)) for _ in range(1 if kind == "not" else 2)]
    return build.map(kind, *operands, shape=shape, dtype="bool")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_predicates(data):
    shape = data.draw(SHAPES)
    build = Builder()
    *_, before = selection(build, shape, data.draw(predicate(build, shape, 2)))
    after = fold(before)
    assert len(after.nodes[-1].operands[0].pieces) <= LIMIT
    agree(before, after, shape)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
@pytest.mark.parametrize("op", ["eq", "ne", "lt", "le", "gt", "ge"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_length_known_at_run_time(op, dtype, turned):
    # one length a row, compared with the column; far out of range it means what it meant
    shape = (4, 6)
    build = Builder()
    lengths = build.input((4,), dtype)
    spread, column = View(shape, (Piece((), lengths, (i,)),)), build.iota(shape, 1, dtype)
    sides = (spread, column) if turned else (column, spread)
    x, y = build.input(shape), build.input(shape)
    chosen = build.map("select_n", build.map(op, *sides, shape=shape, dtype="bool"), y, x, shape=shape)
    before = build.graph(chosen)
    after = fold(before)
    assert after.nodes[-1].op == "copy"
    limits = np.iinfo(dtype)
    for values in ((0, 3, 5, 6), (limits.min, limits.max, 1, 7)):
        arrays = [np.asarray(values, dtype), counting(shape, np.float32), counting(shape, np.float32, 1000)]
        np.testing.assert_array_equal(evaluate(after, *arrays)[0], evaluate(before, *arrays)[0], strict=True)


def test_integers_compared_element_by_element_stay():
    shape = (4, 6)
    build = Builder()
    labels, column = build.input(shape, "int32"), build.iota(shape, 1)
    _, _, graph = selection(build, shape, build.map("eq", labels, column, shape=shape, dtype="bool"))
    assert fold(graph) is graph
