"""Decoder layers of language models, one new token at a time: Llama 3 and Gemma 2, and short Llama-style stacks.

Caches are (B, kv_heads, context, head_dim), written at `position`; only what lies at or before it is attended to.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.inputs import Drawn, Uniform
from benchmarks.models.registry import Call, Size, flax_call, model, normal

BF16 = jnp.bfloat16


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder layer.

    Attributes:
        dim: of the residual stream.
        heads: of the queries.
        kv_heads: of keys and values; `heads` is a multiple.
        head_dim: channels of a head.
        hidden: of the feed-forward part.
        theta: the base of the rotary positions.
        eps: of the norms.
        context: rows of the caches.
        window: how far back is attended to; None without a limit.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    theta: float
    eps: float
    context: int
    window: int | None = None


LLAMA3 = Decoder(4096, 32, 8, 128, 14336, 500_000.0, 1e-5, 4096)
GEMMA2 = Decoder(3584, 16, 8, 256, 14336, 10_000.0, 1e-6, 4096, window=4096)
SMALL = Decoder(2048, 16, 8, 128, 5632, 10_000.0, 1e-5, 2048)
TINY = Decoder(64, 4, 2, 16, 96, 10_000.0, 1e-5, 32)
TINY_WINDOW = Decoder(64, 4, 2, 32, 96, 10_000.0, 1e-6, 32, window=24)


def rotary(x: jax.Array, position: jax.Array, theta: float) -> jax.Array:
    """(B, heads, S, D) -> the same, its halves rotated by the positions `position`, `position` + 1, ..."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (position + jnp.arange(x.shape[2]))[:, None] * frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    """Grouped-query attention of one new token, with its key and value written into the caches.

    With `repeat` keys and values are repeated for every query head, as exported graphs have it. Scores are
    multiplied by 1/sqrt(head_dim), and bounded softly by `cap` if any.
    """

    sizes: Decoder
    repeat: bool = False
    cap: float | None = None
    dtype: jnp.dtype = BF16

    @nn.compact
    def __call__(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(B, 1, dim), the caches -> (B, 1, dim), the caches."""
        s, batch = self.sizes, x.shape[0]
        qkv = nn.Dense((s.heads + 2 * s.kv_heads) * s.head_dim, use_bias=False, dtype=self.dtype, name="qkv")(x)
        parts = jnp.split(qkv, [s.heads * s.head_dim, (s.heads + s.kv_heads) * s.head_dim], -1)
        q, k, v = (part.reshape(batch, 1, -1, s.head_dim).swapaxes(1, 2) for part in parts)
        q, k = rotary(q, position, s.theta), rotary(k, position, s.theta)
        keys = lax.dynamic_update_slice(keys, k, (0, 0, position, 0))
        values = lax.dynamic_update_slice(values, v, (0, 0, position, 0))
        out = (self._repeated if self.repeat else self._grouped)(q, keys, values, self._visible(position))
        out = out.swapaxes(1, 2).reshape(batch, 1, -1)
        return nn.Dense(s.dim, use_bias=False, dtype=self.dtype, name="o")(out), keys, values

    def _visible(self, position: jax.Array) -> jax.Array:
        rows = jnp.arange(self.sizes.context)
        visible = rows <= position
        return visible if self.sizes.window is None else visible & (rows > position - self.sizes.window)

    def _weights(self, scores: jax.Array, visible: jax.Array) -> jax.Array:
        scores = scores.astype(jnp.float32) * self.sizes.head_dim**-0.5
        scores = scores if self.cap is None else self.cap * jnp.tanh(scores / self.cap)
        return jax.nn.softmax(jnp.where(visible, scores, -1e30), -1).astype(self.dtype)

    def _repeated(self, q: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array) -> jax.Array:
        groups = self.sizes.heads // self.sizes.kv_heads
        keys, values = jnp.repeat(keys, groups, 1), jnp.repeat(values, groups, 1)
        weights = self._weights(jnp.einsum("bhqd,bhkd->bhqk", q, keys), visible)
        return jnp.einsum("bhqk,bhkd->bhqd", weights, values)

    def _grouped(self, q: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array) -> jax.Array:
        grouped = q.reshape(q.shape[0], self.sizes.kv_heads, -1, *q.shape[2:])
        weights = self._weights(jnp.einsum("bhgqd,bhkd->bhgqk", grouped, keys), visible)
        return jnp.einsum("bhgqk,bhkd->bhgqd", weights, values).reshape(q.shape)


