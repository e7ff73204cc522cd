"""A mixture of experts, its tokens routed in two ways: sorted by expert, or into slots of a fixed capacity."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.models.registry import Call, Size, flax_call, model, normal

BF16 = jnp.bfloat16


class MoE(nn.Module):
    """A feed-forward part of which every token sees the `chosen` experts that its router likes best.

    With `capacity` an expert has so many times its even share of slots, and what finds none is dropped.
    """

    experts: int = 8
    chosen: int = 2
    hidden: int = 1408
    capacity: float | None = None
    dtype: jnp.dtype = BF16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(tokens, C) -> the same shape."""
        # In full precision: a choice is not a little wrong.
        router = nn.Dense(self.experts, use_bias=False, dtype=jnp.float32, precision="highest", name="router")
        logits = router(x)
        gates, which = lax.top_k(jax.nn.softmax(logits, -1), self.chosen)
        gates = (gates / gates.sum(-1, keepdims=True)).astype(self.dtype)
        return (self._sorted if self.capacity is None else self._slotted)(x, gates, which)

    def _weights(self, channels: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        shapes = (channels, self.hidden), (channels, self.hidden), (self.hidden, channels)
        return tuple(_Experts(self.experts, *shape, self.dtype, name=n)() for n, shape in zip("gud", shapes))

    def _sorted(self, x: jax.Array, gates: jax.Array, which: jax.Array) -> jax.Array:
        gate, up, down = self._weights(x.shape[-1])
        order = jnp.argsort(which.reshape(-1))
        token = order // self.chosen
        sizes = jnp.bincount(which.reshape(-1), length=self.experts)
        rows = x[token]
        h = nn.silu(lax.ragged_dot(rows, gate, sizes)) * lax.ragged_dot(rows, up, sizes)
        y = lax.ragged_dot(h, down, sizes) * gates.reshape(-1)[order, None]
        return jnp.zeros_like(x).at[token].add(y)

    def _slotted(self, x: jax.Array, gates: jax.Array, which: jax.Array) -> jax.Array:
        gate, up, down = self._weights(x.shape[-1])
        slots = math.ceil(self.capacity * x.shape[0] * self.chosen / self.experts)
        hot = jax.nn.one_hot(which.reshape(-1), self.experts, dtype=jnp.int32)
        place = (jnp.cumsum(hot, 0) * hot).sum(-1).reshape(which.shape) - 1
        slot = jax.nn.one_hot(place, slots, dtype=self.dtype)  # all zero where the expert is full
        expert = jax.nn.one_hot(which, self.experts, dtype=self.dtype)
        dispatch = jnp.einsum("tke,tkc->tec", expert, slot)
        combine = jnp.einsum("tk,tke,tkc->tec", gates, expert, slot)
        rows = jnp.einsum("tec,td->ecd", dispatch, x)
        h = nn.silu(jnp.einsum("ecd,edf->ecf", rows, gate)) * jnp.einsum("ecd,edf->ecf", rows, up)
        return jnp.einsum("tec,ecd->td", combine, jnp.einsum("ecf,efd->ecd", h, down))


class _Experts(nn.Module):
    """The matrices of all experts."""

    experts: int
    rows: int
    columns: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.lecun_normal(batch_axis=0)
        return self.param("experts", init, (self.experts, self.rows, self.columns)).astype(self.dtype)


def _call(size: Size, batch: int, dtype: jnp.dtype, capacity: float | None) -> Call:
    tokens, channels, net = 1024, 512, MoE(capacity=capacity, dtype=dtype)
    if size == "tiny":
        tokens, channels, net = 24, 16, MoE(4, 2, 24, capacity, dtype)
    return flax_call(net, normal(batch * tokens, channels, dtype=dtype), dtype=dtype)


@model("moe_sorted", "today", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    return _call(size, batch, dtype, None)


@model("moe_capacity", "today", dtype=BF16)
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    return _call(size, batch, dtype, 1.25)
