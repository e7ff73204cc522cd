"""Which node each primitive becomes, why some stay with XLA, and that a trace replays its function."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import primitives as jexp

import jaxorch
from jaxorch.frontend.compute import ELEMENTWISE, REDUCTIONS
from jaxorch.frontend.lift import lift
from jaxorch.frontend.movement import VIEWS
from jaxorch.frontend.trace import flatten, replay
from jaxorch.ir.graph import Const, Input, Map, Opaque, Reduce, operands_of
from jaxorch.ir.scalars import SCALARS
from jaxorch.ir.verify import verify
from jaxorch.ir.view import is_identity
from jaxorch.options import Options
from jaxorch.pipeline import optimized_graph

F32, I32 = np.float32, np.int32
S = jax.ShapeDtypeStruct
EVEN = lax.RoundingMethod.TO_NEAREST_EVEN
X, N, P = S((3, 4), F32), S((3, 4), I32), S((3, 4), np.bool_)


def lifted(f, *specs):
    with jax.enable_x64(any(np.dtype(s.dtype).itemsize == 8 for s in specs if isinstance(s.dtype, np.dtype))):
        graph = lift(flatten(jax.make_jaxpr(f)(*specs)))
    verify(graph)
    return graph


def made(graph):
    """The nodes that are neither operands nor literals."""
    return [n for n in graph.nodes if not isinstance(n, Input | Const)]


def only(f, *specs):
    (node,) = made(lifted(f, *specs))
    return node


def reasons(graph):
    return {n.primitive: n.reason for n in graph.nodes if isinstance(n, Opaque)}


MAPS = {
    "exp": (jnp.exp, [X], ()),
    "add": (jnp.add, [X, X], ()),
    "select_n": (lax.select, [P, X, X], ()),
    "clamp": (lambda x: lax.clamp(0.0, x, 1.0), [X], ()),
    "integer_pow": (lambda x: x**3, [X], (("y", 3),)),
    "round": (
        lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
        [X],
        (("rounding_method", lax.RoundingMethod.TO_NEAREST_EVEN),),
    ),
    "convert_element_type": (lambda x: x.astype(jnp.bfloat16), [X], (("new_dtype", "bfloat16"),)),
    "bitcast_convert_type": (lambda x: lax.bitcast_convert_type(x, I32), [X], (("new_dtype", "int32"),)),
    "reduce_precision": (
        lambda x: lax.reduce_precision(x, 5, 2),
        [X],
        (("exponent_bits", 5), ("mantissa_bits", 2)),
    ),
    "iota": (lambda: lax.broadcasted_iota(I32, (3, 4), 1), [], (("dimension", 1),)),
    "erf_inv": (lax.erf_inv, [X], ()),
    "population_count": (lax.population_count, [N], ()),
}


@pytest.mark.parametrize("op", MAPS)
def test_elementwise_primitives_are_maps(op):
    f, specs, params = MAPS[op]
    node = only(f, *specs)
    assert isinstance(node, Map)
    assert (node.op, node.params) == (op, params)
    assert node.array.shape == (3, 4)
    assert all(v.domain == (3, 4) for v in node.operands)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_are_reduces(name):
    f = {
        "reduce_and": lambda x: jnp.all(x, 1),
        "reduce_or": lambda x: jnp.any(x, 1),
        "argmax": lambda x: lax.argmax(x, 1, I32),
        "argmin": lambda x: lax.argmin(x, 1, I32),
    }.get(name, lambda x: getattr(jnp, name.removeprefix("reduce_"))(x, 1))
    node = only(f, P if name in ("reduce_and", "reduce_or") else X)
    assert isinstance(node, Reduce)
    assert (node.op, node.axes, node.arrays[0].shape) == (REDUCTIONS[name], (1,), (3,))


def test_reduction_over_several_axes():
    node = only(lambda x: x.sum((0, 2)), S((2, 3, 4), F32))
    assert (node.op, node.axes, node.domain, node.count) == ("sum", (0, 2), (2, 3, 4), 8)


MOVED = {
    "transpose": lambda x: x.T,
    "reshape": lambda x: x.reshape(2, 6),
    "broadcast_in_dim": lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (1, 2)),
    "slice": lambda x: x[1:, ::2],
    "pad": lambda x: lax.pad(x, 0.0, ((1, 0, 1), (-1, 2, 0))),
    "concatenate": lambda x: lax.concatenate([x, x], 0),
    "stack": lambda x: jnp.stack([x, x]),
    "rev": lambda x: lax.rev(x, (0,)),
    "squeeze": lambda x: lax.squeeze(x[:1], (0,)),
    "tile": lambda x: jnp.tile(x, (2, 1)),
    "copy": jexp.copy_p.bind,
    "stop_gradient": lax.stop_gradient,
    "name": lambda x: checkpoint_name(x, "x"),
}


@pytest.mark.parametrize("name", MOVED)
def test_movement_is_a_copy_of_a_view(name):
    graph = lifted(MOVED[name], X)
    assert all(isinstance(n, Map) and n.op == "copy" for n in made(graph))


@pytest.mark.parametrize(("name", "parts"), [("split", 2), ("unstack", 3)])
def test_movement_with_several_outputs_is_a_copy_each(name, parts):
    f = {"split": lambda x: lax.split(x, (1, 2)), "unstack": lambda x: jnp.unstack(x, axis=0)}[name]
    graph = lifted(f, X)
    copies = [n for n in made(graph) if isinstance(n, Map) and n.op == "copy"]
    assert len(graph.outputs) == parts
    assert len(copies) >= parts
    assert not reasons(graph)


def test_tables_do_not_overlap_and_every_map_has_a_meaning():
    assert not set(ELEMENTWISE) & set(REDUCTIONS)
    assert not set(VIEWS) & (set(ELEMENTWISE) | set(REDUCTIONS))
    assert set(ELEMENTWISE) - {"iota"} <= set(SCALARS)


@pytest.mark.parametrize(
    ("f", "specs", "primitive", "reason"),
    [
        (jnp.sin, [S((3,), np.complex64)], "sin", "complex64: complex numbers are left to XLA"),
        (jnp.transpose, [S((3, 4), np.complex64)], "transpose", "complex64: complex numbers are left to XLA"),
        (lambda x: x + x, [S((3,), ml_dtypes.int4)], "add", "int4 cannot be passed to a Triton kernel"),
        (
            lambda x: x + x,
            [S((3,), ml_dtypes.float8_e4m3fnuz)],
            "add",
            "float8_e4m3fnuz is not converted by NVIDIA",
        ),
        (
            lambda x: x.astype(ml_dtypes.int2),
            [S((3,), I32)],
            "convert_element_type",
            "int2 cannot be passed",
        ),
        (jnp.abs, [S((0, 4), F32)], "abs", "a zero-size array"),
        (lambda x: x.sum(0), [S((0, 4), F32)], "reduce_sum", "a zero-size array"),
        (
            lambda x, y: lax.dot(x, y, preferred_element_type=F32),
            [S((4, 4), F32), S((4, 4), np.dtype(ml_dtypes.bfloat16))],
            "dot_general",
            "operands of different dtypes",
        ),
        (
            lambda x: lax.dot(x, x, precision=lax.DotAlgorithmPreset.BF16_BF16_F32),
            [S((4, 4), F32)],
            "dot_general",
            "by the algorithm BF16_BF16_F32",
        ),
        (jnp.sort, [S((4,), F32)], "sort", "sort is left to XLA"),
        (jnp.cumsum, [S((4,), F32)], "cumsum", "cumsum is left to XLA"),
        (lax.lgamma, [S((4,), F32)], "lgamma", "lgamma is left to XLA"),
        (
            lambda x: lax.bitcast_convert_type(x, np.int16),
            [S((4,), F32)],
            "bitcast_convert_type",
            "changes the element",
        ),
        (lambda x: lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST), [X], "exp", "it asks for an accuracy of its own"),
        (lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=3)[0], [X], "scan", "scan is left to XLA"),
        (lambda x: lax.optimization_barrier(x), [X], "optimization_barrier", "optimization_barrier is left to XLA"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_stays_with_xla_says_why(f, specs, primitive, reason):
    graph = lifted(f, *specs)
    assert reason in reasons(graph)[primitive]


def test_an_opaque_reads_whole_values():
    graph = lifted(lambda x: jnp.sort(x.T), X)
    (node,) = [n for n in graph.nodes if isinstance(n, Opaque)]
    assert all(is_identity(v, graph.array(v.values[0]).shape) for v in node.operands)
    assert [a.shape for a in node.arrays] == [(4, 3)]


def test_an_opaque_keeps_all_its_outputs():
    graph = lifted(lambda x: lax.top_k(x, 2), X)
    (node,) = [n for n in graph.nodes if isinstance(n, Opaque)]
    assert [(a.shape, a.dtype) for a in node.arrays] == [((3, 2), F32), ((3, 2), I32)]
    assert [v.output for v in graph.outputs] == [0, 1]


def test_effects_stay():
    graph = lifted(lambda x: (jax.debug.callback(lambda _: None, x), x + 1)[1], X)
    (reason,) = reasons(graph).values()
    assert reason == "debug_callback has effects"


def test_random_keys_are_opaque_and_their_bits_are_not():
    graph = lifted(lambda key: jax.random.uniform(key, (4,)) * 2, S((), jax.random.key(0).dtype))
    assert set(reasons(graph)) == {"random_bits"}
    assert any(isinstance(n, Map) and n.op == "mul" for n in graph.nodes)


def test_scalar_literals_are_constants():
    graph = lifted(lambda x: x * 2.5 + 1, X)
    assert [n.value for n in graph.nodes if isinstance(n, Const)] == [2.5, 1.0]


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint64, jnp.bfloat16, np.float64])
def test_constants_keep_type_and_value(dtype):
    with jax.enable_x64(True):
        graph = lift(flatten(jax.make_jaxpr(lambda x: jnp.where(x > 0, np.asarray(1, dtype), np.asarray(0, dtype)))(X)))
    found = [n for n in graph.nodes if isinstance(n, Const) and n.array.dtype == dtype]
    assert sorted(n.value for n in found) == [0, 1]
    assert all(type(n.value) is type(np.ones((), dtype).item()) for n in found)


def test_array_constants_of_the_program_are_opaque():
    table = np.arange(4, dtype=F32)
    graph = lift(flatten(jax.make_jaxpr(lambda x: x + table)(X)))
    verify(graph)
    assert reasons(graph) in ({"literal": "an array constant of the program"}, {})
    assert sum(isinstance(n, Opaque) for n in graph.nodes) == 1


@pytest.mark.parametrize(
    "f",
    [
        lambda x, i: x.at[i].get(mode="clip"),
        lambda x, i: jax.lax.dynamic_slice(x, (i,), (4,)),
        lambda x, i: x.at[i].set(1),
        lambda x, i: jax.lax.argmax(x, 0, np.int64) + i,
    ],
)
def test_places_that_32_bits_do_not_count_are_left(f):
    def left(size):
        with jax.enable_x64(True):
            line = jax.ShapeDtypeStruct((size,), np.int8)
            return reasons(lift(flatten(jax.make_jaxpr(f)(line, jax.ShapeDtypeStruct((), np.int64)))))

    assert "an axis of more places than 32 bits count" in left(2**31).values()
    assert not left(2**31 - 1)


@pytest.mark.parametrize(
    ("f", "plain"),
    [
        (lambda x: jnp.roll(x, x.shape[0], 0) + 1, lambda x: x + 1),
        (
            lambda x: jnp.exp(jnp.concatenate([x[:0], x, jnp.zeros((0, 4)), -x])),
            lambda x: jnp.exp(jnp.concatenate([x, -x])),
        ),
    ],
)
def test_operands_of_a_concatenation_without_elements_are_passed_over(f, plain):
    graph, expected = (optimized_graph(flatten(jax.make_jaxpr(g)(X)), Options()) for g in (f, plain))
    assert not reasons(graph)
    assert [type(n) for n in made(graph)] == [type(n) for n in made(expected)]
    assert [operands_of(n) for n in made(graph)] == [operands_of(n) for n in made(expected)]


@jax.custom_jvp
def with_jvp(x):
    return jnp.sin(x) * 2


with_jvp.defjvp(lambda p, t: (with_jvp(*p), t[0]))


@jax.custom_vjp
def with_vjp(x):
    return jnp.cos(x) + 1


with_vjp.defvjp(lambda x: (with_vjp(x), x), lambda x, g: (g,))

CALLS = {
    "jit": jax.jit(lambda x: jnp.exp(x) + 1),
    "nested jit": jax.jit(lambda x: jax.jit(jnp.tanh)(x) * jax.jit(jnp.sin)(x)),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(jnp.cos(x))),
    "closed_call": lambda x: jax.core.eval_jaxpr(jax.make_jaxpr(jnp.sin)(x).jaxpr, (), x)[0],
    "optimize": jaxorch.optimize(lambda x: jnp.exp(x) * 2, options=Options(effort="fast")),
    "optimize in jit": jax.jit(jaxorch.optimize(lambda x: jaxorch.optimize(jnp.exp)(x) * 2)),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_inlined(name):
    graph = lifted(CALLS[name], X)
    assert not reasons(graph)
    assert all(isinstance(n, Map) for n in made(graph))


def test_constants_of_inner_jaxprs_are_literals():
    inner = jax.jit(lambda x: x + jnp.asarray(3.0))
    trace = flatten(jax.make_jaxpr(lambda x: inner(x) * 2)(X))
    (out,) = evaluated(trace, np.ones((3, 4), F32))
    np.testing.assert_array_equal(out, np.full((3, 4), 8, F32))


def evaluated(trace, *operands):
    env = dict(zip(trace.inputs, operands, strict=True))
    replay(trace, env, trace.outputs)
    return [np.asarray(env[v]) for v in trace.outputs]


def block(params, x):
    """Calls, literals, several outputs, an output that is an operand, and one that is a literal."""
    y = jax.nn.silu(x @ params["w"]) + with_jvp(x)
    z = jax.checkpoint(lambda v: jax.nn.softmax(v))(y)
    values, index = lax.top_k(z, 2)
    return y.sum(), (z.astype(jnp.bfloat16), index), values, x, 3.0


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, lambda f: jaxorch.optimize(f)], ids=["plain", "jit", "optimize"]
)
def test_replay_equals_the_function(wrap):
    rng = np.random.default_rng(0)
    params, x = {"w": rng.normal(size=(4, 4)).astype(F32)}, rng.normal(size=(3, 4)).astype(F32)
    trace = flatten(jax.make_jaxpr(wrap(block))(params, x))
    wanted = jax.tree.leaves(block(params, x))
    for got, want in zip(evaluated(trace, params["w"], x), wanted, strict=True):
        np.testing.assert_allclose(got.astype(F32), np.asarray(want, F32), rtol=1e-5, atol=1e-6)


def test_replay_computes_what_is_wanted_and_no_more():
    trace = flatten(jax.make_jaxpr(lambda x: (jnp.sin(x), jnp.cos(jnp.exp(x))))(X))
    names = {e.primitive: e for e in trace.equations}
    env = {names["exp"].outputs[0]: np.zeros((3, 4), F32)}
    replay(trace, env, [trace.outputs[1]])
    assert names["sin"].outputs[0] not in env
    np.testing.assert_array_equal(env[trace.outputs[1]], np.ones((3, 4), F32))


def test_equations_know_their_line():
    trace = flatten(jax.make_jaxpr(lambda x: jnp.sin(x))(X))
    assert "test_lift.py" in trace.equations[0].source


def test_nodes_know_their_equations_and_variables():
    trace = flatten(jax.make_jaxpr(lambda x: jnp.exp(jnp.sin(x)))(X))
    graph = lift(trace)
    for k, equation in enumerate(trace.equations):
        node = graph.nodes[1 + k]
        assert node.origin.equations == (k,)
        assert node.origin.variables == (equation.outputs,)


def test_outputs_may_be_operands_and_literals():
    graph = lifted(lambda x: (x, 3.0, jnp.sin(x), 2, x), X)
    assert [type(graph.nodes[v.node]).__name__ for v in graph.outputs] == ["Input", "Const", "Map", "Const", "Input"]
