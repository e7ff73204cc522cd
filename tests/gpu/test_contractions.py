"""Contractions on the device, against float64: attention in its forms, products with what surrounds them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxorch
from jaxorch import Options
from tests.codegen.test_choices import heads_of
from tests.codegen.test_heads import keys_and_values, queries
from tests.codegen.test_held import normed, windows
from tests.codegen.test_hopper import queries_and_caches
from tests.codegen.test_online import (
    BF16,
    F32,
    LOWEST,
    MASKED,
    attention,
    by_hand,
    grouped,
    library,
    reference,
    repeated,
)
from tests.codegen.test_product_rows import NORMS
from tests.codegen.test_products import layer_norm, rms_norm
from tests.codegen.test_ragged import by_rows
from tests.codegen.test_stores import caches, grown
from tests.codegen.test_stretches import shuffled
from tests.codegen.test_writes import operands, step
from tests.orchestration.test_spare import dispatched, routed

pytestmark = pytest.mark.gpu

FAST = Options(effort="fast", fallback="error")


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch, kernels_win):
    monkeypatch.setenv("JAXORCH_CACHE_DIR", str(tmp_path / "cache"))


def normal(*shape, dtype=BF16, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


def check(f, want, *arrays, schedule, tolerance):
    optimised = jaxorch.optimize(f, options=FAST)
    got = np.asarray(optimised(*arrays)).astype(np.float64).reshape(want.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, equal_nan=True)
    again = np.asarray(optimised(*arrays)).astype(np.float64).reshape(want.shape)
    np.testing.assert_array_equal(got, again)  # the same in every run
    report = jaxorch.explain(optimised, *arrays)
    # which of the legal kernels are chosen is the estimates' to say; the product is one of them
    assert {k.schedule for k in report.kernels} & {schedule, "gemm"}


@pytest.mark.parametrize("form", [normed, windows])
def test_norms_before_thin_products_of_many_rows(form):
    """Swin's first stage: programs that hold the right operand and compute the left one, turn by turn."""
    x = normal(*((16, 56, 56, 96) if form is windows else (50176, 96)))
    w = (normal(96, 288) / 96**0.5).astype(BF16)
    bias, g, h = normal(288), normal(96, seed=1), normal(96, seed=2)
    arrays = (x, w, g, h) if form is windows else (x, w, bias, g, h)
    want = np.asarray(form(*(a.astype(np.float64) for a in arrays)))
    check(form, want, *arrays, schedule="gemm", tolerance=0.1)
    (kernel,) = jaxorch.explain(jaxorch.optimize(form, options=FAST), *arrays).kernels
    assert "262 programs" in kernel.config


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize(
    "sizes", [(16384, 128, 128), (3136, 384, 96), (1000, 256, 250), (4096, 512, 512), (37, 2048, 8)]
)
def test_norms_of_a_product_and_a_residual(sizes, dtype, norm):
    m, k, n = sizes
    x, w, r = normal(m, k, dtype=dtype), normal(k, n, dtype=dtype, seed=1), normal(m, n, dtype=dtype, seed=2)
    w = (w.astype(np.float32) * k**-0.5).astype(dtype)

    def f(x, w, r):
        y = x @ w + r
        return y, norm(y.astype(jnp.float32)).astype(x.dtype)

    a, b, c = (v.astype(np.float64) for v in (x, w, r))
    wants = a @ b + c, norm(a @ b + c)
    optimised = jaxorch.optimize(f, options=FAST)
    for got, want in zip(optimised(x, w, r), wants, strict=True):
        bound = (2e-2 if dtype == BF16 else 5e-3) * max(np.abs(want).max(), 1)
        np.testing.assert_allclose(np.asarray(got).astype(np.float64), want, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_heads_of_two_arrays_and_a_column_of_ones(dtype):
    x, y, m = normal(4096, 384, dtype=dtype), normal(4096, 384, dtype=dtype, seed=1), np.ones(1, dtype)
    joined = np.concatenate([x, y], -1).reshape(4096, -1, 48).astype(np.float64)
    key, value = np.maximum(joined[..., 16:32], 0), np.pad(joined[..., 32:], [(0, 0)] * 2 + [(0, 1)], constant_values=1)
    want = np.einsum("nhk,nhv->hkv", key, value)
    check(heads_of, want, x, y, m, schedule="gemm", tolerance=1e-2 * np.abs(want).max())


def test_places_that_two_products_read_as_zeros_and_ones_are_stored_nowhere():
    """21 MB of them; the sums, of two terms, are exact."""
    place, *factors = routed(np.random.default_rng(0), 4096, 8, 1280, BF16)
    optimised = jaxorch.optimize(partial(dispatched, slots=1280), options=FAST)
    hot = (place[..., None] == np.arange(1280)).astype(F32)
    for got, x in zip(optimised(place, *factors), factors, strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.einsum("tke,tkc->tec", x.astype(F32), hot).astype(BF16))
    assert optimised.lower(place, *factors).compile().memory_analysis().temp_size_in_bytes < 1 << 20


@pytest.mark.parametrize("at", [0, 2047, 4095, -1, 9999])
@pytest.mark.parametrize("rows", [1, 16, 300])
def test_parts_of_a_product_go_into_caches(rows, at):
    """Queries, keys and values of 4096, 1024 and 1024 columns; what is not written keeps its value."""
    x, w = normal(rows, 4096), normal(4096, 6144, seed=1)
    w = (w.astype(np.float32) / 64).astype(w.dtype)
    kc, vc = (normal(rows, 4096 if rows < 300 else 16, 8, 128, seed=s) for s in (2, 3))
    optimised = jaxorch.optimize(queries_and_caches, options=FAST, donate_argnums=(2, 3))
    y, size = x.astype(np.float64) @ w.astype(np.float64), kc.shape[1]
    place = min(max(at + size if at < 0 else at, 0), size - 1)
    got = [np.asarray(v) for v in optimised(x, w, jnp.asarray(kc), jnp.asarray(vc), np.int32(at))]
    np.testing.assert_allclose(got[0].astype(np.float64).reshape(rows, -1), y[:, :4096], rtol=0, atol=5e-2)
    for found, old, columns in ((got[1], kc, y[:, 4096:5120]), (got[2], vc, y[:, 5120:])):
        new = found[:, place].astype(np.float64).reshape(rows, -1)
        np.testing.assert_allclose(new, columns, rtol=0, atol=5e-2)
        np.testing.assert_array_equal(np.delete(found, place, 1), np.delete(old, place, 1))


@pytest.mark.parametrize("heads", [(16, 8, 4, 1), (2, 2, 2, 300)])
def test_caches_that_grow_are_stored_as_they_are_read(heads):
    """One kernel, of few queries and of several blocks of them; the caches are exactly what was joined."""
    arrays = caches(np.random.default_rng(0), *heads, 1, 4095, 128, 128)
    optimised = jaxorch.optimize(grown, options=FAST)
    results = [np.asarray(x) for x in optimised(*arrays)]
    q, k, v, kc, vc = (x.astype(np.float64) for x in arrays)
    kc, vc = np.concatenate([kc, k], 2), np.concatenate([vc, v], 2)
    weights = np.exp((s := np.einsum("bhgnd,bhmd->bhgnm", q, kc)) - s.max(-1, keepdims=True))
    want = np.einsum("bhgnm,bhme->bhgne", weights / weights.sum(-1, keepdims=True), vc)
    np.testing.assert_allclose(results[0].astype(np.float64), want, rtol=0, atol=5e-2)
    np.testing.assert_array_equal(results[1].astype(np.float64), kc)
    np.testing.assert_array_equal(results[2].astype(np.float64), vc)
    if heads[-1] == 1:
        (kernel,) = jaxorch.explain(optimised, *arrays).kernels
        assert kernel.schedule == "online"


@pytest.mark.parametrize("position", [0, 63, 64, 2047, 4000, 4095, -1, 9999])
@pytest.mark.parametrize("heads", [(16, 8, 4, 1), (1, 8, 4, 1), (4, 4, 4, 2)])
@pytest.mark.parametrize("order", ["bhmd", "bmhd"])
def test_caches_that_are_filled_are_attended_to_in_the_same_kernel(heads, position, order):
    """The program that writes a key reads it: again and again, with the cache given away each time."""
    q, k, v, kc, vc, angle, at = operands(0, *heads, 1, 4096, 128, 128, position, order=order)
    # scores of about one: far larger ones are decided by how a key's last bit was rounded
    q = (q.astype(np.float32) * 128**-0.5).astype(q.dtype)
    expected = jax.jit(partial(step, order=order))
    optimised = jaxorch.optimize(partial(step, order=order), options=FAST, donate_argnums=(3, 4))
    mine, theirs = ([jnp.asarray(kc), jnp.asarray(vc)] for _ in range(2))
    for turn in range(4):
        new = [(x.astype(np.float32) * (turn - 1.5)).astype(x.dtype) for x in (q, k, v)]
        got, *mine = optimised(*new, *mine, angle, at)
        want, *theirs = expected(*new, *theirs, angle, at)
        pairs = zip((got, *mine), (want, *theirs), strict=True)
        for found, wanted in pairs:
            np.testing.assert_allclose(
                *(np.asarray(x).astype(np.float64) for x in (found, wanted)), rtol=2e-2, atol=5e-2
            )
    report = jaxorch.explain(optimised, q, k, v, kc, vc, angle, at)
    (kernel,) = [kernel for kernel in report.kernels if kernel.schedule == "online"]
    assert "scatter" in kernel.primitives


@pytest.mark.parametrize(
    "shape", [(2, 3, 1024, 64), (1, 2, 197, 64), (1, 2, 1000, 80), (1, 2, 300, 256), (2, 4, 49, 32)]
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_attention(shape, causal, dtype):
    q, k, v = (normal(*shape, dtype=dtype, seed=s) for s in range(3))
    scale, i = shape[-1] ** -0.5, np.arange(shape[2])

    def scores(s):
        return (
            jnp.where(jnp.arange(shape[2])[:, None] >= jnp.arange(shape[2]), s * scale, -1e30) if causal else s * scale
        )

    want = reference(q, k, v, lambda s: np.where(i[:, None] >= i, s * scale, -1e30) if causal else s * scale)
    check(lambda *a: attention(*a, scores), want, q, k, v, schedule="online", tolerance=1e-2)


@pytest.mark.parametrize("low", MASKED)
def test_rows_that_a_mask_leaves_empty(low):
    q, k, v = (normal(1, 2, 300, 64, seed=s) for s in range(3))
    mask = np.random.default_rng(0).random((1, 2, 300, 300)) < 0.3
    mask[:, :, 3:9] = False
    want = reference(q, k, v, lambda s: np.where(mask, s / 8, low))
    f = lambda q, k, v, m: attention(q, k, v, lambda s: jnp.where(m, s / 8, low))  # noqa: E731
    check(f, want, q, k, v, mask, schedule="online", tolerance=1e-2)


@pytest.mark.parametrize("low", MASKED)
def test_bands_with_empty_rows(low):
    q, k, v = (normal(1, 2, 700, 64, seed=s) for s in range(3))
    i = np.arange(700)
    want = reference(q, k, v, lambda s: np.where((i[:, None] - i >= 100) & (i[:, None] - i < 180), s / 8, low))

    def scores(s):
        j = jnp.arange(700)
        return jnp.where((j[:, None] - j >= 100) & (j[:, None] - j < 180), s / 8, low)

    check(lambda *a: attention(*a, scores), want, q, k, v, schedule="online", tolerance=1e-2)


@pytest.mark.parametrize("position", [0, 2047, 3994, 4095])
@pytest.mark.parametrize(("offset", "low"), [(0, -1e30), (-2000, -1000)])
def test_bounded_scores_of_few_queries(position, offset, low):
    """A step of decoding: scores softly bounded, keys up to a position; or all below the masked value."""
    q, k, v = normal(1, 8, 2, 256), normal(1, 8, 4096, 256, seed=1), normal(1, 8, 4096, 256, seed=2)
    seen = np.arange(4096) <= position
    want = reference(q, k, v, lambda s: np.where(seen, 50 * np.tanh(s / 800) + offset, low))

    def f(q, k, v, position):
        bounded = lambda s: 50 * jnp.tanh(s / 800) + offset  # noqa: E731
        return attention(q, k, v, lambda s: jnp.where(jnp.arange(4096) <= position, bounded(s), low))

    check(f, want, q, k, v, np.int32(position), schedule="online", tolerance=2e-2)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_band_of_stacked_windows(dtype):
    """Chunks of 500 queries see the keys of their own places and 1000 on both sides; past the ends are zeros."""
    q, k, v = (normal(8, 2500, 64, dtype=dtype, seed=s) / np.asarray(8, dtype) for s in range(3))

    def band(q, k, v):
        k, v = (jnp.pad(x, ((0, 0), (1000, 1000), (0, 0))) for x in (k, v))
        k, v = (jnp.stack([x[:, i : i + 2500] for i in range(0, 2500, 500)], 1) for x in (k, v))
        s = jnp.einsum("hcqd,hckd->hcqk", q.reshape(8, 5, 500, 64), k, preferred_element_type=jnp.float32)
        offset = jnp.arange(2500) - jnp.arange(500)[:, None]
        p = jax.nn.softmax(jnp.where((offset >= 0) & (offset <= 2000), s, -jnp.inf), -1).astype(q.dtype)
        return jnp.einsum("hcqk,hckd->hcqd", p, v).reshape(q.shape)

    exact, kk, vv = (x.astype(np.float64) for x in (q, k, v))
    kk, vv = (np.pad(x, ((0, 0), (1000, 1000), (0, 0))) for x in (kk, vv))
    s = np.einsum("hqd,hkd->hqk", exact, kk)
    offset = np.arange(4500) - np.arange(2500)[:, None]
    e = np.exp(np.where((offset >= 0) & (offset <= 2000), s, -np.inf))
    want = e / e.sum(-1, keepdims=True) @ vv
    check(band, want, q, k, v, schedule="online", tolerance=1e-3)


@pytest.mark.parametrize("f", [grouped, repeated, by_hand, library])
@pytest.mark.parametrize("n", [1, 5, 130])
def test_grouped_queries(f, n):
    q, k, v = normal(2, n, 8, 128), normal(2, 4096, 2, 128, seed=1), normal(2, 4096, 2, 128, seed=2)
    q = (q.astype(F32) / 11).astype(BF16)
    wide = [x.transpose(0, 2, 1, 3) for x in (q, np.repeat(k, 4, 2), np.repeat(v, 4, 2))]
    want = reference(*wide).transpose(0, 2, 1, 3)
    check(f, want, q, k, v, schedule="online", tolerance=1e-2)


def test_additive_masks_and_large_scores():
    q, k, v = (normal(1, 2, 200, 64, seed=s) for s in range(3))
    bias = np.where(np.random.default_rng(0).random((200, 200)) < 0.3, 0, LOWEST).astype(F32)
    want = reference(q, k, v, lambda s: np.maximum(s + bias, LOWEST))
    check(
        lambda q, k, v, b: attention(q, k, v, lambda s: s + b), want, q, k, v, bias, schedule="online", tolerance=2e-2
    )
    q, k = (50 * q.astype(F32)).astype(BF16), (50 * k.astype(F32)).astype(BF16)
    check(attention, reference(q, k, v), q, k, v, schedule="online", tolerance=2e-2)


PRODUCTS = {
    "plain": lambda x, w, g: x @ w,
    "norm": lambda x, w, g: rms_norm(x, g) @ w,
    "layer norm": lambda x, w, g: layer_norm(x, g, g) @ w,
    "epilogue": lambda x, w, g: jax.nn.gelu(x @ w) + w[:1],
    "transposed": lambda x, w, g: (w.T @ x.T).T,
}


@pytest.mark.parametrize("shape", [(2, 4096, 32, 48), (3, 1000, 7, 36)])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_linear_attention_of_narrow_heads(shape, dtype):
    x = normal(*shape, dtype=dtype)
    q, k, v = np.split(x.astype(np.float64), 3, -1)
    kv = np.einsum("bnhd,bnhe->bhde", np.maximum(k, 0), np.concatenate([v, np.ones((*shape[:3], 1))], -1))
    o = np.einsum("bnhd,bhde->bnhe", np.maximum(q, 0), kv)
    want = (o[..., :-1] / (o[..., -1:] + 1e-15)).reshape(*shape[:2], -1)
    check(lambda x: queries(x, keys_and_values(x)), want, x, schedule="gemm", tolerance=0.02)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(
    "sizes", [(1, 4096, 1000), (16, 4096, 6144), (100, 96, 288), (1000, 768, 200), (1500, 1024, 12000)]
)
def test_products(name, sizes):
    m, k, n = sizes
    x, w, g = normal(m, k), (normal(k, n).astype(F32) / k**0.5).astype(BF16), normal(k, seed=1)
    with jax.enable_x64(True):
        want = np.asarray(PRODUCTS[name](*(jnp.asarray(a.astype(np.float64)) for a in (x, w, g))))
    check(PRODUCTS[name], want, x, w, g, schedule="gemm", tolerance=3e-2)


@pytest.mark.parametrize("number", [0, 31999, 32000])
def test_a_looked_up_row_is_normed_and_multiplied(number):
    """The last is no row: NaN."""
    table, w, g = normal(32000, 2048), (normal(2048, 4096).astype(F32) / 45).astype(BF16), normal(2048, seed=1)
    row = table[number : number + 1].astype(np.float64) if number < 32000 else np.full((1, 2048), np.nan)
    normed = row / np.sqrt((row**2).mean(-1, keepdims=True) + 1e-5) * g.astype(np.float64)

    def f(table, w, g, number):
        x = table.at[number].get(mode="fill")[None].astype(F32)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * g.astype(F32)
        return x.astype(BF16) @ w

    check(f, normed @ w.astype(np.float64), table, w, g, np.int32(number), schedule="gemm", tolerance=6e-2)


@pytest.mark.parametrize("rows", [24, 2048, 32768])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_rows_in_groups(rows, dtype):
    """Of very different lengths, some empty, with rows past the last; what is not finite stays in its group."""
    x, w = normal(rows, 512, dtype=dtype), (normal(8, 512, 1408, dtype=F32) / 512**0.5).astype(dtype)
    h, order = normal(rows, 1408, dtype=dtype), np.random.default_rng(0).permutation(rows).astype(np.int32)
    sizes = np.int32([rows // 2, 0, 1, rows // 8, 3, 0, rows // 16, rows // 8])
    w[3, 5, 7], x[order[rows // 2], 9] = np.inf, np.nan
    want = h.astype(np.float64) * by_rows(x[order], w, sizes)
    f = lambda x, o, w, h, s: h * jax.lax.ragged_dot(x[o], w, s)  # noqa: E731
    check(f, want, x, order, w, h, sizes, schedule="gemm", tolerance=0.15 if dtype == BF16 else 0.03)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("rounds", [2, 5])
def test_products_of_shuffled_arrays(rounds, dtype):
    x = [normal(3136, 116, dtype=dtype, seed=k) for k in range(1 + rounds)]
    w = (normal(116, 116, dtype=F32) / 116**0.5).astype(dtype)
    with jax.enable_x64(True):
        want = np.asarray(shuffled([e.astype(np.float64) for e in x], 2)) @ w.astype(np.float64)
    check(lambda w, *x: shuffled(x, 2) @ w, want, w, *x, schedule="gemm", tolerance=0.03 if dtype == BF16 else 4e-3)
