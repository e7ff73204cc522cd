"""Copies leave the nodes: readers see through them, and stay what they were in value."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Map, Opaque
from jaxorch.ir.index import Add, Bound, Const, Dim
from jaxorch.ir.view import Piece, Value, View, is_identity
from jaxorch.passes.virtualize import MAX_PIECES, virtualize
from tests.ir.build import Builder, array, counting, evaluate, passed

i, j = Dim(0), Dim(1)


def turned(value):
    return View((6, 4), (Piece((), value, (j, i)),))


def test_a_copy_between_is_read_through():
    build = Builder()
    x = build.input((4, 6))
    copy = build.map("copy", turned(x), shape=(6, 4))
    before = build.graph(build.map("neg", copy, shape=(6, 4)))

    build = Builder()
    x = build.input((4, 6))
    expected = build.graph(build.map("neg", turned(x), shape=(6, 4)))
    assert passed(virtualize, before) == expected


def test_chains_of_copies_are_composed():
    build = Builder()
    x = build.input((4, 6))
    there = build.map("copy", turned(x), shape=(6, 4))
    back = build.map("copy", View((4, 6), (Piece((), there, (j, i)),)), shape=(4, 6))
    graph = passed(virtualize, build.graph(build.map("neg", back, shape=(4, 6))))
    (node,) = graph.nodes[1:]
    assert is_identity(node.operands[0], (4, 6))
    assert node.operands[0].values == (x,)


def test_a_copy_that_is_returned_stays():
    build = Builder()
    x = build.input((4, 6))
    before = build.graph(build.map("copy", turned(x), shape=(6, 4)))
    assert passed(virtualize, before) is before


def test_a_returned_copy_is_read_through_by_others():
    build = Builder()
    x = build.input((4, 6))
    copy = build.map("copy", turned(x), shape=(6, 4))
    after = passed(virtualize, build.graph(copy, build.map("neg", copy, shape=(6, 4))))
    assert [type(n).__name__ for n in after.nodes] == ["Input", "Map", "Map"]
    assert after.nodes[2].operands[0] == turned(x)


def test_an_opaque_reader_keeps_the_copy():
    build = Builder()
    x = build.input((4, 6))
    copy = build.map("copy", turned(x), shape=(6, 4))
    before = build.graph(build.opaque("sort", copy, arrays=[array((6, 4))]))
    assert passed(virtualize, before) is before


def test_what_an_opaque_makes_is_read_through_a_copy():
    build = Builder()
    x = build.input((4, 6))
    ordered = build.opaque("sort", x, arrays=[array((4, 6))])
    copy = build.map("copy", turned(ordered), shape=(6, 4))
    after = passed(virtualize, build.graph(build.map("neg", copy, shape=(6, 4))))
    assert after.nodes[2].operands == (turned(ordered),)
    assert isinstance(after.nodes[1], Opaque)


def test_reductions_read_through_copies():
    build = Builder()
    x = build.input((4, 6))
    copy = build.map("copy", turned(x), shape=(6, 4))
    after = passed(virtualize, build.graph(build.reduce("sum", copy, [0])))
    assert after.nodes[1].operands == (turned(x),)


def test_unused_nodes_go_and_inputs_stay():
    build = Builder()
    build.input((4,))
    x = build.input((4,))
    build.map("exp", x, shape=(4,))
    build.const(3.0)
    after = passed(virtualize, build.graph(build.map("neg", x, shape=(4,))))
    assert [getattr(n, "op", "input") for n in after.nodes] == ["input", "input", "neg"]
    assert after.outputs == (Value(2),)


def test_a_graph_without_copies_is_returned_itself():
    build = Builder()
    x = build.input((4,))
    graph = build.graph(build.map("neg", x, shape=(4,)))
    assert passed(virtualize, graph) is graph


def test_a_copy_of_too_many_pieces_stays():
    build = Builder()
    values = [build.input((4,)) for _ in range(MAX_PIECES + 1)]
    pieces = tuple(Piece((Bound(i, 4 * k, 4 * k + 4),), v, (Add(i, Const(-4 * k)),)) for k, v in enumerate(values))
    shape = (4 * len(values),)
    copy = build.map("copy", View(shape, pieces), shape=shape)
    before = build.graph(build.map("neg", copy, shape=shape))
    assert passed(virtualize, before) is before


def test_composition_that_grows_too_far_is_left():
    build = Builder()
    a = [build.input((2,)) for _ in range(8)]

    def joined(values, size):
        pieces = tuple(
            Piece((Bound(i, size * k, size * (k + 1)),), v, (Add(i, Const(-size * k)),)) for k, v in enumerate(values)
        )
        return View((size * len(values),), pieces)

    first = [build.map("copy", joined(a, 2), shape=(16,)) for _ in range(4)]
    last = build.map("copy", joined(first, 16), shape=(64,))
    graph = passed(virtualize, build.graph(build.map("neg", last, shape=(64,))))
    assert all(len(v.pieces) <= 2 * MAX_PIECES for n in graph.nodes if isinstance(n, Map) for v in n.operands)
    inputs = [counting((2,), np.float32, 10 * k) for k in range(8)]
    np.testing.assert_array_equal(evaluate(graph, *inputs)[0], -np.tile(np.concatenate(inputs), 4))


STEPS = st.sampled_from(
    [
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: x.reshape(x.shape[1], x.shape[0]),
        lambda x: jnp.roll(x, 1, 0),
        lambda x: jnp.concatenate([x[1:], x[:1]], 0),
        lambda x: -x,
        lambda x: x + x[::-1],
        lambda x: jnp.pad(x, ((1, 0), (0, 1)))[1:, :-1],
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, max_size=6), st.integers(0, 6))
def test_values_do_not_change(steps, kept):
    def f(x):
        results = [x]
        for step in steps:
            results.append(step(results[-1]))
        return results[-1], results[min(kept, len(steps))]

    x = counting((3, 4), np.float32)
    before = lift(flatten(jax.make_jaxpr(f)(x)))
    after = passed(virtualize, before)
    for got, want in zip(evaluate(after, x), jax.tree.leaves(f(jnp.asarray(x))), strict=True):
        np.testing.assert_array_equal(got, np.asarray(want), strict=True)
    for k, node in enumerate(after.nodes):
        if isinstance(node, Map) and node.op == "copy" and Value(k) not in after.outputs:
            assert len(node.operands[0].pieces) > 1
