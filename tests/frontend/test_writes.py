"""Writes to computed places against lax: by the NumPy oracle and by interpreted kernels whose stores are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxorch
from jaxorch import Options
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Map, Opaque, Scatter
from jaxorch.ir.place import inverse
from jaxorch.ir.verify import verify
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.kernel import aliases
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import agree, interpreted, kernels_of, numpied, program, random_array

F32, I32, BF16 = np.float32, np.int32, jnp.bfloat16
MODES = ("clip", "fill", "promise_in_bounds")


def check(f, *arrays, every=True, tolerance=1e-5):
    """Each candidate kernel of `f`, by NumPy and interpreted, gives what lax gives."""
    made = program(f, *arrays)
    verify(made.graph)
    kernels = kernels_of(made.graph)
    for kernel in kernels if every else kernels[:1]:
        if any(v not in made.values for v in kernel.inputs):
            continue
        inputs = made.inputs(kernel)
        for frame in range(len(kernel.frames)):
            for value, got in numpied(made.graph, kernel, inputs, frame).items():
                agree(got, made.values[value], tolerance)
        for value, got in interpreted(made.graph, kernel, configurations(made.graph, kernel)[0], inputs).items():
            agree(got, made.values[value], tolerance)
    return made.graph


def scatters(graph):
    return [n for n in graph.nodes if isinstance(n, Scatter)]


def left(graph):
    return [n.reason for n in graph.nodes if isinstance(n, Opaque)]


def array(*shape, dtype=F32, seed=0):
    return random_array(np.random.default_rng(seed), shape, dtype)


# Spellings: (function, arguments, combines of the scatters that stay)

C, ROW, AT = array(4, 8, 3), array(4, 1, 3, seed=1), np.int32(3)
IN_PLACE = {
    "dynamic_update_slice": (lambda c, u, p: lax.dynamic_update_slice(c, jnp.exp(u), (0, p, 0)), (C, ROW, AT)),
    "negative start": (lambda c, u, p: lax.dynamic_update_slice(c, u, (0, p, 0)), (C, ROW, np.int32(-2))),
    "start past the end": (lambda c, u, p: lax.dynamic_update_slice(c, u, (0, p, 0)), (C, ROW, np.int32(30))),
    "at one index": (lambda c, u, p: c.at[:, p].set(jnp.tanh(u[:, 0])), (C, ROW, AT)),
    "at an index a batch": (
        lambda c, u, p: c.at[jnp.arange(4), :, p].set(u * 2),
        (array(4, 2, 8, 3), array(4, 2, 3), np.array([1, -1, 7, 3], I32)),
    ),
    "out of range, dropped": (
        lambda c, u, p: c.at[jnp.arange(4), p].set(u, mode="drop"),
        (C, ROW[:, 0], np.array([1, 8, 900, -9], I32)),
    ),
    "out of range, clipped": (
        lambda c, u, p: c.at[jnp.arange(4), p].set(u, mode="clip"),
        (C, ROW[:, 0], np.array([1, 8, 900, 3], I32)),
    ),
    "strided": (lambda c, u: c.at[1:3, ::2].set(jnp.sin(u)), (C, array(2, 4, 3))),
    "backwards": (lambda c, u: c.at[1:3, ::-3].set(jnp.sin(u)), (C, array(2, 3, 3))),
    "one element": (lambda c, u: c.at[2, 5, 1].set(u), (C, array())),
    "added to distinct places": (lambda c, u: c.at[1:3].add(jnp.sin(u)), (C, array(2, 8, 3))),
    "multiplied": (lambda c, u: c.at[:, 2].multiply(u), (C, array(4, 3))),
    "maximum of distinct places": (lambda c, u: c.at[:, 2].max(u), (C, array(4, 3))),
    "narrow floats": (lambda c, u, p: c.at[:, p].set(u), (C.astype(BF16), array(4, 3, dtype=BF16), AT)),
    "booleans": (lambda c, u, p: c.at[:, p].set(u), (C > 0, array(4, 3) > 0, AT)),
    "vmapped": (
        lambda c, u, p: jax.vmap(lambda c, u, p: lax.dynamic_update_slice(c, u, (p, 0)))(c, u, p),
        (C, ROW, np.array([0, 3, -4, 11], I32)),
    ),
    "two arrays": (
        lambda c, d, u, p: (c.at[:, p].set(u), d.at[:, p].set(u * 2)),
        (C, array(4, 8, 3, seed=5), array(4, 3), AT),
    ),
    "rows of a softmax": (lambda c, u, p: c.at[:, p].set(jax.nn.softmax(u)), (C, array(4, 3), AT)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_written_in_place(name):
    f, args = IN_PLACE[name]
    graph = check(f, *args)
    assert scatters(graph)
    assert all(n.unique for n in scatters(graph))
    assert not left(graph)


@pytest.mark.parametrize("name", IN_PLACE)
def test_end_to_end(name, kernels_win):
    f, args = IN_PLACE[name]
    before = [np.array(a) for a in args]
    found = jaxorch.optimize(f, options=Options(backend="interpret", fallback="error"))(*args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a, F32), np.asarray(b, F32), rtol=1e-5, atol=1e-6),
        found,
        jax.jit(f)(*args),
    )
    for a, b in zip(args, before, strict=True):
        np.testing.assert_array_equal(a, b)


# Views: nobody needs the array as such, or its base would be made for it

AS_VIEWS = {
    "only read": lambda c, u: (c.at[1:3, ::2].set(u) * 2).sum(-1),
    "base made for it": lambda c, u: jnp.tanh(c).at[1:3, ::2].set(jnp.sin(u)),
    "into zeros": lambda c, u: jnp.zeros_like(c).at[1:3, ::2].set(u),
    "dynamic start, read": lambda c, u: lax.dynamic_update_slice(c, u, (c[0, 0, 0].astype(I32) + 1, 2, 0)).max(1),
}


@pytest.mark.parametrize("name", AS_VIEWS)
def test_read_as_a_view(name):
    graph = check(AS_VIEWS[name], C, array(2, 4, 3))
    assert not scatters(graph)
    assert not left(graph)


# Several updates in one place


@pytest.mark.parametrize("dtype", [F32, I32])
def test_sums_of_updates_that_meet(dtype):
    places = np.array([[1, 1, 16, 3], [0, 15, 3, -17]], I32)
    f = lambda x, i, o: jnp.zeros_like(x).at[i.reshape(-1)].add(o.reshape(-1, 8), mode="drop")  # noqa: E731
    graph = check(f, array(16, 8, dtype=dtype), places, array(2, 4, 8, dtype=dtype))
    (node,) = scatters(graph)
    assert not node.unique


@pytest.mark.parametrize("op", ["max", "min"])
def test_extremes_of_updates_that_meet(op):
    f = lambda x, i, o: getattr(x.at[i], op)(o)  # noqa: E731
    graph = check(f, np.arange(12, dtype=I32), np.array([1, 1, 3, 30], I32), np.array([5, -9, 2, 1], I32))
    assert len(scatters(graph)) == 1


def test_narrow_sums_of_updates_that_meet_are_added_up_in_float32(kernels_win):
    places = np.array([1, 1, 1, 1, 0, 7], I32)
    x, o = array(8, 4, dtype=BF16), array(6, 4, dtype=BF16, seed=3)
    f = lambda x, i, o: x.at[i].add(o)  # noqa: E731
    (node,) = scatters(optimized_graph(flatten(jax.make_jaxpr(f)(x, places, o)), Options()))
    assert node.array.dtype == F32
    found = jaxorch.optimize(f, options=Options(backend="interpret", fallback="error"))(x, places, o)
    wanted = x.astype(F32)
    np.add.at(wanted, places, o.astype(F32))
    np.testing.assert_array_equal(np.asarray(found), wanted.astype(BF16))


LEFT = {
    "set of places that may be one": (
        lambda x, i, o: x.at[i].set(o),
        (array(8), np.array([1, 1, 2], I32), array(3)),
        "several updates may be written to one place",
    ),
    "float maximum of places that may be one": (
        lambda x, i, o: x.at[i].max(o),
        (array(8), np.array([1, 1, 2], I32), array(3)),
        "max of float32 updates that may meet",
    ),
    "product of places that may be one": (
        lambda x, i, o: x.at[i].multiply(o),
        (array(8), np.array([1, 1, 2], I32), array(3)),
        "mul of float32 updates that may meet",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_to_xla_with_the_reason(name, kernels_win):
    f, args, reason = LEFT[name]
    report = jaxorch.explain(jaxorch.optimize(lambda *a: jnp.sin(f(*a)), options=Options(backend="interpret")), *args)
    assert [line.reason for line in report.left if line.reason.startswith(reason)]
    found = jaxorch.optimize(lambda *a: jnp.sin(f(*a)), options=Options(backend="interpret", fallback="error"))(*args)
    if "set" not in name:
        np.testing.assert_allclose(found, jax.jit(lambda *a: jnp.sin(f(*a)))(*args), rtol=1e-6)


# Hazards

HAZARDS = {
    "the old value is read after the update": lambda c, u, p: (lambda new: (new, new[:, p - 1] + c[:, p]))(
        lax.dynamic_update_slice(c, jnp.exp(u), (0, p, 0))
    ),
    "two updates that overlap": lambda c, u, p: lax.dynamic_update_slice(
        lax.dynamic_update_slice(c, jnp.exp(u), (0, p, 0)), jnp.concatenate([u, u * 2], 1), (0, p - 1, 0)
    ),
    "a slice of itself": lambda c, u, p: lax.dynamic_update_slice(c, c[:, 1:4] * 2, (0, p, 0)),
    "a slice of itself, shifted by one": lambda c, u, p: c.at[:, 1:].set(c[:, :-1]),
    "updated twice from one old value": lambda c, u, p: (c.at[:, p].set(u[:, 0]), c.at[:, p - 1].set(u[:, 0] * 3)),
    "swapped rows": lambda c, u, p: c.at[:, p].set(c[:, 0]).at[:, 0].set(c[:, p]),
    "returned with its update": lambda c, u, p: (c, c.at[:, p].set(jnp.sin(u[:, 0]))),
    "a view of it kept": lambda c, u, p: (jnp.cos(c).sum(0), c.at[:, p].set(jnp.sin(u[:, 0])), c.T + 1),
}


@pytest.mark.parametrize("name", HAZARDS)
@pytest.mark.parametrize("donate", [False, True])
def test_hazards(name, donate, kernels_win):
    f = HAZARDS[name]
    expected = jax.jit(f)(C, ROW, AT)
    options = Options(backend="interpret", fallback="error")
    given = jnp.array(C)
    found = jaxorch.optimize(f, options=options, donate_argnums=(0,) if donate else ())(given, ROW, AT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    check(f, C, ROW, AT)


def test_no_kernel_reads_what_it_writes_in_place():
    for f in HAZARDS.values():
        graph = program(f, C, ROW, AT).graph
        for kernel in kernels_of(graph):
            bases = {kernel.inputs[k] for k in aliases(graph, kernel)}
            for number in kernel.nodes:
                node = graph.nodes[number]
                read = {p.value for v in (node.operands if isinstance(node, Map) else ()) for p in v.pieces}
                assert not read & bases


# Random places


@st.composite
def updates(draw):
    """A base, a window written at looked-up places along some of its axes, and a mode."""
    rank = draw(st.integers(1, 3))
    shape = [draw(st.integers(1, 5)) for _ in range(rank)]
    batch = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 2)))]
    looked_up = draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=1, max_size=rank).map(sorted))
    inserted = draw(st.lists(st.sampled_from(looked_up), unique=True).map(sorted))
    window = [draw(st.integers(1, shape[d])) for d in range(rank) if d not in inserted]
    seed, mode = draw(st.integers(0, 99)), draw(st.sampled_from(MODES))
    combine = draw(st.sampled_from(["set", "add", "min", "max", "mul"]))
    return shape, batch, looked_up, inserted, window, seed, mode, combine


def _random_write(case):
    shape, batch, looked_up, inserted, window, seed, mode, combine = case
    rng = np.random.default_rng(seed)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(len(batch), len(batch) + len(window))),
        inserted_window_dims=tuple(inserted),
        scatter_dims_to_operand_dims=tuple(looked_up),
    )
    low, high = (0, 2) if mode == "promise_in_bounds" else (-2, 7)
    places = rng.integers(low, high, (*batch, len(looked_up))).astype(I32)
    if mode == "promise_in_bounds":
        places = np.zeros_like(places)
    write = lax.scatter if combine == "set" else getattr(lax, f"scatter_{combine}")
    base, new = array(*shape, dtype=I32, seed=seed), array(*batch, *window, dtype=I32, seed=seed + 1)
    return lambda b, i, u: write(b, i, u * 3, numbers, mode=mode), (base, places, new)


@pytest.mark.slow
@settings(max_examples=60)
@given(updates())
def test_random_scatters(case):
    f, args = _random_write(case)
    graph = check(f, *args, tolerance=0)
    for node in scatters(graph):
        assert node.unique == (inverse(node.place, node.updates.domain, node.array.shape) is not None)
