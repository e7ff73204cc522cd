"""Operands that are stored as they are read: each element once, from one and from split sums, or the reason why not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxorch
from jaxorch.codegen.count_ops import count
from jaxorch.codegen.launches import scratch_arrays
from jaxorch.codegen.source import generate
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.orchestration.cost import minimum_bytes
from jaxorch.runtime.launch import interpreted_call
from tests.codegen.drive import agree, interpreted, numpied, program, whole_kernel

F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)


def normal(rng, *shape, dtype=BF16):
    return rng.standard_normal(shape).astype(dtype)


def stored_by(f, *arrays, schedule, early):
    """The program and its one kernel, which stores `early` outputs from operands."""
    made = program(f, *arrays)
    kernel = whole_kernel(made.graph)
    assert isinstance(kernel, Kernel), kernel
    assert kernel.schedule == schedule
    assert len(kernel.core.stored) == early
    return made, kernel


def check(made, kernel, configs, tolerance=2e-2):
    """Every output by the oracle and in each configuration, its stores counted; what is only moved is equal."""
    wanted = {o.value: made.values[o.value] for o in kernel.outputs}
    exact = {s.value for s in kernel.core.stored}
    results = [numpied(made.graph, kernel, made.inputs(kernel))]
    results += [interpreted(made.graph, kernel, config, made.inputs(kernel)) for config in configs]
    for found in results:
        for value, want in wanted.items():
            agree(found[value], want, 0.0 if value in exact else tolerance)


def attend(q, k, v, scores=lambda s: s):
    """Grouped attention: q of [b, h, g, n, d], k and v of [b, h, m, d]."""
    s = scores(jnp.einsum("bhgnd,bhmd->bhgnm", q, k, preferred_element_type=jnp.float32))
    return jnp.einsum("bhgnm,bhme->bhgne", jax.nn.softmax(s, -1).astype(q.dtype), v)


def grown(q, k, v, kc, vc):
    """A step of attention over caches that grow, and the new caches."""
    kc, vc = jnp.concatenate([kc, k], 2), jnp.concatenate([vc, v], 2)
    return attend(q, kc, vc), kc, vc


def caches(rng, b, h, g, n, new, old, d, e, dtype=BF16):
    shapes = (b, h, g, n, d), (b, h, new, d), (b, h, new, e), (b, h, old, d), (b, h, old, e)
    return [normal(rng, *shape, dtype=dtype) for shape in shapes]


def online(kernel, rows=16, keys=16, splits=(1, 2, 3)):
    columns = max(16, 1 << (kernel.frames[0].sizes[2] - 1).bit_length())
    return [Config(0, rows, columns, 4, 2, keys, s) for s in splits]


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4), st.integers(1, 9)),
    st.tuples(st.integers(1, 17), st.integers(2, 60)),
    st.tuples(st.integers(16, 64), st.integers(16, 64)),
    st.sampled_from([BF16, F16, F32]),
)
def test_growing_caches_of_any_length(heads, keys, dims, dtype):
    """Keys that divide no block, groups of queries in one block of rows and in several, one share of keys to three."""
    assume(
        heads[2] * heads[3] * dims[1] not in (sum(keys) * dims[0], sum(keys) * dims[1])
    )  # not as large as the result
    arrays = caches(np.random.default_rng(0), *heads, *keys, *dims, dtype=dtype)
    made, kernel = stored_by(grown, *arrays, schedule="online", early=2)
    check(made, kernel, online(kernel), 1e-2 if dtype == F32 else 5e-2)


def test_caches_whose_seam_falls_between_blocks():
    """One source a block, chosen by a branch: what is stored is what the branch has loaded."""
    made, kernel = stored_by(
        grown, *caches(np.random.default_rng(0), 2, 1, 2, 3, 16, 48, 16, 32), schedule="online", early=2
    )
    check(made, kernel, online(kernel), 5e-2)


def test_caches_that_are_returned_in_another_layout():
    """[b, m, h*d] and [m, b, h, d] of what is read as [b, h, m, d]."""

    def f(q, k, v, kc, vc):
        o, kc, vc = grown(q, k, v, kc, vc)
        return o, kc.transpose(0, 2, 1, 3).reshape(2, -1, 3 * 16), vc.transpose(2, 0, 1, 3)

    arrays = caches(np.random.default_rng(0), 2, 3, 2, 1, 1, 36, 16, 32)
    made, kernel = stored_by(f, *arrays, schedule="online", early=2)
    check(made, kernel, online(kernel), 5e-2)


def test_keys_and_values_that_are_computed():
    """Rotated keys, values of another dtype: what is stored is the node's, not what the matrix unit is given."""

    def f(q, k, v, angle):
        k = (k * jnp.cos(angle)[:, None] + jnp.roll(k, 8, -1) * jnp.sin(angle)[:, None]).astype(BF16)
        v = v + 0.1  # float32, rounded for the product
        return attend(q, k, v.astype(BF16)), k, v

    rng = np.random.default_rng(0)
    arrays = normal(rng, 1, 2, 2, 1, 16), normal(rng, 1, 2, 33, 16), normal(rng, 1, 2, 33, 16, dtype=F32)
    made, kernel = stored_by(f, *arrays, normal(rng, 33, dtype=F32), schedule="online", early=2)
    wanted = {o.value: made.values[o.value] for o in kernel.outputs}
    assert wanted[made.graph.outputs[2]].dtype == F32
    for config in online(kernel):
        found = interpreted(made.graph, kernel, config, made.inputs(kernel))
        for value, want in wanted.items():
            agree(found[value], want, 1e-6 if want.dtype == F32 else 5e-2)


