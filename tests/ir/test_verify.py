"""Graphs that break one invariant each, and the message that names it."""

import re
from dataclasses import replace

import pytest

from jaxorch.errors import VerifyError
from jaxorch.ir.graph import Graph, Map, Scatter
from jaxorch.ir.index import Add, Bound, Const, Dim, FloorDiv, Mod, Mul, Segment
from jaxorch.ir.verify import EVALUATED, verify
from jaxorch.ir.view import Piece, Value, View, identity
from tests.ir.build import Builder, array

i, j = Dim(0), Dim(1)


def refused(graph: Graph, *words: str) -> None:
    with pytest.raises(VerifyError, match=".*".join(map(re.escape, words)) if words else None):
        verify(graph)


def reading(build: Builder, shape, *pieces: Piece) -> Graph:
    return build.graph(build.map("copy", View(tuple(shape), pieces), shape=shape))


def test_accepts_a_program():
    build = Builder()
    x, y = build.input((4, 6)), build.input((4, 6))
    below = build.map("ge", build.iota((4, 6), 0), build.iota((4, 6), 1), shape=(4, 6), dtype="bool")
    chosen = build.map("select_n", below, build.const(0.0), x, shape=(4, 6))
    total = build.reduce("sum", build.map("add", chosen, y, shape=(4, 6)), [1])
    ordered = build.opaque("sort", total, arrays=[array((4,)), array((4,), "int32")])
    verify(build.graph(total, ordered, Value(ordered.node, 1)))


def test_accepts_scalars_empty_arrays_and_nothing():
    verify(Graph((), ()))
    build = Builder()
    x = build.input((0, 3))
    verify(build.graph(build.map("copy", View((0, 3), (Piece((), x, (j, i)),)), shape=(0, 3)), build.const(1.0)))


@pytest.mark.parametrize("value", [Value(1), Value(2), Value(7), Value(-1), Value(0, 1)])
def test_operands_read_earlier_outputs(value):
    build = Builder()
    build.input((4,))
    graph = reading(build, (4,), Piece((), value, (i,)))
    refused(graph, "node %1, operand 0, piece 0", "value read", "got %", "an output of an earlier node")


@pytest.mark.parametrize("value", [Value(1), Value(0, 1), Value(-1)])
def test_outputs_exist(value):
    build = Builder()
    build.input((4,))
    refused(build.graph(value), "output 0 of the graph", "got %", "an output of a node")


def test_domain_is_the_nodes_shape():
    build = Builder()
    x = build.input((4,))
    graph = build.graph(build.map("neg", identity(x, (4,)), shape=(5,)))
    refused(graph, "node %1, operand 0: domain: got (4,), expected the node's shape (5,)")


def test_the_message_shows_the_node():
    build = Builder()
    x = build.input((4,))
    refused(build.graph(build.map("neg", identity(x, (4,)), shape=(5,))), "\n  %1 = neg(%0[i0]) : float32[5]")


def test_one_coordinate_an_axis():
    build = Builder()
    x = build.input((4, 6))
    refused(reading(build, (4,), Piece((), x, (i,))), "piece 0", "index into %0: got 1 coordinates, expected 2")


@pytest.mark.parametrize("piece", [Piece((), Value(0), (j,)), Piece((Bound(j, 0, 1),), Value(0), (i,))])
def test_axes_are_the_domains(piece):
    build = Builder()
    build.input((4,))
    refused(
        reading(build, (4,), piece, Piece((), Value(0), (i,))), "axes used: got [1], expected axes of the domain (4,)"
    )


def test_a_view_has_a_piece():
    build = Builder()
    refused(reading(build, (4,)), "node %0, operand 0: pieces: got 0, expected at least one")


def test_pieces_share_a_dtype():
    build = Builder()
    x, y = build.input((4,)), build.input((4,), "int32")
    graph = reading(build, (4,), Piece((Bound(i, 0, 2),), x, (i,)), Piece((), y, (i,)))
    refused(graph, "dtypes of the pieces: got float32, int32, expected one dtype")


def test_segments_have_lengths_along_one_axis():
    build = Builder()
    x, lengths, table = build.input((4,)), build.input((3,), "int32"), build.input((3, 3), "int32")
    verify(reading(build, (9,), Piece((), x, (Segment(lengths, (i,), 0, 3),))))
    graph = reading(build, (9,), Piece((), x, (Segment(table, (i, Const(0)), 0, 3),)))
    refused(graph, "lengths of segments: got [3, 3], expected one axis")


