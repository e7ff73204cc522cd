"""A Llama-style decoder that generates tokens: its layers written out, scanned, and several steps in a loop."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.inputs import Drawn, Uniform
from benchmarks.models.decoders import BF16, SMALL, TINY, Decoder, LlamaLayer, position
from benchmarks.models.registry import Call, Size, flax_call, model, normal

type Caches = object
"""Of keys and values, a pair for every layer, or two stacks of all layers'."""


class _Body(nn.Module):
    """A layer as the body of a scan: the residual stream is carried, the caches are scanned over."""

    sizes: Decoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, caches: tuple[jax.Array, jax.Array], position: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        x, keys, values = LlamaLayer(self.sizes, dtype=self.dtype)(x, *caches, position)
        return x, (keys, values)


class Llama(nn.Module):
    """A decoder of one token at a time. With `scanned` the layers are one `nn.scan`, and their caches two stacks."""

    sizes: Decoder
    layers: int
    vocabulary: int
    scanned: bool = False
    dtype: jnp.dtype = BF16

    @nn.compact
    def __call__(self, tokens: jax.Array, caches: Caches, position: jax.Array) -> tuple[jax.Array, Caches]:
        """(B,) of integers, the caches -> logits (B, vocabulary), and the caches."""
        x = nn.Embed(self.vocabulary, self.sizes.dim, dtype=self.dtype)(tokens)[:, None]
        x, caches = (self._scan if self.scanned else self._unrolled)(x, caches, position)
        x = nn.RMSNorm(epsilon=self.sizes.eps, dtype=self.dtype)(x[:, 0])
        return nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, name="head")(x), caches

    def _unrolled(self, x: jax.Array, caches: Caches, position: jax.Array) -> tuple[jax.Array, Caches]:
        written = []
        for keys, values in caches:
            x, keys, values = LlamaLayer(self.sizes, dtype=self.dtype)(x, keys, values, position)
            written.append((keys, values))
        return x, written

    def _scan(self, x: jax.Array, caches: Caches, position: jax.Array) -> tuple[jax.Array, Caches]:
        body = nn.scan(
            _Body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.layers,
        )
        return body(self.sizes, self.dtype)(x, caches, position)


def _call(size: Size, batch: int, dtype: jnp.dtype, layers: int, *, scanned: bool) -> Call:
    full = size == "full"
    sizes, vocabulary, layers = (SMALL, 32000, layers) if full else (TINY, 50, 2)
    net = Llama(sizes, layers, vocabulary, scanned, dtype)
    stack = (layers,) if scanned else ()
    cache = normal(*stack, batch, sizes.kv_heads, sizes.context, sizes.head_dim, dtype=dtype)
    caches = (cache, cache) if scanned else [(cache, cache)] * layers
    tokens = Drawn((batch,), jnp.int32, Uniform(0, vocabulary))
    return flax_call(net, tokens, caches, position(sizes.context), dtype=dtype, donated=(1,))


@model("llama_unrolled", "today", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    return _call(size, batch, dtype, 4, scanned=False)


@model("llama_scanned", "today", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    return _call(size, batch, dtype, 8, scanned=True)


# In bfloat16 rounding would often decide which of the two likeliest tokens is taken.
@model("llama_generate", "today", batches=(1,))
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    """Eight tokens, each from the one before."""
    step, arguments, donated = _call(size, batch, dtype, 4, scanned=False)
    return Call(partial(generate, step, 8), arguments, donated)


def generate(
    step: object, count: int, variables: object, tokens: jax.Array, caches: Caches, position: jax.Array
) -> tuple[jax.Array, Caches]:
    """(B,) of integers, the caches -> the likeliest next (count, B), each from the one before, and the caches."""

    def body(carry: tuple[jax.Array, Caches], offset: jax.Array) -> tuple[tuple[jax.Array, Caches], jax.Array]:
        logits, caches = step(variables, *carry, position + offset)
        tokens = jnp.argmax(logits, -1).astype(jnp.int32)
        return (tokens, caches), tokens

    (_, caches), tokens = lax.scan(body, (tokens, caches), jnp.arange(count))
    return tokens, caches
