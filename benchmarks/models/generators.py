"""Small networks of plain and transposed convolutions: DCGAN, InfoGAN, FSRCNN, and the back end of CSRNet.

In the form that EinNet measured: no biases, no norms in the generators.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.layers import ConvNorm
from benchmarks.models.registry import Call, Size, flax_call, model, normal


class Generator(nn.Module):
    """An image from a code: a first transposed convolution of `kernel`, then ones that double the size."""

    widths: tuple[int, ...]
    kernel: int
    norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, 1, 1, code) -> (B, n, n, 3)."""
        conv = partial(nn.ConvTranspose, use_bias=False, dtype=self.dtype)
        x = self._after(conv(self.widths[0], (self.kernel, self.kernel), padding="VALID")(x))
        for features in self.widths[1:]:
            x = self._after(conv(features, (4, 4), (2, 2))(x))
        return jnp.tanh(conv(3, (4, 4), (2, 2))(x))

    def _after(self, x: jax.Array) -> jax.Array:
        return nn.relu(nn.BatchNorm(use_running_average=True, dtype=self.dtype)(x) if self.norm else x)


class FSRCNN(nn.Module):
    """Super-resolution in few channels, the last convolution a transposed one at stride 1."""

    wide: int = 56
    narrow: int = 12
    middle: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 1) -> (B, H + 2, W + 2, 1)."""
        conv = partial(ConvNorm, norm=False, bias=False, dtype=self.dtype)
        x = conv(self.narrow, act=nn.relu)(conv(self.wide, 5, act=nn.relu)(x))
        for i in range(self.middle):
            x = conv(self.narrow, 3, act=nn.relu if i + 1 == self.middle else None)(x)
        x = conv(self.wide, act=nn.relu)(x)
        return nn.ConvTranspose(1, (9, 9), padding=((5, 5), (5, 5)), use_bias=False, dtype=self.dtype)(x)


class DilatedBackEnd(nn.Module):
    """The back end of CSRNet (https://arxiv.org/abs/1802.10062): 3x3 of dilation 2."""

    widths: tuple[int, ...] = (512, 512, 512, 256, 128, 64)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, widths[-1])."""
        for features in self.widths:
            x = ConvNorm(features, 3, dilation=2, act=nn.relu, norm=False, bias=False, dtype=self.dtype)(x)
        return x


@model("infogan", "einnet")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    widths, code = ((448, 256, 128, 64), 228) if size == "full" else ((16, 8), 12)
    return flax_call(Generator(widths, 2, dtype=dtype), normal(batch, 1, 1, code, dtype=dtype), dtype=dtype)


@model("dcgan", "einnet")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    widths, code = ((512, 256, 128, 64), 100) if size == "full" else ((16, 8), 10)
    return flax_call(Generator(widths, 4, dtype=dtype), normal(batch, 1, 1, code, dtype=dtype), dtype=dtype)


@model("fsrcnn", "einnet")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (FSRCNN(dtype=dtype), 32) if size == "full" else (FSRCNN(8, 4, 2, dtype), 12)
    return flax_call(net, normal(batch, side, side, 1, dtype=dtype), dtype=dtype)


@model("csrnet", "einnet")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (DilatedBackEnd(dtype=dtype), 14) if size == "full" else (DilatedBackEnd((8, 4), dtype), 6)
    channels = net.widths[0]
    return flax_call(net, normal(batch, side, side, channels, dtype=dtype), dtype=dtype)
