"""Whole models for planning, in plain JAX with every layer written out: as deep as one likes, no scan.

Input: sizes.  Output: a function, and the shapes of its arguments.  The sizes are those of Llama-like decoders.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["decoder", "decoder_step"]

type Specs = dict[str, Any]

BATCH, LENGTH, WIDTH, HEADS, GROUPS, HIDDEN, WORDS = 2, 512, 1024, 16, 4, 2816, 4096
HEAD = WIDTH // HEADS


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype) * scale


def _rotated(x: jax.Array) -> jax.Array:
    """Rotary positions, over halves of the head."""
    frequencies = 10000.0 ** (-jnp.arange(0, HEAD, 2) / HEAD)
    angles = jnp.arange(x.shape[1])[:, None] * frequencies
    cos, sin = (f(angles)[:, None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _attention(x: jax.Array, weights: Specs) -> jax.Array:
    batch, length, _ = x.shape
    q = _rotated((x @ weights["q"]).reshape(batch, length, HEADS, HEAD))
    k = _rotated((x @ weights["k"]).reshape(batch, length, GROUPS, HEAD))
    v = (x @ weights["v"]).reshape(batch, length, GROUPS, HEAD)
    k, v = (jnp.repeat(t, HEADS // GROUPS, axis=2) for t in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / HEAD**0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores.astype(jnp.float32), -1e30)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(x.dtype), v)
    return mixed.reshape(batch, length, WIDTH) @ weights["o"]


def _block(x: jax.Array, weights: Specs) -> jax.Array:
    x = x + _attention(_norm(x, weights["before"]), weights)
    h = _norm(x, weights["after"])
    return x + (jax.nn.silu(h @ weights["gate"]) * (h @ weights["up"])) @ weights["down"]


def _block_specs() -> Specs:
    shapes = {
        "before": (WIDTH,),
        "after": (WIDTH,),
        "q": (WIDTH, WIDTH),
        "k": (WIDTH, GROUPS * HEAD),
        "v": (WIDTH, GROUPS * HEAD),
        "o": (WIDTH, WIDTH),
        "gate": (WIDTH, HIDDEN),
        "up": (WIDTH, HIDDEN),
        "down": (HIDDEN, WIDTH),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()}


def decoder(layers: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The logits of a decoder: rms norms, rotary grouped-query causal attention, a gated feed-forward."""

    def logits(weights: Specs, tokens: jax.Array) -> jax.Array:
        x = weights["words"][tokens]
        for block in weights["blocks"]:
            x = _block(x, block)
        return _norm(x, weights["last"]) @ weights["words"].T

    weights = {
        "words": jax.ShapeDtypeStruct((WORDS, WIDTH), jnp.bfloat16),
        "last": jax.ShapeDtypeStruct((WIDTH,), jnp.bfloat16),
        "blocks": [_block_specs() for _ in range(layers)],
    }
    return logits, (weights, jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32))


def decoder_step(layers: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A training step of the decoder: cross entropy of the next token, its gradient, plain descent."""
    logits, (weights, tokens) = decoder(layers)

    def loss(weights: Specs, tokens: jax.Array) -> jax.Array:
        scores = jax.nn.log_softmax(logits(weights, tokens)[:, :-1].astype(jnp.float32))
        return -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1).mean()

    def step(weights: Specs, tokens: jax.Array) -> tuple[Specs, jax.Array]:
        value, slopes = jax.value_and_grad(loss)(weights, tokens)
        return jax.tree.map(lambda w, g: w - 1e-3 * g, weights, slopes), value

    return step, (weights, tokens)
