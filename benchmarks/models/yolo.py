"""Detectors: YOLOX-Nano, and the C3k2 block of YOLO11."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.layers import ConvNorm, upsample_nearest
from benchmarks.models.registry import Call, Size, flax_call, model, normal

EPS = 1e-3


class C3k2(nn.Module):
    """The block of YOLO11 with a plain bottleneck: two halves of one convolution, and what is made of the second."""

    features: int
    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, features)."""
        conv = partial(ConvNorm, act=nn.silu, eps=EPS, dtype=self.dtype)
        a, b = jnp.split(conv(2 * self.hidden)(x), 2, -1)
        m = b + conv(self.hidden, 3)(conv(self.hidden // 2, 3)(b))
        return conv(self.features)(jnp.concatenate([a, b, m], -1))


class Conv(nn.Module):
    """A convolution with SiLU; with `depthwise` a depthwise one, then 1x1."""

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(ConvNorm, act=nn.silu, eps=EPS, dtype=self.dtype)
        if not self.depthwise:
            return conv(self.features, self.kernel, self.stride)(x)
        return conv(self.features)(conv(x.shape[-1], self.kernel, self.stride, x.shape[-1])(x))


class CSP(nn.Module):
    """Cross-stage partial layer: bottlenecks on one half, the other passes by."""

    features: int
    repeats: int = 1
    shortcut: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, half = partial(Conv, dtype=self.dtype), self.features // 2
        a, b = conv(half)(x), conv(half)(x)
        for _ in range(self.repeats):
            y = conv(half, 3, depthwise=True)(conv(half)(a))
            a = a + y if self.shortcut else y
        return conv(self.features)(jnp.concatenate([a, b], -1))


class SPP(nn.Module):
    """Spatial pyramid pooling: maxima over three neighbourhoods beside the map itself."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(x.shape[-1] // 2, dtype=self.dtype)(x)
        pools = [nn.max_pool(x, (k, k), (1, 1), "SAME") for k in (5, 9, 13)]
        return Conv(self.features, dtype=self.dtype)(jnp.concatenate([x, *pools], -1))


class YoloxHead(nn.Module):
    """The decoupled head of one level."""

    width: int
    classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, 5 + classes, H * W): box, objectness, classes."""
        conv = partial(Conv, self.width, 3, depthwise=True, dtype=self.dtype)
        out = partial(nn.Conv, kernel_size=(1, 1), dtype=self.dtype)
        x = Conv(self.width, dtype=self.dtype)(x)
        kinds, boxes = conv()(conv()(x)), conv()(conv()(x))
        parts = [out(4)(boxes), nn.sigmoid(out(1)(boxes)), nn.sigmoid(out(self.classes)(kinds))]
        y = jnp.concatenate(parts, -1)
        return y.transpose(0, 3, 1, 2).reshape(y.shape[0], y.shape[-1], -1)


class YoloxNano(nn.Module):
    """YOLOX with depthwise convolutions, boxes not decoded: https://arxiv.org/abs/2107.08430."""

    width: int = 16
    repeats: int = 3
    classes: int = 80
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, boxes, 5 + classes)."""
        corners = [x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]]
        x = Conv(self.width, 3, dtype=self.dtype)(jnp.concatenate(corners, -1))
        levels = self._pyramid(*self._backbone(x))
        heads = [YoloxHead(4 * self.width, self.classes, self.dtype)(level) for level in levels]
        return jnp.concatenate(heads, -1).swapaxes(1, 2)

    def _backbone(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        down, csp, w = partial(Conv, kernel=3, stride=2, depthwise=True, dtype=self.dtype), self._csp, self.width
        x = csp(2 * w, 1)(down(2 * w)(x))
        c3 = csp(4 * w, self.repeats)(down(4 * w)(x))
        c4 = csp(8 * w, self.repeats)(down(8 * w)(c3))
        c5 = SPP(16 * w, self.dtype)(down(16 * w)(c4))
        return c3, c4, csp(16 * w, 1, shortcut=False)(c5)

    def _pyramid(self, c3: jax.Array, c4: jax.Array, c5: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        conv, csp, w = partial(Conv, dtype=self.dtype), partial(self._csp, repeats=1, shortcut=False), self.width
        down = partial(conv, kernel=3, stride=2, depthwise=True)
        f0 = conv(8 * w)(c5)
        f1 = conv(4 * w)(csp(8 * w)(jnp.concatenate([upsample_nearest(f0), c4], -1)))
        p3 = csp(4 * w)(jnp.concatenate([upsample_nearest(f1), c3], -1))
        p4 = csp(8 * w)(jnp.concatenate([down(4 * w)(p3), f1], -1))
        return p3, p4, csp(16 * w)(jnp.concatenate([down(8 * w)(p4), f0], -1))

    def _csp(self, features: int, repeats: int, *, shortcut: bool = True) -> CSP:
        return CSP(features, repeats, shortcut, self.dtype)


@model("yolo11_c3k2", "vtc")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    (features, hidden), side = ((64, 16), 160) if size == "full" else ((16, 4), 8)
    x = normal(batch, side, side, features // 2, dtype=dtype)
    return flax_call(C3k2(features, hidden, dtype), x, dtype=dtype)


@model("yolox_nano", "korch")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (YoloxNano(dtype=dtype), 416) if size == "full" else (YoloxNano(4, 1, 3, dtype), 32)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)
