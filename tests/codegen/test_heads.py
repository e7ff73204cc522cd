"""Products whose tiles hold several heads: every configuration and the oracle against float64, over drawn layouts."""

from itertools import cycle
from unittest.mock import patch

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen import triton_planes
from jaxorch.codegen.count_ops import count
from jaxorch.codegen.source import generate
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.contract_configs import gemm_blocks
from jaxorch.kernels.frame import COLUMN, HEAD, ROW
from tests.codegen.drive import interpreted, numpied, program, scheduled, whole_kernel

ORDERS = (ROW, HEAD, COLUMN), (COLUMN, HEAD, ROW)  # of a tile's axes, by Triton's version
F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)


def normal(rng, *shape, dtype=BF16):
    return rng.standard_normal(shape).astype(dtype)


def with_heads(f, *arrays):
    """The program, its kernel, and the number of the frame whose tiles hold heads."""
    made, kernel = scheduled("gemm", f, *arrays)
    (number,) = (k for k, frame in enumerate(kernel.frames) if frame.heads)
    return made, kernel, number


def results(f, *arrays, blocks=()):
    """The outputs by the oracle and by the interpreter in the frame with heads, `blocks` after its number in a Config;
    in the configurations that would be tried, if none are given."""
    made, kernel, number = with_heads(f, *arrays)
    configs = [Config(number, *b) for b in blocks] or [
        c for c in configurations(made.graph, kernel)[:8] if c.frame == number
    ]
    inputs = made.inputs(kernel)
    found = [numpied(made.graph, kernel, inputs, number)]
    for config, order in zip(configs, cycle(ORDERS)):
        with patch.object(triton_planes, "heads_between", lambda order=order: order):
            found.append(interpreted(made.graph, kernel, config, inputs))
    return [[each[v].astype(np.float64) for v in made.graph.outputs] for each in found]


def check(f, want, *arrays, tolerance, blocks=()):
    for (got,) in results(f, *arrays, blocks=blocks):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-6))


def keys_and_values(qkv):
    _, k, v = jnp.split(qkv, 3, -1)
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
    return jnp.einsum("bnhd,bnhe->bhde", jax.nn.relu(k), v, preferred_element_type=jnp.float32)


def queries(qkv, kv):
    q = jax.nn.relu(jnp.split(qkv, 3, -1)[0])
    o = jnp.einsum("bnhd,bhde->bnhe", q.astype(jnp.float32), kv)
    return (o[..., :-1] / (o[..., -1:] + 1e-15)).astype(qkv.dtype).reshape(*qkv.shape[:2], -1)


SIZES = st.tuples(st.integers(1, 3), st.integers(17, 70), st.integers(2, 9), st.integers(2, 15))


@settings(max_examples=12, deadline=None)
@given(SIZES, st.sampled_from([F32, BF16, F16]), st.sampled_from([2, 4, 8]), st.sampled_from([1, 2, 3]))
def test_a_sum_over_pixels_for_each_head(sizes, dtype, held, splits):
    b, n, h, d = sizes
    x = normal(np.random.default_rng(n), b, n, h, 3 * d, dtype=dtype)
    _, k, v = np.split(x.astype(np.float64), 3, -1)
    want = np.einsum("bnhd,bnhe->bhde", np.maximum(k, 0), np.concatenate([v, np.ones((b, n, h, 1))], -1))
    blocks = [(16, 16, 4, 3, 16, splits, 1, held), (16, 16, 4, 2, 32, 1, 1, held)]
    check(keys_and_values, want, x, tolerance=1e-5, blocks=blocks)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(SIZES, st.sampled_from([F32, BF16, F16]), st.sampled_from([2, 4, 8]))
