"""A block on the way up of a diffusion U-Net: skip connection, residual block with time embedding, attention."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.registry import Call, Size, flax_call, model, normal


class ResBlock(nn.Module):
    """Two 3x3 behind norms, the embedded time added between them."""

    features: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        norm = partial(nn.GroupNorm, self.groups, dtype=self.dtype)
        conv = partial(nn.Conv, self.features, dtype=self.dtype)
        y = conv((3, 3))(nn.silu(norm()(x)))
        y = y + nn.Dense(self.features, dtype=self.dtype)(nn.silu(time))[:, None, None]
        y = conv((3, 3))(nn.silu(norm()(y)))
        return y + (x if x.shape == y.shape else conv((1, 1))(x))


class AttentionBlock(nn.Module):
    """Attention of all pixels to all."""

    heads: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = nn.GroupNorm(self.groups, dtype=self.dtype)(x).reshape(batch, height * width, channels)
        q, k, v = (nn.DenseGeneral((self.heads, channels // self.heads), dtype=self.dtype)(y) for _ in range(3))
        y = nn.DenseGeneral(channels, (-2, -1), dtype=self.dtype)(jax.nn.dot_product_attention(q, k, v))
        return x + y.reshape(x.shape)


class UpBlock(nn.Module):
    """The map from below joined with the one that was kept on the way down."""

    features: int = 640
    heads: int = 8
    groups: int = 32
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, time: jax.Array) -> jax.Array:
        """(B, H, W, C), (B, H, W, C'), (B, T) -> (B, H, W, features)."""
        x = jnp.concatenate([x, skip], -1)
        x = ResBlock(self.features, self.groups, self.dtype)(x, time)
        return AttentionBlock(self.heads, self.groups, self.dtype)(x)


@model("unet_block", "today", dtype=jnp.bfloat16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side, embedded = UpBlock(dtype=dtype), 32, 1280
    if size == "tiny":
        net, side, embedded = UpBlock(16, 2, 4, dtype), 4, 8
    x = normal(batch, side, side, net.features, dtype=dtype)
    skip = normal(batch, side, side, net.features // 2, dtype=dtype)
    return flax_call(net, x, skip, normal(batch, embedded, dtype=dtype), dtype=dtype)
