"""Writes to computed places: dynamic_update_slice and the scatters as a place, updates and what to do with both.

Input: the parameters of an equation and its operands.  Output: a `Write`.  Invariant: the place is clamped or guarded
exactly as lax does, so that every write lies inside the array and a window that does not is dropped whole.

In the identities, i is a coordinate of the updates, j one of the base, n the base's size along the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from jaxorch.errors import UnsupportedError
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Array
from jaxorch.ir.index import Bound, Dim, Expr, Lookup
from jaxorch.ir.view import Piece, Value, View, identity

__all__ = ["WRITES", "Write", "Writer"]

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True)
class Write:
    """A `Scatter` before its origin is known; `unique` is what the program promises, `passes.places` may prove more."""

    combine: str
    place: Piece
    updates: View
    unique: bool


type Writer = Callable[[Mapping[str, Any], Sequence[Value], Sequence[Array]], Write]
"""rule(params, values, operands) -> the write; the operands are those of the equation."""


def _dynamic_update_slice(params: Mapping[str, Any], values: Sequence[Value], arrays: Sequence[Array]) -> Write:
    # j[d] = i[d] + clamp(start[d], 0, n[d] - size[d])
    base, updates = arrays[0], arrays[1]
    starts = [Lookup(s, (), 0, n - u) for s, n, u in zip(values[2:], base.shape, updates.shape, strict=True)]
    index = tuple(ix.add(Dim(d), start) for d, start in enumerate(starts))
    return Write("set", Piece((), values[0], index), identity(values[1], updates.shape), unique=True)


def _scatter(combine: str) -> Writer:
    def rule(params: Mapping[str, Any], values: Sequence[Value], arrays: Sequence[Array]) -> Write:
        if combine == "set" and params["update_jaxpr"] is not None:
            raise UnsupportedError("a scatter with a function of its own")
        base, _, updates = arrays
        place = _place(params, values, base, updates)
        return Write(combine, place, identity(values[2], updates.shape), bool(params["unique_indices"]))

    return rule


def _place(params: Mapping[str, Any], values: Sequence[Value], base: Array, updates: Array) -> Piece:
    # j[d] = start[d] + offset[d]; start is looked up at the batch coordinates, offset is 0 on inserted and batching
    # axes; a window with a start outside 0..n-size is dropped, or with mode clip moved inside
    numbers, mode = params["dimension_numbers"], params["mode"]
    batch = [Dim(d) for d in range(len(updates.shape)) if d not in numbers.update_window_dims]
    windows = iter(numbers.update_window_dims)
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    if mode == GatherScatterMode.ONE_HOT:
        raise UnsupportedError("a scatter by one-hot products")
    index: list[Expr] = []
    inside: list[Bound] = []
    for d, n in enumerate(base.shape):
        window = None if d in dropped else int(next(windows))
        expr: Expr = ix.Const(0) if window is None else Dim(window)
        if d in numbers.scatter_dims_to_operand_dims:
            last = n - (1 if window is None else updates.shape[window])
            at = (*batch, ix.Const(numbers.scatter_dims_to_operand_dims.index(d)))
            expr = ix.add(expr, Lookup(values[1], at, 0, last))
            raw = Lookup(values[1], at, int(_INT32.min), int(_INT32.max))
            inside += [] if mode == GatherScatterMode.CLIP else [Bound(raw, 0, last + 1)]
        if d in numbers.operand_batching_dims:
            which = numbers.scatter_indices_batching_dims[numbers.operand_batching_dims.index(d)]
            expr = ix.add(expr, batch[int(which)])
        index.append(expr)
    return Piece(tuple(inside), values[0], tuple(index))


WRITES: Mapping[str, Writer] = {
    "dynamic_update_slice": _dynamic_update_slice,
    "scatter": _scatter("set"),
    "scatter-add": _scatter("add"),
    "scatter-mul": _scatter("mul"),
    "scatter-min": _scatter("min"),
    "scatter-max": _scatter("max"),
}
"""Primitive -> its rule."""
