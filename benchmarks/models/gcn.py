"""GCN, segmentation by large separated kernels (https://arxiv.org/abs/1703.02719), in the form that EinNet measured."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.layers import ConvNorm, bilinear_corners
from benchmarks.models.registry import Call, Size, flax_call, model, normal
from benchmarks.models.resnet import Bottleneck, Stem


class SeparatedPair(nn.Module):
    """k x 1 then 1 x k, beside 1 x k then k x 1, summed; with `norm` each with BatchNorm and relu."""

    features: int
    kernel: int
    norm: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        act = nn.relu if self.norm else None
        conv = partial(ConvNorm, self.features, act=act, norm=self.norm, dtype=self.dtype)
        tall, wide = (self.kernel, 1), (1, self.kernel)
        return conv(wide)(conv(tall)(x)) + conv(tall)(conv(wide)(x))


class LargeBottleneck(nn.Module):
    """A residual block around a separated pair."""

    features: int
    inner: int
    kernel: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = SeparatedPair(self.inner, self.kernel, norm=True, dtype=self.dtype)(x)
        y = ConvNorm(self.features, 1, self.stride, dtype=self.dtype)(y)
        if x.shape == y.shape:
            return x + y
        return ConvNorm(self.features, 1, self.stride, bias=True, dtype=self.dtype)(x) + y


class Refine(nn.Module):
    """Two 3x3 with a shortcut."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(ConvNorm, x.shape[-1], 3, norm=False, dtype=self.dtype)
        return x + conv()(conv(act=nn.relu)(x))


class GCN(nn.Module):
    """The backbone, whose last two stages apply one block `shared` times, and the decoder."""

    classes: int = 21
    width: int = 64
    repeats: tuple[int, int] = (3, 4)
    shared: int = 5
    inner: tuple[int, int] = (85, 128)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, H, W, classes)."""
        refine = partial(Refine, self.dtype)
        height, width = x.shape[1:3]
        maps = self._maps(Stem(self.width, self.dtype)(x))
        scores = [refine()(SeparatedPair(self.classes, 11, norm=False, dtype=self.dtype)(y)) for y in maps]
        x = scores.pop()
        while scores:
            finer = scores.pop()
            x = refine()(finer + self._enlarged(x, *finer.shape[1:3]))
        x = refine()(self._enlarged(refine()(x), height, width))
        return nn.Conv(self.classes, (1, 1), dtype=self.dtype)(x)

    def _maps(self, x: jax.Array) -> list[jax.Array]:
        maps, w = [], self.width
        for stage, repeats in enumerate(self.repeats):
            for i in range(repeats):
                x = Bottleneck(w << stage, 1 if i or not stage else 2, self.dtype)(x)
            maps.append(x)
        for features, inner, kernel in zip((16 * w, 32 * w), self.inner, (5, 7), strict=True):
            x = LargeBottleneck(features, inner, kernel, 2, self.dtype)(x)
            block = LargeBottleneck(features, inner, kernel, dtype=self.dtype)
            for _ in range(self.shared):
                x = block(x)
            maps.append(x)
        return maps

    def _enlarged(self, x: jax.Array, height: int, width: int) -> jax.Array:
        return bilinear_corners(x, height, width).astype(self.dtype)


@model("gcn", "einnet")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (GCN(dtype=dtype), 224) if size == "full" else (GCN(3, 2, (1, 1), 2, (4, 4), dtype), 32)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)
