"""The blocks of EfficientViT in Flax, for inference: MBConv, multi-scale linear attention (LiteMLA), and both together.

Layouts are NHWC. After Cai, Li, Hu, Gan, Han: EfficientViT, ICCV 2023, https://arxiv.org/abs/2205.14756.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

type Activation = Callable[[jax.Array], jax.Array]


class ConvNorm(nn.Module):
    """Convolution, then BatchNorm in its inference form (or a bias in its place), then an activation if any."""

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    norm: bool = True
    act: Activation | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/stride, W/stride, features)."""
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.stride,
            padding=self.kernel // 2,
            feature_group_count=self.groups,
            use_bias=not self.norm,
            dtype=self.dtype,
        )(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=True, epsilon=1e-5, dtype=self.dtype)(x)
        return x if self.act is None else self.act(x)


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 to `expand` times the channels, depthwise 3x3, 1x1 back.

    With `fewer_norm` the first two convolutions have a bias in place of their BatchNorm.
    """

    features: int
    stride: int = 1
    expand: int = 4
    fewer_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/stride, W/stride, features)."""
        middle, norm = x.shape[-1] * self.expand, not self.fewer_norm
        x = ConvNorm(middle, norm=norm, act=nn.hard_swish, dtype=self.dtype)(x)
        x = ConvNorm(middle, 3, self.stride, middle, norm=norm, act=nn.hard_swish, dtype=self.dtype)(x)
        return ConvNorm(self.features, dtype=self.dtype)(x)


class LiteMLA(nn.Module):
    """Multi-scale linear attention: softmax gives way to relu, so that the cost is linear in the pixels.

    Queries, keys and values of every scale are heads of one attention; channels are head-major, in a head q, k, v.
    A column of ones beside v sums the keys along with the values.
    """

    features: int
    head_dim: int = 16
    scales: Sequence[int] = (5,)
    eps: float = 1e-15
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, features)."""
        batch, height, width, channels = x.shape
        heads, total = channels // self.head_dim, 3 * channels
        qkv = nn.Conv(total, (1, 1), use_bias=False, dtype=self.dtype)(x)
        parts = [qkv, *(self._aggregate(qkv, scale, total, heads) for scale in self.scales)]
        shape = (batch, height * width, heads * len(parts), 3 * self.head_dim)
        out = self._attend(jnp.concatenate(parts, -1).reshape(shape))
        return ConvNorm(self.features, dtype=self.dtype)(out.reshape(batch, height, width, -1))

    def _aggregate(self, qkv: jax.Array, scale: int, total: int, heads: int) -> jax.Array:
        y = nn.Conv(total, (scale, scale), feature_group_count=total, use_bias=False, dtype=self.dtype)(qkv)
        return nn.Conv(total, (1, 1), feature_group_count=3 * heads, use_bias=False, dtype=self.dtype)(y)

    def _attend(self, qkv: jax.Array) -> jax.Array:
        q, k, v = jnp.split(qkv, 3, -1)
        q, k = nn.relu(q), nn.relu(k)
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
        kv = jnp.einsum("bnhd,bnhe->bhde", k, v, preferred_element_type=jnp.float32)
        out = jnp.einsum("bnhd,bhde->bnhe", q.astype(jnp.float32), kv)
        return (out[..., :-1] / (out[..., -1:] + self.eps)).astype(qkv.dtype)


class EfficientViTBlock(nn.Module):
    """LiteMLA for context, MBConv for detail, each with a residual."""

    features: int
    head_dim: int = 16
    scales: Sequence[int] = (5,)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features) -> the same shape."""
        x = x + LiteMLA(self.features, self.head_dim, self.scales, dtype=self.dtype)(x)
        return x + MBConv(self.features, fewer_norm=True, dtype=self.dtype)(x)


class DemoNet(nn.Module):
    """A strided MBConv into EfficientViT blocks, closed by GroupNorm and SiLU as in a decoder."""

    features: int = 64
    blocks: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/2, W/2, features)."""
        x = MBConv(self.features, stride=2, dtype=self.dtype)(x)
        for _ in range(self.blocks):
            x = EfficientViTBlock(self.features, dtype=self.dtype)(x)
        return nn.silu(nn.GroupNorm(num_groups=self.features // 4, dtype=self.dtype)(x))


def random_variables(model: nn.Module, x: jax.Array | jax.ShapeDtypeStruct, seed: int) -> dict[str, object]:
    """Variables of `model` drawn by NumPy, with no norm or bias at the ones and zeros that training starts from.

    Kernels are normal with variance one over their fan-in, running variances lie between 0.5 and 1.5, scales are near
    one, means and biases near zero.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map_with_path(
        lambda path, leaf: _draw(jax.tree_util.keystr(path[-1:], simple=True), leaf, rng), shapes
    )


def _draw(name: str, leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> jax.Array:
    match name:
        case "kernel":
            values = rng.standard_normal(leaf.shape) / np.sqrt(math.prod(leaf.shape[:-1]))
        case "var":
            values = rng.uniform(0.5, 1.5, leaf.shape)
        case "scale":
            values = 1 + 0.1 * rng.standard_normal(leaf.shape)
        case _:
            values = 0.1 * rng.standard_normal(leaf.shape)
    return jnp.asarray(values, leaf.dtype)
