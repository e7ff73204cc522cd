"""Values that several kernels compute anew, none storing them: zeros and ones that products read, large functions."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxorch
from jaxorch.codegen.source import generate
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract, Map, Opaque, Reduce, Scatter, reads
from jaxorch.ir.value import Value
from jaxorch.kernels.configs import configurations
from jaxorch.options import Options
from jaxorch.orchestration import blp, pieces
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.orchestration.choice import Way
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.plan import Version, arguments
from jaxorch.orchestration.session import Session
from jaxorch.pipeline import optimized_graph, versions
from jaxorch.runtime.launch import check
from jaxorch.target import Target
from tests.codegen.drive import agree, interpreted, numpied, program
from tests.codegen.test_body import check_numpy, operands_of, programs, relaxed
from tests.orchestration.test_candidates import check as check_candidates

BF16, F32 = ml_dtypes.bfloat16, np.float32


def dispatched(place, chosen, gates, slots):
    """Tokens' places in the slots of their experts, bare and weighed: two products that share an operand."""
    slot = jax.nn.one_hot(place, slots, dtype=gates.dtype)
    return tuple(jnp.einsum("tke,tkc->tec", x, slot) for x in (chosen, gates))


def embedded(place, table, between=jnp.tanh):
    """A product whose result the second product of the same operand reads, as in a step of training."""
    hot = jax.nn.one_hot(place, table.shape[0], dtype=table.dtype)
    return hot.T @ between(hot @ table)


def routed(rng, tokens, experts, slots, dtype):
    """Operands of `dispatched`, two experts to a token; some places are beyond the last slot."""
    place = rng.integers(0, slots + 2, (tokens, 2)).astype(np.int32)
    chosen, gates = ((rng.integers(-8, 9, (tokens, 2, experts)) / 8).astype(dtype) for _ in range(2))
    return place, chosen, gates


def shared_value(graph):
    """What both products read."""
    first, second = (n for n in graph.nodes if isinstance(n, Contract))
    (value,) = {v.pieces[0].value for v in first.operands} & {v.pieces[0].value for v in second.operands}
    return value


def products(graph, fused):
    return [n for n in fused.nodes if isinstance(graph.nodes[n], Contract)]


def drawn_operands(seed=0, tokens=6, experts=3, slots=5, dtype=F32):
    return routed(np.random.default_rng(seed), tokens, experts, slots, dtype)


def test_both_products_may_compute_what_they_share_and_store_it_or_not():
    made = program(partial(dispatched, slots=5), *drawn_operands())
    hot = shared_value(made.graph)
    ways = {}
    for fused in check_candidates(made.graph).fused:
        if hot.node in fused.nodes and products(made.graph, fused):
            ways.setdefault(tuple(products(made.graph, fused)), set()).add(hot in fused.outputs)
    assert list(ways.values()) == [{True, False}] * 2


def test_a_product_that_waits_for_another_computes_what_they_share_but_does_not_store_it():
    made = program(embedded, np.arange(6, dtype=np.int32) % 4, np.ones((5, 3), F32))
    hot = shared_value(made.graph)
    first, second = (n for n, node in enumerate(made.graph.nodes) if isinstance(node, Contract))
    found = [f for f in check_candidates(made.graph).fused if hot.node in f.nodes]
    assert {hot in f.outputs for f in found if products(made.graph, f) == [first]} == {True, False}
    assert {hot in f.outputs for f in found if products(made.graph, f) == [second]} == {False}


@pytest.mark.parametrize(
    "make",
    [
        lambda p, y: jnp.tanh(p)[:, :, None] * jnp.arange(5.0),  # not cheap
        lambda p, y: p[:, :, None] + y,  # reads more than it writes
    ],
)
def test_what_costs_more_to_redo_is_stored(make):
    def f(p, y, a, b):
        shared = make(p, y)
        return tuple(jnp.einsum("tke,tkc->tec", x, shared) for x in (a, b))

    rng = np.random.default_rng(0)
    shapes = (6, 2), (6, 2, 5), (6, 2, 3), (6, 2, 3)
    made = program(f, *(rng.standard_normal(s).astype(F32) for s in shapes))
    value = shared_value(made.graph)
    for fused in check_candidates(made.graph).fused:
        assert value in fused.outputs or value.node not in fused.nodes


def test_what_is_returned_is_stored():
    def f(place, chosen, gates):
        slot = jax.nn.one_hot(place, 5, dtype=F32)
        return slot, *(jnp.einsum("tke,tkc->tec", x, slot) for x in (chosen, gates))

    made = program(f, *drawn_operands())
    value = shared_value(made.graph)
    for fused in check_candidates(made.graph).fused:
        assert value in fused.outputs or value.node not in fused.nodes


def test_what_is_written_into_is_stored():
    """The base of a scatter, which XLA or a kernel writes in place."""

    def f(x, rows, y, a, b):
        base = x * 2
        return base.at[rows].add(y, unique_indices=True), a @ base, b @ jnp.abs(base)

    shapes = (6, 8), (3, 8), (4, 6), (4, 6)
    x, y, a, b = (np.random.default_rng(0).standard_normal(s).astype(F32) for s in shapes)
    made = program(f, x, np.array([4, 0, 2]), y, a, b)
    (base,) = (n.base for n in made.graph.nodes if isinstance(n, Scatter))
    for fused in enumerate_candidates(made.graph).fused:
        assert base in fused.outputs or base.node not in fused.nodes


