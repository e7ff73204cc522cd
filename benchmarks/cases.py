"""The measured cases: bars refer to these functions, shapes, dtypes and donation, nothing else.

`CASES[name]() -> (fn, args, donate)`: args are ShapeDtypeStructs (random normal values, 0.05 scale; int32 positions are
named where they matter). bf16 unless said. Written as JAX users write them; do not reshape them to suit the optimiser.
Floor = bytes of inputs and outputs / 4.3 TB/s + 2 us; rotate inputs past the L2 cache (60 MB) when timing.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32
CASES = {}


def S(*shape, d=BF16):  # noqa: N802 - a shape, as short as it is frequent
    return jax.ShapeDtypeStruct(shape, d)


def case(name, *args, donate=()):
    def register(fn):
        CASES[name] = lambda: (fn, args, donate)
        return fn

    return register


def layer_norm(x, g, b, eps=1e-5):
    m = x.astype(F32)
    mu = m.mean(-1, keepdims=True)
    v = ((m - mu) ** 2).mean(-1, keepdims=True)
    return ((m - mu) * lax.rsqrt(v + eps) * g + b).astype(x.dtype)


def rms_norm(x, w):
    v = jnp.mean(jnp.square(x.astype(F32)), -1, keepdims=True)
    return (x * lax.rsqrt(v + 1e-5).astype(x.dtype)) * w


def hswish(y):
    return y * jnp.clip(y + 3, 0, 6) / 6


def conv(x, w, s=1, pad="SAME", g=1, df="NHWC", **kw):
    return lax.conv_general_dilated(
        x, w, (s, s), pad, dimension_numbers=(df, "HWIO" if df == "NHWC" else "OIHW", df), feature_group_count=g, **kw
    )


# ---- the spine: norms, softmaxes, movement -------------------------------------------------------
@case("groupnorm_silu", S(8, 64, 64, 512))
def _(x):
    m = x.astype(F32).reshape(8, 4096, 32, 16)
    mu, va = m.mean((1, 3), keepdims=True), m.var((1, 3), keepdims=True)
    return jax.nn.silu(((m - mu) * lax.rsqrt(va + 1e-5)).reshape(x.shape)).astype(x.dtype)


@case("instancenorm_relu_reflect_pad", S(4, 64, 224, 224, d=F32))
def _(x):
    mu, va = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    y = jax.nn.relu((x - mu) * lax.rsqrt(va + 1e-5))
    return jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")


@case("layernorm_shift_window", S(16, 56, 56, 96), S(96, d=F32), S(96, d=F32))
def _(x, g, b):
    y = jnp.roll(layer_norm(x, g, b), (-3, -3), (1, 2))
    return y.reshape(16, 8, 7, 8, 7, 96).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 49, 96)


def _rope_half(x, c, s):
    h = x.shape[-1] // 2
    return x * c + jnp.concatenate([-x[..., h:], x[..., :h]], -1) * s


@case("rope_half_heads", S(4, 2048, 4096), S(2048, 1, 128), S(2048, 1, 128))
def _(x, c, s):
    return _rope_half(x.reshape(4, 2048, 32, 128), c, s).transpose(0, 2, 1, 3)


@case("rope_interleaved_heads", S(4, 2048, 4096), S(2048, 1, 64), S(2048, 1, 64))
def _(x, c, s):
    z = x.reshape(4, 2048, 32, 128)
    y = jnp.stack([z[..., ::2] * c - z[..., 1::2] * s, z[..., 1::2] * c + z[..., ::2] * s], -1)
    return y.reshape(z.shape).transpose(0, 2, 1, 3)


@case("softmax_bias_mask", S(8, 16, 1024, 1024), S(16, 1024, 1024), S(8, 1, 1, 1024, d=jnp.bool_))
def _(x, b, m):
    return jax.nn.softmax(jnp.where(m, (x + b).astype(F32), -1e30), -1).astype(x.dtype)


@case("rmsnorm_residual", S(8192, 4096), S(8192, 4096), S(4096))
def _(x, r, w):
    y = x + r
    return y, rms_norm(y, w)


@case("log_softmax", S(4096, 50257, d=F32))
def _(x):
    return jax.nn.log_softmax(x, -1)


@case("transpose_gelu", S(8192, 8192))
def _(x):
    return jax.nn.gelu(x).T


@case("concat_of_elementwise", S(64, 4096, 256), S(64, 4096, 192), S(64, 4096, 64))
def _(a, b, c):
    return jnp.concatenate([jax.nn.silu(a), jnp.tanh(b), c * c], -1)


@case("channel_shuffle", S(64, 56, 56, 256))
def _(x):
    return jax.nn.relu(x).reshape(64, 56, 56, 2, 128).swapaxes(3, 4).reshape(64, 56, 56, 256)


# ---- views: reads, writes, in place ---------------------------------------------------------------
@case("kv_concat", S(16, 32, 128), S(16, 8, 1, 128), S(16, 8, 1, 128), S(16, 8, 4095, 128), S(16, 8, 4095, 128))
def _(q, k, v, kc, vc):  # the cache grows: a new buffer is right, each byte read once and written once
    kc, vc = jnp.concatenate([kc, k], 2), jnp.concatenate([vc, v], 2)
    sc = jnp.einsum("bhgd,bhkd->bhgk", q.reshape(16, 8, 4, 128), kc).astype(F32)
    return jnp.einsum("bhgk,bhkd->bhgd", jax.nn.softmax(sc, -1).astype(q.dtype), vc), kc, vc


@case("cache_row_dus", S(16, 4096, 8, 128), S(16, 1, 8, 128), S(d=I32), donate=(0,))
def _(c, u, pos):
    return lax.dynamic_update_slice(c, u, (0, pos, 0, 0))


@case("cache_row_at", S(16, 8, 4096, 128), S(16, 8, 128), S(16, d=I32), donate=(0,))
def _(c, u, pos):
    return c.at[jnp.arange(16), :, pos].set(u)


@case("upsample_concat", S(16, 64, 64, 128), S(16, 128, 128, 128))
def _(x, skip):
    return jax.nn.silu(jnp.concatenate([x.repeat(2, 1).repeat(2, 2), skip], -1))


@case("moe", S(4096, 2048), S(16, 2048, 1408), S(16, 1408, 2048), S(16, 384, d=I32), S(16, 384))
def _(x, w1, w2, idx, gate):  # idx in [0, 4096]: 4096 marks an empty slot
    h = x.at[idx.reshape(-1)].get(mode="fill", fill_value=0).reshape(16, 384, 2048)
    o = jnp.einsum("ecf,efm->ecm", jax.nn.silu(jnp.einsum("ecm,emf->ecf", h, w1)), w2) * gate[..., None]
    return jnp.zeros_like(x).at[idx.reshape(-1)].add(o.reshape(-1, 2048), mode="drop")


@case("swin_patch_merging", S(16, 56, 56, 96), S(384, 192))
def _(x, w):
    y = jnp.concatenate([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    return y.reshape(16, -1, 384) @ w


# ---- contractions ---------------------------------------------------------------------------------
def _attention(q, k, v, bias=None, causal=False):
    s = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=F32) * 0.125
    if bias is not None:
        s = s + bias
    if causal:
        i = jnp.arange(q.shape[2])
        s = jnp.where(i[:, None] >= i[None], s, -1e30)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(s, -1).astype(q.dtype), v)


_QKV = (S(8, 16, 1024, 64),) * 3
case("attention", *_QKV)(_attention)
case("attention_causal", *_QKV)(lambda q, k, v: _attention(q, k, v, causal=True))
case("attention_bias", *_QKV, S(16, 1024, 1024, d=F32))(lambda q, k, v, b: _attention(q, k, v, b))

H, KV, D, M, T = 32, 8, 128, 4096, 4096


def decode_layer(x, wn, wqkv, wo, kc, vc, c, s, pos, *, layout, style):
    """Attention half of a Llama-3-8B layer, one token; cache written at `pos` (use 4000), attends to <= pos."""
    B = x.shape[0]
    q, k, v = jnp.split(rms_norm(x, wn) @ wqkv, [H * D, (H + KV) * D], -1)
    q, k, v = (z.reshape(B, 1, -1, D) for z in (q, k, v))
    q, k = _rope_half(q, c, s), _rope_half(k, c, s)
    if layout == "bksd":
        q, k, v = (z.swapaxes(1, 2) for z in (q, k, v))
    at = (0, pos, 0, 0) if layout == "bskd" else (0, 0, pos, 0)
    kc, vc = lax.dynamic_update_slice(kc, k, at), lax.dynamic_update_slice(vc, v, at)
    live = jnp.arange(T) <= pos
    kk, vv = (kc, vc) if layout == "bskd" else (kc.swapaxes(1, 2), vc.swapaxes(1, 2))
    q = q if layout == "bskd" else q.swapaxes(1, 2)
    if style == "repeat":
        kk, vv = jnp.repeat(kk, H // KV, 2), jnp.repeat(vv, H // KV, 2)
        sc = jnp.einsum("bqhd,bkhd->bhqk", q, kk).astype(F32) / 11.3
        a = jax.nn.softmax(jnp.where(live, sc, -1e30), -1).astype(q.dtype)
        o = jnp.einsum("bhqk,bkhd->bqhd", a, vv)
    else:
        sc = jnp.einsum("bqhgd,bkhd->bhgqk", q.reshape(B, 1, KV, H // KV, D), kk).astype(F32) / 11.3
        a = jax.nn.softmax(jnp.where(live, sc, -1e30), -1).astype(q.dtype)
        o = jnp.einsum("bhgqk,bkhd->bqhgd", a, vv)
    return x + o.reshape(B, 1, M) @ wo, kc, vc


def _decode_args(B, layout, L=()):
    cache = (B, T, KV, D) if layout == "bskd" else (B, KV, T, D)
    return (
        S(B, 1, M),
        S(*L, M),
        S(*L, M, (H + 2 * KV) * D),
        S(*L, H * D, M),
        S(*L, *cache),
        S(*L, *cache),
        S(1, 1, 1, D),
        S(1, 1, 1, D),
        S(d=I32),
    )


for _B in (1, 16):
    for _layout in ("bskd", "bksd"):
        for _style in ("repeat", "einsum"):
            case(f"decode_B{_B}_{_layout}_{_style}", *_decode_args(_B, _layout), donate=(4, 5))(
                lambda *a, layout=_layout, style=_style: decode_layer(*a, layout=layout, style=style)
            )


def scan_carry(x, wn, wqkv, wo, kc, vc, c, s, pos):
    """Stacked cache as the carry, one row written straight into it, the layer then read back."""
    B = x.shape[0]

    def body(cr, w):
        x, kc, vc, l = cr  # noqa: E741 - the layer's index
        q, k, v = jnp.split(rms_norm(x, w[0]) @ w[1], [H * D, (H + KV) * D], -1)
        q, k, v = (z.reshape(B, 1, -1, D).swapaxes(1, 2) for z in (q, k, v))
        q, k = _rope_half(q, c, s), _rope_half(k, c, s)
        kc = lax.dynamic_update_slice(kc, k[None], (l, 0, 0, pos, 0))
        vc = lax.dynamic_update_slice(vc, v[None], (l, 0, 0, pos, 0))
        kl, vl = lax.dynamic_index_in_dim(kc, l, 0, False), lax.dynamic_index_in_dim(vc, l, 0, False)
        sc = jnp.einsum("bhgqd,bhkd->bhgqk", q.reshape(B, KV, H // KV, 1, D), kl).astype(F32) / 11.3
        a = jax.nn.softmax(jnp.where(jnp.arange(T) <= pos, sc, -1e30), -1).astype(q.dtype)
        o = jnp.einsum("bhgqk,bhkd->bqhgd", a, vl)
        return (x + o.reshape(B, 1, M) @ w[2], kc, vc, l + 1), None

    (x, kc, vc, _), _ = lax.scan(body, (x, kc, vc, 0), (wn, wqkv, wo))
    return x, kc, vc


def scan_xs_ys(x, wn, wqkv, wo, kc, vc, c, s, pos):
    """The cache rides as scan inputs and outputs."""

    def body(x, w):
        x, k, v = decode_layer(x, w[0], w[1], w[2], w[3], w[4], c, s, pos, layout="bksd", style="einsum")
        return x, (k, v)

    x, (kc, vc) = lax.scan(body, x, (wn, wqkv, wo, kc, vc))
    return x, kc, vc


case("scan4_carry_B16", *_decode_args(16, "bksd", (4,)), donate=(4, 5))(scan_carry)
case("scan4_xs_ys_B16", *_decode_args(16, "bksd", (4,)), donate=(4, 5))(scan_xs_ys)


@case("prefill", S(4, 2048, 4096), S(4096, 6144), S(4096, 4096), S(2048, 1, 128), S(2048, 1, 128))
def _(x, wqkv, wo, c, s):
    q, k, v = jnp.split(x @ wqkv, [4096, 5120], -1)
    q, k, v = q.reshape(4, 2048, 32, 128), k.reshape(4, 2048, 8, 128), v.reshape(4, 2048, 8, 128)
    o = jax.nn.dot_product_attention(_rope_half(q, c, s), _rope_half(k, c, s), v, is_causal=True)
    return o.reshape(4, 2048, 4096) @ wo


@case("vit_attention_half", S(64, 197, 768), S(768, 2304), S(2304), S(768, 768))
def _(x, w, b, wo):  # qkv, attention, projection, residual; no norm, no MLP
    q, k, v = (x @ w + b).reshape(64, 197, 3, 12, 64).transpose(2, 0, 3, 1, 4)
    a = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(F32) * 0.125, -1).astype(x.dtype)
    return x + jnp.einsum("bhqk,bhkd->bhqd", a, v).swapaxes(1, 2).reshape(64, 197, 768) @ wo


@case(
    "swin_shifted_attention_half",
    S(16, 56, 56, 96),
    S(96, 288),
    S(288),
    S(96, 96),
    S(96),
    S(96),
    S(96),
    S(3, 49, 49, d=F32),
    S(64, 49, 49, d=F32),
)
def _(x, w1, b1, w2, b2, ls, lb, bias, mask):  # no MLP
    B, n, C, nW = 16, 56, 96, 64
    h = jnp.roll(layer_norm(x, ls, lb), (-3, -3), (1, 2))
    h = h.reshape(B, 8, 7, 8, 7, C).transpose(0, 1, 3, 2, 4, 5).reshape(B * nW, 49, C)
    q, k, v = (h @ w1 + b1).reshape(B * nW, 49, 3, 3, 32).transpose(2, 0, 3, 1, 4)
    a = jnp.einsum("bhqd,bhkd->bhqk", q * 0.17, k).astype(F32) + bias
    a = (a.reshape(B, nW, 3, 49, 49) + mask[None, :, None]).reshape(B * nW, 3, 49, 49)
    o = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(a, -1).astype(x.dtype), v)
    o = o.transpose(0, 2, 1, 3).reshape(B * nW, 49, C) @ w2 + b2
    o = o.reshape(B, 8, 8, 7, 7, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, n, n, C)
    return x + jnp.roll(o, (3, 3), (1, 2))


@case("relu_linear_attention", S(8, 4096, 32, 48))
def _(qkv):
    q, k, v = jnp.split(qkv, 3, -1)
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
    kv = jnp.einsum("bnhd,bnhe->bhde", k, v, preferred_element_type=F32)
    o = jnp.einsum("bnhd,bhde->bnhe", q.astype(F32), kv)
    return (o[..., :-1] / (o[..., -1:] + 1e-15)).astype(qkv.dtype).reshape(8, 4096, 512)


case("gemm_8192", S(8192, 8192), S(8192, 8192))(lambda a, b: a @ b)


# ---- convolutions ---------------------------------------------------------------------------------
def _litemla(B, n, C=128, heads=8, d=16):
    t = 3 * heads * d

    def f(x, wq, wd, wp, wo):
        qkv = conv(x, wq)
        a = conv(conv(qkv, wd, g=t), wp, g=3 * heads)
        m = jnp.concatenate([qkv, a], -1).reshape(B, n * n, 2 * heads, 3, d).transpose(0, 2, 1, 3, 4)
        q, k, v = jax.nn.relu(m[..., 0, :]), jax.nn.relu(m[..., 1, :]), m[..., 2, :]
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
        o = jnp.einsum("bhnd,bhde->bhne", q, jnp.einsum("bhnd,bhne->bhde", k, v))
        o = o[..., :-1] / (o[..., -1:] + 1e-6)
        return x + conv(o.transpose(0, 2, 1, 3).reshape(B, n, n, 2 * heads * d), wo)

    case(f"litemla_B{B}_{n}", S(B, n, n, C), S(1, 1, C, t), S(5, 5, 1, t), S(1, 1, d, t), S(1, 1, 2 * heads * d, C))(f)


_litemla(16, 32)
_litemla(1, 128)
case("dwconv5_hswish", S(8, 64, 64, 512), S(5, 5, 1, 512))(lambda x, w: hswish(conv(x, w, g=512)))
case("dwconv3_s2", S(16, 56, 56, 256), S(3, 3, 1, 256))(lambda x, w: hswish(conv(x, w, s=2, g=256)))
case("dwconv7_layernorm", S(16, 56, 56, 128), S(7, 7, 1, 128), S(128, d=F32), S(128, d=F32))(
    lambda x, w, g, b: layer_norm(conv(x, w, g=128), g, b)
)
case("mbconv", S(8, 64, 64, 128), S(128, 512), S(3, 3, 1, 512), S(512, 128))(
    lambda x, w1, wd, w2: x + hswish(conv(hswish(x @ w1), wd, g=512)) @ w2
)
case("grouped_conv3", S(8, 56, 56, 256), S(3, 3, 8, 256))(lambda x, w: jax.nn.relu(conv(x, w, g=32)))
case("dilated_conv3", S(16, 14, 14, 512), S(3, 3, 512, 512))(lambda x, w: jax.nn.relu(conv(x, w, rhs_dilation=(2, 2))))
case("upsample_concat_conv", S(16, 64, 64, 128), S(16, 128, 128, 128), S(3, 3, 256, 128))(
    lambda x, s, w: jax.nn.silu(conv(jnp.concatenate([x.repeat(2, 1).repeat(2, 2), s], -1), w))
)
case("conv3_dense", S(16, 56, 56, 128), S(3, 3, 128, 128))(lambda x, w: jax.nn.relu(conv(x, w)))
case("stem7_s2", S(16, 224, 224, 3), S(7, 7, 3, 64))(lambda x, w: jax.nn.relu(conv(x, w, s=2)))


def _gan(B):
    def f(x, *ws):
        for w in ws[:-1]:
            x = jax.nn.relu(lax.conv_transpose(x, w, (2, 2), "SAME"))
        return jnp.tanh(lax.conv_transpose(x, ws[-1], (2, 2), "SAME"))

    c = (512, 256, 128, 64, 3)
    case(f"gan_chain_B{B}", S(B, 4, 4, 512, d=F32), *(S(4, 4, i, o, d=F32) for i, o in itertools.pairwise(c)))(f)


_gan(1)
_gan(16)


def _c3k2(df, c=32):
    ax = -1 if df == "NHWC" else 1

    def f(x, w0, w1, w2, w3):
        a, b = jnp.split(jax.nn.silu(conv(x, w0, df=df)), 2, ax)
        m = b + jax.nn.silu(conv(jax.nn.silu(conv(b, w1, df=df)), w2, df=df))
        return jax.nn.silu(conv(jnp.concatenate([a, b, m], ax), w3, df=df))

    W = (lambda k, i, o: S(k, k, i, o)) if df == "NHWC" else (lambda k, i, o: S(o, i, k, k))
    X = S(16, 160, 160, 2 * c) if df == "NHWC" else S(16, 2 * c, 160, 160)
    case(f"c3k2_{df}", X, W(1, 2 * c, 2 * c), W(3, c, c // 2), W(3, c // 2, c), W(1, 3 * c, 2 * c))(f)


_c3k2("NHWC")
_c3k2("NCHW")


@case("candy_residual", S(1, 128, 56, 56, d=F32), S(128, 128, 3, 3, d=F32), S(128, 128, 3, 3, d=F32))
def _(x, w1, w2):
    def block(y, w):
        y = jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
        y = lax.conv_general_dilated(y, w, (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        return (y - y.mean((2, 3), keepdims=True)) * lax.rsqrt(y.var((2, 3), keepdims=True) + 1e-5)

    return x + block(jax.nn.relu(block(x, w1)), w2)


@case("spp", S(16, 13, 13, 512))
def _(x):
    def pool(k):
        return lax.reduce_window(x, jnp.array(-jnp.inf, x.dtype), lax.max, (1, k, k, 1), (1, 1, 1, 1), "SAME")

    return jnp.concatenate([pool(13), pool(9), pool(5), x], -1)
