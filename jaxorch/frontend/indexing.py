"""Movement with run-time indices: dynamic_slice and gather as views whose index expressions look values up.

Input: the parameters of an equation and its operands.  Output: one view over the output's shape.
Invariant: indices are clamped or guarded exactly as lax does, so every read lies inside its array.

In the identities, i is a coordinate of the output, j one of the operand, n the operand's size along the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from jaxorch.errors import UnsupportedError
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import is_float
from jaxorch.ir.graph import Array
from jaxorch.ir.index import Bound, Dim, Expr, Lookup
from jaxorch.ir.view import Piece, Value, View, simplify_view

__all__ = ["INDEXED", "Constant", "Rule"]

type Constant = Callable[[bool | int | float, np.dtype[Any]], Value]
type Rule = Callable[[Mapping[str, Any], Sequence[Value], Sequence[Array], Array, Constant], View]
"""rule(params, values, operands, output, constant) -> the output's view; `constant` makes a scalar's value."""

_INT32 = np.iinfo(np.int32)


def _dynamic_slice(
    params: Mapping[str, Any], values: Sequence[Value], arrays: Sequence[Array], out: Array, constant: Constant
) -> View:
    # j[d] = i[d] + clamp(start[d], 0, n[d] - size[d])
    del constant
    sizes = params["slice_sizes"]
    if len(values) != 1 + len(sizes):
        raise UnsupportedError("a dynamic_slice of sizes known at run time only")
    starts = [Lookup(start, (), 0, n - size) for start, n, size in zip(values[1:], arrays[0].shape, sizes, strict=True)]
    index = tuple(ix.add(Dim(d), start) for d, start in enumerate(starts))
    return simplify_view(View(out.shape, (Piece((), values[0], index),)))


def _gather(
    params: Mapping[str, Any], values: Sequence[Value], arrays: Sequence[Array], out: Array, constant: Constant
) -> View:
    # j[d] = clamp(start[d], 0, n[d] - size[d]) + offset[d]; start is looked up at the batch coordinates,
    # offset is 0 on collapsed and batching axes
    numbers, sizes, mode = params["dimension_numbers"], params["slice_sizes"], params["mode"]
    operand, indices = arrays[0], arrays[1]
    batch = [Dim(d) for d in range(len(out.shape)) if d not in numbers.offset_dims]
    index: list[Expr] = []
    windows = iter(numbers.offset_dims)
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    inside: list[Bound] = []
    fills = mode == GatherScatterMode.FILL_OR_DROP
    if mode == GatherScatterMode.ONE_HOT:
        raise UnsupportedError("a gather by one-hot products")
    for d, n in enumerate(operand.shape):
        expr: Expr = ix.Const(0) if d in dropped else Dim(next(windows))
        if d in numbers.start_index_map:
            at = (*batch, ix.Const(numbers.start_index_map.index(d)))
            expr = ix.add(expr, Lookup(values[1], at, 0, n - sizes[d]))
            raw = Lookup(values[1], at, int(_INT32.min), int(_INT32.max))
            inside += [Bound(raw, 0, n - sizes[d] + 1)] if fills else []
        if d in numbers.operand_batching_dims:
            which: int = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(d)]
            expr = ix.add(expr, batch[int(which)])
        index.append(expr)
    if len(batch) != len(indices.shape) - 1:
        raise UnsupportedError("a gather whose indices have no last axis of vectors")
    pieces = [Piece(tuple(inside), values[0], tuple(index))]
    if fills:
        pieces.append(Piece((), constant(_fill(params["fill_value"], out.dtype), out.dtype), ()))
    return simplify_view(View(out.shape, tuple(pieces)))


def _fill(value: Any, dtype: np.dtype[Any]) -> bool | int | float:
    """What lax puts where an index is outside: NaN, or the lowest signed, the highest unsigned integer."""
    if value is not None:
        return np.asarray(value, dtype).item()
    if is_float(dtype):
        return float("nan")
    if dtype == np.bool_:
        return True
    limits = np.iinfo(dtype)
    return int(limits.min if dtype.kind == "i" else limits.max)


INDEXED: Mapping[str, Rule] = {"dynamic_slice": _dynamic_slice, "gather": _gather}
"""Primitive -> its rule."""
