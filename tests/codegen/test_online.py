"""Attention as one kernel: the generated source and the oracle against float64, in many spellings."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen import online
from jaxorch.codegen.source import generate
from jaxorch.kernels import configs
from jaxorch.kernels.configs import Config, configurations
from tests.codegen.drive import agree, interpreted, numpied, program, scheduled, whole_kernel

F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
LOWEST = float(np.finfo(np.float32).min)


def normal(rng, *shape, dtype=BF16, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(dtype)


online_of = functools.partial(scheduled, "online")


def blocks(kernel, *, splits=(1, 2)):
    """Small blocks, one pass over the keys and split ones."""
    columns = max(16, 1 << (kernel.frames[0].sizes[2] - 1).bit_length())
    return [Config(0, rows, columns, 4, 2, 16, s) for rows, s in zip((16, 32), splits, strict=False)]


def check(f, want, *arrays, tolerance=2e-2, splits=(1, 2)):
    """The oracle and every configuration within `tolerance` of `want`, NaN where it is NaN."""
    made, kernel = online_of(f, *arrays)
    (value,) = made.graph.outputs
    results = [numpied(made.graph, kernel, made.inputs(kernel))[value]]
    for config in blocks(kernel, splits=splits):
        results.append(interpreted(made.graph, kernel, config, made.inputs(kernel))[value])
    for found in results:
        got = found.astype(np.float64).reshape(want.shape)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, equal_nan=True)


def softmax(s):
    with np.errstate(invalid="ignore"):
        e = np.exp(s - s.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)


def reference(q, k, v, scores=lambda s: s):
    """Attention of [b, h, n, d] in float64; `scores` masks and biases."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    return softmax(scores(np.einsum("bhqd,bhkd->bhqk", q, k))) @ v


def attention(q, k, v, scores=lambda s: s):
    s = scores(jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32))
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(s, -1).astype(q.dtype), v)


@pytest.mark.slow
@settings(max_examples=10)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from([BF16, F16, F32]),
    st.booleans(),
)
def test_lengths_and_head_dims_that_divide_nothing(sizes, dtype, causal):
    n, m, d, e = sizes
    rng = np.random.default_rng(sum(sizes))
    q, k, v = (
        normal(rng, 1, 2, n, d, dtype=dtype),
        normal(rng, 1, 2, m, d, dtype=dtype),
        normal(rng, 1, 2, m, e, dtype=dtype),
    )
    seen = np.arange(n)[:, None] >= np.arange(m)

    def masked(s):
        return jnp.where(jnp.arange(n)[:, None] >= jnp.arange(m), s, -1e30) if causal else s

    want = reference(q, k, v, lambda s: np.where(seen, s, -1e30) if causal else s)
    made = program(lambda q, k, v: attention(q, k, v, masked), q, k, v)
    if isinstance(whole_kernel(made.graph), str):  # one key, one column: there is no second product
        return
    check(lambda q, k, v: attention(q, k, v, masked), want, q, k, v, tolerance=1e-5 if dtype == F32 else 2e-2)


MASKED = [-1e30, LOWEST, -1e9, -np.inf]


@pytest.mark.parametrize("low", MASKED)
def test_index_masks_and_rows_they_mask_whole(low):
    # a band that leaves whole blocks of keys out, and has no key at all for the first ten queries
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 2, n, 16) for n in (50, 60, 60))
    i, j = np.arange(50)[:, None], np.arange(60)
    want = reference(q, k, v, lambda s: np.where((i - j >= 10) & (i - j < 25), s, low))
    assert np.isnan(want[:, :, :10]).all() == (low == -np.inf)

    def masked(s):
        a, b = jnp.arange(50)[:, None], jnp.arange(60)
        return jnp.where((a - b >= 10) & (a - b < 25), s, low)

    check(lambda q, k, v: attention(q, k, v, masked), want, q, k, v)


@pytest.mark.parametrize("low", MASKED)
def test_boolean_masks_and_rows_they_mask_whole(low):
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 2, n, 16) for n in (20, 33, 33))
    mask = rng.random((1, 2, 20, 33)) < 0.3
    mask[:, :, 3] = False
    want = reference(q, k, v, lambda s: np.where(mask, s, low))
    f = lambda q, k, v, m: attention(q, k, v, lambda s: jnp.where(m, s, low))  # noqa: E731
    check(f, want, q, k, v, mask)


