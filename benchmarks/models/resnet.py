"""ResNet-18, and the blocks of ResNets: https://arxiv.org/abs/1512.03385."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.layers import ConvNorm
from benchmarks.models.registry import Call, Size, flax_call, model, normal


class Stem(nn.Module):
    """7x7 and a pool: a quarter of the size."""

    features: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ConvNorm(self.features, 7, 2, act=nn.relu, dtype=self.dtype)(x)
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class BasicBlock(nn.Module):
    """Two 3x3 with a shortcut, which is a 1x1 where sizes differ."""

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(ConvNorm, self.features, dtype=self.dtype)
        y = conv(3)(conv(3, self.stride, act=nn.relu)(x))
        return nn.relu(y + (x if x.shape == y.shape else conv(1, self.stride)(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the features, with a shortcut as above."""

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(ConvNorm, dtype=self.dtype)
        y = conv(self.features, 3, self.stride, act=nn.relu)(conv(self.features, act=nn.relu)(x))
        y = conv(4 * self.features)(y)
        return nn.relu(y + (x if x.shape == y.shape else conv(4 * self.features, 1, self.stride)(x)))


class ResNet(nn.Module):
    """A ResNet of basic blocks."""

    repeats: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    classes: int = 1000
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, classes)."""
        x = Stem(self.width, self.dtype)(x)
        for stage, repeats in enumerate(self.repeats):
            for i in range(repeats):
                x = BasicBlock(self.width << stage, 1 if i or not stage else 2, self.dtype)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


@model("resnet18", "einnet")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (ResNet(dtype=dtype), 224) if size == "full" else (ResNet((1, 1), 8, 10, dtype), 32)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)