def test_a_product_for_each_head_and_its_denominator(sizes, dtype, held):
    b, n, h, d = sizes
    rng = np.random.default_rng(n)
    x, kv = normal(rng, b, n, h, 3 * d, dtype=dtype), np.abs(normal(rng, b, h, d, d + 1, dtype=F32))
    o = np.einsum("bnhd,bhde->bnhe", np.maximum(np.split(x.astype(np.float64), 3, -1)[0], 0), kv)
    want = (o[..., :-1] / (o[..., -1:] + 1e-15)).reshape(b, n, h * d)
    tolerance = 1e-4 if dtype == F32 else 1e-2
    blocks = [(16, 16, 4, 2, 16, 1, 1, held), (32, 16, 4, 2, 16, 1, 1, held)]
    check(queries, want, x, kv, tolerance=tolerance, blocks=blocks)


LAYOUTS = {
    "rows and columns side by side": "nhd,nhe->hde",
    "keys side by side": "mhd,nhd->hmn",
    "keys beside columns": "mhd,hde->mhe",
    "keys beside keys": "mhd,hed->mhe",
    "a shared operand": "mhd,de->mhe",
    "heads last in the result": "mhd,nhd->mnh",
}


@settings(max_examples=24, deadline=None)
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.tuples(st.integers(17, 40), st.integers(17, 40), st.integers(2, 7), st.integers(2, 12), st.integers(2, 12)),
    st.sampled_from([2, 4]),
    st.sampled_from([1, 2]),
)
@example("heads last in the result", (17, 36, 3, 2, 2), 2, 1)  # blocks of columns and of heads alone
def test_operands_of_any_layout(layout, sizes, held, splits):
    equation, extents = LAYOUTS[layout], dict(zip("mnhde", sizes, strict=True))
    rng = np.random.default_rng(sum(sizes))
    operands = [normal(rng, *(extents[c] for c in term)) for term in equation.split("->")[0].split(",")]
    f = lambda x, y: jnp.einsum(equation, x, y)  # noqa: E731
    made, kernel = scheduled("gemm", f, *operands)
    frames = [k for k, frame in enumerate(kernel.frames) if frame.heads]
    if layout != "a shared operand":  # whose heads are rows like any others
        assert frames
    want = np.einsum(equation, *(x.astype(np.float64) for x in operands))
    for number in frames:
        for config in (Config(number, 16, 16, 4, 2, 16, splits, 1, held), Config(number, 32, 32, 4, 2, 32, 1, 1, held)):
            found = interpreted(made.graph, kernel, config, made.inputs(kernel))[made.graph.outputs[0]]
            np.testing.assert_allclose(found.astype(np.float64), want, rtol=0, atol=1e-2 * np.abs(want).max())
        found = numpied(made.graph, kernel, made.inputs(kernel), number)[made.graph.outputs[0]]
        np.testing.assert_allclose(found.astype(np.float64), want, rtol=0, atol=1e-2 * np.abs(want).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_head(bad):
    rng = np.random.default_rng(0)
    x, kv = normal(rng, 1, 40, 6, 24), np.abs(normal(rng, 1, 6, 8, 9, dtype=F32))
    x[0, 7, 2] = bad
    kv[0, 4] = bad
    for f, arrays, axis in ((keys_and_values, (x,), 1), (queries, (x, kv), 2)):
        with np.errstate(invalid="ignore"):
            outs = [each[0] for each in results(f, *arrays)]
        for out in outs:
            heads = np.moveaxis(out.reshape(1, 40, 6, 8) if f is queries else out, axis, 0)
            finite = np.isfinite(heads.reshape(6, -1))
            assert finite[[0, 1, 3, 5]].all()
            assert finite[2].all() == (f is queries and bad == -np.inf)  # relu makes 0 of it
            assert finite[4].all() == (f is keys_and_values)
            np.testing.assert_array_equal(np.isnan(out), np.isnan(outs[0]))


def test_heads_of_two_arrays_and_a_place_known_at_run_time():
    rng = np.random.default_rng(0)
    x, y, w = normal(rng, 33, 3, 8), normal(rng, 33, 4, 8), normal(rng, 5, 8, 8)
    table = np.array([4, 0, 3, 3, 1, 2, 0], np.int32)
    f = lambda x, y, w, t: jnp.einsum("nhd,hde->nhe", jnp.concatenate([x, y], 1), w[t])  # noqa: E731
    both = np.concatenate([x, y], 1).astype(np.float64)
    want = np.einsum("nhd,hde->nhe", both, w.astype(np.float64)[table])
    check(f, want, x, y, w, table, tolerance=1e-2)


def test_a_cache_is_written_in_place():
    rng = np.random.default_rng(0)
    cache, x, w = normal(rng, 50, 5, 8), normal(rng, 20, 5, 8), normal(rng, 5, 8, 8)
    f = lambda c, x, w: lax.dynamic_update_slice(c, jnp.einsum("nhd,hde->nhe", x, w), (7, 0, 0))  # noqa: E731
    made, kernel, number = with_heads(f, cache, x, w)
    want = cache.astype(np.float64)
    want[7:27] = np.einsum("nhd,hde->nhe", x.astype(np.float64), w.astype(np.float64))
    tried = [c for c in configurations(made.graph, kernel) if c.frame == number]
    assert {c.splits for c in tried} == {1}
    for config in tried[:3]:
        (found,) = interpreted(made.graph, kernel, config, made.inputs(kernel)).values()
        np.testing.assert_allclose(found.astype(np.float64), want, rtol=0, atol=1e-2 * np.abs(want).max())


def frames_of(f, *arrays):
    kernel = whole_kernel(program(f, *arrays).graph)
    return kernel.frames


def zeros(*shape, dtype=BF16):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("equation", "shapes", "dtype"),
    [
        ("nhd,hde->nhe", [(64, 8, 64), (8, 64, 64)], BF16),  # runs of a line
        ("nhd,hde->nhe", [(64, 8, 32), (8, 32, 32)], F32),
        ("hnd,hde->hne", [(8, 64, 16), (8, 16, 16)], BF16),  # another row follows, not another head
        ("nd,de->ne", [(64, 16), (16, 16)], BF16),  # no heads
    ],
)
def test_only_heads_behind_short_runs_share_a_tile(equation, shapes, dtype):
    frames = frames_of(lambda x, y: jnp.einsum(equation, x, y), *(zeros(*s, dtype=dtype) for s in shapes))
    assert not any(frame.heads for frame in frames)


