"""Candidates: XLA's cover everything, generated ones are convex, read what they need and store what is wanted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.codegen.source import generate
from jaxorch.ir.graph import Const, Contract, Graph, Input, Map, Opaque, Reduce, outputs_of, reads
from jaxorch.ir.view import Value
from jaxorch.kernels.configs import configurations
from jaxorch.orchestration import blp, growth
from jaxorch.orchestration.candidates import Enumeration, enumerate_candidates
from jaxorch.orchestration.plan import arguments
from tests.codegen.drive import program
from tests.codegen.test_body import operands_of, programs, relaxed

F32 = np.float32


def graph_of(f, *shapes):
    return program(f, *(np.zeros(s, F32) for s in shapes)).graph


def computing(graph: Graph) -> set[int]:
    return {k for k, n in enumerate(graph.nodes) if isinstance(n, Map | Reduce | Contract | Opaque)}


def required(graph: Graph) -> list[Value]:
    return [v for v in dict.fromkeys(graph.outputs) if not isinstance(graph.nodes[v.node], Input | Const)]


def ancestors(graph: Graph) -> list[set[int]]:
    """For each node, the nodes it needs."""
    found: list[set[int]] = []
    for node in graph.nodes:
        found.append(set().union(*({v.node} | found[v.node] for v in reads(node))))
    return found


def internal(graph: Graph, values) -> set[Value]:
    return {v for v in values if not isinstance(graph.nodes[v.node], Input | Const)}


def check(graph: Graph) -> Enumeration:
    """Everything that every enumeration promises."""
    found = enumerate_candidates(graph)
    assert enumerate_candidates(graph) == found
    above = ancestors(graph)
    assert set().union(*(left.nodes for left in found.left)) == computing(graph)
    for fused in found.fused:
        nodes, stored = set(fused.kernel.nodes), {o.value for o in fused.kernel.outputs}
        assert all(isinstance(graph.nodes[n], Map | Reduce | Contract) for n in nodes)
        read = {v for n in nodes for v in reads(graph.nodes[n])}
        assert set(fused.inputs) == internal(graph, {v for v in read if v.node not in nodes})
        assert internal(graph, fused.kernel.inputs) <= set(fused.inputs)
        # convex: no input waits for an output
        assert not any(({v.node} | above[v.node]) & {o.node for o in stored} for v in fused.inputs)
        assert all(v.node in nodes for v in stored)
        assert stored
    assert len({(f.kernel.nodes, f.kernel.outputs) for f in found.fused}) == len(found.fused)
    same_structure_same_source(graph, found)
    assert all(reason for reason in found.rejected.values())
    solvable(graph, found)
    return found


def same_structure_same_source(graph: Graph, found: Enumeration) -> None:
    """One source serves all kernels of a structure, so each of them must generate it, for arguments of equal types."""
    sources: dict[str, tuple[str, list[object]]] = {}
    for fused in found.fused:
        config = configurations(graph, fused.kernel)[-1]
        source = generate(graph, fused.kernel, config, arch=90).text, arguments(graph, fused.kernel)
        assert sources.setdefault(fused.structure, source) == source


def solvable(graph: Graph, found: Enumeration) -> None:
    """XLA's candidates alone are a plan, and so is the best choice among all."""
    left = [blp.Candidate(c.nodes, c.inputs, c.outputs, 1.0) for c in found.left]
    fused = [
        blp.Candidate(f.kernel.nodes, f.inputs, tuple(o.value for o in f.kernel.outputs), 1.0) for f in found.fused
    ]
    expensive = [k for k, n in enumerate(graph.nodes) if isinstance(n, Opaque | Reduce | Contract)]
    if required(graph):
        blp.check(blp.greedy(left, required(graph), expensive), left, required(graph))
        every = fused + left
        solution = blp.solve(every, required(graph), expensive)
        blp.check(solution, every, required(graph))
        assert solution.cost <= blp.greedy(left, required(graph), expensive).cost


def layer_norm(x, g, b):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * g + b


def attention(x, w):
    q, k, v = jnp.split(x @ w, 3, -1)
    return jax.nn.softmax(q @ k.swapaxes(-1, -2), -1) @ v + x


def swapped(x, y, z):
    return jax.nn.softmax(x - 2 * z), jax.nn.softmax(z - 2 * y), jnp.tanh(y - 2 * x), jnp.tanh(x - 2 * z)


