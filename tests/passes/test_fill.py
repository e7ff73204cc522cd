"""Arrays filled by several kernels: each element written once, results as lax has them, and when it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxorch
from jaxorch import Options, pipeline
from jaxorch.errors import CompileError, PlanError
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Map, Opaque, Scatter, is_empty
from jaxorch.ir.region import unfilled
from jaxorch.ir.verify import verify
from jaxorch.ir.view import Value
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.kernel import aliases
from jaxorch.orchestration import choice
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.passes.derive.fill import MOST_WRITES, fill_by_pieces
from jaxorch.pipeline import graphs, optimized_graph, planned
from jaxorch.target import Target
from tests.codegen.drive import agree, counted, kernels_of, numpied, program, random_array

F32 = np.float32
S = jax.ShapeDtypeStruct
softmax = jax.nn.softmax


def array(*shape, dtype=F32, seed=0):
    return random_array(np.random.default_rng(seed), shape, dtype)


def check(f, *arrays, tolerance=1e-5):
    """The filling graph of `f`: every candidate kernel gives what lax gives, the writes of a chain meet nowhere."""
    made = program(f, *arrays, variant=fill_by_pieces)
    graph = made.graph
    verify(graph)
    roots = unfilled(graph.nodes)
    stored = {k: np.zeros(node.array.shape, int) for k, node in enumerate(graph.nodes) if is_empty(node)}
    done = set()
    for kernel in kernels_of(graph):
        inputs = made.inputs(kernel)
        for value, got in numpied(graph, kernel, inputs).items():
            agree(got, made.values[value], tolerance)
        for value, (got, count) in counted(graph, kernel, configurations(graph, kernel)[0], inputs).items():
            agree(got, made.values[value], tolerance)
            node = graph.nodes[value.node]
            if isinstance(node, Scatter) and value not in done and node.base.node in roots:
                done.add(value)
                stored[roots[node.base.node]] += count
    assert all((count == 1).all() for count in stored.values())
    return graph


def writes(graph):
    return [n for n in graph.nodes if isinstance(n, Scatter)]


# Spellings: a function, arguments, and how many writes fill its array

A, B = array(5, 6), array(3, 6, seed=1)
FILLED = {
    "concatenated rows": (lambda a, b: jnp.concatenate([softmax(a), softmax(b)], 0), (A, B), 2),
    "concatenated columns": (lambda a, b: jnp.concatenate([softmax(a), softmax(b)], 1), (A, array(5, 9)), 2),
    "three and a map": (lambda a, b: jnp.concatenate([softmax(a), jnp.tanh(b), softmax(b), a], 0), (A, B), 4),
    "a reduction repeated": (
        lambda a: jnp.concatenate([jnp.broadcast_to(a.sum(-1, keepdims=True), (5, 4)), jnp.tanh(a)], -1),
        (A,),
        2,
    ),
    "stacked first": (lambda a: jnp.stack([softmax(a), softmax(a * 2), softmax(a, 0)]), (A,), 3),
    "stacked last": (lambda a: jnp.stack([softmax(a), a - a.max(1, keepdims=True)], -1), (A,), 2),
    "interleaved rows": (lambda a: jnp.stack([softmax(a), a - 1], 1).reshape(10, 6), (A,), 2),
    "padded": (lambda a: jnp.pad(softmax(a), ((1, 2), (3, 0))), (A,), 4),
    "padded between": (lambda a: lax.pad(softmax(a), F32(2), ((1, 0, 1), (0, 0, 0))), (A,), 2),
    "sums": (lambda a, b: jnp.concatenate([a.sum(1), b.max(1)]), (A, B), 2),
    "the whole row too": (lambda a, b: (softmax(a), jnp.concatenate([softmax(a), softmax(b)], 0)), (A, B), 2),
    "booleans": (lambda a: jnp.concatenate([a.any(1), a[:, 0]]), (A > 0,), 2),
    "products": (
        lambda x, w, v: jnp.concatenate([jnp.tanh(x @ w), x @ v], -1),
        (array(20, 16), array(16, 32, seed=1), array(16, 40, seed=2)),
        2,
    ),
    "a product and rows": (
        lambda x, w, y: jnp.concatenate([x @ w + 1, softmax(y)], 0),
        (array(20, 16), array(16, 24, seed=1), array(6, 24, seed=2)),
        2,
    ),
    "a slice of a row": (lambda a, b: jnp.concatenate([softmax(a)[1:4, ::2], b[:, :3]], 0), (A, B), 2),
    "16 bits": (
        lambda a, b: jnp.concatenate([softmax(a), softmax(b)], 0),
        (A.astype(jnp.bfloat16), B.astype(jnp.bfloat16)),
        2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILLED)
def test_filled(name):
    f, args, count = FILLED[name]
    graph = check(f, *args, tolerance=1e-2 if name == "16 bits" else 1e-5)
    assert len(writes(graph)) == count
    assert not any(isinstance(n, Map) and n.op == "copy" for n in graph.nodes)


NOT_FILLED = {
    "maps": (lambda a, b: jnp.concatenate([jnp.tanh(a), b * 2], 0), (A, B)),
    "one source": (lambda a, b: jnp.roll(softmax(a), 2, 0), (A, B)),
    "read, not stored": (lambda a, b: jnp.concatenate([softmax(a), softmax(b)], 0) * 2, (A, B)),
    "places known at run time": (
        lambda a, p: lax.dynamic_update_slice(softmax(a), a[:1] * 2, (p, 0)),
        (A, np.int32(2)),
    ),
    "triangles": (lambda a, b: jnp.where(jnp.tri(5, 6, dtype=bool), softmax(a), 0), (A, B)),
    "many pieces": (lambda a, b: jnp.concatenate([softmax(a)] * (MOST_WRITES + 1), 0), (A, B)),
}


@pytest.mark.parametrize("name", NOT_FILLED)
def test_left_as_it_is(name):
    f, args = NOT_FILLED[name]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*args)), Options())
    assert fill_by_pieces(graph, Options()) is graph


def test_products_store_what_is_made_of_them_in_its_place():
    f, args, _ = FILLED["products"]
    graph = program(f, *args, variant=fill_by_pieces).graph
    found = [k for k in kernels_of(graph) if k.schedule == "gemm" and aliases(graph, k)]
    assert {k.outputs[0].value.node for k in found} == {k for k, n in enumerate(graph.nodes) if isinstance(n, Scatter)}
    assert all(c.splits == 1 for k in found for c in configurations(graph, k))


# Random joins


@st.composite
def joins(draw):
    """Pieces by what computes them, how they are joined, and what is done to the join."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    kinds = draw(st.lists(st.sampled_from(["softmax", "sum", "max", "map", "input"]), min_size=1, max_size=3))
    join = draw(st.sampled_from(["concatenate", "stack", "interleave"]))
    axis = draw(st.integers(0, 1))
    grown = [draw(st.integers(0, 2)) for _ in kinds]
    pad = draw(st.none() | st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=2, max_size=2))
    return rows, columns, kinds, join, axis, grown, pad