def test_queries_are_stored_by_the_first_share_of_the_keys():
    def f(q, k, v):
        q = q * 0.5
        return attend(q, k, v), q

    rng = np.random.default_rng(0)
    arrays = normal(rng, 2, 2, 3, 11, 16), normal(rng, 2, 2, 50, 16), normal(rng, 2, 2, 50, 32)
    made, kernel = stored_by(f, *arrays, schedule="online", early=1)
    check(made, kernel, online(kernel), 5e-2)


MASKED = {
    "causal": lambda s: jnp.where(jnp.arange(40)[:, None] >= jnp.arange(52), s, -1e30),
    "nothing but the first": lambda s: jnp.where(jnp.arange(52) < 5, s, -np.inf),
    "a band": lambda s: jnp.where(abs(jnp.arange(40)[:, None] - jnp.arange(52)) < 5, s, -1e9),
}


@pytest.mark.parametrize("name", MASKED)
def test_blocks_that_a_mask_leaves_out_are_stored_all_the_same(name):
    def f(q, k, v, kc, vc):
        kc, vc = jnp.concatenate([kc, k], 2), jnp.concatenate([vc, v], 2)
        return attend(q, kc, vc, MASKED[name]), kc, vc

    arrays = caches(np.random.default_rng(0), 1, 2, 2, 40, 3, 49, 16, 32)
    made, kernel = stored_by(f, *arrays, schedule="online", early=2)
    check(made, kernel, online(kernel, rows=32), 5e-2)


def test_a_position_known_at_run_time_leaves_no_key_out():
    def f(q, k, v, kc, vc, filled):
        kc, vc = jnp.concatenate([kc, k], 2), jnp.concatenate([vc, v], 2)
        return attend(q, kc, vc, lambda s: jnp.where(jnp.arange(52) < filled, s, -1e30)), kc, vc

    arrays = caches(np.random.default_rng(0), 1, 2, 2, 1, 3, 49, 16, 32)
    made, kernel = stored_by(f, *arrays, np.int32(7), schedule="online", early=2)
    check(made, kernel, online(kernel), 5e-2)


