"""Programs with their features first, written with the features last: the same values, and what is transposed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.frontend.derive.layout import features_last
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract, Map, Reduce, outputs_of
from jaxorch.options import Options
from jaxorch.orchestration.planner import as_traced
from jaxorch.pipeline import graphs, optimized_graph
from tests.codegen.drive import agreeing, program, random_array
from tests.frontend.convolutions import convolutions
from tests.frontend.replayed import results

F32 = np.dtype(np.float32)


def conv(x, w, s=1, df="NCHW", g=1, **more):
    numbers = (df, "OIHW" if df == "NCHW" else "HWIO", df)
    return lax.conv_general_dilated(
        x, w, (s, s), "SAME", dimension_numbers=numbers, feature_group_count=g, precision="highest", **more
    )


def derived(f, *specs):
    trace = flatten(jax.make_jaxpr(f)(*specs))
    return trace, features_last(trace)


# The same values


def features_first(rank):
    """Axes 0 and 1 in either order, then the places; or any order at all."""
    first = st.permutations(range(2)).map(lambda two: (*two, *range(2, rank)))
    return st.one_of(st.just(tuple(range(rank))), first, st.permutations(range(rank)))


def check_exact(f, arrays):
    """The same integers in float64, of the same types; whether the program was written anew."""
    with jax.enable_x64(True):
        trace, other = derived(f, *arrays)
        for own, new in zip(results(trace, arrays), results(other, arrays), strict=True):
            assert (own.dtype, own.shape) == (new.dtype, new.shape)
            np.testing.assert_array_equal(own, new)
    return other is not trace


def check_convolution(f, shapes, seed):
    rng = np.random.default_rng(seed)
    check_exact(f, [rng.integers(-99, 100, s).astype(np.float64) for s in shapes])


@settings(max_examples=25)
@given(convolutions(order=features_first), st.integers(0, 2**31))
def test_convolutions_are_exact(drawn, seed):
    check_convolution(*drawn, seed)


@pytest.mark.slow
@settings(max_examples=300)
@given(convolutions(order=features_first), st.integers(0, 2**31))
def test_many_convolutions_are_exact(drawn, seed):
    check_convolution(*drawn, seed)


def _pool(x, k, s, op):
    window, steps = (1, 1, *(k,) * (x.ndim - 2)), (1, 1, *(s,) * (x.ndim - 2))
    return lax.reduce_window(x, 0.0 if op is lax.add else -np.inf, op, window, steps, "SAME")


def _tail(x, steps):
    """What is made of an image, by names of steps; numbers stay small integers."""
    for step, k in steps:
        rank = x.ndim
        match step:
            case "relu":
                x = jax.nn.relu(x)
            case "square":
                x = jnp.mod(x * x, 17)
            case "pool":
                x = _pool(x, 1 + k, 1 + k % 2, (lax.add, lax.max)[k % 2])
            case "pad":
                edges = [(k % 2, k // 2)] * (rank - 2)
                x = jnp.pad(x, [(0, 0), (0, 0), *edges], mode="reflect" if min(x.shape[2:]) > 2 else "constant")
            case "reduce":
                axes = [(0,), (1,), tuple(range(2, rank)), (0, *range(2, rank)), (rank - 1,), (0, 1)][k]
                x = x - jnp.mod(x.sum(axes, keepdims=True), 5)
            case "index":
                x = x + lax.argmax(x, k % rank, np.int32)[(slice(None),) * (k % rank) + (None,)]
            case "joined":
                x = jnp.concatenate([x, x[:, ::-1]], 1)
            case "scaled":
                x = x * jnp.arange(1.0, 1 + x.shape[1]).reshape(-1, *(1,) * (rank - 2))
            case "turned":
                x = x.swapaxes(2, rank - 1)
            case _:
                x = x[:, :, ::2] if rank < 4 else x[:, :, : max(1, x.shape[2] - 1)]
    return x


_STEPS = ("relu", "square", "pool", "pad", "reduce", "index", "joined", "scaled", "turned", "cut")
_DRAWN = st.lists(st.tuples(st.sampled_from(_STEPS), st.integers(0, 5)), max_size=4)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(1, 3), _DRAWN, _DRAWN, _DRAWN, st.booleans(), st.integers(0, 2**31))
def test_programs_of_convolutions_are_exact(places, before, between, after, returns, seed):
    check_program(places, before, between, after, returns, seed)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.integers(1, 3), _DRAWN, _DRAWN, _DRAWN, st.booleans(), st.integers(0, 2**31))
def test_many_programs_of_convolutions_are_exact(places, before, between, after, returns, seed):
    check_program(places, before, between, after, returns, seed)


def check_program(places, before, between, after, returns, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (2, 2, *(4,) * places)).astype(np.float64)

    def weighed(x, features):
        w = np.random.default_rng(seed).integers(-2, 3, (features, x.shape[1], *(3,) * places)).astype(np.float64)
        return lax.conv_general_dilated(x, jnp.asarray(w), (1,) * places, "SAME")

    def f(x):
        y = weighed(_tail(x, before), 3)
        z = _tail(y, between)
        return (_tail(weighed(jnp.mod(z, 7), 2), after), *([z] if returns else []))

    assert check_exact(f, [x])


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_exact(stride):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-3, 4, s).astype(np.float64) for s in ((2, 3, 5, 6), (4, 3, 3, 3), (2, 4, 3, 3))]

    def loss(x, w, v):
        y = _pool(jax.nn.relu(conv(x, w, stride)), 2, 2, lax.max)
        return jnp.sum(conv(y, v) ** 2)

    assert check_exact(jax.grad(loss, (0, 1, 2)), arrays)


# What is left alone


@settings(max_examples=50)
@given(convolutions(order=lambda rank: st.just((0, rank - 1, *range(1, rank - 1)))))
def test_convolutions_with_their_features_last_are_left_alone(drawn):
    f, shapes = drawn
    trace, other = derived(f, *(jax.ShapeDtypeStruct(s, F32) for s in shapes))
    assert other is trace


def test_gradients_of_convolutions_with_their_features_last_are_left_alone():
    f = jax.grad(lambda x, w: jnp.sum(jax.nn.relu(conv(jax.nn.relu(conv(x, w, df="NHWC")), w, df="NHWC"))), (0, 1))
    trace, other = derived(f, np.zeros((1, 4, 5, 3), F32), np.zeros((3, 3, 3, 3), F32))
    assert other is trace


def test_features_before_the_batch_in_a_result_alone_are_left_alone():
    """So are the terms of convolutions to few features laid out (`shifted`), in a program with its features last."""
    numbers = ("NHWC", "OIHW", "CNHW")
    x, w = np.zeros((1, 4, 5, 3), F32), np.zeros((2, 3, 3, 3), F32)
    trace, other = derived(lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers), x, w)
    assert other is trace


def test_a_bitcast_to_more_elements_is_as_it_was():
    f = lambda x, w: lax.bitcast_convert_type(conv(x, w), jnp.uint32)  # noqa: E731
    rng = np.random.default_rng(0)
    assert check_exact(f, [rng.integers(-9, 10, s).astype(np.float64) for s in ((1, 2, 4, 5), (2, 2, 3, 3))])


def test_of_equal_elements_a_window_over_features_chooses_the_first_as_before():
    def loss(x, w):
        return lax.reduce_window(conv(x, w), -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()

    rng = np.random.default_rng(0)
    arrays = [rng.integers(-1, 2, s).astype(np.float64) for s in ((1, 1, 6, 5), (4, 1, 1, 1))]
    assert check_exact(jax.grad(loss, (0, 1)), arrays)


def test_a_type_that_was_turned_off_is_left_alone():
    with jax.enable_x64(True):
        trace = flatten(jax.make_jaxpr(conv)(np.zeros((1, 2, 3, 4)), np.zeros((2, 2, 3, 3))))
    assert features_last(trace) is trace


# What is transposed


def residual(x, w, v, scale):
    y = jax.nn.relu(conv(x, w) * scale[:, None, None])
    y = jax.nn.relu(y + conv(_pool(y, 3, 1, lax.max), v))
    return y + conv(jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"), v)[:, :, 1:-1, 1:-1]


RESIDUAL = [jax.ShapeDtypeStruct(s, F32) for s in ((1, 3, 6, 5), (4, 3, 3, 3), (4, 4, 3, 3), (4,))]


def copies(graph):
    return [n.array.shape for n in graph.nodes if isinstance(n, Map) and n.op == "copy"]


def test_operands_results_and_weights_are_transposed_and_nothing_else():
    trace, other = derived(residual, *RESIDUAL)
    weights, result = [(4, 3, 3, 3), (4, 3, 3, 4)], (1, 4, 6, 5)
    assert copies(optimized_graph(trace, Options())) == []
    views, *_, arrays = graphs(other, Options())
    assert copies(views) == [*weights, result]
    assert copies(arrays) == [(1, 6, 5, 3), *weights, (1, 8, 7, 4), result]  # what convolutions read by movement, too
    for graph in (views, arrays):
        images = [n for n in graph.nodes if isinstance(n, Map | Reduce | Contract) and len(outputs_of(n)[0].shape) == 4]
        assert {outputs_of(n)[0].shape[-1] for n in images if copies(graph).count(outputs_of(n)[0].shape) == 0} == {4}


def test_gradients_of_weights_have_them_reversed_last():
    """XLA has a cuDNN call of its own for a convolution by weights that are reversed just before it."""
    f = jax.grad(lambda x, w: jnp.sum(conv(jax.nn.relu(x), w, 2) ** 2), (0, 1))
    _, other = derived(f, np.zeros((1, 3, 6, 5), F32), np.zeros((4, 3, 3, 3), F32))
    convolutions = [e for e in other.equations if e.primitive == "conv_general_dilated"]
    reads = [other.equations[other.makers[v]] for e in convolutions for v in e.inputs if v in other.makers]
    assert [e.params["dimensions"] for e in reads if e.primitive == "rev"] == [(1, 2)]


def test_other_equations_keep_their_lines_and_variables():
    trace, other = derived(residual, *RESIDUAL)
    assert other.inputs == trace.inputs
    assert other.outputs == trace.outputs
    assert {e.source for e in other.equations} <= {e.source for e in trace.equations}


# Its kernels


def partial(x, w0, w1, w2):
    a, b = jnp.split(jax.nn.relu(conv(x, w0)), 2, 1)
    m = b + jax.nn.relu(conv(b, w1))
    return jax.nn.relu(conv(jnp.concatenate([a, b, m], 1), w2, 2))


def separable(x, wd, w):
    return conv(jax.nn.relu(conv(x, wd, g=6)), w)


def generator(x, w0, w1):
    more = {"dimension_numbers": ("NCHW", "OIHW", "NCHW"), "precision": "highest"}
    y = jax.nn.relu(lax.conv_transpose(x, w0, (2, 2), "SAME", **more))
    return lax.conv_transpose(y, w1, (2, 2), "SAME", **more)


def normed(x, w0, w1):
    def norm(y):
        return (y - y.mean((2, 3), keepdims=True)) * lax.rsqrt(y.var((2, 3), keepdims=True) + 1e-2)

    return x + norm(conv(jax.nn.relu(norm(conv(x, w0))), w1))


PROGRAMS = {
    "partial": (partial, [(2, 6, 4, 5), (8, 6, 1, 1), (4, 4, 3, 3), (5, 12, 3, 3)]),
    "separable": (separable, [(1, 6, 4, 5), (6, 1, 3, 3), (7, 6, 1, 1)]),
    "generator": (generator, [(1, 3, 2, 4), (5, 3, 4, 4), (2, 5, 4, 4)]),
    "normed": (normed, [(1, 6, 4, 5), (6, 6, 3, 3), (6, 6, 3, 3)]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_of_it(name):
    """By the NumPy handler all of them, by the interpreter those without a product, their stores counted."""
    f, shapes = PROGRAMS[name]
    rng = np.random.default_rng(0)
    arrays = [random_array(rng, s, F32) for s in shapes]
    _, other = derived(f, *arrays)
    made = program(lambda *operands: as_traced(other, *operands), *arrays)
    assert agreeing(made, 1e-4)


def test_what_lies_between_has_its_features_last():
    f, shapes = PROGRAMS["partial"]
    _, other = derived(f, *(jax.ShapeDtypeStruct(s, F32) for s in shapes))
    graph = optimized_graph(other, Options())
    assert [n.array.shape for n in graph.nodes if isinstance(n, Contract)] == [(2, 4, 5, 8), (2, 4, 5, 4), (2, 2, 3, 5)]
    assert [n.array.shape for n in graph.nodes if isinstance(n, Map) and n.op == "add"] == [(2, 4, 5, 4)]
    assert [graph.array(v).shape for v in graph.outputs] == [(2, 5, 2, 3)]
