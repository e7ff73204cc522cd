"""Run-time indices that are known after all: they become expressions, and only they."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import flatten
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, Input, Map, Opaque, operands_of
from jaxorch.ir.index import Dim, Lookup
from jaxorch.ir.view import evaluate_view, expressions
from jaxorch.options import Options
from jaxorch.passes.lookups import fold_lookups
from jaxorch.passes.tables import fit
from jaxorch.passes.virtualize import virtualize
from tests.codegen.drive import kernels_of, numpied, program

X = np.arange(42, dtype=np.float32).reshape(6, 7)
I = np.asarray([1, -2, 5, 9, 0, -9], np.int32)  # noqa: E741 - an index


def lookups(graph: Graph) -> set[Lookup]:
    """Every Lookup of the graph, once."""
    return {
        k
        for node in graph.nodes
        for view in operands_of(node)
        for piece in view.pieces
        for e in expressions(piece)
        for k in ix.lookups_in(e)
    }


def optimised(f, *arrays, x64=False):
    """The graph after all passes; what its kernels compute is what lax does."""
    made = program(f, *arrays, x64=x64)
    assert not any(isinstance(n, Opaque) for n in made.graph.nodes)
    for kernel in kernels_of(made.graph):
        for value, got in numpied(made.graph, kernel, made.inputs(kernel)).items():
            np.testing.assert_array_equal(got, made.values[value], strict=True)
    return made.graph


def negated(f):
    return lambda *args: -f(*args)


def window(x):
    starts = jnp.arange(4)
    return jax.vmap(lambda k: lax.dynamic_slice_in_dim(x, k, 3, 1))(starts)


KNOWN = {
    "diagonal": jnp.diagonal,
    "square diagonal": lambda x: jnp.diagonal(x[:, :6]),
    "diagonal above": lambda x: jnp.diagonal(x, 2),
    "diagonal below": lambda x: jnp.diagonal(x, -3),
    "diagonal of axes": lambda x: jnp.diagonal(x.reshape(2, 3, 7), 1, 0, 2),
    "every other row": lambda x: x[jnp.arange(3) * 2],
    "rows backwards": lambda x: x[5 - jnp.arange(6)],
    "negative rows": lambda x: x[-1 - jnp.arange(6)],
    "pairs": lambda x: x[jnp.arange(6), jnp.arange(6) + 1],
    "sliding windows": lambda x: x[:, jnp.arange(5)[:, None] + jnp.arange(3)],
    "vmapped windows": window,
    "constant start": lambda x: lax.dynamic_slice(x, (jnp.int32(1), jnp.int32(9)), (2, 3)),
    "constant negative start": lambda x: lax.dynamic_index_in_dim(x, jnp.int32(-2), 0, False),
    "repeated rows": lambda x: x[jnp.arange(12) // 2],
    "rows in turn": lambda x: jnp.take(x, lax.rem(jnp.arange(13), 6), axis=0),
    "take past the end": lambda x: jnp.take(x, jnp.arange(9), axis=0, mode="clip"),
    "take before the start": lambda x: jnp.take(x, jnp.arange(9) - 4, axis=0, mode="clip"),
    "filled past the end": lambda x: x.at[jnp.arange(9)].get(mode="fill", fill_value=5),
    "take_along_axis": lambda x: jnp.take_along_axis(x, lax.broadcasted_iota(jnp.int32, (6, 3), 1) * 2, 1),
    "nearest larger": lambda x: jax.image.resize(x, (12, 21), "nearest"),
    "nearest smaller": lambda x: jax.image.resize(x, (3, 5), "nearest"),
    "nearest odd": lambda x: jax.image.resize(x, (17, 9), "nearest"),
    "roll by a constant": lambda x: jnp.roll(x, jnp.int32(2), 1),
    "a known index of a known index": lambda x: x[jnp.arange(6)[5 - jnp.arange(6)]],
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_indices_leave_no_lookup(name):
    graph = optimised(negated(KNOWN[name]), X)
    assert not lookups(graph)
    computed = [n for n in graph.nodes if isinstance(n, Map)]
    assert [n.op for n in computed] == ["neg"]  # what computed the indices is gone


# (function, how many different Lookups it keeps)
UNKNOWN = {
    "rows": (lambda x, i: x[i], 1),
    "one of each row": (lambda x, i: x[jnp.arange(6), i], 1),
    "points": (lambda x, i: x[i, i[::-1]], 2),
    "the same index twice": (lambda x, i: x[i] + x[i], 1),
    "a position": (lambda x, i: lax.dynamic_index_in_dim(x, i[0], 0, False), 1),
    "two axes, one known": (lambda x, i: lax.dynamic_slice(x, (jnp.int32(2), i[1]), (3, 4)), 1),
    "a table that is no line": (lambda x, i: x[(jnp.arange(6) * jnp.arange(6)) % 6], 1),
    "a computed index": (lambda x, i: x[jnp.argmax(x, 1) % 6], 1),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_indices_keep_their_lookups(name):
    f, count = UNKNOWN[name]
    assert len(lookups(optimised(negated(f), X, I))) == count


def test_of_several_indices_the_known_ones_are_folded():
    (lookup,) = lookups(optimised(negated(lambda x, i: x[jnp.arange(6), i]), X, I))
    assert (lookup.low, lookup.high) == (0, X.shape[1] - 1)


def test_a_computed_index_is_looked_up_where_it_is_computed():
    """Its expression is not an index: the node stays, and the Lookup reads it."""
    graph = optimised(negated(lambda x, i: x[i * i % 6]), X, I)
    (lookup,) = lookups(graph)
    assert not isinstance(graph.nodes[lookup.value.node], Input)


def test_of_several_results_the_one_meant_is_looked_up():
    """Argsort's indices are the second result of a sort, whose first has the same type and shape."""
    made = program(lambda x, keys: -x[jnp.argsort(keys)], X, np.asarray([3, 0, 1, 1, 2, 0], np.int32))
    (lookup,) = lookups(made.graph)
    assert isinstance(made.graph.nodes[lookup.value.node], Opaque)
    assert lookup.value.output == 1