_KINDS = {
    "softmax": softmax,
    "sum": lambda x: jnp.broadcast_to(x.sum(-1, keepdims=True), x.shape),
    "max": lambda x: x - x.max(-1, keepdims=True),
    "map": lambda x: jnp.tanh(x) * 2,
    "input": lambda x: x,
}


def _random_join(case):
    rows, columns, kinds, join, axis, grown, pad = case
    sizes = [[rows, columns] for _ in kinds]
    for size, more in zip(sizes, grown, strict=True):
        size[axis] += more if join == "concatenate" else 0
    arrays = [array(*size, seed=k) for k, size in enumerate(sizes)]

    def f(*arrays):
        pieces = [_KINDS[kind](a) for kind, a in zip(kinds, arrays, strict=True)]
        if join == "concatenate":
            joined = jnp.concatenate(pieces, axis)
        else:
            joined = jnp.stack(pieces, axis)
            merged = (len(kinds) * rows, columns) if axis == 0 else (rows * len(kinds), columns)
            joined = joined.reshape(merged) if join == "interleave" else joined
        return joined if pad is None or joined.ndim != 2 else lax.pad(joined, F32(0.5), pad)

    return f, arrays


@pytest.mark.slow
@settings(max_examples=60)
@given(joins())
def test_random_joins(case):
    f, arrays = _random_join(case)
    check(f, *arrays)


# In a program


@pytest.fixture
def filling(monkeypatch, kernels_win):
    """What a kernel can do is done by kernels, and joined arrays are filled."""
    every = graphs
    monkeypatch.setattr(pipeline, "graphs", lambda trace, options: every(trace, options)[-1:])


@pytest.mark.parametrize("name", FILLED)
def test_end_to_end(name, filling):
    f, args, _ = FILLED[name]
    found = jaxorch.optimize(f, options=Options(backend="interpret", fallback="error"))(*args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, F32), np.asarray(b, F32), rtol=1e-2 if a.dtype.itemsize == 2 else 1e-5, atol=1e-6
        ),
        found,
        jax.jit(f)(*args),
    )


def test_what_xla_computes_is_copied_into_its_place(filling):
    f = lambda x, w, y: jnp.concatenate([jnp.sort(x @ w, -1), softmax(y)], 0)  # noqa: E731
    args = array(4, 5), array(5, 6, seed=1), array(3, 6, seed=2)
    options = Options(backend="interpret", fallback="error")
    report = jaxorch.explain(jaxorch.optimize(f, options=options), *args)
    assert len(report.kernels) >= 2
    np.testing.assert_allclose(jaxorch.optimize(f, options=options)(*args), jax.jit(f)(*args), rtol=1e-5)


# lax.empty


def emptied(f, *args):
    return optimized_graph(flatten(jax.make_jaxpr(f)(*args)), Options())


