"""What computing a value reads: loads and reductions, each once, in order, with the guards that protect them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract
from jaxorch.ir.index import Add, Bound, Const, Dim
from jaxorch.ir.view import Piece, Value, View
from jaxorch.kernels.access import Accesses, Reduction, collect, operand_coords, pieces_at
from tests.codegen.drive import program
from tests.ir.build import Builder

i, j, k = Dim(0), Dim(1), Dim(2)


def collected(graph, members, value, coords, sizes) -> Accesses:
    found = Accesses()
    collect(graph, members, value, coords, sizes, found)
    return found


def loads(accesses):
    return [(load.value, load.index, load.guard) for load in accesses.loads]


def test_an_input_is_loaded_where_it_is_wanted():
    build = Builder()
    x = build.input((4, 6))
    y = build.map("exp", x, shape=(4, 6))
    found = collected(build.graph(y), {y.node}, y, (j, i), (6, 4))
    assert loads(found) == [(x, (j, i), ())]
    assert not found.reductions


def test_values_made_outside_are_loaded_and_inside_are_not():
    build = Builder()
    x = build.input((4,))
    y = build.map("exp", x, shape=(4,))
    z = build.map("neg", y, shape=(4,))
    graph = build.graph(z)
    assert loads(collected(graph, {z.node}, z, (i,), (4,))) == [(y, (i,), ())]
    assert loads(collected(graph, {y.node, z.node}, z, (i,), (4,))) == [(x, (i,), ())]


def test_constants_and_iota_are_not_loaded():
    build = Builder()
    y = build.map("add", build.const(1, "int32"), build.iota((4,), 0), shape=(4,), dtype="int32")
    assert not collected(build.graph(y), {1, y.node}, y, (i,), (4,)).loads


def test_the_same_read_is_one_load():
    build = Builder()
    x = build.input((4,))
    y = build.map("mul", x, x, shape=(4,))
    assert len(collected(build.graph(y), {y.node}, y, (i,), (4,)).loads) == 1


def test_guards_protect_loads_and_are_noted():
    build = Builder()
    x, fill = build.input((4,)), build.const(0.0)
    inside = (Bound(i, 2, 6),)
    padded = View((8,), (Piece(inside, x, (Add(i, Const(-2)),)), Piece((), fill, ())))
    y = build.map("neg", padded, shape=(8,))
    found = collected(build.graph(y), {y.node}, y, (i,), (8,))
    assert loads(found) == [(x, (Add(i, Const(-2)),), inside)]
    assert list(found.guards) == [(inside, (8,))]


def test_guards_gather_on_the_way():
    build = Builder()
    x, fill = build.input((4,)), build.const(0.0)
    first = View((8,), (Piece((Bound(i, 0, 4),), x, (i,)), Piece((), fill, ())))
    y = build.map("neg", first, shape=(8,))
    second = View((16,), (Piece((Bound(i, 8, 16),), y, (Add(i, Const(-8)),)), Piece((), fill, ())))
    z = build.map("exp", second, shape=(16,))
    ((value, index, guard),) = loads(collected(build.graph(z), {y.node, z.node}, z, (i,), (16,)))
    assert (value, index) == (x, (Add(i, Const(-8)),))
    points = np.arange(16)
    np.testing.assert_array_equal(ix.holds(guard, (points,)), (points >= 8) & (points < 12))


def test_a_piece_that_is_never_selected_is_not_read():
    build = Builder()
    x, y = build.input((4,)), build.input((4,))
    view = View((8,), (Piece((Bound(i, 0, 4),), x, (i,)), Piece((), y, (Add(i, Const(-4)),))))
    z = build.map("neg", view, shape=(8,))
    graph = build.graph(z)
    assert loads(collected(graph, {z.node}, z, (Add(i, Const(4)),), (4,))) == [(y, (i,), ())]
    assert pieces_at(view, (i,), (4,)) == [((), x, (i,))]


def test_reductions_have_axes_of_their_own():
    build = Builder()
    x = build.input((4, 6))
    y = build.reduce("sum", x, [1])
    found = collected(build.graph(y), {y.node}, y, (i,), (4,))
    assert found.reductions == {Reduction(y.node, (i,)): 0}
    ((load),) = found.loads
    assert (load.index, load.sizes) == ((i, j), (4, 6))


def test_levels_count_reductions_in_between():
    build = Builder()
    x = build.input((4, 6))
    mean = build.reduce("sum", x, [1])
    spread = View((4, 6), (Piece((), mean, (i,)),))
    square = build.map("mul", build.map("sub", x, spread, shape=(4, 6)), spread, shape=(4, 6))
    total = build.reduce("sum", square, [1])
    out = build.map("sub", x, View((4, 6), (Piece((), total, (i,)),)), shape=(4, 6))
    graph = build.graph(out)
    found = collected(graph, range(1, len(graph.nodes)), out, (i, j), (4, 6))
    assert found.reductions == {Reduction(mean.node, (i,)): 0, Reduction(total.node, (i,)): 1}


def test_the_same_reduction_at_two_rows_is_two():
    build = Builder()
    x = build.input((4, 6))
    top = build.reduce("max", x, [1])
    turned = View((4,), (Piece((), top, (ix.sub(Const(3), i),)),))
    y = build.map("sub", top, turned, shape=(4,))
    assert len(collected(build.graph(y), {top.node, y.node}, y, (i,), (4,)).reductions) == 2


@pytest.mark.parametrize(
    ("f", "outside"),
    [
        (lambda x: jnp.pad(jax.nn.softmax(x, -1), ((1, 1), (0, 0))), True),
        (lambda x: jnp.pad(jax.nn.softmax(x, -1), ((0, 0), (1, 1))), False),
        (lambda x: jnp.concatenate([jax.nn.softmax(x, -1), x], 0), True),
        (lambda x: jnp.concatenate([jax.nn.softmax(x, -1), x], 1), False),
        (lambda x: jnp.roll(jax.nn.softmax(x, -1), 1, 0), False),
    ],
)
def test_a_reduction_wanted_outside_its_array_is_noted(f, outside):
    """A guard does not reach inside a reduction: rows that are not there must not be reduced."""
    made = program(f, np.zeros((4, 6), np.float32))
    graph = made.graph
    (value,) = graph.outputs
    shape = graph.array(value).shape
    members = {n for n in range(len(graph.nodes)) if n > 0}
    found = collected(graph, members, value, tuple(Dim(a) for a in range(len(shape))), shape)
    assert bool(found.outside) == outside


def test_operand_coords():
    build = Builder()
    y = build.reduce("sum", build.input((2, 3, 4)), [0, 2])
    node = build.graph(y).nodes[y.node]
    assert operand_coords(node, (Dim(7),), (Dim(8), Dim(9))) == (Dim(8), Dim(7), Dim(9))


def test_offsets_are_row_major():
    build = Builder()
    x = build.input((4, 6))
    y = build.map("neg", View((6, 4), (Piece((), x, (j, i)),)), shape=(6, 4))
    graph = build.graph(y)
    ((offset, size),) = collected(graph, {y.node}, y, (i, j), (6, 4)).offsets(graph)
    assert size == 24
    rows, columns = np.indices((6, 4))
    np.testing.assert_array_equal(ix.evaluate(offset, (rows, columns)), columns * 6 + rows)


def test_values_of_the_program_are_the_inputs_of_its_accesses():
    made = program(lambda x, y: jnp.exp(x) @ y, np.ones((3, 4), np.float32), np.ones((4, 2), np.float32))
    product = next(Value(n) for n, node in enumerate(made.graph.nodes) if isinstance(node, Contract))
    assert loads(collected(made.graph, set(), product, (i, j), (3, 2))) == [(product, (i, j), ())]