PROGRAMS = {
    "softmax": (jax.nn.softmax, [(4, 6)]),
    "layer_norm": (layer_norm, [(4, 6), (6,), (6,)]),
    "attention": (attention, [(5, 8), (8, 24)]),
    "siblings": (lambda x: (jnp.sin(x), jnp.cos(x), x.sum(-1), x.max(-1)), [(4, 6)]),
    "diamond": (lambda x: (lambda y: jnp.sort(y) + jnp.exp(y))(jnp.tanh(x)), [(4, 6)]),
    "two norms": (
        lambda x, g, b: layer_norm(jax.nn.softmax(layer_norm(x, g, b) @ x.T) @ x, g, b),
        [(4, 6), (6,), (6,)],
    ),
    "swapped operands": (swapped, [(4, 6)] * 3),
    "layers": (
        lambda g, b, x: layer_norm(jnp.sort(layer_norm(jnp.sort(layer_norm(x, g, b)), b, g)), g, g),
        [(6,), (6,), (4, 6)],
    ),
    "outputs in between": (lambda x: (y := jnp.exp(x), z := y.sum(-1), jnp.log(z)), [(4, 6)]),
    "nothing": (lambda x: x, [(4, 6)]),
    "constants": (lambda x: (x, jnp.float32(2.0), jnp.zeros(3)), [(4, 6)]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_enumeration(name):
    f, shapes = PROGRAMS[name]
    check(graph_of(f, *shapes))


@settings(relaxed, max_examples=25)
@given(programs(steps=9), st.integers(0, 9))
def test_enumerations_of_drawn_programs(drawn, seed):
    check(program(drawn.run, *operands_of(drawn, seed), x64=True).graph)


def node_sets(found):
    return {f.kernel.nodes for f in found.fused}


@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_a_norm_is_one_candidate(name):
    f, shapes = PROGRAMS[name]
    graph = graph_of(f, *shapes)
    assert tuple(sorted(computing(graph))) in node_sets(check(graph))


def test_maps_join_their_only_reader():
    graph = graph_of(lambda x: jnp.sin(jnp.exp(jnp.tanh(x))).sum(-1), (4, 6))
    found = check(graph)
    assert node_sets(found) == {tuple(sorted(computing(graph)))}


def test_a_returned_map_is_a_piece_of_its_own():
    graph = graph_of(lambda x: (y := jnp.tanh(x), jnp.exp(y).sum(-1)), (4, 6))
    found = check(graph)
    assert (graph.outputs[0].node,) in node_sets(found)


def test_siblings_share_a_kernel():
    graph = graph_of(*[PROGRAMS["siblings"][0], (4, 6)])
    found = check(graph)
    most = max(found.fused, key=lambda f: len(f.kernel.outputs))
    assert len(most.kernel.outputs) == 4


def test_cheap_maps_are_computed_by_each_reader():
    graph = graph_of(lambda x: (lambda y: (jnp.exp(y).sum(0), jnp.exp(-y).sum(1)))(x + 1.0), (4, 6))
    (cheap,) = (k for k, n in enumerate(graph.nodes) if isinstance(n, Map) and n.op == "add")
    alone = [
        f.kernel for f in check(graph).fused if sum(isinstance(graph.nodes[n], Reduce) for n in f.kernel.nodes) == 1
    ]
    assert all(cheap in k.nodes for k in alone)


def test_a_path_through_xla_is_not_fused_across():
    graph = graph_of(*[PROGRAMS["diamond"][0], (4, 6)])
    tanh, sort, exp = (
        next(k for k, n in enumerate(graph.nodes) if getattr(n, "op", getattr(n, "primitive", "")) == name)
        for name in ("tanh", "sort", "exp")
    )
    for fused in check(graph).fused:
        assert sort not in fused.kernel.nodes
        if tanh in fused.kernel.nodes and exp in fused.kernel.nodes:
            assert all(v.node != sort for v in fused.inputs)


def test_an_opaque_is_alone():
    graph = graph_of(lambda x: jnp.sort(jnp.tanh(x), -1) * 2, (5, 8))
    found = check(graph)
    opaque = {k for k, n in enumerate(graph.nodes) if isinstance(n, Opaque)}
    assert {left.nodes for left in found.left if opaque & set(left.nodes)} == {(k,) for k in opaque}
    for left in found.left:
        if left.nodes[0] in opaque:
            assert left.outputs == tuple(
                Value(left.nodes[0], o) for o in range(len(outputs_of(graph.nodes[left.nodes[0]])))
            )


def products(graph: Graph) -> list[int]:
    return [k for k, n in enumerate(graph.nodes) if isinstance(n, Contract)]


def test_xla_adds_a_bias_and_a_residual_to_its_products():
    def f(x, w, b, r):
        return x @ w + b + r

    graph = graph_of(f, (5, 8), (8, 6), (6,), (5, 6))
    assert (*products(graph), *(k for k, n in enumerate(graph.nodes) if isinstance(n, Map))) in {
        left.nodes for left in check(graph).left
    }
    shared = graph_of(lambda x, w, r: (x @ w, x @ w + r), (5, 8), (8, 6), (5, 6))
    assert all(len(left.nodes) == 1 for left in check(shared).left)


def test_what_lies_between_two_products_is_tried_as_one(monkeypatch):
    monkeypatch.setattr(growth, "BUDGET", 1)  # one set from each piece: none would grow into it
    graph = graph_of(lambda q, k, v: jax.nn.softmax(q @ k.T, -1) @ v, (5, 8), (7, 8), (7, 6))
    found = check(graph)
    assert [f.kernel.schedule for f in found.fused if len(products(graph)) == 2 and "online" in f.kernel.schedule]


def test_illegal_sets_are_rejected_with_a_reason():
    graph = graph_of(lambda x: (x - x.max(0), x.sum(1)), (6, 6))
    assert "outputs over different rows" in set(check(graph).rejected.values())


def test_a_large_graph_is_enumerated_within_the_budget(monkeypatch):
    def f(x):
        for k in range(12):
            x = jax.nn.softmax(x * k) + x
        return x

    monkeypatch.setattr(growth, "BUDGET", 4)
    found = enumerate_candidates(graph_of(f, (4, 6)))
    pieces = len(found.left)
    assert pieces >= 12
    assert len(found.fused) + len(found.rejected) <= 5 * pieces
