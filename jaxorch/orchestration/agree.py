"""Finds configurations that give other results than the rest: compilers make mistakes, and the fastest may be one.

Input: compiled versions of one kernel, and arguments.  Output: which of them agree.  Invariant: roundings that differ
with the order of a sum are no disagreement; a tile, a row or a step of a loop that is wrong is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["agreeing"]

_jax: Any = jax  # what is used of it carries few types

_FAR = 0.05  # of an element's size and the results' root mean square: beyond what roundings to bfloat16 do
_FEW = 1e-3  # the part of the elements that may be that far, where a rounding decides a comparison


def agreeing(
    versions: Sequence[Callable[..., Any]], arguments: Sequence[Any], donated: Collection[int] = ()
) -> list[bool]:
    """Whether each version gives what most do on `arguments`, of which those at `donated` are copied for each call.

    Where no half agrees, it is the first and those that agree with it.
    """

    def results(version: Callable[..., Any]) -> list[Any]:
        copied = [jnp.copy(a) if k in donated else a for k, a in enumerate(arguments)]
        return _jax.tree.leaves(version(*copied))

    def like(lead: Callable[..., Any]) -> list[bool]:
        wanted = results(lead)
        return [version is lead or _are_close(results(version), wanted) for version in versions]

    first = like(versions[0])
    if 2 * sum(first) >= len(versions):
        return first
    others = (like(version) for version, found in zip(versions, first, strict=True) if not found)
    return next((found for found in others if 2 * sum(found) >= len(versions)), first)


def _are_close(got: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(float(_far(a, b)) <= _FEW for a, b in zip(got, wanted, strict=True))


@_jax.jit
def _far(got: Any, wanted: Any) -> Any:
    """The part of the elements that are not the same but for roundings."""
    if not jnp.issubdtype(got.dtype, jnp.floating):
        return jnp.mean(got != wanted, dtype=jnp.float32)
    x, y = got.astype(jnp.float32), wanted.astype(jnp.float32)
    size = jnp.sqrt(jnp.mean(jnp.where(jnp.isfinite(y), y * y, 0)))
    near = jnp.abs(x - y) <= _FAR * (jnp.abs(y) + size)
    return 1 - jnp.mean(near | (x == y) | (jnp.isnan(x) & jnp.isnan(y)), dtype=jnp.float32)