@pytest.mark.parametrize("dtype", [np.int8, np.uint8], ids=lambda d: d.__name__)
def test_indices_that_overflow_are_not_taken_for_lines(dtype):
    """40*i wraps after a few elements; what it means in its type is what counts."""
    x = np.arange(100, dtype=np.float32)
    f = lambda x: -x[jnp.arange(9, dtype=dtype) * np.asarray(40, dtype)]  # noqa: E731
    assert len(lookups(optimised(f, x))) == 1


@pytest.mark.parametrize(("n", "m"), [(10, 25), (6, 8), (7, 64), (64, 7), (3, 1)])
def test_resizing_takes_the_pixel_that_real_numbers_give(n, m):
    """Also where XLA, which divides by way of a reciprocal, falls just short of an integer, as from 10 to 25."""
    x = np.arange(n, dtype=np.int32)
    made = program(lambda x: -jax.image.resize(x, (m,), "nearest"), x)
    assert not lookups(made.graph)
    (view,) = operands_of(made.graph.nodes[-1])
    found = evaluate_view(view, made.values.__getitem__)
    np.testing.assert_array_equal(found, (2 * np.arange(m) + 1) * n // (2 * m))


def test_nothing_to_fold_is_the_graph_itself():
    plain = lambda x, i: -x.at[i].get(mode="clip", wrap_negative_indices=False)  # noqa: E731
    for f, args in ((lambda x: -x.T, (X,)), (plain, (X, I))):
        graph = virtualize(lift(flatten(jax.make_jaxpr(f)(*args))), Options())
        assert fold_lookups(graph, Options()) is graph


def test_folding_is_idempotent():
    graph = virtualize(
        lift(flatten(jax.make_jaxpr(lambda x: -jnp.take(x, jnp.arange(9) - 2, 0, mode="clip"))(X))), Options()
    )
    once = fold_lookups(graph, Options())
    assert not lookups(once)
    assert fold_lookups(once, Options()) is once


@settings(deadline=None, max_examples=30)
@given(
    st.integers(-3, 3),
    st.integers(-12, 12),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from(["clip", "fill", "wrap"]),
    st.sampled_from([np.int16, np.int32, np.int64]),
)
def test_lines_of_indices(a, b, c, count, mode, dtype):
    """(a*i + b)//c in any mode, inside the axis or not: what lax gives; no Lookup where nothing changes its sign."""

    def f(x):
        i = jnp.arange(count, dtype=dtype) * a + b
        return -jnp.take(x, i // c if c > 1 else i, axis=0, mode=mode)

    graph = optimised(f, X, x64=True)
    if (mode == "clip" and c == 1) or (mode != "wrap" and min(a, b) >= 0):
        assert not lookups(graph)


@settings(deadline=None, max_examples=100)
@given(st.integers(-20, 20), st.integers(-50, 50), st.integers(1, 12), st.integers(1, 40))
def test_fit_finds_lines(a, b, c, count):
    table = (a * np.arange(count) + b) // c
    expr = fit(table, 1)
    assert expr is not None
    np.testing.assert_array_equal(np.broadcast_to(ix.evaluate(expr, [None, np.arange(count)]), count), table)
    assert ix.dims_of(expr) <= {1}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12))
def test_what_fit_finds_is_the_table(values):
    expr = fit(np.asarray(values), 0)
    if expr is not None:
        at = ix.evaluate(expr, [np.arange(len(values))])
        np.testing.assert_array_equal(np.broadcast_to(at, len(values)), values)


def test_fit_refuses_what_is_no_line():
    assert fit(np.arange(6) ** 2, 0) is None
    assert fit(np.asarray([0, 1, 0]), 0) is None


def test_the_folded_view_is_simple():
    """A diagonal reads its operand at (i, i), with no clamp left."""
    graph = optimised(negated(jnp.diagonal), X)
    (view,) = operands_of(graph.nodes[-1])
    (piece,) = view.pieces
    assert (piece.guard, piece.index) == ((), (Dim(0), Dim(0)))
    np.testing.assert_array_equal(evaluate_view(view, lambda _: X), np.diagonal(X))
