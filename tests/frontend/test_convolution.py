"""conv_general_dilated as a Contract node: strides, padding, dilation, groups and layouts as lax has them."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

from jaxorch.ir.graph import Contract, Map, Opaque
from jaxorch.ir.view import evaluate_view
from jaxorch.options import Options
from jaxorch.pipeline import optimized_graph
from tests.frontend.convolutions import convolutions
from tests.frontend.test_contraction import contract_of, lifted

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def summed(graph, arrays):
    """What the only Contract of a lifted graph sums."""
    node = contract_of(graph)
    read = lambda v: arrays[v.node] if v.node < len(arrays) else np.asarray(graph.nodes[v.node].value, F32)  # noqa: E731
    a, b = (evaluate_view(view, read) for view in node.operands)
    return (a * b).sum(node.axes)


@pytest.mark.slow
@settings(max_examples=200)
@given(convolutions())
def test_the_node_sums_what_the_convolution_sums(drawn):
    f, shapes = drawn
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-4, 5, s).astype(F32) for s in shapes]
    graph = lifted(f, *arrays)
    # in float64: XLA's CPU convolution in float32 reads past the image where padding is negative on one side
    with jax.enable_x64(True):
        want = np.asarray(f(*(a.astype(np.float64) for a in arrays)))
    np.testing.assert_array_equal(summed(graph, arrays), want)


def test_a_convolution_by_single_elements_is_a_product():
    def by_elements(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = jax.ShapeDtypeStruct((2, 5, 6, 7), F32), jax.ShapeDtypeStruct((1, 1, 7, 3), F32)
    node = contract_of(lifted(by_elements, x, w))
    assert node.domain == (2, 5, 6, 3, 7)
    assert node.axes == (4,)
    assert all(len(view.pieces) == 1 and not view.pieces[0].guard for view in node.operands)


def test_convolutions_across_transposes_read_the_arrays_themselves():
    def in_rows(x, w):  # NCHW by way of NHWC
        y = lax.conv_general_dilated(
            x.transpose(0, 2, 3, 1), w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(y).transpose(0, 3, 1, 2)

    from jaxorch.frontend.trace import flatten

    x, w = jax.ShapeDtypeStruct((2, 3, 5, 6), F32), jax.ShapeDtypeStruct((3, 3, 3, 4), F32)
    graph = optimized_graph(flatten(jax.make_jaxpr(in_rows)(x, w)), Options())
    (node,) = [n for n in graph.nodes if isinstance(n, Contract)]
    assert node.operands[0].pieces[0].value.node == 0
    assert not [n for n in graph.nodes if isinstance(n, Map) and n.op == "copy" and n.operands[0].values[0].node == 0]


@pytest.mark.parametrize(
    ("operand", "result", "accumulate"),
    [(BF16, BF16, "float32"), (BF16, F32, "float32"), (np.dtype(np.int8), np.dtype(np.int32), "int32")],
)
def test_sums_are_as_wide_as_the_result_is_held(operand, result, accumulate):
    x = jax.ShapeDtypeStruct((1, 3, 5), operand)
    graph = lifted(lambda x: lax.conv_general_dilated(x, x, (1,), "SAME", preferred_element_type=result), x)
    node = contract_of(graph)
    assert dict(node.params) == {"accumulate": accumulate, "precision": "DEFAULT"}
    assert node.array.dtype == result


def test_empty_results_stay_with_xla():
    x, w = jnp.ones((1, 2, 3), F32), jnp.ones((2, 2, 5), F32)
    graph = lifted(lambda x, w: lax.conv_general_dilated(x, w, (1,), "VALID"), x, w)
    assert [n.reason for n in graph.nodes if isinstance(n, Opaque)] == ["a zero-size array"]