# Bounds: an 8-element value read over a domain of 6

INSIDE = {
    "everywhere": [Piece((), Value(0), (Add(i, Const(2)),))],
    "under its guard": [Piece((Bound(i, 2, 6),), Value(0), (Add(i, Const(-2)),)), Piece((), Value(1), ())],
    "divided under its guard": [
        Piece((Bound(i, 3, 6),), Value(0), (FloorDiv(Mul(Add(i, Const(-3)), 7), 2),)),
        Piece((), Value(1), ()),
    ],
    "by evaluation": [Piece((Bound(Mod(i, 3), 0, 1),), Value(0), (Mul(Mod(i, 3), 9),)), Piece((), Value(1), ())],
    "last piece guarded": [
        Piece((Bound(i, 0, 3),), Value(1), ()),
        Piece((Bound(i, 3, 6),), Value(0), (Add(i, Const(-3)),)),
    ],
}
OUTSIDE = {
    "above": ([Piece((), Value(0), (Add(i, Const(3)),))], "i0 + 3 from 3 to 8, expected 0 <= i0 + 3 < 8"),
    "below": ([Piece((), Value(0), (Add(i, Const(-1)),))], "i0 - 1 from -1 to 4, expected 0 <= i0 - 1 < 8"),
    "under a guard that is too wide": (
        [Piece((Bound(i, 1, 6),), Value(0), (Add(i, Const(-2)),)), Piece((), Value(1), ())],
        "i0 - 2 from -1 to 3",
    ),
    "beside an earlier piece": (  # what that stands for is loaded, too
        [Piece((Bound(i, 0, 3),), Value(1), ()), Piece((), Value(0), (Add(i, Const(-3)),))],
        "i0 - 3 from -3 to 2",
    ),
    "last guard too narrow": (
        [Piece((Bound(i, 0, 2),), Value(1), ()), Piece((Bound(i, 3, 6),), Value(0), (Add(i, Const(-2)),))],
        "guard of the last piece: got i0 from 2 to 5, expected 3 <= i0 < 6",
    ),
}


def bounded(pieces):
    build = Builder()
    build.input((8,))
    build.const(0.0)
    return reading(build, (6,), *pieces)


@pytest.mark.parametrize("name", INSIDE)
def test_indices_inside(name):
    verify(bounded(INSIDE[name]))


@pytest.mark.parametrize("name", OUTSIDE)
def test_indices_outside(name):
    pieces, message = OUTSIDE[name]
    refused(bounded(pieces), "node %2, operand 0, piece", message)


def test_what_ranges_cannot_decide_is_evaluated_where_it_is_small():
    def odd(count):  # reads element 9 of 8, wherever it is read
        build = Builder()
        build.input((8,))
        build.const(0.0)
        piece = Piece((Bound(Mod(i, 2), 1, 2),), Value(0), (Mul(Mod(i, 2), 9),))
        return reading(build, (count,), piece, Piece((), Value(1), ()))

    refused(odd(EVALUATED), "9*(i0 % 2) from 9 to 9, expected 0 <= 9*(i0 % 2) < 8")
    verify(odd(EVALUATED + 1))


def test_only_the_axes_that_matter_are_evaluated():
    build = Builder()
    build.input((8,))
    build.const(0.0)
    piece = Piece((Bound(Mod(i, 2), 1, 2),), Value(0), (Mul(Mod(i, 2), 9),))
    refused(reading(build, (6, EVALUATED, EVALUATED), piece, Piece((), Value(1), ())), "from 9 to 9")


# Nodes


def test_dtypes():
    build = Builder()
    x, y, p = build.input((4,)), build.input((4,), "int32"), build.input((4,), "bool")
    cases = {
        "operand 0: dtype: got float32, expected int32": build.map("copy", x, shape=(4,), dtype="int32"),
        "operand 1: dtype: got int32, expected float32": build.map("add", x, y, shape=(4,)),
        "dtype: got float32, expected bool": build.map("lt", x, x, shape=(4,)),
        "operand 1: dtype: got int32, expected float32\n": build.map("lt", x, y, shape=(4,), dtype="bool"),
        "operand 0: dtype of the predicate: got float32": build.map("select_n", x, x, x, shape=(4,)),
        "operand 2: dtype: got int32, expected float32": build.map("select_n", p, x, y, shape=(4,)),
        "number of operands: got 1, expected a predicate": build.map("select_n", p, shape=(4,)),
        "number of operands: got 2, expected 1": build.map("neg", x, x, shape=(4,)),
        "number of operands: got 1, expected 0": build.map("iota", x, shape=(4,)),
        "dimension: got 1, expected an axis of (4,)": build.iota((4,), 1),
        "dimension: got None": build.map("iota", shape=(4,), dtype="int32"),
    }
    nodes = build.nodes
    for message, value in cases.items():
        refused(Graph((*nodes[:3], nodes[value.node]), ()), "node %3", message)


