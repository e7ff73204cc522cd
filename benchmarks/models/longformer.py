"""A LongFormer layer (https://arxiv.org/abs/2004.05150): attention to a dilated band, as EinNet measured it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.registry import Call, Size, flax_call, model, normal


def band_attention(q: jax.Array, k: jax.Array, v: jax.Array, reach: int, chunk: int) -> jax.Array:
    """Attention of every place to the 2 * reach + 1 places around it; places outside have a score of zero.

    Chunks of queries see the keys of their own places and of `reach` on both sides, a dense product of which the
    places outside the band are masked.

    Args:
        q: the queries, (..., length, dim), `length` a multiple of `chunk`.
        k: the keys, of the same shape.
        v: the values, of the same shape.
        reach: how far the band goes on each side.
        chunk: queries of one dense product.
    """
    length, seen = q.shape[-2], chunk + 2 * reach
    border = [(0, 0)] * (q.ndim - 2) + [(reach, reach), (0, 0)]
    k, v = jnp.pad(k, border), jnp.pad(v, border)
    starts = range(0, length, chunk)
    keys = jnp.stack([k[..., i : i + seen, :] for i in starts], -3)
    values = jnp.stack([v[..., i : i + seen, :] for i in starts], -3)
    queries = q.reshape(*q.shape[:-2], -1, chunk, q.shape[-1])
    offset = jnp.arange(seen) - jnp.arange(chunk)[:, None]
    scores = jnp.einsum("...qd,...kd->...qk", queries, keys, preferred_element_type=jnp.float32)
    scores = jnp.where((offset >= 0) & (offset <= 2 * reach), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, -1).astype(v.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, values).reshape(q.shape)


class LongformerLayer(nn.Module):
    """Attention to every `dilation`-th place of a band, then two linear layers, with one shortcut around all."""

    heads: int = 8
    reach: int = 1000
    dilation: int = 4
    chunk: int = 500
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, length, C) -> the same shape."""
        batch, length, channels = x.shape
        q, k, v = (self._split(nn.Dense(channels, use_bias=False, dtype=self.dtype)(x)) for _ in range(3))
        y = band_attention(q, k, v, self.reach, self.chunk)
        y = y.transpose(0, 3, 2, 1, 4).reshape(batch, length, channels)
        for _ in range(2):
            y = nn.relu(nn.Dense(channels, dtype=self.dtype)(y))
        return x + y

    def _split(self, x: jax.Array) -> jax.Array:
        # Places of one remainder are neighbours: a dilated band is a dense one of each.
        batch, length, channels = x.shape
        x = x.reshape(batch, length // self.dilation, self.dilation, self.heads, channels // self.heads)
        return x.transpose(0, 3, 2, 1, 4)


@model("longformer", "einnet")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, length, channels = LongformerLayer(dtype=dtype), 10_000, 512
    if size == "tiny":
        net, length, channels = LongformerLayer(2, 3, 2, 4, dtype), 24, 16
    return flax_call(net, normal(batch, length, channels, dtype=dtype), dtype=dtype)
