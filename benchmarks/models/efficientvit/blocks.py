"""The blocks of EfficientViT: four kinds of convolution blocks, multi-scale linear attention, and what joins them."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.layers import Activation, ConvNorm


@dataclass(frozen=True)
class Style:
    """What all layers of a model share.

    Attributes:
        act: the activation of the layers that have one.
        eps: of every norm.
        dtype: of every layer's result.
    """

    act: Activation = nn.hard_swish
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    def conv(self, features: int, kernel: int = 1, *, act: bool = False, **fields: object) -> ConvNorm:
        """A convolution in this style."""
        act_function = self.act if act else None
        return ConvNorm(features, kernel, act=act_function, eps=self.eps, dtype=self.dtype, **fields)


class DSConv(nn.Module):
    """Depthwise 3x3, then 1x1."""

    features: int
    stride: int = 1
    fewer_norm: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/stride, W/stride, features), as of every block here."""
        conv, channels, norm = self.style.conv, x.shape[-1], not self.fewer_norm
        x = conv(channels, 3, stride=self.stride, groups=channels, act=True, norm=norm, name="depth_conv")(x)
        return conv(self.features, name="point_conv")(x)


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 to `expand` times the channels, depthwise 3x3, 1x1 back.

    With `fewer_norm` a block's convolutions, but the last, have a bias in place of their norm.
    """

    features: int
    stride: int = 1
    expand: float = 4
    fewer_norm: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, middle, norm = self.style.conv, round(x.shape[-1] * self.expand), not self.fewer_norm
        x = conv(middle, act=True, norm=norm, name="inverted_conv")(x)
        x = conv(middle, 3, stride=self.stride, groups=middle, act=True, norm=norm, name="depth_conv")(x)
        return conv(self.features, name="point_conv")(x)


class FusedMBConv(nn.Module):
    """An inverted bottleneck whose first two convolutions are one dense 3x3."""

    features: int
    stride: int = 1
    expand: float = 4
    fewer_norm: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, middle = self.style.conv, round(x.shape[-1] * self.expand)
        x = conv(middle, 3, stride=self.stride, act=True, norm=not self.fewer_norm, name="spatial_conv")(x)
        return conv(self.features, name="point_conv")(x)


class ResBlock(nn.Module):
    """Two dense 3x3."""

    features: int
    stride: int = 1
    expand: float = 1
    fewer_norm: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, middle = self.style.conv, round(x.shape[-1] * self.expand)
        x = conv(middle, 3, stride=self.stride, act=True, norm=not self.fewer_norm, name="conv1")(x)
        return conv(self.features, 3, name="conv2")(x)


class LiteMLA(nn.Module):
    """Multi-scale linear attention: softmax gives way to relu, so that the cost is linear in the pixels.

    Queries, keys and values of every scale are heads of one attention; channels are head-major, in a head q, k, v.
    """

    features: int
    dim: int = 16
    scales: tuple[int, ...] = (5,)
    eps: float = 1e-15
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, features)."""
        batch, height, width, channels = x.shape
        heads = channels // self.dim
        qkv = self.style.conv(3 * heads * self.dim, norm=False, bias=False, name="qkv")(x)
        parts = [qkv, *(self._aggregated(qkv, i, heads) for i in range(len(self.scales)))]
        pixels = height * width
        heads_of_all = jnp.concatenate(parts, -1).reshape(batch, pixels, len(parts) * heads, 3 * self.dim)
        q, k, v = jnp.split(heads_of_all, 3, -1)
        attend = self._linear if pixels > self.dim else self._quadratic
        out = attend(nn.relu(q), nn.relu(k), v).reshape(batch, height, width, -1)
        return self.style.conv(self.features, name="proj")(out)

    def _aggregated(self, qkv: jax.Array, index: int, heads: int) -> jax.Array:
        total, scale, dtype = qkv.shape[-1], self.scales[index], self.style.dtype
        depthwise = nn.Conv(
            total,
            (scale, scale),
            feature_group_count=total,
            use_bias=False,
            dtype=dtype,
            name=f"aggreg_{index}_0",
        )
        grouped = nn.Conv(
            total, (1, 1), feature_group_count=3 * heads, use_bias=False, dtype=dtype, name=f"aggreg_{index}_1"
        )
        return grouped(depthwise(qkv))

    def _linear(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        # A column of ones beside v sums the keys along with the values.
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
        kv = jnp.einsum("bnhd,bnhe->bhde", k, v, preferred_element_type=jnp.float32).astype(q.dtype)
        out = jnp.einsum("bnhd,bhde->bnhe", q, kv, preferred_element_type=jnp.float32)
        return (out[..., :-1] / (out[..., -1:] + self.eps)).astype(q.dtype)

    def _quadratic(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        weights = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
        weights = weights / (weights.sum(-1, keepdims=True) + self.eps)
        return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v)


class Residual(nn.Module):
    """A block with its input added to its result, where there is a shortcut."""

    main: nn.Module
    shortcut: bool = True

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.main(x)
        return x + y if self.shortcut else y


class EfficientViTBlock(nn.Module):
    """Attention for context, an inverted bottleneck for detail, each with a shortcut."""

    context_module: Residual
    local_module: Residual

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> the same shape."""
        return self.local_module(self.context_module(x))


def efficientvit_block(
    features: int, dim: int = 16, expand: float = 4, scales: tuple[int, ...] = (5,), style: Style = Style()
) -> EfficientViTBlock:
    """The block of attention stages."""
    attention = LiteMLA(features, dim, scales, style=style)
    local = MBConv(features, expand=expand, fewer_norm=True, style=style)
    return EfficientViTBlock(Residual(attention), Residual(local))


class OpList(nn.Module):
    """Layers one after the other."""

    op_list: tuple[nn.Module, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        for op in self.op_list:
            x = op(x)
        return x
