"""Layers with contractions through `optimize`, kernels interpreted: which schedules run them, and their results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options

F32, BF16 = jnp.float32, jnp.bfloat16
INTERPRET = Options(backend="interpret", fallback="error")


pytestmark = pytest.mark.usefixtures("kernels_win")


def normal(*shape, dtype=BF16, seed=0):
    return jnp.asarray(0.3 * np.random.default_rng(seed + sum(shape)).standard_normal(shape), dtype)


def rms_norm(x, w):
    v = jnp.mean(jnp.square(x.astype(F32)), -1, keepdims=True)
    return (x * lax.rsqrt(v + 1e-5).astype(x.dtype)) * w


def layer_norm(x, g, b):
    m = x.astype(F32)
    mu = m.mean(-1, keepdims=True)
    v = ((m - mu) ** 2).mean(-1, keepdims=True)
    return ((m - mu) * lax.rsqrt(v + 1e-5) * g + b).astype(x.dtype)


def rope(x, c, s):
    h = x.shape[-1] // 2
    return x * c + jnp.concatenate([-x[..., h:], x[..., :h]], -1) * s


def decode(x, wn, wqkv, wo, kc, vc, c, s, pos):
    """One token of a layer with 4 heads of 16, 2 of keys, and a cache of 40."""
    q, k, v = jnp.split(rms_norm(x, wn) @ wqkv, [64, 96], -1)
    q, k, v = (z.reshape(2, 1, -1, 16) for z in (q, k, v))
    q, k = rope(q, c, s), rope(k, c, s)
    kc, vc = (lax.dynamic_update_slice(z, u, (0, pos, 0, 0)) for z, u in ((kc, k), (vc, v)))
    kk, vv = jnp.repeat(kc, 2, 2), jnp.repeat(vc, 2, 2)
    sc = jnp.einsum("bqhd,bkhd->bhqk", q, kk).astype(F32) / 4
    a = jax.nn.softmax(jnp.where(jnp.arange(40) <= pos, sc, -1e30), -1).astype(q.dtype)
    return x + jnp.einsum("bhqk,bkhd->bqhd", a, vv).reshape(2, 1, 64) @ wo, kc, vc


def token(table, wn, w, number):
    """The first product of a decoder for one token: a row that is NaN where the token is none, normed."""
    row = table.at[number].get(mode="fill")[None].astype(F32)
    return rms_norm(row, wn.astype(F32)).astype(w.dtype) @ w


def vision(x, w, b, wo):
    q, k, v = (x @ w + b).reshape(2, 19, 3, 2, 16).transpose(2, 0, 3, 1, 4)
    a = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(F32) * 0.25, -1).astype(x.dtype)
    return x + jnp.einsum("bhqk,bhkd->bhqd", a, v).swapaxes(1, 2).reshape(2, 19, 32) @ wo


def windows(x, g, b, w):
    y = jnp.roll(layer_norm(x, g, b), (-1, -1), (1, 2)).reshape(2, 2, 3, 2, 3, 32).transpose(0, 1, 3, 2, 4, 5)
    q, k, v = (y.reshape(-1, 9, 32) @ w).reshape(8, 9, 3, 2, 16).transpose(2, 0, 3, 1, 4)
    a = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q * 0.25, k).astype(F32), -1).astype(x.dtype)
    o = jnp.einsum("bhqk,bhkd->bhqd", a, v).transpose(0, 2, 1, 3).reshape(2, 2, 2, 3, 3, 32)
    return x + jnp.roll(o.transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 6, 32), (1, 1), (1, 2))


def linear(qkv):
    q, k, v = jnp.split(qkv, 3, -1)
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
    kv = jnp.einsum("bnhd,bnhe->bhde", k, v, preferred_element_type=F32)
    o = jnp.einsum("bnhd,bhde->bnhe", q.astype(F32), kv)
    return (o[..., :-1] / (o[..., -1:] + 1e-6)).astype(qkv.dtype).reshape(2, 21, 64)


def experts(x, w1, w2, idx, gate):
    h = x.at[idx.reshape(-1)].get(mode="fill", fill_value=0).reshape(3, 5, 32)
    o = jnp.einsum("ecf,efm->ecm", jax.nn.silu(jnp.einsum("ecm,emf->ecf", h, w1)), w2) * gate[..., None]
    return jnp.zeros_like(x).at[idx.reshape(-1)].add(o.reshape(-1, 32), mode="drop")


def merging(x, w):
    y = jnp.concatenate([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    return y.reshape(2, -1, 64) @ w


def prefill(x, wqkv, wo, c, s):
    q, k, v = jnp.split(x @ wqkv, [64, 96], -1)
    q, k, v = (z.reshape(2, 21, -1, 16) for z in (q, k, v))
    o = jax.nn.dot_product_attention(rope(q, c, s), rope(k, c, s), v, is_causal=True)
    return o.reshape(2, 21, 64) @ wo


CACHE = [(2, 40, 2, 16)] * 2
LAYERS = {
    "decode": (
        decode,
        [(2, 1, 64), (64,), (64, 128), (64, 64), *CACHE, (1, 1, 1, 16), (1, 1, 1, 16)],
        ["gemm", "online"],
    ),
    "token": (token, [(7, 64), (64,), (64, 48)], ["gemm"]),
    "vision": (vision, [(2, 19, 32), (32, 96), (96,), (32, 32)], ["gemm", "online"]),
    "windows": (windows, [(2, 6, 6, 32), (32,), (32,), (32, 96)], ["gemm", "online"]),
    "linear": (linear, [(2, 21, 4, 48)], ["gemm"]),
    "merging": (merging, [(2, 6, 6, 16), (64, 20)], ["gemm"]),
    "prefill": (prefill, [(2, 21, 64), (64, 128), (64, 64), (21, 1, 16), (21, 1, 16)], ["gemm", "online"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    f, shapes, schedules = LAYERS[name]
    # XLA's CPU has no product of bfloat16 operands in float32
    args = [normal(*s, seed=k, dtype=F32 if name == "linear" else BF16) for k, s in enumerate(shapes)]
    args += [jnp.int32({"decode": 30, "token": 5}[name])] if name in ("decode", "token") else []
    optimised = jaxorch.optimize(f, options=INTERPRET)
    for got, want in zip(jax.tree.leaves(optimised(*args)), jax.tree.leaves(jax.jit(f)(*args)), strict=True):
        assert got.dtype == want.dtype
        wide = [np.asarray(a).astype(np.float64) for a in (got, want)]
        scale = np.abs(wide[1]).max()
        np.testing.assert_allclose(*wide, rtol=0, atol=4e-2 * scale)  # a few units of bfloat16
    report = jaxorch.explain(optimised, *args)
    assert {k.schedule for k in report.kernels} >= set(schedules)
    assert not any("dot_general" in line.primitives for line in report.left)


def test_experts():
    args = [normal(12, 32), normal(3, 32, 24), normal(3, 24, 32), jnp.arange(15).reshape(3, 5) % 13, normal(3, 5)]
    got, want = (
        np.asarray(f(*args)).astype(np.float64) for f in (jaxorch.optimize(experts, options=INTERPRET), experts)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-2 * np.abs(want).max())


def routed(x, w, w1, w2, w3):
    """Each token through the two of four experts that it likes best, sorted by expert."""
    gates, which = lax.top_k(jax.nn.softmax(jnp.dot(x.astype(F32), w.astype(F32), precision="highest"), -1), 2)
    order = jnp.argsort(which.reshape(-1))
    sizes = jnp.bincount(which.reshape(-1), length=4)
    rows = x[order // 2]
    h = jax.nn.silu(lax.ragged_dot(rows, w1, sizes)) * lax.ragged_dot(rows, w2, sizes)
    y = lax.ragged_dot(h, w3, sizes) * gates.reshape(-1)[order, None].astype(x.dtype)
    return jnp.zeros_like(x).at[order // 2].add(y)


ROUTED = [normal(37, 32), normal(32, 4), normal(4, 32, 24), normal(4, 32, 24, seed=1), normal(4, 24, 32)]


def test_experts_that_tokens_are_sorted_by():
    """Three kernels, each with its rows looked up before or its result gated after; the sort alone is XLA's."""
    optimised = jaxorch.optimize(routed, options=INTERPRET)
    got, want = (np.asarray(f(*ROUTED)).astype(np.float64) for f in (optimised, jax.jit(routed)))
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-2 * np.abs(want).max())
    report = jaxorch.explain(optimised, *ROUTED)
    products = [k for k in report.kernels if "ragged_dot_general" in k.primitives]
    assert [k.schedule for k in products] == ["gemm"] * 3
    assert not any("ragged_dot_general" in line.primitives for line in report.left)


