"""Operands of products that the grid's point chooses among several arrays: one load, from a chosen address."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.codegen.count_ops import count
from jaxorch.codegen.source import generate
from jaxorch.ir import index as ix
from jaxorch.ir.index import Bound, Dim
from jaxorch.kernels import choices
from jaxorch.kernels.configs import Config
from tests.codegen.drive import interpreted, scheduled

F32 = np.dtype(np.float32)
STEPS = (Config(0, 16, 16, 4, 2, 16), Config(0, 16, 32, 4, 2, 16, 2), Config(0, 16, 32, 4, 1, 32))

gemm_of = functools.partial(scheduled, "gemm")


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(F32)


def check(f, want, *arrays):
    made, kernel = gemm_of(f, *arrays)
    (value,) = made.graph.outputs
    for config in STEPS:
        found = interpreted(made.graph, kernel, config, made.inputs(kernel))[value]
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())
    return [generate(made.graph, kernel, config, arch=90).text for config in STEPS], made.graph, kernel


@settings(max_examples=300)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 20)),
    st.tuples(st.integers(-60, 60), st.integers(-3, 3)),
    st.integers(-40, 40),
    st.tuples(st.integers(-300, 300), st.integers(0, 300)),
)
def test_a_bound_without_what_never_decides_it_is_the_same_bound(sizes, factors, const, ends):
    expr = ix.add(ix.add(ix.mul(Dim(0), factors[0]), ix.mul(Dim(1), factors[1])), ix.Const(const))
    bound = Bound(expr, ends[0], ends[0] + ends[1])
    coarse = choices._coarser(bound, sizes)
    for point in itertools.product(*map(range, sizes)):
        assert bool(ix.holds((bound,), point)) == bool(ix.holds((coarse,), point))


def test_a_remainder_below_the_step_of_a_limit_is_left_out():
    bound = Bound(ix.add(ix.mul(Dim(0), 48), Dim(1)), 352, 1000)
    assert choices._coarser(bound, (16, 16)) == Bound(Dim(0), 8, 16)
    assert choices._coarser(bound, (16, 17)) == bound


def heads_of(x, y, m):
    """Heads joined of two arrays, as a linear attention over two scales has them."""
    joined = jnp.concatenate([x, y], -1).reshape(x.shape[0], -1, 48)
    key, value = jax.nn.relu(joined[..., 16:32]), joined[..., 32:]
    return jnp.einsum("nhk,nhv->hkv", key, jnp.pad(value, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)) * m


@pytest.mark.parametrize("heads", [(2, 2), (1, 3)])
def test_heads_of_two_arrays_and_a_column_of_ones(heads):
    rng = np.random.default_rng(0)
    x, y, m = (*(normal(rng, 40, 48 * h) for h in heads), normal(rng, 1))
    joined = np.concatenate([x, y], -1).reshape(40, -1, 48).astype(np.float64)
    key, value = np.maximum(joined[..., 16:32], 0), np.pad(joined[..., 32:], [(0, 0)] * 2 + [(0, 1)], constant_values=1)
    texts, graph, kernel = check(heads_of, np.einsum("nhk,nhv->hkv", key, value) * m, x, y, m)
    alike = heads[0] == heads[1]  # else rows are not equally long, and lanes lie apart: a branch chooses
    for text in texts:
        before, loop = text.split("for key_start")
        assert before.count("tl.where") == (2 if alike else 0)
        assert loop.split("tl.dot")[0].count("tl.load") == (2 if alike else 4)
    assert (not count(graph, kernel, STEPS[0]).branches) == alike


@pytest.mark.parametrize("parts", [(1, 1), (2, 1, 3)])
def test_a_batch_of_several_arrays(parts):
    rng = np.random.default_rng(0)
    *x, w = (*(normal(rng, n, 20, 70) for n in parts), normal(rng, sum(parts), 70, 18))
    want = np.concatenate(x).astype(np.float64) @ w
    texts, graph, kernel = check(lambda w, *x: jnp.concatenate(x) @ w, want, w, *x)
    assert all("if " not in text.split("tl.dot")[0] for text in texts)
    assert not count(graph, kernel, STEPS[0]).branches


def test_an_array_beside_the_chosen_ones_is_read_where_it_is():
    """Two arrays share the first rows of their batch, another one has the rest: nothing is read outside of it."""
    rng = np.random.default_rng(0)
    x, y, z, w = normal(rng, 1, 16, 70), normal(rng, 1, 16, 70), normal(rng, 2, 8, 70), normal(rng, 70, 18)
    f = lambda x, y, z, w: jnp.concatenate([jnp.concatenate([x, y]), z], 1) @ w  # noqa: E731
    check(f, np.concatenate([np.concatenate([x, y]), z], 1).astype(np.float64) @ w, x, y, z, w)


def test_arrays_of_which_one_is_computed_are_chosen_by_a_branch():
    rng = np.random.default_rng(0)
    x, y, w = normal(rng, 2, 20, 70), normal(rng, 1, 20, 70), normal(rng, 3, 70, 18)
    want = np.concatenate([x, np.exp(y)]).astype(np.float64) @ w
    texts, _, _ = check(lambda x, y, w: jnp.concatenate([x, jnp.exp(y)]) @ w, want, x, y, w)
    assert all("if " in text.split("tl.dot")[0] for text in texts)
