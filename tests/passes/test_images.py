"""Images of convolutions as arrays: what a library cannot read in place is a copy in another graph."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract, Map
from jaxorch.options import Options
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.passes.derive.images import keep_images, keep_weights
from jaxorch.pipeline import graphs
from tests.codegen.drive import agree, numpied, program, random_array

F32 = np.dtype(np.float32)


def conv(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=lax.Precision.HIGHEST
    )


MOVED = {
    "upsampled and joined": (
        lambda x, s, w: conv(jnp.concatenate([x.repeat(2, 1).repeat(2, 2), s], -1), w),
        [(1, 2, 3, 4), (1, 4, 6, 3), (3, 3, 7, 5)],
    ),
    "reflected": (
        lambda x, w: conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"), w),
        [(1, 4, 5, 3), (3, 3, 3, 4)],
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_moves_before_a_convolution_is_an_array(name):
    f, shapes = MOVED[name]
    trace = flatten(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(s, F32) for s in shapes)))
    first, *_, last = graphs(trace, Options())
    assert not [n for n in first.nodes if isinstance(n, Map)]
    (copy,) = [k for k, n in enumerate(last.nodes) if isinstance(n, Map)]
    (product,) = [n for n in last.nodes if isinstance(n, Contract)]
    assert product.operands[0].pieces[0].value.node == copy
    assert {left.nodes for left in enumerate_candidates(last).left} >= {(copy,)}


@pytest.mark.parametrize("name", MOVED)
def test_kernels_of_either_graph_agree(name):
    f, shapes = MOVED[name]
    rng = np.random.default_rng(0)
    made = program(f, *(random_array(rng, s, F32) for s in shapes), variant=lambda _, o: graphs(flat(f, shapes), o)[-1])
    for found in enumerate_candidates(made.graph).fused:
        for value, got in numpied(made.graph, found.kernel, made.inputs(found.kernel)).items():
            agree(got, made.values[value], 1e-5)


def flat(f, shapes):
    return flatten(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(s, F32) for s in shapes)))


@pytest.mark.parametrize("f", [conv, lambda x, w: conv(jax.nn.relu(x), w), lambda x, w: conv(x.reshape(1, 4, 5, 3), w)])
def test_what_a_library_reads_in_place_is_left_alone(f):
    graph = lift(flat(f, [(1, 4, 5, 3), (3, 3, 3, 4)]))
    assert keep_images(graph, Options()) is graph


def weighed(order, spec):
    """A convolution by weights transposed so."""

    def f(x, w):
        return lax.conv_general_dilated(x, w.transpose(order), (1, 1), "SAME", dimension_numbers=("NHWC", spec, "NHWC"))

    return lift(flat(f, [(1, 4, 5, 3), (2, 3, 3, 3)]))


def test_weights_that_are_transposed_to_sum_along_their_last_axis_are_arrays():
    graph = keep_weights(weighed((0, 2, 3, 1), "OHWI"), Options())
    (copy,) = [n for n in graph.nodes if isinstance(n, Map)]
    assert dict(copy.params) == {"kept": True}
    assert copy.array.shape == (2, 3, 3, 3)


@pytest.mark.parametrize(("order", "spec"), [((2, 3, 1, 0), "HWIO"), ((0, 1, 2, 3), "OHWI"), ((1, 0, 2, 3), "IOHW")])
def test_other_weights_are_left_alone(order, spec):
    graph = weighed(order, spec)
    assert keep_weights(graph, Options()) is graph