def test_additive_masks_of_the_lowest_number():
    # s + lowest is lowest, whatever s is: such a row's weights are equal
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 1, n, 16) for n in (20, 33, 33))
    bias = np.where(rng.random((20, 33)) < 0.3, 0, LOWEST).astype(F32)
    bias[4] = LOWEST
    exact = np.einsum("bhqd,bhkd->bhqk", *(x.astype(F32) for x in (q, k)))
    want = softmax((exact + bias).astype(np.float64)) @ v.astype(np.float64)
    check(lambda q, k, v, b: attention(q, k, v, lambda s: s + b), want, q, k, v, bias)


def test_large_scores():
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 1, 1, 20, 16, scale=50), normal(rng, 1, 1, 33, 16, scale=50), normal(rng, 1, 1, 33, 16)
    assert np.abs(np.einsum("bhqd,bhkd->bhqk", *(x.astype(np.float64) for x in (q, k)))).max() > 1e4
    check(attention, reference(q, k, v), q, k, v)


def test_nan_scores_stay_in_their_rows():
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 1, n, 16) for n in (20, 33, 33))
    q[0, 0, 7, 3] = np.nan
    want = reference(q, k, v)
    assert np.isnan(want[0, 0, 7]).all()
    assert not np.isnan(want[0, 0, :7]).any()
    check(attention, want, q, k, v)


def test_a_mask_does_not_hide_scores_below_it():
    # every score is far below the masked value, so it is the masked keys that count: blocks of them are visited too
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 1, 40, 16) for _ in range(3))
    i, j = np.arange(40)[:, None], np.arange(40)
    want = reference(q, k, v, lambda s: np.where(i >= j, s - 2000, -1000))

    def masked(s):
        a = jnp.arange(40)
        return jnp.where(a[:, None] >= a, s - 2000, -1000)

    check(lambda q, k, v: attention(q, k, v, masked), want, q, k, v)


@settings(max_examples=8)
@given(st.integers(2, 20), st.sampled_from([2, 4]), st.integers(0, 79), st.sampled_from([(0, -1e30), (-2000, -1000)]))
def test_parts_of_few_queries_are_combined_without_those_that_pad_them(n, splits, position, scores):
    # the second kind of scores is far below the masked value, so that the first share visits all keys
    rng = np.random.default_rng(n)
    q, k, v = (normal(rng, 2, 2, m, 16) for m in (n, 80, 80))
    offset, low = scores

    def f(q, k, v, position):
        return attention(q, k, v, lambda s: jnp.where(jnp.arange(80) <= position, s + offset, low))

    want = reference(q, k, v, lambda s: np.where(np.arange(80) <= position, s + offset, low))
    made, kernel = online_of(f, q, k, v, np.int32(position))
    config = Config(0, 16 if n <= 16 else 32, 16, 4, 2, 16, splits)
    found = interpreted(made.graph, kernel, config, made.inputs(kernel))[made.graph.outputs[0]]
    np.testing.assert_allclose(found.astype(np.float64).reshape(want.shape), want, rtol=0, atol=2e-2)
    _, combine = generate(made.graph, kernel, config, arch=90).text.split("if ticket ==")
    assert f"lane{1 << (n - 1).bit_length()}_down" in combine


def test_a_side_of_the_mask_that_is_not_visited_is_no_turn_of_the_loop():
    f = lambda q, k, v, p: attention(q, k, v, lambda s: jnp.where(jnp.arange(80) <= p, s, -1e30))  # noqa: E731
    q, k, v = (normal(np.random.default_rng(0), 1, 2, n, 16) for n in (1, 80, 80))
    made, kernel = online_of(f, q, k, v, np.int32(7))
    lines = [line.strip() for line in generate(made.graph, kernel, blocks(kernel)[0], arch=90).text.splitlines()]
    steps = next(k for k, line in enumerate(lines) if line.startswith("for key_start in"))
    assert lines[steps - 1] == "while phase < 3:"
    assert "phase = tl.where(doubt > 0, phase + 1, 3)" in lines


