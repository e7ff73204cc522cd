"""ViT-B/16, Swin-T and GPT-2 small, the last as the prefill of a prompt."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inputs import Drawn, Uniform
from benchmarks.models.registry import Call, Size, flax_call, model, normal


class SelfAttention(nn.Module):
    """Attention of all tokens to all, or to those before; `bias` is added to the scores."""

    heads: int
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """(B, tokens, C) -> the same shape."""
        batch, tokens, channels = x.shape
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, -1), 2, 0)
        out = jax.nn.dot_product_attention(q, k, v, bias, is_causal=self.causal)
        return nn.Dense(channels, dtype=self.dtype, name="proj")(out.reshape(batch, tokens, channels))


class MLP(nn.Module):
    """Four times the channels, GELU, and back."""

    exact: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.gelu(nn.Dense(4 * x.shape[-1], dtype=self.dtype)(x), approximate=not self.exact)
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class ViT(nn.Module):
    """Vision transformer: https://arxiv.org/abs/2010.11929."""

    dim: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 16
    classes: int = 1000
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, classes)."""
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        patch = (self.patch, self.patch)
        x = nn.Conv(self.dim, patch, patch, padding="VALID", dtype=self.dtype)(x).reshape(x.shape[0], -1, self.dim)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.dim))
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.dim))
        x = jnp.concatenate([token, x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        for _ in range(self.layers):
            x = x + SelfAttention(self.heads, dtype=self.dtype)(norm()(x))
            x = x + MLP(dtype=self.dtype)(norm()(x))
        return nn.Dense(self.classes, dtype=self.dtype)(norm()(x)[:, 0])


def relative_index(window: int) -> np.ndarray:
    """(window^2, window^2): the row of the bias table for each pair of places in a window."""
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1).reshape(-1, 2)
    offsets = places[:, None] - places[None] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """(windows, window^2, window^2): -100 between places of a shifted window that are no neighbours in the map."""

    def regions(size: int) -> np.ndarray:
        return np.digitize(np.arange(size), [size - window, size - shift])

    ids = 3 * regions(height)[:, None] + regions(width)
    ids = ids.reshape(height // window, window, width // window, window).swapaxes(1, 2).reshape(-1, window**2)
    return np.where(ids[:, None] == ids[..., None], 0.0, -100.0).astype(np.float32)


class WindowAttention(nn.Module):
    """Attention inside windows, which lie shifted by half of their size in every other block."""

    heads: int
    window: int
    shift: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> the same shape."""
        batch, height, width, channels = x.shape
        w, rows, columns = self.window, height // self.window, width // self.window
        x = jnp.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = x.reshape(batch, rows, w, columns, w, channels).swapaxes(2, 3).reshape(-1, w * w, channels)
        x = SelfAttention(self.heads, dtype=self.dtype)(x, self._bias(batch, height, width))
        x = x.reshape(batch, rows, columns, w, w, channels).swapaxes(2, 3).reshape(batch, height, width, channels)
        return jnp.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def _bias(self, batch: int, height: int, width: int) -> jax.Array:
        table = self.param("table", nn.initializers.normal(0.02), ((2 * self.window - 1) ** 2, self.heads))
        bias = table[relative_index(self.window)].transpose(2, 0, 1)[None].astype(self.dtype)
        if not self.shift:
            return bias
        bias = bias + shift_mask(height, width, self.window, self.shift)[:, None].astype(self.dtype)
        return jnp.tile(bias, (batch, 1, 1, 1))


class PatchMerging(nn.Module):
    """Half the size, twice the channels."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(jnp.concatenate(parts, -1))
        return nn.Dense(2 * x.shape[-1], use_bias=False, dtype=self.dtype)(y)


class Swin(nn.Module):
    """Swin transformer: https://arxiv.org/abs/2103.14030."""

    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    classes: int = 1000
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, classes)."""
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        x = norm()(nn.Conv(self.dim, (4, 4), (4, 4), padding="VALID", dtype=self.dtype)(x))
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            x = PatchMerging(self.dtype)(x) if stage else x
            for i in range(depth):
                # A window as large as the map has nothing to be shifted against.
                shift = self.window // 2 if i % 2 and x.shape[1] > self.window else 0
                x = x + WindowAttention(heads, self.window, shift, self.dtype)(norm()(x))
                x = x + MLP(dtype=self.dtype)(norm()(x))
        return nn.Dense(self.classes, dtype=self.dtype)(norm()(x).mean((1, 2)))


class GPT2(nn.Module):
    """GPT-2: the logits of every token of a prompt."""

    vocabulary: int = 50257
    context: int = 1024
    dim: int = 768
    layers: int = 12
    heads: int = 12
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, length) of integers -> (B, length, vocabulary)."""
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        embed = nn.Embed(self.vocabulary, self.dim, dtype=self.dtype, name="wte")
        positions = nn.Embed(self.context, self.dim, dtype=self.dtype, name="wpe")
        x = embed(tokens) + positions(jnp.arange(tokens.shape[1]))
        for _ in range(self.layers):
            x = x + SelfAttention(self.heads, causal=True, dtype=self.dtype)(norm()(x))
            x = x + MLP(exact=False, dtype=self.dtype)(norm()(x))
        return embed.attend(norm()(x))


BF16 = jnp.bfloat16


@model("vit_b16", "today", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (ViT(dtype=dtype), 224) if size == "full" else (ViT(16, 2, 2, 4, 10, dtype), 16)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)


@model("swin_t", "today", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, side = (Swin(dtype=dtype), 224) if size == "full" else (Swin(8, (2, 1), (2, 2), 4, 10, dtype), 32)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)


@model("gpt2_prefill", "today", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    net, length = (GPT2(dtype=dtype), 1024) if size == "full" else (GPT2(40, 16, 16, 2, 2, dtype), 16)
    tokens = Drawn((batch, length), jnp.int32, Uniform(0, net.vocabulary))
    return flax_call(net, tokens, dtype=dtype)
