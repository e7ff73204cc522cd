"""Mean and variance of a long row share a pass: where the rule applies, where not, and how exact it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxorch.ir.graph import Graph, Reduce
from jaxorch.ir.view import Value, View
from jaxorch.kernels.configs import Config
from jaxorch.options import Options
from jaxorch.passes.derive.moments import one_pass_moments
from tests.codegen.drive import interpreted, limits, numpied, program, whole_kernel
from tests.ir.build import Builder, array, passed

F32 = np.float32
N = 24
X = np.random.default_rng(0).normal(size=(3, N)).astype(F32)


def built(divisor=float(N), op="div", square="square", axes=(1,), other=False, reverse=False):
    """sum(x), sum((x - sum(x)/n)^2), with one thing or another changed."""
    build = Builder()
    x, y = build.input((3, N)), build.input((3, N))
    total = build.reduce("sum", y if other else x, axes)
    kept = (3,) if axes == (1,) else (N,)
    mean = build.map(op, total, build.const(divisor), shape=kept)
    spread = build.view(mean, kept)
    across = View((3, N), tuple(p for p in _repeated(spread, axes).pieces))
    operands = (across, x) if reverse else (x, across)
    deviation = build.map("sub", *operands, shape=(3, N))
    if square == "mul":
        squared = build.map("mul", deviation, deviation, shape=(3, N))
    else:
        squared = build.map(square, deviation, shape=(3, N), **({"y": 2} if square == "integer_pow" else {}))
    second = build.reduce("sum", squared, [1])
    return build, total, second


def _repeated(view, axes):
    from jaxorch.ir.index import Dim
    from jaxorch.ir.view import Piece

    kept = tuple(Dim(a) for a in range(2) if a not in axes)
    return View((3, N), (Piece((), view.pieces[0].value, kept),))


def applied(graph: Graph) -> Graph:
    with limits(row=8):
        return passed(one_pass_moments, graph)


def expected_of(build, total):
    """The graph with the first sum replaced and nothing else kept."""
    return Graph(
        (*build.nodes[: total.node], Reduce("moments", build.nodes[total.node].operands, (1,), (array((3,)),) * 2)),
        (Value(total.node), Value(total.node, 1)),
    )


@pytest.mark.parametrize("square", ["square", "integer_pow", "mul"])
@pytest.mark.parametrize(("op", "divisor"), [("div", float(N)), ("mul", 1 / N), ("mul", float(F32(1 / N)))])
def test_the_rule(square, op, divisor):
    build, total, second = built(divisor, op, square)
    assert applied(build.graph(total, second)) == expected_of(build, total)


NEAR_MISSES = {
    "another count": {"divisor": float(N - 1)},
    "a product with the count": {"op": "mul"},
    "other axes": {"axes": (0,), "divisor": 3.0},
    "another array's mean": {"other": True},
    "no square": {"square": "exp"},
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name):
    build, total, second = built(**NEAR_MISSES[name])
    graph = build.graph(total, second)
    assert applied(graph) is graph


def test_a_cube_is_no_square():
    build, total, second = built(square="mul")
    node = build.nodes[second.node - 1]
    build.nodes[second.node - 1] = type(node)("integer_pow", node.operands[:1], node.array, (("y", 3),))
    graph = build.graph(total, second)
    assert applied(graph) is graph


def test_rows_that_fit_a_tile_keep_two_passes():
    build, total, second = built()
    graph = build.graph(total, second)
    with limits(row=N):
        assert one_pass_moments(graph, Options()) is graph
    with limits(row=N - 1):
        assert one_pass_moments(graph, Options()) is not graph


def ops_of(f, *args):
    with limits(row=8):
        return sorted(n.op for n in program(f, *args).graph.nodes if isinstance(n, Reduce))


def layer_norm(x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5)


def group_norm(x):
    m = x.astype(F32).reshape(3, 4, 2, N // 8)
    mean, variance = m.mean((1, 3), keepdims=True), m.var((1, 3), keepdims=True)
    return ((m - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)


def flax_module(module, x):
    variables = module.init(jax.random.key(0), x)
    return lambda x: module.apply(variables, x)


FLAX = {
    "flax LayerNorm": nn.LayerNorm(use_fast_variance=False),
    "flax GroupNorm": nn.GroupNorm(num_groups=2, use_fast_variance=False),
    "flax InstanceNorm": nn.InstanceNorm(use_fast_variance=False, feature_axes=()),
}
SPELLINGS = {
    "mean and var": lambda x: (x.mean(-1), x.var(-1)),
    "mean and std": lambda x: (x.mean(-1, keepdims=True), x.std(-1)),
    "var alone": lambda x: x.var(-1),
    "layer norm": layer_norm,
    "group norm": group_norm,
    "half": lambda x: layer_norm(x.astype(jnp.bfloat16).astype(F32)),
    "transposed": lambda x: x.T.var(0),
    "all axes": lambda x: x.var(),
    "of an expression": lambda x: jnp.var(jnp.tanh(x) * 2, -1),
    **{name: flax_module(module, X) for name, module in FLAX.items()},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    assert ops_of(SPELLINGS[name], X) == ["moments"]


OTHERS = {
    "ddof": lambda x: (x - x.sum(-1, keepdims=True) / (N - 1)).__pow__(2).sum(-1),
    "other axes": lambda x: ((x - x.mean(0)) ** 2).sum(-1),
    "other mean": lambda x: ((x - (x * 2).mean(-1, keepdims=True)) ** 2).sum(-1),
    "mean of a part": lambda x: ((x - x[:, :12].sum(-1, keepdims=True) / N) ** 2).sum(-1),
    "reversed row's mean at another place": lambda x: ((x - x.mean(-1)[::-1, None]) ** 2).sum(-1),
    "not squared": lambda x: ((x - x.mean(-1, keepdims=True)) * (x + x.mean(-1, keepdims=True))).sum(-1),
    "maximum": lambda x: ((x - x.max(-1, keepdims=True)) ** 2).sum(-1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_programs_do_not_match_and_keep_their_values(name):
    with limits(row=8):
        made = program(OTHERS[name], X)
        assert all(n.op != "moments" for n in made.graph.nodes if isinstance(n, Reduce))


def test_integers_do_not_match():
    """Their division rounds: the mean is another one."""

    def f(x):
        mean = lax.div(x.sum(-1, keepdims=True), np.int32(N))
        return ((x - mean) * (x - mean)).sum(-1)

    x = np.random.default_rng(0).integers(0, 50, (3, N)).astype(np.int32)
    assert "moments" not in ops_of(f, x)


ROWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "far from zero": lambda rng, shape: rng.normal(size=shape) + 1e4,
    "constant": lambda rng, shape: np.full(shape, 3.7),
    "huge and tiny": lambda rng, shape: rng.normal(size=shape) * np.exp2(rng.integers(-30, 30, shape)),
    "one outlier": lambda rng, shape: np.where(np.arange(shape[-1]) == 5, 1e6, rng.normal(size=shape)),
    "the first of a column an outlier": lambda rng, shape: np.where(
        np.arange(shape[-1]) == 0, 1e6, rng.normal(size=shape)
    ),
    "sorted": lambda rng, shape: np.sort(rng.normal(size=shape) + 100, -1),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("columns", "block"), [(1000, None), (100, 16), (64, 16), (37, 64), (9, 1)])
def test_variance_is_as_exact_as_two_passes(name, columns, block):
    x = ROWS[name](np.random.default_rng(1), (2, columns)).astype(F32)
    with limits(row=8):
        made = program(lambda x: (x.mean(-1), x.var(-1)), x)
        kernel = whole_kernel(made.graph)
        assert kernel.schedule == "rows-looped"
        if block is None:
            found = numpied(made.graph, kernel, [x])
        else:
            found = interpreted(made.graph, kernel, Config(0, 1, block, 1), [x])
    mean, variance = (found[v].astype(np.float64) for v in made.graph.outputs)
    wide = x.astype(np.float64)
    scale = np.abs(wide).max(-1)
    # sums of distances from a column's own element: relative errors of some units, not of (mean/deviation)^2 of them
    np.testing.assert_allclose(mean, wide.mean(-1), rtol=0, atol=4e-7 * scale.max())
    condition = np.sqrt((wide**2).mean(-1) / np.maximum(wide.var(-1), 1e-30))
    bound = 1e-6 * (1 + condition) * wide.var(-1) + (2e-7 * scale) ** 2
    assert (np.abs(variance - wide.var(-1)) <= bound).all()


def test_nan_and_infinity_spread():
    x = np.ones((4, 20), F32)
    x[0, 3], x[1, 19], x[2, 0] = np.nan, np.inf, -np.inf
    with limits(row=8):
        made = program(lambda x: (x.mean(-1), x.var(-1)), x)
        found = interpreted(made.graph, whole_kernel(made.graph), Config(0, 1, 8, 1), [x])
    mean, variance = (found[v] for v in made.graph.outputs)
    np.testing.assert_array_equal(np.isnan(variance), [True, True, True, False])
    assert np.isnan(mean[0])
    assert (mean[3], variance[3]) == (1, 0)


def test_infinities_anywhere_in_a_column():
    """The first element of a column is what the column's sums are shifted by; an infinite one must not be."""
    x = np.ones((4, 20), F32)
    x[0, 2], x[1, 10], x[2, 2], x[2, 10], x[3, 3] = np.inf, -np.inf, np.inf, -np.inf, 1e38
    x[3, 11] = 3e37
    with limits(row=8):
        made = program(lambda x: (x.mean(-1), x.var(-1)), x)
        found = interpreted(made.graph, whole_kernel(made.graph), Config(0, 1, 8, 1), [x])
    mean, variance = (found[v] for v in made.graph.outputs)
    np.testing.assert_array_equal(mean[:3], [np.inf, -np.inf, np.nan])
    np.testing.assert_allclose(mean[3], 1.3e38 / 20, rtol=1e-6)
    np.testing.assert_array_equal(variance, [np.nan, np.nan, np.nan, np.inf])