@settings(relaxed, max_examples=15)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([F32, BF16]),
    st.integers(0, 9),
    st.booleans(),
)
def test_kernels_that_redo_compute_what_lax_does(tokens, experts, slots, dtype, seed, together):
    """All candidates by the NumPy handler and by the interpreter, their stores counted; the sums are exact."""
    place, chosen, gates = drawn_operands(seed, tokens, experts, slots, dtype)
    if together:
        made = program(partial(dispatched, slots=slots), place, chosen, gates)
    else:
        made = program(partial(embedded, between=jnp.negative), place[:, 0], chosen[0])
    for fused in enumerate_candidates(made.graph).fused:
        kernel = fused.kernel
        first = configurations(made.graph, kernel)[0]
        inputs = made.inputs(kernel)
        for outputs in numpied(made.graph, kernel, inputs), interpreted(made.graph, kernel, first, inputs):
            for value, got in outputs.items():
                agree(got, made.values[value], 0)


@settings(relaxed, max_examples=25)
@given(programs(steps=9), st.integers(0, 9))
def test_drawn_programs_that_redo_all_they_may(drawn, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_LARGE", 0)
        check_candidates(program(drawn.run, *operands_of(drawn, seed), x64=True).graph)
        check_numpy(drawn, seed)


def gated(x, up, gate, down):
    """The gradient of a gated layer: its backward pass reads the gate's sigmoid, and the product of both."""
    return jax.grad(lambda x: ((jax.nn.silu(x @ gate) * (x @ up)) @ down).astype(F32).var())(x)


@pytest.mark.parametrize(("tokens", "stored"), [(64, True), (8192, False)])
def test_functions_of_large_arrays_are_redone(tokens, stored):
    matrix = jax.ShapeDtypeStruct((1024, 1024), BF16)
    way = chosen_way(gated, (jax.ShapeDtypeStruct((tokens, 1024), BF16), matrix, matrix, matrix))
    (sigmoid,) = (k for k, n in enumerate(way.graph.nodes) if isinstance(n, Map) and n.op == "logistic")
    (gate,) = reads(way.graph.nodes[sigmoid])
    functions = {Value(sigmoid)}  # of the gate alone
    functions |= {Value(k) for k, n in enumerate(way.graph.nodes) if set(reads(n)) == {gate, Value(sigmoid)}}
    assert len(functions) == 2
    chosen = [way.choice.candidates[k] for k in way.choice.solution.chosen]
    assert [not functions.isdisjoint(c.outputs) for c in chosen].count(True) == stored
    assert sum(sigmoid in c.nodes for c in chosen) == (1 if stored else 2)


def matrices(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(F32) / 4 for s in shapes]


@pytest.mark.parametrize(
    ("f", "operands"),
    [
        (gated, matrices((16, 32), (32, 24), (32, 24), (24, 32))),
        (partial(dispatched, slots=5), drawn_operands()),
        (embedded, [np.arange(9, dtype=np.int32) % 5, *matrices((4, 8))]),
    ],
    ids=["gated", "dispatched", "embedded"],
)
def test_plans_that_redo_give_what_jit_gives(f, operands, monkeypatch, kernels_win):
    """Interpreted as planned; every array counts as large."""
    monkeypatch.setattr(pieces, "_LARGE", 0)
    optimised = jaxorch.optimize(f, options=Options(backend="interpret", fallback="error"))
    report = jaxorch.explain(optimised, *operands)
    nodes = [name for kernel in report.kernels for name in kernel.primitives if name in ("logistic", "eq")]
    assert len(nodes) > 1  # in two kernels
    found, expected = (jax.tree.leaves(run(*operands)) for run in (optimised, jax.jit(f)))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def specs(tokens, dtype=BF16):
    wide = jax.ShapeDtypeStruct((tokens, 2, 8), dtype)
    return jax.ShapeDtypeStruct((tokens, 2), np.int32), wide, wide


def chosen_way(f, operands):
    trace, options = flatten(jax.make_jaxpr(f)(*operands)), Options(device="h200", effort="fast")
    session = Session(options, Target("cuda", "h200", live=False), partial(versions, options=options))
    return Way(Version(trace, optimized_graph(trace, options)), session)


def test_the_plan_stores_none_of_it():
    way = chosen_way(partial(dispatched, slots=5120), specs(16384))
    hot, choice = shared_value(way.graph), way.choice
    kernels = [choice.options[k] for k in choice.solution.chosen]
    assert choice.solution.peak == 0
    assert sum(hot.node in kernel.nodes for kernel in kernels) == 2
    # as many bytes less, written and read, as it has
    stored = [c for c in choice.candidates if hot in c.outputs or hot.node not in c.nodes]
    expensive = [k for k, n in enumerate(way.graph.nodes) if isinstance(n, Contract | Reduce | Opaque)]
    before = blp.solve(stored, choice.required, expensive)
    moved = 2 * way.graph.array(hot).nbytes / device("h200").memory_bandwidth * 1e6
    assert before.cost - choice.solution.cost == pytest.approx(moved, rel=0.05)


def test_a_kernel_that_redoes_compiles_without_spills():
    graph = optimized_graph(flatten(jax.make_jaxpr(partial(dispatched, slots=5120))(*specs(16384))), Options())
    hot = shared_value(graph)
    redoing = [f for f in enumerate_candidates(graph).fused if hot.node in f.nodes and hot not in f.outputs]
    assert len(redoing) == 2
    for fused in redoing:
        source = generate(graph, fused.kernel, configurations(graph, fused.kernel)[0], arch=90)
        limit = device("h200").shared_per_block
        assert check(source, *arguments(graph, fused.kernel), arch=90, shared_limit=limit).spill_bytes == 0
