"""A softmax's maximum and sum share a pass over a long row: where, where not, and for adversarial rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxorch.ir.graph import Graph, Reduce
from jaxorch.ir.index import Dim
from jaxorch.ir.view import Piece, Value, View
from jaxorch.kernels.configs import Config
from jaxorch.options import Options
from jaxorch.passes.derive.sumexp import one_pass_sumexp
from tests.codegen.drive import interpreted, limits, numpied, program, whole_kernel
from tests.ir.build import Builder, array, passed

F32, INF = np.float32, np.inf
N = 24
X = np.random.default_rng(0).normal(size=(3, N)).astype(F32)


def built(peak="max", function="exp", axis=1, other=False, op="sub"):
    """max(x), sum(exp(x - max(x))), with one thing or another changed."""
    build = Builder()
    x, y = build.input((3, N)), build.input((3, N))
    top = build.reduce(peak, y if other else x, [axis])
    spread = View((3, N), (Piece((), top, (Dim(1 - axis),)),))
    shifted = build.map(op, x, spread, shape=(3, N))
    total = build.reduce("sum", build.map(function, shifted, shape=(3, N)), [1])
    return build, top, total


def applied(graph: Graph) -> Graph:
    with limits(row=8):
        return passed(one_pass_sumexp, graph)


def test_the_rule():
    build, top, total = built()
    expected = Graph(
        (*build.nodes[: top.node], Reduce("sumexp", build.nodes[top.node].operands, (1,), (array((3,)),) * 2)),
        (Value(top.node), Value(top.node, 1)),
    )
    assert applied(build.graph(top, total)) == expected


NEAR_MISSES = {
    "the minimum": {"peak": "min"},
    "another function": {"function": "exp2"},
    "other axes": {"axis": 0},
    "another array's maximum": {"other": True},
    "a sum": {"op": "add"},
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name):
    build, top, total = built(**NEAR_MISSES[name])
    graph = build.graph(top, total)
    assert applied(graph) is graph


def test_rows_that_fit_a_tile_keep_two_passes():
    build, top, total = built()
    graph = build.graph(top, total)
    with limits(row=N):
        assert one_pass_sumexp(graph, Options()) is graph


def ops_of(f, *args):
    with limits(row=8):
        return sorted(n.op for n in program(f, *args).graph.nodes if isinstance(n, Reduce))


SPELLINGS = {
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "softmax over the first axis": lambda x: jax.nn.softmax(x.T, 0),
    "softmax over all": lambda x: jax.nn.softmax(x, (0, 1)),
    "log_softmax": lambda x: jax.nn.log_softmax(x, -1),
    "half": lambda x: jax.nn.softmax(x.astype(jnp.bfloat16).astype(F32)).astype(jnp.bfloat16),
    "by hand": lambda x: (e := jnp.exp(x - x.max(-1, keepdims=True))) / e.sum(-1, keepdims=True),
    "scaled and masked": lambda x: jax.nn.softmax(jnp.where(x > 0, x * 0.125, -1e30)),
    "of heads": lambda x: jax.nn.softmax(x.reshape(3, 2, 12).transpose(1, 0, 2), -1),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    assert ops_of(SPELLINGS[name], X) == ["sumexp"]


OTHERS = {
    "other row's maximum": lambda x: jnp.exp(x - x.max(-1)[::-1, None]).sum(-1),
    "maximum of another array": lambda x: jnp.exp(x - (x * 2).max(-1, keepdims=True)).sum(-1),
    "maximum of a part": lambda x: jnp.exp(x - x[:, :12].max(-1, keepdims=True)).sum(-1),
    "twice the maximum": lambda x: jnp.exp(x - 2 * x.max(-1, keepdims=True)).sum(-1),
    "maximum over other axes": lambda x: jnp.exp(x - x.max(0)).sum(-1),
    "maximum over all": lambda x: jnp.exp(x - x.max()).sum(-1),
    "mean": lambda x: jnp.exp(x - x.mean(-1, keepdims=True)).sum(-1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_programs_do_not_match(name):
    assert "sumexp" not in ops_of(OTHERS[name], X)


def adversarial(columns):
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(14, columns)).astype(F32)
    rows[0] *= 1e4
    rows[1] = np.linspace(0, 1e4, columns)
    rows[2] = np.linspace(1e4, 0, columns)
    rows[3, columns // 3 :] = -INF
    rows[4, : columns - 1] = -INF
    rows[5] = -INF
    rows[6, columns // 2] = np.nan
    rows[7, columns // 2] = INF
    rows[8] = INF
    rows[9] = np.nan
    rows[10, 0], rows[10, -1] = INF, -INF
    rows[11] = np.finfo(F32).min
    rows[12] = np.finfo(F32).max
    rows[13] = -1e30
    return rows


def reference(x):
    """(max, sum of exp(x - max)) in float64, as lax has it."""
    with jax.enable_x64(True):
        wide = jnp.asarray(x, np.float64)
        top = lax.reduce_max_p.bind(wide, axes=(1,), out_sharding=None)
        return np.asarray(top), np.asarray(jnp.exp(wide - top[:, None]).sum(1))


@pytest.mark.parametrize(("columns", "block"), [(100, None), (100, 16), (64, 16), (37, 64), (50, 1), (9, 4)])
def test_adversarial_rows(columns, block):
    x = adversarial(columns)
    with limits(row=8):
        made = program(lambda x: (x.max(-1), jnp.exp(x - x.max(-1, keepdims=True)).sum(-1)), x)
        kernel = whole_kernel(made.graph)
        assert [n.op for n in made.graph.nodes if isinstance(n, Reduce)] == ["sumexp"]
        with np.errstate(all="ignore"):
            if block is None:
                found = numpied(made.graph, kernel, [x])
            else:
                found = interpreted(made.graph, kernel, Config(0, 1, block, 1), [x])
    top, total = (found[v] for v in made.graph.outputs)
    wanted_top, wanted_total = reference(x)
    np.testing.assert_array_equal(top, wanted_top.astype(F32))
    np.testing.assert_allclose(total.astype(np.float64), wanted_total, rtol=2e-6)


@pytest.mark.parametrize("f", [jax.nn.softmax, jax.nn.log_softmax])
def test_softmax_of_adversarial_rows(f):
    x = adversarial(40)
    with limits(row=8):
        made = program(f, x)
        with np.errstate(all="ignore"):
            found = interpreted(made.graph, whole_kernel(made.graph), Config(0, 1, 16, 1), [x])
    np.testing.assert_allclose(found[made.graph.outputs[0]], np.asarray(f(x)), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_rows_that_begin_with_minus_infinity(dtype):
    rows = np.random.default_rng(3).normal(size=(4, 40)).astype(F32)
    rows[1, 0], rows[2, :20], rows[3, :-1] = -INF, -INF, -INF
    x = np.asarray(jnp.asarray(rows, dtype))

    def f(x):  # not jnp.sum: it adds up in float32, and the rule wants both reductions of one array
        top = x.max(-1)
        return top, lax.reduce_sum_p.bind(jnp.exp(x - top[:, None]), axes=(1,), out_sharding=None)

    with limits(row=8):
        made = program(f, x)
        assert [n.op for n in made.graph.nodes if isinstance(n, Reduce)] == ["sumexp"]
        found = interpreted(made.graph, whole_kernel(made.graph), Config(0, 1, 16, 1), [x])
    top, total = (found[v].astype(F32) for v in made.graph.outputs)
    wanted_top, wanted_total = reference(x.astype(F32))
    np.testing.assert_array_equal(top, wanted_top.astype(F32))
    np.testing.assert_allclose(total, wanted_total, rtol=float(jnp.finfo(dtype).eps))