def test_constants_are_scalars_and_positions_distinct():
    build = Builder()
    constant = build.const(1.0)
    node = build.nodes[constant.node]
    refused(Graph((replace(node, array=array((1,))),), ()), "node %0: shape of a constant: got (1,), expected ()")
    build = Builder()
    build.input((4,))
    refused(Graph((*build.nodes, *build.nodes), ()), "node %1: input position: got that of %0")


def test_reductions():
    build = Builder()
    x = build.input((4, 6))
    total = build.nodes[build.reduce("sum", x, [1]).node]
    refused(
        Graph((build.nodes[0], replace(total, arrays=(array((6,)),))), ()),
        "shape of an output: got (6,), expected (4,)",
    )
    for axes in [(2,), (1, 0), (1, 1), (-1,)]:
        refused(Graph((build.nodes[0], replace(total, axes=axes)), ()), f"axes: got {axes}", "ascending axes of (4, 6)")
    other = identity(x, (6, 4))
    other = replace(other, pieces=(Piece((), x, (j, i)),))
    refused(
        Graph((build.nodes[0], replace(total, operands=(*total.operands, other))), ()),
        "operand 1: domain: got (6, 4), expected operand 0's domain (4, 6)",
    )
    refused(
        Graph((build.nodes[0], replace(total, operands=())), ()), "number of operands: got 0, expected at least one"
    )


def test_a_graph_is_not_changed():
    build = Builder()
    x = build.input((4,))
    graph = build.graph(build.map("neg", x, shape=(4,)))
    copy = Graph(tuple(graph.nodes), tuple(graph.outputs))
    verify(graph)
    assert graph == copy
    assert isinstance(graph.nodes[1], Map)


# Arrays filled by several writes


def filled(*starts, size=8, base="empty", combine="set", step=1):
    """Writes of 4 elements at each start into an array of 8, one after another."""
    build = Builder()
    x = build.input((4,))
    last = build.map("empty", shape=(size,)) if base == "empty" else build.input((size,))
    for start in starts:
        place = Piece((), last, (Add(Mul(i, step), Const(start)),))
        last = build.add(Scatter(combine, place, identity(x, (4,)), True, array((size,))))
    return build, last


@pytest.mark.parametrize(("starts", "step"), [((0, 4), 1), ((4, 0), 1), ((1, 0), 2)])
def test_an_array_is_filled(starts, step):
    build, last = filled(*starts, step=step)
    verify(build.graph(last, build.map("neg", last, shape=(8,))))


def test_what_is_filled_may_be_written_again():
    build, last = filled(0, 4, 2)
    verify(build.graph(last))


def test_other_arrays_need_not_be_filled():
    build, last = filled(0, 2, base="input")
    verify(build.graph(last))


NOT_FILLED = {
    "nothing written": ((), {}),
    "a part": ((4,), {}),
    "a gap": ((0, 5), {"size": 9}),
    "twice the same": ((0, 0), {}),
    "two that meet": ((0, 3, 4), {}),
    "strides that meet": ((0, 0), {"step": 2}),
    "a sum": ((0, 4), {"combine": "add"}),
}


@pytest.mark.parametrize("name", NOT_FILLED)
def test_an_array_is_not_filled(name):
    starts, more = NOT_FILLED[name]
    build, last = filled(*starts, **more)
    expected = "expected an array each of whose elements is written once"
    refused(build.graph(last), f"node %{last.node}: value returned: got %{last.node}", expected)
    reader = build.map("neg", last, shape=build.shape(last))
    refused(build.graph(reader), f"node %{reader.node}: value read: got %{last.node}", expected)


def test_a_chain_is_read_at_its_end_only():
    build, last = filled(0, 4)
    middle = Value(last.node - 1)
    refused(build.graph(last, build.map("neg", middle, shape=(8,))), f"value read: got %{middle.node}")


def test_empty_memory_has_no_operands():
    build, _ = filled(0, 4)
    refused(build.graph(build.map("empty", Value(0), shape=(4,))), "number of operands: got 1, expected 0")