def test_scores_through_any_function():
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 1, n, 16) for n in (20, 33, 33))
    want = reference(q, k, v, lambda s: 5 * np.tanh(s / 5))
    check(lambda q, k, v: attention(q, k, v, lambda s: 5 * jnp.tanh(s / 5)), want, q, k, v)


def test_bias_and_window_masks_of_other_shapes():
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 8, 3, 9, 32) for _ in range(3))
    bias, mask = normal(rng, 3, 9, 9, dtype=F32), normal(rng, 4, 9, 9, dtype=F32)

    def f(q, k, v, b, m):
        a = jnp.einsum("bhqd,bhkd->bhqk", q * 0.25, k).astype(jnp.float32) + b
        a = (a.reshape(2, 4, 3, 9, 9) + m[None, :, None]).reshape(8, 3, 9, 9)
        o = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(a, -1).astype(q.dtype), v)
        return o.transpose(0, 2, 1, 3).reshape(8, 9, 96)

    want = reference(q, k, v, lambda s: s / 4 + bias + np.tile(mask, (2, 1, 1))[:, None])
    check(f, want.transpose(0, 2, 1, 3), q, k, v, bias, mask)


def rope(x, c, s):
    h = x.shape[-1] // 2
    return (
        x * c + np.concatenate([-x[..., h:], x[..., :h]], -1) * s
        if isinstance(x, np.ndarray)
        else (x * c + jnp.concatenate([-x[..., h:], x[..., :h]], -1) * s)
    )


def test_rotated_queries_and_keys():
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 2, 33, 4, 16), normal(rng, 2, 33, 2, 16), normal(rng, 2, 33, 2, 16)
    c, s = normal(rng, 33, 1, 16), normal(rng, 33, 1, 16)
    f = lambda q, k, v, c, s: jax.nn.dot_product_attention(rope(q, c, s), rope(k, c, s), v, is_causal=True)  # noqa: E731
    a, b, w, cc, ss = (x.astype(np.float64) for x in (q, k, v, c, s))
    a, b = rope(a, cc, ss), rope(b, cc, ss)
    wide = [x.transpose(0, 2, 1, 3) for x in (a, np.repeat(b, 2, 2), np.repeat(w, 2, 2))]
    seen = np.tril(np.ones((33, 33), bool))
    want = reference(*wide, lambda t: np.where(seen, t / 4, LOWEST)).transpose(0, 2, 1, 3)
    check(f, want, q, k, v, c, s, tolerance=6e-2)


def grouped(q, k, v):
    b, n, _, d = q.shape
    s = jnp.einsum("bqhgd,bkhd->bhgqk", q.reshape(b, n, k.shape[2], -1, d), k).astype(jnp.float32)
    return jnp.einsum("bhgqk,bkhd->bqhgd", jax.nn.softmax(s, -1).astype(q.dtype), v).reshape(b, n, -1)


def repeated(q, k, v):
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s, -1).astype(q.dtype), v).reshape(*q.shape[:2], -1)


def by_hand(q, k, v):
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    e = jnp.exp(s - s.max(-1, keepdims=True))
    o = jnp.einsum("bhqk,bkhd->bhqd", e.astype(q.dtype), v, preferred_element_type=jnp.float32)
    return (o / e.sum(-1, keepdims=True)).astype(q.dtype).swapaxes(1, 2)


def library(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, scale=1.0)


@pytest.mark.parametrize("f", [grouped, repeated, by_hand, library])
@pytest.mark.parametrize("n", [1, 5])
def test_spellings_of_grouped_queries(f, n):
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 2, n, 8, 16), normal(rng, 2, 40, 2, 16), normal(rng, 2, 40, 2, 16)
    wide = [x.transpose(0, 2, 1, 3) for x in (q, np.repeat(k, 4, 2), np.repeat(v, 4, 2))]
    check(f, reference(*wide).transpose(0, 2, 1, 3), q, k, v, tolerance=4e-2)
    _, kernel = online_of(f, q, k, v)
    assert kernel.frames[0].sizes == (4, 4 * n, 16)  # the queries of a group are rows of one tile


