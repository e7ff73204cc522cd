"""Each rule, what it must not touch, and that no bit changes: NaN, infinities and signed zeros included."""

import math

import ml_dtypes
import numpy as np
import pytest

from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.graph import Const, Graph, Input, Map
from jaxorch.ir.index import Bound, Dim
from jaxorch.ir.scalars import SCALARS
from jaxorch.ir.view import Piece, Value, View, evaluate_view, is_identity
from jaxorch.passes.canonicalize import canonicalize
from tests.ir.build import Builder, passed

i, j = Dim(0), Dim(1)
SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3e38, 0.5, 7.0]


def values_of(graph: Graph, *inputs) -> list[np.ndarray]:
    """The outputs, by the tables that every handler takes its meaning from."""
    table = {}
    for k, node in enumerate(graph.nodes):
        match node:
            case Input(position):
                table[Value(k)] = inputs[position]
            case Const(value, out):
                table[Value(k)] = np.asarray(value).astype(out.dtype)
            case Map(op, operands, out, params):
                args = [evaluate_view(v, table.__getitem__) for v in operands]
                if op == "copy":
                    (table[Value(k)],) = args
                    continue
                dtypes = [a.dtype for a in args]
                with np.errstate(all="ignore"):
                    held = [a.astype(compute_dtype(a.dtype)) for a in args]
                    table[Value(k)] = SCALARS[op](dict(params), held, dtypes, out.dtype).astype(out.dtype)
    return [table[v] for v in graph.outputs]