def test_an_empty_array_that_writes_fill_is_empty_memory(filling):
    def f(a, b):
        base = lax.empty((8, 6), "float32")
        return base.at[:5].set(softmax(a)).at[5:].set(jnp.sin(b))

    graph = emptied(f, A, B)
    assert sum(map(is_empty, graph.nodes)) == 1
    assert not any(isinstance(n, Opaque) for n in graph.nodes)
    found = jaxorch.optimize(f, options=Options(backend="interpret", fallback="error"))(A, B)
    np.testing.assert_allclose(found, jax.jit(f)(A, B), rtol=1e-5)


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: lax.empty((8, 6), "float32").at[:5].set(a),
        lambda a, b: lax.empty((8, 6), "float32").at[:5].set(a).at[4:].set(jnp.zeros((4, 6))),
        lambda a, b: lax.empty((8, 6), "float32"),
        lambda a, b: lax.empty((5, 6), "float32") * 0 + a,
        lambda a, b: (lambda x: (x, x.at[5:].set(b)))(lax.empty((8, 6), "float32").at[:5].set(a)),
    ],
)
def test_an_empty_array_that_is_not_filled_stays_with_xla(f):
    graph = emptied(f, A, B)
    verify(graph)
    assert not any(map(is_empty, graph.nodes))
    assert any(isinstance(n, Opaque) and n.primitive == "empty" for n in graph.nodes)


# The choice


def plan_of(f, *shapes):
    specs = [S(shape, F32) for shape in shapes]
    return planned(jax.make_jaxpr(f)(*specs), Options(effort="fast", device="h200"), Target("cuda", "h200", False))


def filled_in(plan):
    return any(is_empty(n) for n in plan.graph.nodes)


def test_it_is_chosen_where_no_kernel_makes_all_pieces():
    plan = plan_of(lambda a, b: jnp.concatenate([softmax(a), softmax(b)], 0), (4096, 1024), (12288, 1024))
    assert filled_in(plan)
    assert len(plan.kernels) == len(plan.steps) == 2


def test_padding_of_large_rows_is_filled():
    plan = plan_of(lambda a: jnp.pad(softmax(a), ((64, 64), (0, 0))), (8192, 1024))
    assert filled_in(plan)


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda a, b: jnp.concatenate([softmax(a), softmax(b)], 1), ((4096, 512), (4096, 1536))),
        (lambda a, b: jnp.stack([softmax(a), softmax(b)]), ((4096, 1024), (4096, 1024))),
        (lambda a, b: jnp.concatenate([jnp.tanh(a), b * 2], 0), ((4096, 1024), (4096, 1024))),
        (lambda a, b: jnp.pad(softmax(a + b), ((1, 1), (1, 1))), ((64, 64), (64, 64))),
    ],
    ids=["rows side by side", "stacked", "maps", "small"],
)
def test_it_is_not_chosen_where_fewer_kernels_do(f, shapes):
    assert not filled_in(plan_of(f, *shapes))


def test_xla_is_offered_no_part_of_a_chain():
    trace = flatten(jax.make_jaxpr(FILLED["padded"][0])(A))
    graph = graphs(trace, Options())[-1]
    parts = {k for k, n in enumerate(graph.nodes) if isinstance(n, Scatter) and not graph.variables(Value(k))}
    assert len(parts) == 3
    for left in enumerate_candidates(graph).left:
        assert parts.isdisjoint(left.nodes)


F = lambda a, b: jnp.concatenate([softmax(a), softmax(b)], 0)  # noqa: E731
SHAPES = (4096, 1024), (12288, 1024)


def test_another_way_is_taken_where_a_kernel_of_a_chain_fails(monkeypatch, tmp_path):
    tune = choice.tune

    def failing(graph, kernel, *rest, **keywords):
        if any(isinstance(graph.nodes[o.value.node], Scatter) for o in kernel.outputs):
            raise CompileError("no place for it")
        return tune(graph, kernel, *rest, **keywords)

    assert filled_in(plan_of(F, *SHAPES))
    monkeypatch.setattr(choice, "tune", failing)
    monkeypatch.setenv("JAXORCH_CACHE_DIR", str(tmp_path))  # where the plan above is not known
    plan = plan_of(F, *SHAPES)
    assert not filled_in(plan)
    assert plan.kernels


def test_a_graph_without_a_choice_is_dropped(monkeypatch):
    choose = choice.Way.choose

    def refusing(way):
        if any(map(is_empty, way.graph.nodes)):
            raise PlanError("no choice")
        return choose(way)

    monkeypatch.setattr(choice.Way, "choose", refusing)
    assert not filled_in(plan_of(F, *SHAPES))


def test_a_program_without_a_choice_is_refused(monkeypatch):
    def refusing(_):
        raise PlanError("no choice at all")

    monkeypatch.setattr(choice.Way, "choose", refusing)
    with pytest.raises(PlanError, match="no choice at all"):
        plan_of(F, *SHAPES)