def test_a_layer_of_a_stacked_cache_up_to_a_position():
    rng = np.random.default_rng(0)
    q, kc, vc = normal(rng, 2, 8, 16), normal(rng, 3, 2, 2, 50, 16), normal(rng, 3, 2, 2, 50, 16)

    def f(q, kc, vc, layer, pos):
        k, v = (lax.dynamic_index_in_dim(c, layer, 0, False) for c in (kc, vc))
        s = jnp.einsum("bhgd,bhkd->bhgk", q.reshape(2, 2, 4, 16), k).astype(jnp.float32)
        p = jax.nn.softmax(jnp.where(jnp.arange(50) <= pos, s, -1e30), -1)
        return jnp.einsum("bhgk,bhkd->bhgd", p.astype(q.dtype), v)

    want = reference(q.reshape(2, 2, 4, 16), kc[1], vc[1], lambda s: np.where(np.arange(50) <= 30, s, -1e30))
    check(f, want, q, kc, vc, np.int32(1), np.int32(30))


def test_keys_joined_from_two_arrays_and_from_pages():
    rng = np.random.default_rng(0)
    q, old, new, v = (normal(rng, 2, 2, n, 16) for n in (4, 39, 1, 40))
    f = lambda q, old, new, v: attention(q, jnp.concatenate([old, new], 2), v)  # noqa: E731
    check(f, reference(q, np.concatenate([old, new], 2), v), q, old, new, v)
    pages, table = normal(rng, 10, 8, 16), rng.integers(0, 10, (2, 4)).astype(np.int32)
    q = normal(rng, 2, 1, 5, 16)

    def paged(q, pages, table):
        k = pages[table].reshape(2, 1, 32, 16)
        return attention(q, k, k)

    k = pages[table].reshape(2, 1, 32, 16)
    check(paged, reference(q, k, k), q, pages, table)


def test_weights_after_the_softmax():
    # dropout keeps a weight or takes 0 for it, in the sum that is not normalised as in the one that is
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 1, n, 16) for n in (20, 33, 33))
    keep = rng.random((1, 1, 20, 33)) < 0.7

    def f(q, k, v, keep):
        s = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
        p = jnp.where(keep, jax.nn.softmax(s, -1) / 0.7, 0)
        return jnp.einsum("bhqk,bhkd->bhqd", p.astype(q.dtype), v)

    wide = [x.astype(np.float64) for x in (q, k, v)]
    p = softmax(np.einsum("bhqd,bhkd->bhqk", *wide[:2]))
    check(f, np.where(keep, p / 0.7, 0) @ wide[2], q, k, v, keep)


def test_weights_taken_for_zero_at_some_keys():
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 1, n, 16) for n in (20, 33, 33))

    def f(q, k, v):
        s = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
        p = jnp.where(jnp.arange(33) >= 5, jax.nn.softmax(s, -1), 0)
        return jnp.einsum("bhqk,bhkd->bhqd", p.astype(q.dtype), v)

    wide = [x.astype(np.float64) for x in (q, k, v)]
    p = softmax(np.einsum("bhqd,bhkd->bhqk", *wide[:2]))
    check(f, np.where(np.arange(33) >= 5, p, 0) @ wide[2], q, k, v)


def test_a_sink_beside_the_scores():
    # one more term in the denominator, which no key has
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 3, n, 16) for n in (20, 33, 33))
    sink = normal(rng, 3, dtype=F32)

    def f(q, k, v, sink):
        s = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32) * 0.25
        m = s.max(-1, keepdims=True)
        e = jnp.exp(s - m)
        total = e.sum(-1, keepdims=True) + jnp.exp(sink[None, :, None, None] - m)
        return jnp.einsum("bhqk,bhkd->bhqd", (e / total).astype(q.dtype), v)

    wide = [x.astype(np.float64) for x in (q, k, v)]
    e = np.exp(np.einsum("bhqd,bhkd->bhqk", *wide[:2]) / 4)
    want = e / (e.sum(-1, keepdims=True) + np.exp(sink.astype(np.float64))[None, :, None, None]) @ wide[2]
    check(f, want, q, k, v, sink)


