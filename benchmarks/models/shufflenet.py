"""ShuffleNet V2: units of depthwise convolutions joined by a shuffle of the channels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.layers import ConvNorm
from benchmarks.models.registry import Call, Size, flax_call, model, normal


def shuffle(x: jax.Array, groups: int = 2) -> jax.Array:
    """(..., groups * n) -> the same with the channels of all groups interleaved."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """A unit: half of the channels pass by, or, at stride 2, go through a branch of their own."""

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/stride, W/stride, features)."""
        passed, x = (x, x) if self.stride == 2 else jnp.split(x, 2, -1)
        half = self.features // 2
        if self.stride == 2:
            passed = self._conv(half, act=True)(self._depthwise(passed))
        x = self._conv(half, act=True)(self._depthwise(self._conv(half, act=True)(x)))
        return shuffle(jnp.concatenate([passed, x], -1))

    def _conv(self, features: int, *, act: bool) -> ConvNorm:
        return ConvNorm(features, act=nn.relu if act else None, dtype=self.dtype)

    def _depthwise(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        return ConvNorm(channels, 3, self.stride, channels, dtype=self.dtype)(x)


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2 whole: https://arxiv.org/abs/1807.11164."""

    widths: tuple[int, ...] = (24, 116, 232, 464, 1024)
    repeats: tuple[int, ...] = (4, 8, 4)
    classes: int = 1000
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, classes)."""
        first, *middle, last = self.widths
        x = ConvNorm(first, 3, 2, act=nn.relu, dtype=self.dtype)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for features, repeats in zip(middle, self.repeats, strict=True):
            for i in range(repeats):
                x = ShuffleUnit(features, 1 if i else 2, self.dtype)(x)
        x = ConvNorm(last, act=nn.relu, dtype=self.dtype)(x).mean((1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


@model("shufflenet_unit", "vtc")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    features, side = (116, 28) if size == "full" else (8, 4)
    return flax_call(ShuffleUnit(features, dtype=dtype), normal(batch, side, side, features, dtype=dtype), dtype=dtype)


@model("shufflenet_v2", "vtc")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    full = ShuffleNetV2(dtype=dtype)
    net, side = (full, 224) if size == "full" else (ShuffleNetV2((4, 8, 16, 16), (1, 2), 10, dtype), 32)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)