def test_the_gradient_of_experts():
    """Rows' gradients are a product with the matrices turned; those of matrices sum over each group's rows: XLA's."""
    args, sizes = [normal(37, 32, dtype=F32), normal(4, 32, 24, dtype=F32)], jnp.int32([9, 0, 17, 6])

    def loss(x, w):
        return (jax.nn.silu(lax.ragged_dot(x, w, sizes, precision="highest")) ** 2).sum()

    optimised = jaxorch.optimize(jax.grad(loss, (0, 1)), options=INTERPRET)
    for transformed in (optimised, jax.grad(jaxorch.optimize(loss, options=INTERPRET), (0, 1))):
        for got, want in zip(transformed(*args), jax.grad(loss, (0, 1))(*args), strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    report = jaxorch.explain(optimised, *args)
    assert sum("ragged_dot_general" in k.primitives for k in report.kernels) == 2
    assert [line.reason for line in report.left if "ragged_dot_general" in line.primitives] == [
        "a ragged product whose groups are not of its left operand's only rows"
    ]


LENGTHS = {
    "as given": lambda s: s,
    "read backwards": lambda s: s[::-1],
    "joined": lambda s: jnp.concatenate([s[2:], s[:2]]),
    "one integer": lambda s: jnp.broadcast_to(s[0], 4),
    "counted": lambda s: jnp.arange(4) * 3,
    "computed": lambda s: jnp.maximum(s - 2, 0),
    "constant": lambda s: jnp.int32([3, 1, 0, 30]),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_of_groups_may_come_from_anywhere(name):
    """They are an array when a product needs them, never a view: all of them are read."""
    args = [normal(37, 32, dtype=F32), normal(4, 32, 24, dtype=F32), jnp.int32([9, 0, 17, 6])]

    def f(x, w, s):
        return lax.ragged_dot(x, w, LENGTHS[name](s), precision="highest")

    optimised = jaxorch.optimize(f, options=INTERPRET)
    np.testing.assert_allclose(optimised(*args), f(*args), rtol=2e-5, atol=2e-5)
    assert "gemm" in {k.schedule for k in jaxorch.explain(optimised, *args).kernels}


def test_batches_of_experts_stay_with_xla():
    args = [normal(3, 37, 32, dtype=F32), normal(3, 4, 32, 24, dtype=F32), jnp.int32([[9, 0, 17, 6]] * 3)]
    mapped = jax.vmap(jaxorch.optimize(lax.ragged_dot, options=INTERPRET))
    np.testing.assert_allclose(mapped(*args), jax.vmap(lax.ragged_dot)(*args), rtol=2e-5, atol=2e-5)


def test_a_product_alone_is_xlas(monkeypatch):
    monkeypatch.undo()
    report = jaxorch.explain(jaxorch.optimize(lambda a, b: a @ b), *[jax.ShapeDtypeStruct((8192, 8192), BF16)] * 2)
    assert report.kernels == ()
    assert [line.primitives for line in report.left] == [("dot_general",)]


@pytest.mark.parametrize("transformed", [jax.grad, jax.vmap])
def test_transformed_attention(transformed):
    def loss(q, k, v):
        s = jnp.einsum("bqd,bkd->bqk", q, k)
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(s, -1), v).sum((-1, -2, -3))

    args = [normal(2, 9, 16, dtype=F32, seed=k) for k in range(3)]
    args = [a[None] for a in args] if transformed is jax.vmap else args
    with jax.default_matmul_precision("highest"):
        got = transformed(jaxorch.optimize(loss, options=INTERPRET))(*args)
        want = transformed(loss)(*args)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
