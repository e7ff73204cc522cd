"""Text of expressions, views and graphs; digests that processes agree on."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, Origin
from jaxorch.ir.index import Add, Bound, Const, Dim, FloorDiv, Mod, Mul, Segment, Select
from jaxorch.ir.text import digest, expr_text, guard_text, to_text, value_text, view_text
from jaxorch.ir.view import Piece, Value, View
from tests.ir.build import Builder, array

x, y = Dim(0), Dim(1)
NAMES = ("x", "y")

EXPRESSIONS = {
    "0": Const(0),
    "-3": Const(-3),
    "x": x,
    "x + y": Add(x, y),
    "x - 3": Add(x, Const(-3)),
    "x - y": Add(x, Mul(y, -1)),
    "x - 2*y": Add(x, Mul(y, -2)),
    "-x + 3": Add(Mul(x, -1), Const(3)),
    "-2*x": Mul(x, -2),
    "x + (y + 1)": Add(x, Add(y, Const(1))),
    "4*(x//2) + x % 2": Add(Mul(FloorDiv(x, 2), 4), Mod(x, 2)),
    "(4*x + y)//8": FloorDiv(Add(Mul(x, 4), y), 8),
    "(x//3) % 5": Mod(FloorDiv(x, 3), 5),
    "(x % 6)//2": FloorDiv(Mod(x, 6), 2),
    "(-x)//2": FloorDiv(Mul(x, -1), 2),
    "(x if 0 <= y < 4 else y) + 1": Add(Select((Bound(y, 0, 4),), x, y), Const(1)),
    "clamp(segment(%3, x + 1), 0, 4)": Segment(Value(3), (Add(x, Const(1)),), 0, 4),
    "(x if x == 2 and 0 <= y < 3 else 0)": Select((Bound(x, 2, 3), Bound(y, 0, 3)), x, Const(0)),
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions(text):
    assert expr_text(EXPRESSIONS[text], NAMES) == text


expressions = st.recursive(
    st.one_of(st.integers(-5, 9).map(Const), st.sampled_from([x, y])),
    lambda inner: st.one_of(
        st.builds(Add, inner, inner),
        st.builds(Mul, inner, st.integers(-4, 5).filter(bool)),
        st.builds(FloorDiv, inner, st.integers(1, 5)),
        st.builds(Mod, inner, st.integers(1, 5)),
        st.builds(lambda e, a, b: Select((Bound(e, 0, 3), Bound(e, -1, 0)), a, b), inner, inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(expressions, st.integers(0, 6), st.integers(0, 6))
def test_text_is_python_with_the_same_value(expr, a, b):
    assert eval(expr_text(expr, NAMES), {"x": a, "y": b}) == ix.evaluate(expr, (a, b))


def test_guards_values_and_views():
    assert guard_text((), NAMES) == "always"
    assert value_text(Value(3)) == "%3"
    assert value_text(Value(3, 1)) == "%3.1"
    whole = View((4, 6), (Piece((), Value(0), (y, x)),))
    assert view_text(whole) == "%0[i1, i0]"
    halves = View((8,), (Piece((Bound(x, 0, 4),), Value(0), (x,)), Piece((), Value(1, 1), ())))
    assert view_text(halves) == "{%0[i0] if 0 <= i0 < 4; %1.1[]}"
    assert view_text(halves, "d") == "{%0[d0] if 0 <= d0 < 4; %1.1[]}"


def program(*, op="add", scale=2.0, axis=1, origin=Origin()):  # noqa: B008
    build = Builder()
    a = build.input((4, 6))
    turned = View((4, 6), (Piece((), a, (x, Add(Mul(y, -1), Const(5)))),))
    total = build.map(op, turned, build.const(scale), shape=(4, 6))
    as_bfloat = build.map("convert_element_type", total, shape=(4, 6), dtype="bfloat16", new_dtype="bfloat16")
    most = build.reduce("max", as_bfloat, [axis], "bfloat16")
    ordered = build.opaque("sort", most, arrays=[array((6 if axis == 0 else 4,), "bfloat16")])
    graph = build.graph(as_bfloat, ordered)
    return Graph(tuple(replace(n, origin=origin) for n in graph.nodes), graph.outputs)


TEXT = """\
%0 = input 0 : float32[4, 6]  # equation 3, 4
%1 = const 2.0 : float32[]  # equation 3, 4
%2 = add(%0[i0, -i1 + 5], %1[]) : float32[4, 6]  # equation 3, 4
%3 = convert_element_type{new_dtype='bfloat16'}(%2[i0, i1]) : bfloat16[4, 6]  # equation 3, 4
%4 = reduce max over [1]([4, 6]: %3[i0, i1]) : bfloat16[4]  # equation 3, 4
%5 = opaque sort([4]: %4[i0]) : bfloat16[4]  # equation 3, 4; it is left to XLA
return %3, %5
"""


def test_to_text():
    assert to_text(program(origin=Origin((3, 4), (7,)))) == TEXT


def test_digest_ignores_origins_and_reasons_alone():
    graph = program()
    assert digest(graph) == digest(program(origin=Origin((3, 4), (7,))))
    told = Graph((*graph.nodes[:-1], replace(graph.nodes[-1], reason="another")), graph.outputs)
    assert digest(told) == digest(graph)
    others = [
        program(op="sub"),
        program(scale=-2.0),
        program(axis=0),
        Graph(graph.nodes, graph.outputs[:1]),
        Graph(graph.nodes, graph.outputs[::-1]),
    ]
    assert len({digest(g) for g in (graph, *others)}) == 6


@pytest.mark.parametrize(("one", "other"), [(0.0, -0.0), (1.0, 1.0000000000000002), (float("inf"), float("nan"))])
def test_digest_tells_constants_apart(one, other):
    assert digest(program(scale=one)) != digest(program(scale=other))


def test_digest_tells_dtypes_of_equal_constants_apart():
    def constant(value, dtype):
        build = Builder()
        return build.graph(build.const(value, dtype))

    assert len({digest(constant(*c)) for c in [(True, "bool"), (1, "int32"), (1, "int8"), (1.0, "float32")]}) == 4


def test_digest_is_the_same_in_every_process():
    code = "from tests.ir.test_text import program\nfrom jaxorch.ir.text import digest\nprint(digest(program()))"
    root = Path(__file__).parents[2]
    seen = {digest(program())}
    for seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        seen.add(run.stdout.strip())
    assert len(seen) == 1
