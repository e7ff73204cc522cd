"""Rules of primitives that move elements: shapes, slices at known places, joins, pads."""

import torch
from jax.extend import core
from torch.nn import functional

from benchmarks.translation.rules import NotTranslatedError, ints, rule


@rule("broadcast_in_dim")
def _broadcast(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    shape, places = ints(eqn.params["shape"]), ints(eqn.params["broadcast_dimensions"])
    sizes = [1] * len(shape)
    for axis, place in enumerate(places):
        sizes[place] = x.shape[axis]
    return x.reshape(sizes).expand(shape)


@rule("reshape")
def _reshape(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    if eqn.params["dimensions"] is not None:
        raise NotTranslatedError("reshape of transposed dimensions")
    return x.reshape(ints(eqn.params["new_sizes"]))


@rule("squeeze", "expand_dims")
def _resize(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    return x.reshape(eqn.outvars[0].aval.shape)


@rule("transpose")
def _transpose(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    return x.permute(ints(eqn.params["permutation"]))


@rule("rev")
def _rev(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    return torch.flip(x, ints(eqn.params["dimensions"]))


@rule("tile")
def _tile(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    return x.repeat(ints(eqn.params["reps"]))


@rule("concatenate")
def _concatenate(eqn: core.JaxprEqn, *parts: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts, eqn.params["dimension"])


@rule("stack")
def _stack(eqn: core.JaxprEqn, *parts: torch.Tensor) -> torch.Tensor:
    return torch.stack(parts, eqn.params["axis"])


@rule("unstack")
def _unstack(eqn: core.JaxprEqn, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.unbind(x, eqn.params["axis"])


@rule("split")
def _split(eqn: core.JaxprEqn, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(x, ints(eqn.params["sizes"]), eqn.params["axis"])


@rule("slice")
def _slice(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    starts, limits = ints(eqn.params["start_indices"]), ints(eqn.params["limit_indices"])
    strides = ints(eqn.params["strides"] or (1,) * x.ndim)
    return x[tuple(slice(*place) for place in zip(starts, limits, strides, strict=True))]


@rule("pad")
def _pad(eqn: core.JaxprEqn, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    config = [ints(axis) for axis in eqn.params["padding_config"]]
    for axis, (_, _, between) in enumerate(config):
        if between and x.shape[axis] > 1:
            x = spread(x, axis, between + 1, value)
    return padded(x, [(low, high) for low, high, _ in config], value)


def spread(x: torch.Tensor, axis: int, step: int, value: torch.Tensor) -> torch.Tensor:
    """`x` with its elements `step` apart along `axis`, and `value` between them."""
    size = x.shape[axis]
    gaps = value.expand(*x.shape, step - 1)
    joined = torch.cat([x.unsqueeze(-1), gaps], -1).movedim(-1, axis + 1)
    return joined.flatten(axis, axis + 1).narrow(axis, 0, (size - 1) * step + 1)


def padded(x: torch.Tensor, sides: list[tuple[int, int]], value: torch.Tensor | float) -> torch.Tensor:
    """`x` with `value` before and after it along each axis; a negative count takes elements away."""
    if isinstance(value, torch.Tensor):
        # Whatever the value is, known only when the program runs: a copy of the mask's shape chooses it.
        mask = padded(torch.ones_like(x, dtype=torch.bool), sides, 0.0)
        return torch.where(mask, padded(x, sides, 0.0), value)
    flat = [count for pair in reversed(sides) for count in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x