def test_keys_on_two_axes_and_lengths_of_each_row():
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 3, 4, 5, 16), normal(rng, 3, 6, 7, 16), normal(rng, 3, 6, 7, 16)
    lengths = np.asarray([3, 42, 0], np.int32)

    def f(q, k, v, lengths):
        s = jnp.einsum("bhwd,bijd->bhwij", q, k, preferred_element_type=jnp.float32).reshape(3, 4, 5, 42)
        s = jnp.where(jnp.arange(42) < lengths[:, None, None, None], s, -1e30)
        p = jax.nn.softmax(s, -1).reshape(3, 4, 5, 6, 7).astype(q.dtype)
        return jnp.einsum("bhwij,bijd->bhwd", p, v)

    flat = [x.reshape(3, 1, -1, 16) for x in (q, k, v)]
    seen = np.arange(42) < lengths[:, None, None, None]
    want = reference(*flat, lambda s: np.where(seen, s, -1e30))
    check(f, want.reshape(3, 4, 5, 16), q, k, v, lengths)


def test_bands_of_blocks():
    # blocks of eight queries attend to their own block, the one before and the one after
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 2, 40, 16) for _ in range(3))

    def f(q, k, v):
        padded = [jnp.pad(x, ((0, 0), (8, 8), (0, 0))).reshape(2, 7, 8, 16) for x in (k, v)]
        k, v = (jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], 2) for x in padded)
        s = jnp.einsum("bnqd,bnkd->bnqk", q.reshape(2, 5, 8, 16), k, preferred_element_type=jnp.float32)
        i, j, n = jnp.arange(8)[:, None] + 8, jnp.arange(24), jnp.arange(5)[:, None, None] * 8 - 8
        inside = (jnp.abs(i - j) <= 8) & (j + n >= 0) & (j + n < 40)
        p = jax.nn.softmax(jnp.where(inside, s, -1e30), -1).astype(q.dtype)
        return jnp.einsum("bnqk,bnkd->bnqd", p, v)

    near = np.abs(np.arange(40)[:, None] - np.arange(40)) <= 8
    want = reference(*(x[:, None] for x in (q, k, v)), lambda s: np.where(near, s, -1e30))
    check(f, want.reshape(2, 5, 8, 16), q, k, v)


def causal(q, k, v, low=-1e30):
    n, m = q.shape[2], k.shape[2]
    return attention(q, k, v, lambda s: jnp.where(jnp.arange(n)[:, None] >= jnp.arange(m), s, low))


@pytest.mark.parametrize("kept", [1 << 24, 5000, 0])
def test_rows_with_most_keys_come_first(monkeypatch, kept):
    # of all points at once, of two of them, of one
    monkeypatch.setattr(online, "KEPT_BYTES", kept)
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 2, 3, 50, 16) for _ in range(3))
    seen = np.tril(np.ones((50, 50), bool))
    check(causal, reference(q, k, v, lambda s: np.where(seen, s, -1e30)), q, k, v)
    made, kernel = online_of(causal, q, k, v)
    together = {1 << 24: 6, 5000: 1, 0: 1}[kept]
    assert f"row_block = 3 - program // {together} % 4" in generate(made.graph, kernel, blocks(kernel)[0], arch=90).text
    # as many keys for every row
    made, kernel = online_of(attention, q, k, v)
    assert "row_block = program % 4" in generate(made.graph, kernel, blocks(kernel)[0], arch=90).text.replace(
        "(program)", "program"
    )


def banded(q, k, v, low):
    a, b = jnp.arange(q.shape[2])[:, None], jnp.arange(k.shape[2])
    return attention(q, k, v, lambda s: jnp.where((a - b >= 10) & (a - b < 25), s, low))


def twice_masked(q, k, v, low):
    n, m = q.shape[2], k.shape[2]
    mask = jnp.arange(n)[:, None] >= jnp.arange(m)
    return attention(q, k, v, lambda s: jnp.where(mask, jnp.where(jnp.arange(m) >= 3, s, low), low))