def test_statistics_of_rows_keep_heads_apart():
    def f(x, w):
        x = x / jnp.max(jnp.abs(x), -1, keepdims=True)
        return jnp.einsum("nhd,hde->nhe", x, w)

    assert not any(frame.heads for frame in frames_of(f, zeros(64, 8, 16), zeros(8, 16, 16)))


def test_tiles_without_heads_are_tried_as_well():
    made, kernel, number = with_heads(keys_and_values, zeros(2, 4096, 32, 48))
    found = configurations(made.graph, kernel)
    plain = [Config(0, *blocks) for *blocks, _ in gemm_blocks(made.graph, kernel.core, kernel.frames[0])]
    assert [c for c in found if c.frame == 0] == list(dict.fromkeys(plain))
    assert found[0].frame == number
    assert all((c.heads > 1) == (c.frame == number) for c in found)
    assert {c.frame for c in found[:4]} == {0, number}


def test_loads_of_heads_side_by_side_have_no_test_of_their_end():
    made, kernel, number = with_heads(keys_and_values, zeros(2, 4096, 32, 48))
    config = configurations(made.graph, kernel)[0]
    assert config.frame == number
    loads = [line for line in generate(made.graph, kernel, config, arch=90).text.splitlines() if "tl.load" in line]
    assert len(loads) == 2
    assert not any("_mask" in line for line in loads)  # `column < 16` says more, and keeps runs of 16 whole


def test_memory_delivers_pieces_that_neighbouring_heads_share():
    """Of qkv, keys and values of a head are 64 bytes in 96, at places that are no multiple of 64."""
    made, kernel, number = with_heads(keys_and_values, zeros(2, 4096, 32, 48))
    apart, together = Config(0, 16, 32, 4, 4, 64), Config(number, 16, 32, 4, 4, 64, 1, 1, 4)
    (wanted,) = (made.graph.array(v).nbytes * 2 // 3 for v in kernel.inputs)
    reads = [sum(count(made.graph, kernel, c).read.values()) for c in (apart, together)]
    assert reads == [2 * wanted, 3 * wanted // 2]
