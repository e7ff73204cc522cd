"""SegFormer-B0: attention over shortened sequences, feed-forward parts with depthwise convolutions.

https://arxiv.org/abs/2105.15203.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.layers import ConvNorm
from benchmarks.models.registry import Call, Size, flax_call, model, normal


class ShortAttention(nn.Module):
    """Attention of all pixels to the pixels of a map that a strided convolution made smaller."""

    heads: int
    shorten: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(B, height * width, C) -> the same shape."""
        batch, _, channels = x.shape
        q = nn.Dense(channels, dtype=self.dtype, name="q")(x)
        if self.shorten > 1:
            window = (self.shorten, self.shorten)
            x = x.reshape(batch, height, width, channels)
            x = nn.Conv(channels, window, window, padding="VALID", dtype=self.dtype, name="sr")(x)
            x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x.reshape(batch, -1, channels))
        k = nn.Dense(channels, dtype=self.dtype, name="k")(x)
        v = nn.Dense(channels, dtype=self.dtype, name="v")(x)
        q, k, v = (y.reshape(batch, y.shape[1], self.heads, -1) for y in (q, k, v))
        out = jax.nn.dot_product_attention(q, k, v).reshape(batch, -1, channels)
        return nn.Dense(channels, dtype=self.dtype, name="o")(out)


class MixFFN(nn.Module):
    """A feed-forward part that sees the neighbouring pixels."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(B, height * width, C) -> the same shape."""
        batch, pixels, channels = x.shape
        hidden = 4 * channels
        y = nn.Dense(hidden, dtype=self.dtype)(x).reshape(batch, height, width, hidden)
        y = nn.Conv(hidden, (3, 3), feature_group_count=hidden, dtype=self.dtype)(y)
        y = nn.gelu(y.reshape(batch, pixels, hidden), approximate=False)
        return nn.Dense(channels, dtype=self.dtype)(y)


class Stage(nn.Module):
    """Overlapping patches become tokens; blocks; the tokens become a map again."""

    width: int
    depth: int
    heads: int
    shorten: int
    patch: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/stride, W/stride, width)."""

        def norm(x: jax.Array) -> jax.Array:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)

        kernel, pad = (self.patch, self.patch), self.patch // 2
        x = nn.Conv(self.width, kernel, self.stride, padding=pad, dtype=self.dtype)(x)
        batch, height, width, channels = x.shape
        x = norm(x.reshape(batch, -1, channels))
        for _ in range(self.depth):
            x = x + ShortAttention(self.heads, self.shorten, self.dtype)(norm(x), height, width)
            x = x + MixFFN(self.dtype)(norm(x), height, width)
        return norm(x).reshape(batch, height, width, channels)


class SegFormer(nn.Module):
    """The encoder, and the head that joins the maps of all its stages."""

    widths: tuple[int, ...] = (32, 64, 160, 256)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    shorten: tuple[int, ...] = (8, 4, 2, 1)
    depth: int = 2
    decoder: int = 256
    classes: int = 150
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, H/4, W/4, classes)."""
        maps = []
        for width, heads, shorten in zip(self.widths, self.heads, self.shorten, strict=True):
            patch, stride = (3, 2) if maps else (7, 4)
            maps.append(x := Stage(width, self.depth, heads, shorten, patch, stride, self.dtype)(x))
        batch, height, width, _ = maps[0].shape
        shape = (batch, height, width, self.decoder)
        enlarged = [jax.image.resize(nn.Dense(self.decoder, dtype=self.dtype)(y), shape, "bilinear") for y in maps]
        x = ConvNorm(self.decoder, act=nn.relu, dtype=self.dtype)(jnp.concatenate(enlarged[::-1], -1))
        return nn.Conv(self.classes, (1, 1), dtype=self.dtype)(x)


@model("segformer_b0", "korch")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    tiny = SegFormer((8, 16), (1, 2), (2, 1), 1, 8, 3, dtype)
    net, side = (SegFormer(dtype=dtype), 512) if size == "full" else (tiny, 32)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)