@pytest.mark.parametrize(
    ("f", "low", "asks"),
    [
        (causal, -np.inf, False),
        (causal, -1e30, False),
        (causal, LOWEST, False),
        (causal, -1e9, True),  # a score might be as low
        (banded, -np.inf, False),
        (banded, -1e30, True),  # the first rows have no key
    ],
)
def test_blocks_that_a_mask_leaves_out_are_asked_for_only_where_they_may_count(f, low, asks):
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 2, 50, 16) for _ in range(3))
    made, kernel = online_of(functools.partial(f, low=low), q, k, v)
    assert ("while phase" in generate(made.graph, kernel, blocks(kernel)[0], arch=90).text) == asks


@pytest.mark.parametrize("low", MASKED)
def test_rows_whose_first_keys_are_masked_twice(low):
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 1, 2, 50, 16) for _ in range(3))
    i = np.arange(50)
    seen = (i[:, None] >= i) & (i >= 3)
    check(functools.partial(twice_masked, low=low), reference(q, k, v, lambda s: np.where(seen, s, low)), q, k, v)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_band_of_stacked_windows(dtype):
    # chunks of 8 queries see the keys of their own places and 12 on both sides; those outside score 0
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 2, 40, 16, dtype=dtype) for _ in range(3))

    def band(q, k, v):
        k, v = (jnp.pad(x, ((0, 0), (12, 12), (0, 0))) for x in (k, v))
        k, v = (jnp.stack([x[:, i : i + 32] for i in range(0, 40, 8)], 1) for x in (k, v))
        s = jnp.einsum("hcqd,hckd->hcqk", q.reshape(2, 5, 8, 16), k, preferred_element_type=jnp.float32)
        offset = jnp.arange(32) - jnp.arange(8)[:, None]
        p = jax.nn.softmax(jnp.where((offset >= 0) & (offset <= 24), s, -jnp.inf), -1).astype(q.dtype)
        return jnp.einsum("hcqk,hckd->hcqd", p, v).reshape(q.shape)

    wide = [np.pad(x.astype(np.float64), ((0, 0), (12, 12), (0, 0))) for x in (k, v)]
    near = np.arange(40)[:, None] + np.arange(25)
    want = np.einsum("hqk,hqkd->hqd", softmax(np.einsum("hqd,hqkd->hqk", q, wide[0][:, near])), wide[1][:, near])
    check(band, want, q, k, v, tolerance=1e-5 if dtype == F32 else 2e-2)
    made, kernel = online_of(band, q, k, v)
    assert generate(made.graph, kernel, blocks(kernel)[0], arch=90).text.count("tl.load(") == 3  # no source is chosen


REFUSED = {
    "squared exponentials": lambda q, k, v: attention_of(q, k, v, lambda p: p * p),
    "another maximum": lambda q, k, v: jnp.exp(q @ k.T - (q @ k.T).max(0)) @ v,
    "whole numbers": lambda q, k, v: (127 * jax.nn.softmax(q @ k.T, -1)).astype(jnp.int32).astype(q.dtype) @ v,
    "no exponential": lambda q, k, v: jax.nn.relu(q @ k.T) @ v,
}


def attention_of(q, k, v, after):
    return after(jax.nn.softmax(q @ k.T, -1)) @ v


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_linear_in_an_exponential_is_refused(name):
    arrays = [np.ones(s, F32) for s in ((20, 16), (33, 16), (33, 16))]
    found = whole_kernel(program(REFUSED[name], *arrays).graph)
    assert isinstance(found, str), found.schedule


def test_the_defaults_of_small_shapes_run():
    rng = np.random.default_rng(0)
    for n, m, d in ((1, 700, 16), (70, 9, 8)):
        q, k, v = (normal(rng, 1, 2, x, d) for x in (n, m, m))
        made, kernel = online_of(attention, q, k, v)
        config = configurations(made.graph, kernel)[0]
        (value,) = made.graph.outputs
        got = interpreted(made.graph, kernel, config, made.inputs(kernel))[value]
        np.testing.assert_allclose(got.astype(np.float64), reference(q, k, v), rtol=0, atol=2e-2)


