"""Rules of sorting."""

import torch
from jax.extend import core

from benchmarks.translation.rules import rule


@rule("sort")
def _sort(eqn: core.JaxprEqn, *operands: torch.Tensor) -> list[torch.Tensor]:
    axis = eqn.params["dimension"]
    *later, first = reversed(operands[: eqn.params["num_keys"]])
    # By the last key first: each further sort keeps the order of equals.
    place = torch.argsort(later[0], dim=axis, stable=True) if later else None
    for key in (*later[1:], first):
        step = torch.argsort(key if place is None else torch.gather(key, axis, place), dim=axis, stable=True)
        place = step if place is None else torch.gather(place, axis, step)
    return [torch.gather(x, axis, place) for x in operands]


@rule("top_k")
def _top_k(eqn: core.JaxprEqn, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Sorted, not torch.topk: of equals lax takes those that come first, torch.topk any.
    axis, k = eqn.params["axis"], eqn.params["k"]
    values, places = torch.sort(x, dim=axis, descending=True, stable=True)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k).to(torch.int32)