def test_what_is_stored_counts_once():
    """Every cache is read once and written once, however many programs share its keys."""
    arrays = caches(np.random.default_rng(0), 4, 2, 4, 1, 1, 1023, 64, 64)
    made, kernel = stored_by(grown, *arrays, schedule="online", early=2)
    graph, split = made.graph, next(c for c in configurations(made.graph, kernel) if c.splits > 1)
    least = minimum_bytes(graph, kernel)
    for config in (split, replace(split, splits=1)):
        parts = scratch_arrays(graph, kernel, config) if config.splits > 1 else ()
        counts = count(graph, kernel, config)
        assert counts.written == pytest.approx(least - sum(counts.read.values()) + sum(a.nbytes for a in parts), 0.02)
        assert least <= counts.moved <= 1.05 * least + 2 * sum(a.nbytes for a in parts)


def test_a_second_layer_is_the_first_ones_kernel_in_another_place():
    def f(first, second):
        o, *kept = grown(*first)
        return *grown(jnp.tanh(o), *second), *kept

    rng = np.random.default_rng(0)
    first, second = (caches(rng, 1, 2, 2, 1, 1, 35, 16, 16) for _ in range(2))
    made = program(lambda *a: f(a[:5], a[5:]), *first, *second[1:])
    found = [c.kernel for c in enumerate_candidates(made.graph).fused if c.kernel.core and len(c.kernel.outputs) == 3]
    layers = {tuple(s.value for s in kernel.core.stored) for kernel in found}
    assert len(layers) == 2
    for kernel in found:
        check(made, kernel, online(kernel, splits=(2,)), 5e-2)


def test_several_points_of_the_grid_a_program():
    """Caches of a point's own, and queries that the points of a group share, which one of them stores."""

    def f(q, k, v, kc, vc):
        kc, vc, q = jnp.concatenate([kc, k], 2), jnp.concatenate([vc, v], 2), q * 0.5
        return attend(jnp.broadcast_to(q, (2, 4, 2, 3, 16)), kc, vc), kc, vc, q

    rng = np.random.default_rng(0)
    arrays = caches(rng, 2, 4, 2, 3, 1, 28, 16, 32)
    made, kernel = stored_by(f, normal(rng, 2, 1, 2, 3, 16), *arrays[1:], schedule="online", early=3)
    check(made, kernel, [replace(c, points=p) for c in online(kernel, keys=32, splits=(1,)) for p in (2, 4)], 5e-2)


def test_two_launches():
    """The first stores the caches, the second what it makes of the parts of the sums."""
    made, kernel = stored_by(
        grown, *caches(np.random.default_rng(0), 1, 2, 2, 20, 1, 63, 16, 64), schedule="online", early=2
    )
    config = Config(0, 32, 64, 1, 2, 16, 2)
    source = generate(made.graph, kernel, config, arch=None)
    assert source.combine is not None
    assert len(source.early) == 2
    check(made, kernel, [config], 5e-2)
    outputs = [made.graph.array(o.value) for o in kernel.outputs]
    found = interpreted_call(source, made.inputs(kernel), outputs)
    for output, got in zip(kernel.outputs, found, strict=True):
        agree(np.asarray(got), made.values[output.value], 5e-2)


def test_a_whole_program_of_split_sums():
    arrays = caches(np.random.default_rng(0), 1, 1, 2, 1, 1, 599, 16, 16)
    optimised = jaxorch.optimize(grown, options=jaxorch.Options(backend="interpret", fallback="error"))
    (kernel,) = jaxorch.explain(optimised, *arrays).kernels
    assert "in 2 parts" in kernel.config
    for got, want, tolerance in zip(optimised(*arrays), jax.jit(grown)(*arrays), (2e-2, 0, 0), strict=True):
        agree(np.asarray(got), np.asarray(want), tolerance)


# Products

TILES = [Config(0, 16, 16, 4, 2, 16, splits) for splits in (1, 3)] + [Config(0, 32, 64, 4, 3, 32, 1)]


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(2, 70), st.integers(2, 70)),
    st.sampled_from([BF16, F32]),
)
def test_a_residual_sum_is_stored_by_the_product_that_reads_it(sizes, dtype):
    """From programs that have the same rows and different columns each element is stored by one."""

    def f(x, r, w):
        h = x + r
        return h, h @ w

    b, n, k, m = sizes
    rng = np.random.default_rng(0)
    arrays = normal(rng, b, n, k, dtype=dtype), normal(rng, b, n, k, dtype=dtype), normal(rng, k, m, dtype=dtype)
    made = program(f, *arrays)
    kernel = whole_kernel(made.graph)
    if isinstance(kernel, str) or kernel.schedule != "gemm":  # one row and one column
        return
    assert len(kernel.core.stored) == (1 if k != m else 0)  # as large as the product, it is stored beside it
    check(made, kernel, TILES, 0.2 if dtype == BF16 else 2e-2)