class FeedForward(nn.Module):
    """A gated feed-forward part."""

    hidden: int
    act: object = nn.silu
    dtype: jnp.dtype = BF16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

        gated = self.act(dense(self.hidden, "gate")(x)) * dense(self.hidden, "up")(x)
        return dense(x.shape[-1], "down")(gated)


class LlamaLayer(nn.Module):
    """A layer of Llama 3: norms before attention and feed-forward part."""

    sizes: Decoder
    repeat: bool = False
    dtype: jnp.dtype = BF16

    @nn.compact
    def __call__(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(B, 1, dim), the caches -> (B, 1, dim), the caches."""
        norm = nn.RMSNorm(epsilon=self.sizes.eps, dtype=self.dtype, name="norm1")
        attention = Attention(self.sizes, self.repeat, dtype=self.dtype, name="attention")
        y, keys, values = attention(norm(x), keys, values, position)
        x = x + y
        norm = nn.RMSNorm(epsilon=self.sizes.eps, dtype=self.dtype, name="norm2")
        return x + FeedForward(self.sizes.hidden, dtype=self.dtype, name="mlp")(norm(x)), keys, values


class GemmaNorm(nn.Module):
    """RMSNorm whose scale is learnt as its distance from one."""

    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        offset = self.param("offset", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.eps)
        return (wide * (1 + offset.astype(jnp.float32))).astype(self.dtype)


class GemmaLayer(nn.Module):
    """A layer of Gemma 2: norms before and after attention and feed-forward part, softly bounded scores."""

    sizes: Decoder
    repeat: bool = False
    dtype: jnp.dtype = BF16

    @nn.compact
    def __call__(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(B, 1, dim), the caches -> (B, 1, dim), the caches."""

        def norm(name: str, x: jax.Array) -> jax.Array:
            return GemmaNorm(self.sizes.eps, self.dtype, name=name)(x)

        attention = Attention(self.sizes, self.repeat, cap=50.0, dtype=self.dtype, name="attention")
        y, keys, values = attention(norm("before_attention", x), keys, values, position)
        x = x + norm("after_attention", y)
        mlp = FeedForward(self.sizes.hidden, nn.gelu, self.dtype, name="mlp")
        return x + norm("after_mlp", mlp(norm("before_mlp", x))), keys, values


def _layer_call(layer: nn.Module, sizes: Decoder, batch: int, dtype: jnp.dtype) -> Call:
    cache = normal(batch, sizes.kv_heads, sizes.context, sizes.head_dim, dtype=dtype)
    x = normal(batch, 1, sizes.dim, dtype=dtype)
    return flax_call(layer, x, cache, cache, position(sizes.context), dtype=dtype, donated=(1, 2))


def position(context: int) -> Drawn:
    """A place near the end of a cache of `context` rows."""
    at = context - max(10, context // 40)  # a few more steps may follow
    return Drawn((), jnp.int32, Uniform(at, at + 1))


@model("llama3_layer", "vtc", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    sizes = LLAMA3 if size == "full" else TINY
    return _layer_call(LlamaLayer(sizes, repeat=True, dtype=dtype), sizes, batch, dtype)


@model("gemma2_layer", "vtc", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    sizes = GEMMA2 if size == "full" else TINY_WINDOW
    return _layer_call(GemmaLayer(sizes, repeat=True, dtype=dtype), sizes, batch, dtype)
