"""Equal nodes become one; what may differ in a bit, or happen twice, does not."""

import math

import numpy as np

from jaxorch.ir.graph import Const, Graph, Input, Map, Opaque, Origin, Reduce
from jaxorch.ir.index import Dim
from jaxorch.ir.view import Piece, Value, View
from jaxorch.passes.cse import cse
from tests.ir.build import Builder, array, counting, evaluate, passed

i, j = Dim(0), Dim(1)


def kinds(graph):
    return [getattr(n, "op", type(n).__name__) for n in graph.nodes]


def test_equal_maps_become_one():
    build = Builder()
    x = build.input((4,))
    a, b = (build.map("exp", x, shape=(4,)) for _ in range(2))
    before = build.graph(build.map("add", a, b, shape=(4,)))

    build = Builder()
    x = build.input((4,))
    a = build.map("exp", x, shape=(4,))
    assert passed(cse, before) == build.graph(build.map("add", a, a, shape=(4,)))


def test_equality_spreads_to_readers_and_outputs():
    build = Builder()
    x = build.input((4, 6))
    sums = [build.reduce("sum", build.map("exp", x, shape=(4, 6)), [1]) for _ in range(3)]
    after = passed(cse, build.graph(*sums))
    assert kinds(after) == ["Input", "exp", "sum"]
    assert after.outputs == (Value(2),) * 3
    data = counting((4, 6), np.float32) / 8
    for got in evaluate_sum(after, data):
        np.testing.assert_allclose(got, np.exp(data).sum(1), rtol=1e-6)


def evaluate_sum(graph, data):
    table = {Value(0): data, Value(1): np.exp(data), Value(2): np.exp(data).sum(1)}
    return [table[v] for v in graph.outputs]


def test_origins_are_joined():
    build = Builder()
    x = build.input((4,))
    view = build.view(x, (4,))
    nodes = tuple(Map("exp", (view,), array((4,)), (), Origin((k,), ((10 + k,),))) for k in range(2))
    after = passed(cse, Graph((*build.nodes, *nodes), (Value(1), Value(2))))
    assert after.nodes[1].origin == Origin((0, 1), ((10, 11),))
    assert after.variables(Value(1)) == (10, 11)


def test_different_nodes_stay():
    build = Builder()
    x, y = build.input((4, 4)), build.input((4, 4))
    turned = View((4, 4), (Piece((), x, (j, i)),))
    results = [
        build.map("exp", x, shape=(4, 4)),
        build.map("exp", y, shape=(4, 4)),
        build.map("log", x, shape=(4, 4)),
        build.map("exp", turned, shape=(4, 4)),
        build.map("integer_pow", x, shape=(4, 4), y=2),
        build.map("integer_pow", x, shape=(4, 4), y=3),
        build.map("convert_element_type", x, shape=(4, 4), dtype="bfloat16", new_dtype="bfloat16"),
        build.map("convert_element_type", x, shape=(4, 4), dtype="float16", new_dtype="float16"),
        build.reduce("sum", x, [0]),
        build.reduce("sum", x, [1]),
        build.reduce("max", x, [1]),
    ]
    graph = build.graph(*results)
    assert passed(cse, graph) is graph


def test_constants_are_told_apart_by_their_bits():
    build = Builder()
    values = [0.0, -0.0, math.nan, math.nan, 1.0, 1.0]
    constants = [build.const(v) for v in values]
    constants += [build.const(1, "int32"), build.const(1, "int8"), build.const(True, "bool")]
    after = passed(cse, build.graph(*constants))
    kept = [n.value for n in after.nodes if isinstance(n, Const)]
    assert len(kept) == 7
    assert sum(math.isnan(v) for v in kept) == 1
    assert [math.copysign(1, v) for v in kept[:2]] == [1, -1]
    assert after.outputs[0] != after.outputs[1]


def test_opaque_nodes_are_never_merged():
    build = Builder()
    x = build.input((4,))
    bits = [build.opaque("random_bits", x, arrays=[array((4,))]) for _ in range(2)]
    graph = build.graph(*bits)
    assert passed(cse, graph) is graph
    assert sum(isinstance(n, Opaque) for n in graph.nodes) == 2


def test_inputs_are_never_merged():
    build = Builder()
    graph = build.graph(build.input((4,)), build.input((4,)))
    assert passed(cse, graph) is graph
    assert sum(isinstance(n, Input) for n in graph.nodes) == 2


def test_reductions_with_two_outputs():
    build = Builder()
    x = build.input((4, 6))
    view = build.view(x, ())
    nodes = tuple(Reduce("moments", (view,), (1,), (array((4,)), array((4,)))) for _ in range(2))
    after = passed(cse, Graph((*build.nodes, *nodes), (Value(1, 1), Value(2, 0), Value(2, 1))))
    assert after.outputs == (Value(1, 1), Value(1, 0), Value(1, 1))
    assert len(after.nodes) == 2


def test_values_do_not_change():
    build = Builder()
    x = build.input((4,), "int32")
    a = build.map("add", x, build.const(1, "int32"), shape=(4,), dtype="int32")
    b = build.map("add", x, build.const(1, "int32"), shape=(4,), dtype="int32")
    c = build.map("mul", a, b, shape=(4,), dtype="int32")
    graph = build.graph(c, build.map("sub", b, a, shape=(4,), dtype="int32"))
    data = counting((4,))
    for got, want in zip(evaluate(passed(cse, graph), data), evaluate(graph, data), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
