"""Candy, the network of fast neural style: instance norms and reflected borders. https://arxiv.org/abs/1603.08155."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.layers import upsample_nearest
from benchmarks.models.registry import Call, Size, flax_call, model, normal


class ReflectConv(nn.Module):
    """A convolution over reflected borders; then, if asked for, an instance norm and relu."""

    features: int
    kernel: int = 3
    stride: int = 1
    norm: bool = True
    act: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        border, kernel = (self.kernel // 2,) * 2, (self.kernel, self.kernel)
        x = jnp.pad(x, ((0, 0), border, border, (0, 0)), mode="reflect")
        x = nn.Conv(self.features, kernel, self.stride, padding="VALID", dtype=self.dtype)(x)
        x = nn.InstanceNorm(epsilon=1e-5, dtype=self.dtype)(x) if self.norm else x
        return nn.relu(x) if self.act else x


class Candy(nn.Module):
    """The style of one image."""

    width: int = 32
    residuals: int = 5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> the same shape."""
        w, dtype = self.width, self.dtype
        x = ReflectConv(w, 9, dtype=dtype)(x)
        x = ReflectConv(2 * w, stride=2, dtype=dtype)(x)
        x = ReflectConv(4 * w, stride=2, dtype=dtype)(x)
        for _ in range(self.residuals):
            x = x + ReflectConv(4 * w, act=False, dtype=dtype)(ReflectConv(4 * w, dtype=dtype)(x))
        x = ReflectConv(2 * w, dtype=dtype)(upsample_nearest(x))
        x = ReflectConv(w, dtype=dtype)(upsample_nearest(x))
        return ReflectConv(3, 9, norm=False, act=False, dtype=dtype)(x)


@model("candy", "korch")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (Candy(dtype=dtype), 224) if size == "full" else (Candy(4, 1, dtype), 16)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)