def test_a_right_operand_is_stored_by_one_block_of_rows():
    def f(x, w, s):
        w = w.T * s
        return x @ w, w

    rng = np.random.default_rng(0)
    arrays = normal(rng, 50, 40), normal(rng, 36, 40), normal(rng, 36)
    made, kernel = stored_by(f, *arrays, schedule="gemm", early=1)
    check(made, kernel, TILES, 0.2)


def test_both_operands_are_stored():
    def f(x, r, w):
        h, w = x + r, jnp.concatenate([w, -w])
        return h, h @ w, w

    rng = np.random.default_rng(0)
    arrays = normal(rng, 50, 80), normal(rng, 50, 80), normal(rng, 40, 20)
    made, kernel = stored_by(f, *arrays, schedule="gemm", early=2)
    check(made, kernel, TILES, 0.2)


def test_a_norm_is_stored_by_the_product_that_reads_it():
    def f(x, r, w):
        h = (x + r).astype(jnp.float32)
        y = (h * lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)
        return y @ w, y, (x + r)

    rng = np.random.default_rng(0)
    arrays = normal(rng, 100, 48), normal(rng, 100, 48), normal(rng, 48, 20)
    made, kernel = stored_by(f, *arrays, schedule="gemm", early=2)
    wanted = {o.value: made.values[o.value] for o in kernel.outputs}
    for config in TILES[::2]:
        found = interpreted(made.graph, kernel, config, made.inputs(kernel))
        for value, want in wanted.items():
            agree(found[value], want, 5e-2)


def test_points_of_the_grid_that_share_an_operand_store_it_once():
    def f(x, r, w, c):
        h = x + r
        return h, c[:, None, None] * (h @ w)

    rng = np.random.default_rng(0)
    arrays = normal(rng, 20, 48), normal(rng, 20, 48), normal(rng, 48, 24), normal(rng, 3)
    made, kernel = stored_by(f, *arrays, schedule="gemm", early=1)
    assert kernel.frames[0].sizes[0] == 3
    check(made, kernel, TILES, 0.3)


def test_contracted_axes_in_another_order():
    def f(x, r, w):
        h = x + r
        return h, jnp.einsum("nab,bam->nm", h, w)

    rng = np.random.default_rng(0)
    arrays = normal(rng, 20, 6, 8), normal(rng, 20, 6, 8), normal(rng, 8, 6, 24)
    made, kernel = stored_by(f, *arrays, schedule="gemm", early=1)
    check(made, kernel, TILES, 0.3)


DECLINED = {
    "read in part": lambda h, w: h[:, :40] @ w,
    "read by strides": lambda h, w: h[::2].reshape(18, 40) @ w,
    "read between zeros": lambda h, w: jnp.pad(h, ((0, 0), (0, 32))).reshape(60, 40) @ w,
    "rows read twice": lambda h, w: h[jnp.arange(60) // 2, :40] @ w,
    "rows looked up": lambda h, w: h[jnp.abs(h[:, 0]).astype(int) % 30, :40] @ w,
    "windows": lambda h, w: jnp.stack([h[:, k : k + 40] for k in range(8)]) @ w,
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_an_operand_does_not_have_whole_is_declined(name):
    rng = np.random.default_rng(0)
    x, r, w = normal(rng, 30, 48), normal(rng, 30, 48), normal(rng, 40, 23)

    def f(x, r, w):
        h = x + r
        return h, DECLINED[name](h, w)

    made = program(f, x, r, w)
    found = whole_kernel(made.graph)
    assert found == "an output of which no operand of a contraction reads every element, each once"