@pytest.mark.parametrize("elements", [0, 64])
def test_parts_are_combined_in_one_launch_or_two(monkeypatch, elements):
    monkeypatch.setattr(configs, "_JOINED", elements)
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 1, 2, 5, 16), normal(rng, 1, 2, 70, 16), normal(rng, 1, 2, 70, 24)
    made, kernel = online_of(attention, q, k, v)
    source = generate(made.graph, kernel, blocks(kernel)[1], arch=90)
    assert (source.combine is None) == (elements > 0) == (source.tickets > 0)
    check(attention, reference(q, k, v), q, k, v, splits=(2, 4))


@pytest.mark.parametrize("shared", ["everything", "batch", "heads", "nothing"])
def test_several_points_of_the_grid_a_program(shared):
    """What neighbouring points read alike stands before their loop; what they do not share is read in it."""
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 4, 2, 21, 16) for _ in range(3))
    extents = {"everything": (1, 1), "batch": (1, 2), "heads": (4, 1), "nothing": (4, 2)}[shared]
    bias = normal(rng, *extents, 21, 21, dtype=F32)
    f = lambda q, k, v, bias: attention(q, k, v, lambda s: s + bias)  # noqa: E731
    made, kernel = online_of(f, q, k, v, bias)
    (value,) = made.graph.outputs
    for config in (Config(0, 32, 16, 4, 2, 32, points=4), Config(0, 16, 16, 4, 2, 32, points=8)):
        source = generate(made.graph, kernel, config, arch=90)
        before, _, inside = source.text.partition("for point in range")
        alike = shared == "everything" or (shared == "batch" and config.points == 4)  # the batch is counted fastest
        assert (before.count("tl.load"), inside.count("tl.load")) == ((1, 3) if alike else (0, 4))
        got = interpreted(made.graph, kernel, config, made.inputs(kernel))[value].astype(np.float64)
        want = reference(q, k, v, lambda s: s + bias)
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=0, atol=2e-2)


def in_points(f, *arrays):
    """Checks a kernel of attention in programs of several points."""
    made, kernel = online_of(f, *arrays)
    (value,) = made.graph.outputs
    for points in (2, 4, 8):
        config = Config(0, 32, 16, 4, 2, 32, points=points)
        agree(interpreted(made.graph, kernel, config, made.inputs(kernel))[value], made.values[value], 3e-2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("repeats", [1, 2])
def test_points_of_the_grid_choose_between_sources_that_are_the_same_for_all(axis, repeats):
    """What a branch gives may differ between the points of a program, whatever its condition looks like."""

    def f(q, first, second, v):
        shape = [1, 1, *v.shape[2:]]
        keys = jnp.concatenate([jnp.broadcast_to(k, shape) for k in (first, second)], axis)
        keys = jnp.repeat(keys, v.shape[axis] // (2 * repeats), axis)
        return attention(q, jnp.broadcast_to(jnp.concatenate([keys] * repeats, axis), v.shape) * 2, v)

    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 8, 4, 21, 16) for _ in range(3))
    in_points(f, q, k[0, 0], k[1, 1], v)


def test_points_of_the_grid_that_look_up_the_same_rows_of_a_table():
    def biased(q, k, v, table, at):
        return attention(q, k, v, lambda s: s + table[at].transpose(2, 0, 1))

    def rotated(q, k, v, table, at):
        return attention(q, k + table[at, :16].astype(k.dtype), v)

    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 8, 4, 21, 16) for _ in range(3))
    in_points(biased, q, k, v, normal(rng, 50, 4, dtype=F32), rng.integers(0, 50, (21, 21), np.int32))
    in_points(rotated, q, k, v, normal(rng, 50, 16, dtype=F32), rng.integers(0, 50, (4, 21), np.int32))


def test_points_are_tried_where_one_block_holds_the_keys():
    def configs(batch, keys):
        shapes = [(batch, 3, 49, 32), *[(batch, 3, keys, 32)] * 2]
        made, kernel = online_of(attention, *(np.zeros(s, BF16) for s in shapes))
        return {c.points for c in configurations(made.graph, kernel)}

    assert configs(1024, 49) == {1, 4, 8}
    assert configs(1024, 197) == {1}  # a loop over the keys
    assert configs(16, 49) == {1}  # programs are few
