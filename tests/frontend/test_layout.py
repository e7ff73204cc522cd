"""Images in another order between convolutions: whose order changes, and that results stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxorch.ir.graph import Contract, Map
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.passes.derive.layout import features_last
from tests.codegen.drive import agree, numpied, program, random_array

F32 = np.dtype(np.float32)


def conv(x, w, s=1, df="NCHW", g=1):
    numbers = (df, "OIHW" if df == "NCHW" else "HWIO", df)
    return lax.conv_general_dilated(
        x, w, (s, s), "SAME", dimension_numbers=numbers, feature_group_count=g, precision=lax.Precision.HIGHEST
    )


def partial(x, w0, w1, w2):
    a, b = jnp.split(jax.nn.relu(conv(x, w0)), 2, 1)
    m = b + jax.nn.relu(conv(b, w1))
    return jax.nn.relu(conv(jnp.concatenate([a, b, m], 1), w2, 2))


def separable(x, wd, w):
    return conv(jax.nn.relu(conv(x, wd, g=6)), w)


def generator(x, w0, w1):
    numbers = ("NCHW", "OIHW", "NCHW")
    more = {"dimension_numbers": numbers, "precision": "highest"}
    y = jax.nn.relu(lax.conv_transpose(x, w0, (2, 2), "SAME", **more))
    return lax.conv_transpose(y, w1, (2, 2), "SAME", **more)


PROGRAMS = {
    "partial": (partial, [(2, 6, 4, 5), (8, 6, 1, 1), (4, 4, 3, 3), (5, 12, 3, 3)]),
    "separable": (separable, [(1, 6, 4, 5), (6, 1, 3, 3), (7, 6, 1, 1)]),
    "generator": (generator, [(1, 3, 2, 4), (5, 3, 4, 4), (2, 5, 4, 4)]),
}


def made(name):
    f, shapes = PROGRAMS[name]
    rng = np.random.default_rng(0)
    return program(f, *(random_array(rng, s, F32) for s in shapes), variant=features_last)


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_are_the_programs(name):
    found = made(name)
    for fused in enumerate_candidates(found.graph).fused:
        for value, got in numpied(found.graph, fused.kernel, found.inputs(fused.kernel)).items():
            agree(got, found.values[value], 1e-4)


def test_arrays_between_have_their_features_last():
    graph = made("partial").graph
    shapes = [n.array.shape for n in graph.nodes if isinstance(n, Contract)]
    assert shapes[:2] == [(2, 4, 5, 8), (2, 4, 5, 4)]
    assert all(not graph.variables(v) for n in graph.nodes if isinstance(n, Contract) for v in n.operands[1].values)
    assert [graph.array(v).shape for v in graph.outputs] == [(2, 5, 2, 3)]
    assert all(graph.variables(v) for v in graph.outputs)
    sums = [n.array.shape for n in graph.nodes if isinstance(n, Map) and n.op == "add"]
    assert sums == [(2, 4, 5, 4)]


def test_what_has_its_features_last_is_left_alone():
    f = lambda x, w: jax.nn.relu(conv(jax.nn.relu(conv(x, w, df="NHWC")), w, df="NHWC"))  # noqa: E731
    x, w = np.zeros((1, 4, 5, 3), F32), np.zeros((3, 3, 3, 3), F32)
    graph = program(f, x, w).graph
    assert features_last(graph, None) is graph


def test_a_convolution_that_is_returned_keeps_its_order():
    graph = program(conv, np.zeros((1, 3, 4, 5), F32), np.zeros((2, 3, 3, 3), F32)).graph
    assert features_last(graph, None) is graph