def same_bits(before: Graph, after: Graph, *inputs) -> None:
    for got, want in zip(values_of(after, *inputs), values_of(before, *inputs), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        wide = [a.astype(np.float64) for a in (got, want)]
        np.testing.assert_array_equal(*wide)
        np.testing.assert_array_equal(*(np.signbit(w[~np.isnan(w)]) for w in wide))


def special(dtype):
    with np.errstate(over="ignore"):
        return np.array(SPECIAL, np.float64).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def binary(op, constant, *, left, dtype="float32"):
    build = Builder()
    x, c = build.input((len(SPECIAL),), dtype), build.const(constant, dtype)
    operands = (c, x) if left else (x, c)
    return x, build.graph(build.map(op, *operands, shape=(len(SPECIAL),), dtype=dtype))


def becomes_copy_of(graph: Graph, value: Value) -> bool:
    node = graph.nodes[graph.outputs[0].node]
    return (
        isinstance(node, Map)
        and node.op == "copy"
        and node.operands[0].values == (value,)
        and is_identity(node.operands[0], graph.array(value).shape)
    )


REMOVED = {
    "x * 1": ("mul", 1.0, False),
    "1 * x": ("mul", 1.0, True),
    "x / 1": ("div", 1.0, False),
    "max(-inf, x)": ("max", -math.inf, True),
    "max(x, -inf)": ("max", -math.inf, False),
    "min(inf, x)": ("min", math.inf, True),
    "min(x, inf)": ("min", math.inf, False),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", REMOVED)
def test_operations_that_change_nothing_become_copies(name, dtype):
    op, constant, left = REMOVED[name]
    x, before = binary(op, constant, left=left, dtype=dtype)
    after = passed(canonicalize, before)
    assert becomes_copy_of(after, x)
    same_bits(before, after, special(dtype))


KEPT = {
    "x + 0": ("add", 0.0, False),  # -0.0 + 0.0 = 0.0
    "x - -0": ("sub", -0.0, False),
    "0 * x": ("mul", 0.0, True),  # nan and infinities
    "x * -1": ("mul", -1.0, False),
    "1 / x": ("div", 1.0, True),
    "x / 2": ("div", 2.0, False),
    "max(x, 0)": ("max", 0.0, False),
    "max(inf, x)": ("max", math.inf, True),  # nan
    "min(x, -inf)": ("min", -math.inf, False),
    "min(-inf, x)": ("min", -math.inf, True),
    "max(nan, x)": ("max", math.nan, True),
    "x ** 1": ("pow", 1.0, False),
}


@pytest.mark.parametrize("name", KEPT)
def test_operations_that_change_some_value_stay(name):
    op, constant, left = KEPT[name]
    _, before = binary(op, constant, left=left)
    assert passed(canonicalize, before) is before


@pytest.mark.parametrize(("op", "left"), [("mul", False), ("mul", True), ("div", False)])
def test_integers_too(op, left):
    x, before = binary(op, 1, left=left, dtype="int32")
    after = passed(canonicalize, before)
    assert becomes_copy_of(after, x)


def test_an_integer_limit_is_no_infinity():
    _, before = binary("max", np.iinfo(np.int32).min, left=True, dtype="int32")
    same_bits(before, passed(canonicalize, before), np.arange(len(SPECIAL), dtype=np.int32))


def test_booleans_are_not_numbers():
    """1 == True: and(x, True) is no product."""
    _, before = binary("and", True, left=False, dtype="bool")
    same_bits(before, passed(canonicalize, before), np.arange(len(SPECIAL)) % 2 == 0)


@pytest.mark.parametrize("which", [False, True])
def test_a_selection_by_a_constant(which):
    build = Builder()
    x, y = build.input((4,)), build.input((4,))
    before = build.graph(build.map("select_n", build.const(which, "bool"), x, y, shape=(4,)))
    assert becomes_copy_of(passed(canonicalize, before), y if which else x)


def test_a_selection_among_many_by_a_constant():
    build = Builder()
    cases = [build.input((4,)) for _ in range(3)]
    before = build.graph(build.map("select_n", build.const(2, "int32"), *cases, shape=(4,)))
    assert becomes_copy_of(passed(canonicalize, before), cases[2])


def test_a_selection_by_data_stays():
    build = Builder()
    p, x = build.input((4,), "bool"), build.input((4,))
    before = build.graph(build.map("select_n", p, x, build.const(0.0), shape=(4,)))
    assert passed(canonicalize, before) is before


def test_the_view_of_the_kept_operand_is_kept():
    build = Builder()
    x = build.input((4, 6))
    turned = View((6, 4), (Piece((), x, (j, i)),))
    after = passed(canonicalize, build.graph(build.map("mul", turned, build.const(1.0), shape=(6, 4))))
    assert after.nodes[-1].op == "copy"
    assert after.nodes[-1].operands == (turned,)


def test_conversion_to_the_same_type():
    build = Builder()
    x = build.input((4,))
    same = build.map("convert_element_type", x, shape=(4,), new_dtype="float32")
    after = passed(canonicalize, build.graph(same))
    assert becomes_copy_of(after, x)


def test_conversion_to_another_type_stays():
    build = Builder()
    x = build.input((4,))
    narrow = build.map("convert_element_type", x, shape=(4,), dtype="bfloat16", new_dtype="bfloat16")
    wide = build.map("convert_element_type", narrow, shape=(4,), new_dtype="float32")
    before = build.graph(wide)
    assert passed(canonicalize, before) is before


def test_add_any_is_add():
    build = Builder()
    x = build.input((4,))
    after = passed(canonicalize, build.graph(build.map("add_any", x, x, shape=(4,))))
    assert after.nodes[-1].op == "add"


def folded(op, *constants, dtype="float32", out=None, **params):
    build = Builder()
    operands = [build.const(c, dtype) for c in constants]
    before = build.graph(build.map(op, *operands, shape=(3,), dtype=out or dtype, **params))
    after = passed(canonicalize, before)
    same_bits(before, after)
    node = after.nodes[-1]
    assert node.op == "copy"
    (value,) = node.operands[0].values
    assert len(after.nodes) == 2
    return after.nodes[value.node]


@pytest.mark.parametrize(
    ("op", "constants", "dtype", "expected"),
    [
        ("add", (1.5, 2.0), "float32", 3.5),
        ("div", (1.0, 3.0), "float32", float(np.float32(1) / np.float32(3))),
        ("div", (1.0, 3.0), "bfloat16", float(np.asarray(1 / 3, ml_dtypes.bfloat16))),
        ("div", (1.0, 0.0), "float32", math.inf),
        ("mul", (0.0, -1.0), "float32", -0.0),
        ("sub", (math.inf, math.inf), "float32", math.nan),
        ("max", (math.nan, 1.0), "float32", math.nan),
        ("mul", (100, 100), "int8", 16),
        ("sub", (3, 5), "uint8", 254),
        ("div", (-7, 2), "int32", -3),
        ("div", (1, 0), "int32", -1),
        ("shift_left", (1, 40), "int32", 0),
        ("and", (True, False), "bool", False),
        ("exp", (0.0,), "float32", 1.0),
    ],
)
def test_constants_fold(op, constants, dtype, expected):
    found = folded(op, *constants, dtype=dtype)
    assert str(found.array.dtype) == dtype
    assert type(found.value) is type(expected)
    assert found.value == expected or (math.isnan(found.value) and math.isnan(expected))
    assert math.copysign(1, found.value) == math.copysign(1, expected) or math.isnan(expected)


def test_folding_converts():
    assert folded("convert_element_type", 1.75, out="int32", new_dtype="int32").value == 1
    assert folded("lt", 1.0, 2.0, out="bool").value is True
    assert folded("integer_pow", 3.0, y=2).value == 9.0


def test_folding_goes_on():
    build = Builder()
    a = build.map("add", build.const(1.0), build.const(2.0), shape=())
    b = build.map("mul", a, build.const(2.0), shape=())
    x = build.input((4,))
    after = passed(canonicalize, build.graph(build.map("add", x, b, shape=(4,))))
    constants = [n.value for n in after.nodes if isinstance(n, Const)]
    assert 6.0 in constants


def test_a_constant_in_pieces_is_not_one():
    build = Builder()
    one, two = build.const(1.0), build.const(2.0)
    x = build.input((4,))
    halves = View((4,), (Piece((Bound(i, 0, 2),), one, ()), Piece((), two, ())))
    before = build.graph(build.map("mul", x, halves, shape=(4,)))
    assert passed(canonicalize, before) is before


def test_iota_is_not_folded():
    build = Builder()
    before = build.graph(build.iota((4,), 0))
    assert passed(canonicalize, before) is before


def test_a_graph_without_work_is_returned_itself():
    build = Builder()
    x = build.input((4,))
    graph = build.graph(build.map("exp", x, shape=(4,)))
    assert passed(canonicalize, graph) is graph
