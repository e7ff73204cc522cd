"""dot_general as a Contract node: every batch, free and contracted axis where lax has it."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract, Graph, Opaque
from jaxorch.ir.verify import verify
from jaxorch.ir.view import evaluate_view

F32 = np.dtype(np.float32)


def lifted(f, *specs) -> Graph:
    graph = lift(flatten(jax.make_jaxpr(f)(*specs)))
    verify(graph)
    return graph


def contract_of(graph: Graph) -> Contract:
    (node,) = [n for n in graph.nodes if isinstance(n, Contract)]
    return node


@st.composite
def products(draw):
    """Shapes of two operands and the dimension numbers of a product of them."""
    batch, left, right, contracted = (draw(st.lists(st.integers(1, 3), min_size=m, max_size=2)) for m in (0, 0, 0, 1))
    sides = []
    for free in (left, right):
        kinds = [("batch", k) for k in range(len(batch))] + [("contracted", k) for k in range(len(contracted))]
        kinds += [("free", k) for k in range(len(free))]
        sides.append((draw(st.permutations(kinds)), {"batch": batch, "contracted": contracted, "free": free}))
    shapes = [tuple(sizes[kind][k] for kind, k in order) for order, sizes in sides]
    places = [
        [tuple(order.index((kind, k)) for k in range(len(sizes[kind]))) for kind in ("contracted", "batch")]
        for order, sizes in sides
    ]
    (lc, lb), (rc, rb) = places
    return shapes, ((lc, rc), (lb, rb))


@pytest.mark.slow
@given(products())
def test_the_node_sums_what_dot_general_sums(drawn):
    (left, right), numbers = drawn
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-4, 5, s).astype(F32) for s in (left, right)]
    graph = lifted(lambda x, y: lax.dot_general(x, y, numbers), *arrays)
    node = contract_of(graph)
    a, b = (evaluate_view(v, lambda value: arrays[value.node]) for v in node.operands)
    np.testing.assert_array_equal((a * b).sum(node.axes), lax.dot_general(*arrays, numbers))
    assert node.axes == tuple(range(len(node.domain) - len(numbers[0][0]), len(node.domain)))


@pytest.mark.parametrize(
    ("given_precision", "kept"),
    [
        (None, "DEFAULT"),
        (lax.Precision.HIGH, "HIGH"),
        ((lax.Precision.DEFAULT, lax.Precision.HIGHEST), "HIGHEST"),
        (lax.DotAlgorithmPreset.TF32_TF32_F32, "DEFAULT"),
        (lax.DotAlgorithmPreset.TF32_TF32_F32_X3, "HIGH"),
        (lax.DotAlgorithmPreset.F32_F32_F32, "HIGHEST"),
    ],
)
def test_precision_is_kept(given_precision, kept):
    x = np.ones((3, 3), F32)
    node = contract_of(lifted(lambda x: lax.dot(x, x, precision=given_precision), x))
    assert dict(node.params) == {"accumulate": "float32", "precision": kept}


@pytest.mark.parametrize(
    ("operand", "result", "accumulate"),
    [("bfloat16", "bfloat16", "float32"), ("bfloat16", "float32", "float32"), ("int8", "int32", "int32")],
)
def test_sums_are_as_wide_as_the_result_is_held(operand, result, accumulate):
    x = jax.ShapeDtypeStruct((3, 3), operand)
    node = contract_of(lifted(lambda x: lax.dot(x, x, preferred_element_type=result), x))
    assert dict(node.params)["accumulate"] == accumulate
    assert node.array.dtype.name == result


def test_an_outer_product_stays_with_xla():
    x = np.ones(3, F32)
    graph = lifted(lambda x: lax.dot_general(x, x, (((), ()), ((), ()))), x)
    assert [n.reason for n in graph.nodes if type(n).__name__ == "Opaque"] == ["an outer product"]


def test_work_is_counted():
    node = contract_of(lifted(lambda x, y: x @ y, np.ones((2, 3), F32), np.ones((3, 5), F32)))
    assert (node.count, node.flops) == (3, 2 * 2 * 3 * 5)
    assert list(itertools.chain(node.domain)) == [2, 5, 3]


NUMBERS = lax.RaggedDotDimensionNumbers


@st.composite
def ragged(draw):
    """Shapes of two operands, the dimension numbers of a ragged product of them, and the lengths of the groups."""
    rows, contracted = draw(st.integers(1, 6)), draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    free, groups = draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.integers(1, 4))
    kept = [("contracted", k) for k in range(len(contracted))]
    left = draw(st.permutations([("rows", 0), *kept]))
    right = draw(st.permutations([("groups", 0), *kept, *(("free", k) for k in range(len(free)))]))
    sizes = {"rows": [rows], "groups": [groups], "contracted": contracted, "free": free}
    shapes = [tuple(sizes[kind][k] for kind, k in order) for order in (left, right)]
    places = tuple(tuple(order.index(k) for k in kept) for order in (left, right))
    numbers = NUMBERS((places, ((), ())), [left.index(("rows", 0))], [right.index(("groups", 0))])
    ends = sorted(draw(st.lists(st.integers(0, rows), min_size=groups, max_size=groups)))
    return shapes, numbers, np.diff([0, *ends]).astype(np.int32)


@pytest.mark.slow
@given(ragged())
def test_the_node_sums_what_ragged_dot_sums(drawn):
    (left, right), numbers, sizes = drawn
    rng = np.random.default_rng(0)
    arrays = [*(rng.integers(-4, 5, s).astype(F32) for s in (left, right)), sizes]
    graph = lifted(lambda x, w, s: lax.ragged_dot_general(x, w, s, numbers), *arrays)
    node = contract_of(graph)
    read = [*arrays, np.zeros((), F32)]  # the one constant comes after the operands
    a, b = (evaluate_view(v, lambda value: read[value.node]) for v in node.operands)
    np.testing.assert_array_equal((a * b).sum(node.axes), lax.ragged_dot_general(*arrays, numbers))
    assert not node.convolves
    assert node.segment is not None


RAGGED = {
    "contracted rows, as of a gradient": ((((0,), (0,)), ((), ())), [0], [], [(6, 3), (6, 4)], [2]),
    "a batch": ((((2,), (2,)), ((0,), (0,))), [1], [1], [(5, 6, 3), (5, 2, 3, 4)], [5, 2]),
    "rows of a batch": ((((1,), (1,)), ((0,), (0,))), [0], [], [(6, 3), (6, 3, 4)], [2]),
    "other rows beside": ((((2,), (1,)), ((), ())), [1], [0], [(5, 6, 3), (2, 3, 4)], [5, 2]),
}


@pytest.mark.parametrize("name", RAGGED)
def test_other_ragged_products_stay_with_xla(name):
    contracted, rows, groups, shapes, sizes = RAGGED[name]
    specs = [*(jax.ShapeDtypeStruct(s, F32) for s in shapes), jax.ShapeDtypeStruct(tuple(sizes), np.int32)]
    graph = lifted(lambda x, w, s: lax.ragged_dot_general(x, w, s, NUMBERS(contracted, rows, groups)), *specs)
    (node,) = [n for n in graph.nodes if isinstance(n, Opaque)]
    assert node.primitive == "ragged_dot_general"
    assert node.reason == "a ragged product whose groups are not of its left operand's only rows"
