"""Norms' factors are applied to products of few rows, not to their operands: where, and where not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxorch.ir.graph import Contract, Graph, Map, Reduce, reads
from jaxorch.ir.verify import verify
from jaxorch.options import Options
from jaxorch.passes.derive.arrange import arrange_operands
from jaxorch.passes.derive.scale import MOST_ROWS, scale_after_products
from tests.codegen.drive import program

BF16, F32 = jnp.bfloat16, jnp.float32


def rms(x, w, between=lambda y: y):
    v = jnp.mean(jnp.square(x.astype(F32)), -1, keepdims=True)
    return between(x.astype(F32) * lax.rsqrt(v + 1e-5)).astype(x.dtype) * w


def graph_of(f, *arrays) -> Graph:
    return program(f, *arrays).graph


def operands(rows=4, dtype=BF16, depth=32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in ((rows, depth), (depth,), (depth, 8))]


def waits(graph: Graph) -> list[bool]:
    """For each product, whether one of its operands is made of a reduction."""

    def reduced(value) -> bool:
        node = graph.nodes[value.node]
        return isinstance(node, Reduce) or (isinstance(node, Map) and any(map(reduced, reads(node))))

    return [any(map(reduced, reads(node))) for node in graph.nodes if isinstance(node, Contract)]


TAKEN = {
    "rounded before the weight": lambda x, w, m: rms(x, w) @ m,
    "the product's right operand": lambda x, w, m: m.T @ rms(x, w).T,
    "two products of one norm": lambda x, w, m: (rms(x, w) @ m, rms(x, w) @ (m + 1)),
    "a quotient": lambda x, w, m: (x / jnp.sum(jnp.abs(x), -1, keepdims=True)) @ m,
    "no weight": lambda x, w, m: (
        (x.astype(F32) * lax.rsqrt(jnp.sum(x.astype(F32) ** 2, -1, keepdims=True))) @ m.astype(F32)
    ),
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_the_product_does_not_wait(name, dtype):
    graph = graph_of(TAKEN[name], *operands(dtype=dtype))
    verify(graph)
    assert not any(waits(graph))
    assert all(node.array.dtype == np.float32 for node in graph.nodes if isinstance(node, Contract))
    assert scale_after_products(graph, Options()) is graph


def looked_up(table, ids, w):
    """The second product reads rows at places that are computed after the first one's factor has moved."""
    places = (lambda: slice(4), lambda: (ids * 3 + ids) % 9)
    rows = (table[place()] for place in places)
    return tuple((x * lax.rsqrt((x * x).sum(-1, keepdims=True))) @ w for x in rows)


def test_what_indices_look_up_is_found_among_the_new_nodes():
    x, _, w = operands(9, F32)
    made = program(looked_up, x, np.array([1, 5, 2, 8], np.int32), w)
    assert not any(waits(made.graph))
    for value, want in zip(made.graph.outputs, looked_up(x, jnp.array([1, 5, 2, 8]), w), strict=True):
        np.testing.assert_allclose(made.values[value], want, atol=1e-4)


def test_a_product_is_no_convolution_afterwards():
    graph = graph_of(TAKEN["the product's right operand"], *operands())
    assert not any(node.convolves for node in graph.nodes if isinstance(node, Contract))
    assert arrange_operands(graph, Options()) is graph  # what it reads now was never traced


LEFT = {
    "many rows": (lambda x, w, m: rms(x, w) @ m, {"rows": MOST_ROWS + 1}),
    "float16": (lambda x, w, m: rms(x, w) @ m, {"dtype": jnp.float16}),
    "something between": (lambda x, w, m: rms(x, w, jnp.tanh) @ m, {}),
    "another reader": (lambda x, w, m: (rms(x, w) @ m, rms(x, w).sum()), {}),
    "an output": (lambda x, w, m: (rms(x, w) @ m, rms(x, w)), {}),
    "a factor of every element": (lambda x, w, m: (x * jnp.tanh(x)) @ m, {}),
    "a mean of others": (lambda x, w, m: (x * x.mean(0)) @ m, {}),
    "a softmax between products": (lambda x, w, m: jax.nn.softmax(x @ x.T, -1) @ x, {}),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone(name):
    f, changes = LEFT[name]
    made = graph_of(f, *operands(**changes))
    contracts = [node for node in made.nodes if isinstance(node, Contract)]
    assert contracts
    assert all(node.origin.variables for node in contracts)  # as traced
