"""Rules of reductions over whole axes, and of running ones along an axis."""

import torch
from jax.extend import core

from benchmarks.translation.rules import NotTranslatedError, ints, out_dtype, rule


@rule("reduce_sum")
def _sum(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    axes = ints(eqn.params["axes"])
    return torch.sum(x, axes, dtype=out_dtype(eqn)) if axes else x


@rule("reduce_max")
def _max(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    axes = ints(eqn.params["axes"])
    return torch.amax(x, axes) if axes else x


@rule("reduce_min")
def _min(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    axes = ints(eqn.params["axes"])
    return torch.amin(x, axes) if axes else x


@rule("reduce_prod")
def _prod(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    for axis in sorted(ints(eqn.params["axes"]), reverse=True):
        x = torch.prod(x, axis, dtype=x.dtype)
    return x


@rule("reduce_and", "reduce_or")
def _logical(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.bool:
        raise NotTranslatedError(f"{eqn.primitive} of {x.dtype}")
    axes = ints(eqn.params["axes"])
    return (torch.all if eqn.primitive.name == "reduce_and" else torch.any)(x, axes) if axes else x


@rule("argmax", "argmin")
def _argument(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    (axis,) = eqn.params["axes"]
    return (torch.argmax if eqn.primitive.name == "argmax" else torch.argmin)(x, axis).to(out_dtype(eqn))


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _running(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    axis = eqn.params["axis"]
    if eqn.params["reverse"]:
        return torch.flip(_run(eqn.primitive.name, torch.flip(x, (axis,)), axis), (axis,))
    return _run(eqn.primitive.name, x, axis)


def _run(name: str, x: torch.Tensor, axis: int) -> torch.Tensor:
    match name:
        case "cumsum":
            return torch.cumsum(x, axis, dtype=x.dtype)
        case "cumprod":
            return torch.cumprod(x, axis, dtype=x.dtype)
        case "cummax":
            return torch.cummax(x, axis).values
        case "cummin":
            return torch.cummin(x, axis).values
        case _:
            return torch.logcumsumexp(x, axis)
