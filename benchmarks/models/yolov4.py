"""YOLOv4, its boxes decoded: https://arxiv.org/abs/2004.10934."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models.layers import Activation, ConvNorm, upsample_nearest
from benchmarks.models.registry import Call, Size, flax_call, model, normal

STRIDES = (8, 16, 32)
ANCHORS = (
    ((12, 16), (19, 36), (40, 28)),
    ((36, 75), (76, 55), (72, 146)),
    ((142, 110), (192, 243), (459, 401)),
)
"""Width and height in pixels of the three anchors of each level."""


def mish(x: jax.Array) -> jax.Array:
    """X tanh(softplus(x))."""
    return x * jnp.tanh(nn.softplus(x))


leaky = partial(nn.leaky_relu, negative_slope=0.1)


class Chain(nn.Module):
    """Convolutions one after the other, each (features, kernel), the first at `stride`."""

    layers: tuple[tuple[int, int], ...]
    act: Activation
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (features, kernel) in enumerate(self.layers):
            x = ConvNorm(features, kernel, 1 if i else self.stride, act=self.act, dtype=self.dtype)(x)
        return x


class FirstStage(nn.Module):
    """The first stage at half the size; its two halves are as wide as the whole."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, c = partial(ConvNorm, act=mish, dtype=self.dtype), self.features
        x = conv(c, 3, 2)(conv(c // 2, 3)(x))
        a, b = conv(c)(x), conv(c)(x)
        d = conv(c)(conv(c, 3)(conv(c // 2)(b)) + b)
        return conv(c)(jnp.concatenate([d, a], -1))


class Stage(nn.Module):
    """A stage at half the size: residual units on one half of the channels, the other half passes by."""

    features: int
    repeats: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, half = partial(ConvNorm, act=mish, dtype=self.dtype), self.features // 2
        x = conv(self.features, 3, 2)(x)
        a, b = conv(half)(x), conv(half)(x)
        for _ in range(self.repeats):
            b = b + conv(half, 3)(conv(half)(b))
        return conv(self.features)(jnp.concatenate([conv(half)(b), a], -1))


class YoloV4(nn.Module):
    """YOLOv4 with `width` channels in its first stage's first convolution."""

    classes: int = 1000
    width: int = 32
    repeats: tuple[int, ...] = (2, 8, 8, 4)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, H, W, 3) -> boxes (B, n, 1, 4) from corner to corner, in units of the image; scores (B, n, classes)."""
        x = FirstStage(2 * self.width, self.dtype)(x)
        maps = []
        for i, repeats in enumerate(self.repeats):
            maps.append(x := Stage(4 * self.width << i, repeats, self.dtype)(x))
        levels = self._head(*self._neck(*maps[1:]))
        decoded = [
            decode(level, self.classes, stride, anchors)
            for level, stride, anchors in zip(levels, STRIDES, ANCHORS, strict=True)
        ]
        boxes, scores = zip(*decoded, strict=True)
        return jnp.concatenate(boxes, 1), jnp.concatenate(scores, 1)

    def _chain(self, *layers: tuple[int, int], stride: int = 1) -> Chain:
        return Chain(layers, leaky, stride, self.dtype)

    def _five(self, c: int) -> Chain:
        return self._chain((c, 1), (2 * c, 3), (c, 1), (2 * c, 3), (c, 1))

    def _neck(self, d3: jax.Array, d4: jax.Array, d5: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        w = self.width
        x = self._chain((16 * w, 1), (32 * w, 3), (16 * w, 1))(d5)
        pools = [nn.max_pool(x, (k, k), (1, 1), "SAME") for k in (13, 9, 5)]
        x6 = self._chain((16 * w, 1), (32 * w, 3), (16 * w, 1))(jnp.concatenate([*pools, x], -1))
        x13 = self._five(8 * w)(self._joined(x6, d4, 8 * w))
        return self._five(4 * w)(self._joined(x13, d3, 4 * w)), x13, x6

    def _joined(self, deep: jax.Array, shallow: jax.Array, c: int) -> jax.Array:
        enlarged = upsample_nearest(self._chain((c, 1))(deep))
        return jnp.concatenate([self._chain((c, 1))(shallow), enlarged], -1)

    def _head(self, x20: jax.Array, x13: jax.Array, x6: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        w = self.width
        down4 = self._chain((8 * w, 3), stride=2)(x20)
        y4 = self._five(8 * w)(jnp.concatenate([down4, x13], -1))
        down5 = self._chain((16 * w, 3), stride=2)(y4)
        y5 = self._five(16 * w)(jnp.concatenate([down5, x6], -1))
        return self._output(x20, 8 * w), self._output(y4, 16 * w), self._output(y5, 32 * w)

    def _output(self, x: jax.Array, c: int) -> jax.Array:
        return nn.Conv(3 * (5 + self.classes), (1, 1), dtype=self.dtype)(self._chain((c, 3))(x))


def decode(
    x: jax.Array, classes: int, stride: int, anchors: tuple[tuple[int, int], ...]
) -> tuple[jax.Array, jax.Array]:
    """(B, H, W, 3 * (5 + classes)) -> boxes (B, 3HW, 1, 4), scores (B, 3HW, classes), anchor by anchor."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, 3, 5 + classes).transpose(0, 3, 1, 2, 4)
    size = np.array([width, height], np.float32)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    centre = (nn.sigmoid(x[..., :2]) + grid.astype(x.dtype)) / size.astype(x.dtype)
    scale = np.array(anchors, np.float32)[:, None, None] / stride / size
    extent = jnp.exp(x[..., 2:4]) * scale.astype(x.dtype)
    corner = centre - extent / 2
    boxes = jnp.concatenate([corner, corner + extent], -1)
    scores = nn.sigmoid(x[..., 4:5]) * nn.sigmoid(x[..., 5:])
    return boxes.reshape(batch, -1, 1, 4), scores.reshape(batch, -1, classes)


@model("yolov4", "korch")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (YoloV4(dtype=dtype), 416) if size == "full" else (YoloV4(3, 2, (1, 1, 1, 1), dtype), 64)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)
