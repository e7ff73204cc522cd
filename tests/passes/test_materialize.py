"""Copies that a graph gets where reads are uncoalesced and repeated: where, with which results, and when chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxorch
from jaxorch import Options, pipeline
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Map, operands_of
from jaxorch.ir.index import Dim
from jaxorch.ir.verify import verify
from jaxorch.kernels.configs import configurations
from jaxorch.orchestration import choice, planner
from jaxorch.orchestration.session import Session
from jaxorch.passes.derive import materialize as module
from jaxorch.passes.derive.materialize import MOST_COPIES, materialize
from jaxorch.pipeline import graphs, optimized_graph, planned, versions
from jaxorch.target import Target
from tests.codegen.drive import agree, interpreted, kernels_of, numpied, program, random_array

F32 = np.float32
S = jax.ShapeDtypeStruct
softmax = jax.nn.softmax


def array(*shape, dtype=F32, seed=0):
    return random_array(np.random.default_rng(seed), shape, dtype)


def traced(f, *specs):
    return optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())


def copies(graph):
    return [k for k, n in enumerate(graph.nodes) if isinstance(n, Map) and n.op == "copy"]


def read(graph, number):
    """The views that read a node."""
    return [v for n in graph.nodes for v in operands_of(n) if v.pieces[0].value.node == number]


def check(f, *arrays):
    """Each kernel of the graph with copies gives what lax gives."""
    made = program(f, *arrays, variant=materialize)
    verify(made.graph)
    for kernel in kernels_of(made.graph):
        inputs = made.inputs(kernel)
        for value, got in numpied(made.graph, kernel, inputs).items():
            agree(got, made.values[value], 1e-5)
        for value, got in interpreted(made.graph, kernel, configurations(made.graph, kernel)[0], inputs).items():
            agree(got, made.values[value], 1e-5)
    return made.graph


BIG, SQUARE = S((8, 1024, 1024), F32), S((1024, 1024), F32)
COPIED = {
    "a transposed operand repeated": (lambda a, b: softmax(a + b.T), (BIG, SQUARE), (1024, 1024)),
    "in the order of a reduction": (
        lambda a, b: jnp.max(a[:, None] + b.T[None], -1),
        (S((64, 2048), F32), S((2048, 512), F32)),
        (512, 2048),
    ),
    "a map of it repeated": (lambda a, b: a * jnp.tanh(b.T), (BIG, SQUARE), (1024, 1024)),
    "two readers": (
        lambda a, b: (softmax(a.T), jnp.tanh(a.T) * b),
        (S((8192, 1024), F32), S((1024, 8192), F32)),
        (1024, 8192),
    ),
    "every eighth column": (lambda a, b: a * b[:, ::8], (S((64, 512, 512), F32), S((512, 4096), F32)), (512, 512)),
    "runs of four": (
        lambda a, b: a * b.reshape(64, 4096, 4).swapaxes(0, 1),
        (S((8, 4096, 64, 4), F32), S((64, 16384), F32)),
        (4096, 64, 4),
    ),
}
VIRTUAL = {
    "small": (lambda a, b: softmax(a + b.T), (S((8, 256, 256), F32), S((256, 256), F32))),
    "read once": (lambda a, b: a + jnp.tanh(b.T), (SQUARE, SQUARE)),
    "in order": (lambda a, b: softmax(a + b), (BIG, SQUARE)),
    "repeated along the fastest axis": (lambda a, b: a + b.T[..., None], (S((1024, 1024, 8), F32), SQUARE)),
    "runs of eight": (
        lambda a, b: a * b.reshape(64, 4096, 8).swapaxes(0, 1),
        (S((8, 4096, 64, 8), F32), S((64, 32768), F32)),
    ),
    "backwards": (lambda a, b: a * b[:, ::-1], (BIG, SQUARE)),
    "windows": (lambda a: lax.reduce_window(a.T, -jnp.inf, lax.max, (3, 3), (1, 1), "VALID"), (SQUARE,)),
    "of two arrays": (lambda a, b: a * jnp.concatenate([b, b * 2]).T, (S((8, 1024, 2048), F32), SQUARE)),
    "rows at run time": (lambda a, b, i: a * b[i].T, (BIG, SQUARE, S((1024,), np.int32))),
    "read by XLA": (lambda a, b: (jnp.sort(b.T), jnp.cumsum(b.T, 1)), (SQUARE, SQUARE)),
}


@pytest.mark.parametrize("name", COPIED)
def test_copied(name):
    f, specs, shape = COPIED[name]
    before = traced(f, *specs)
    graph = materialize(before, Options())
    verify(graph)
    (number,) = set(copies(graph)) - set(copies(before))
    assert graph.nodes[number].array.shape == shape
    assert read(graph, number)
    for view in read(graph, number):
        assert all(isinstance(e, Dim) for e in view.pieces[0].index)


@pytest.mark.parametrize("name", VIRTUAL)
def test_not_copied(name):
    f, specs = VIRTUAL[name]
    graph = traced(f, *specs)
    assert materialize(graph, Options()) is graph


def test_the_copies_are_those_of_what_is_read_most():
    def f(*arrays):
        return tuple(a + b.T for a, b in zip(arrays[::2], arrays[1::2], strict=True))

    sizes = [3, 7, 4, 9, 2, 8]
    specs = [s for n in sizes for s in (S((n, 512, 1024), F32), S((1024, 512), F32))]
    graph = materialize(traced(f, *specs), Options())
    found = {graph.nodes[graph.nodes[k].operands[0].pieces[0].value.node].position // 2 for k in copies(graph)}
    assert len(found) == MOST_COPIES < len(sizes)
    assert found == {1, 3, 5, 2}


# Results


@st.composite
def readers(draw):
    """A matrix, how it is turned, how often it is repeated, and by whom."""
    rows, columns, times = draw(st.integers(1, 5)), draw(st.integers(2, 5)), draw(st.integers(1, 3))
    step = draw(st.integers(1, 3))
    return rows, columns, times, step, draw(st.lists(st.sampled_from(sorted(_READERS)), min_size=1, max_size=3))


_READERS = {
    "rows": lambda a, b: softmax(a + b),
    "columns": lambda a, b: (a * b).sum(0),
    "map": lambda a, b: a * jnp.tanh(b),
    "first": lambda a, b: (a - b).max(1),
    "itself": lambda a, b: b + 1,
}


@pytest.mark.slow
@settings(max_examples=40)
@given(readers())
def test_random_readers(case):
    rows, columns, times, step, found = case

    def f(a, b):
        return tuple(_READERS[name](a, b[::step].T) for name in found)

    b = array(columns * step, rows, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGE", 0)
        check(f, array(times, rows, columns), b)


def test_end_to_end(monkeypatch, kernels_win):
    monkeypatch.setattr(module, "LARGE", 0)
    made = []

    def only_copied(trace, options):
        made.append(materialize(optimized_graph(trace, options), options))
        return (made[-1],)

    monkeypatch.setattr(pipeline, "graphs", only_copied)
    f = lambda a, b: (softmax(a + b.T), (a * b.T).sum(-1))  # noqa: E731
    a, b = array(3, 4, 10), array(10, 4, seed=1)
    found = jaxorch.optimize(f, options=Options(backend="interpret", fallback="error"))(a, b)
    assert copies(made[-1])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, jax.jit(f)(a, b))


# The choice


def plan_of(name):
    f, specs = COPIED[name][:2]
    plan = planned(jax.make_jaxpr(f)(*specs), Options(effort="fast", device="h200"), Target("cuda", "h200", False))
    copied = copies(plan.graph)
    return plan, [s for s in plan.kernels if any(o.value.node in copied for o in s.kernel.outputs)]


def test_the_copy_is_a_kernel_where_rows_read_it_again_and_again():
    plan, (copying,) = plan_of("a transposed operand repeated")
    assert copying.kernel.nodes == tuple(copies(plan.graph))
    assert len(plan.kernels) == len(plan.steps) == 2


def test_the_copy_is_stored_by_the_kernel_that_has_it_in_tiles_anyway():
    plan, (copying,) = plan_of("two readers")
    assert len(copying.kernel.outputs) == 2
    assert len(plan.kernels) == len(plan.steps) == 2


@pytest.mark.parametrize("name", ["a map of it repeated", "runs of four", "in the order of a reduction"])
def test_no_copy_is_chosen_where_tiles_are_coalesced_or_xla_is_as_fast(name):
    assert not plan_of(name)[1]


def test_it_is_one_of_the_graphs_and_last_of_all():
    f, specs = COPIED["a transposed operand repeated"][:2]
    first, *others = graphs(flatten(jax.make_jaxpr(f)(*specs)), Options())
    assert not copies(first)
    assert [len(copies(g)) for g in others] == [1]


def test_a_graph_that_comes_to_the_same_kernels_makes_no_plan_of_its_own():
    def ways(name):
        f, specs = COPIED[name][:2]
        target = Target("cuda", "h200", False)
        session = Session(Options(effort="fast", device="h200"), target, lambda t: versions(t, Options()))
        trace = flatten(jax.make_jaxpr(f)(*specs))
        made = [choice.Way(version, session) for version in versions(trace, Options())]
        return [(way, way.steps()) for way in made]

    same, other = ways("a map of it repeated"), ways("two readers")
    assert planner._distinct(same) == same[:1]
    assert planner._distinct(other) == other
