"""Reductions of a tile's rows, written in handler calls: at once, or block by block in a loop.

Input: the reduced operand's tile.  Output: one value a row for each output of the Reduce.  Invariant:
columns past the end of the row never count, and a NaN among max/min/argmax operands wins, as in lax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxorch.codegen.ops import Ops, Tile
from jaxorch.ir.dtypes import compute_dtype, is_float
from jaxorch.ir.monoid import COMBINES, neutral

__all__ = ["Item", "direct", "finish", "initial", "step"]

_INT32 = np.dtype(np.int32)
_FLOAT32 = np.dtype(np.float32)
_BOOL = np.dtype(np.bool_)
_NO_INDEX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Item[V]:
    """One block of the operand: values, their dtype and, for arg-reductions, each one's index on the reduced axis."""

    value: V
    dtype: np.dtype[Any]
    index: V | None


class _Calls[V]:
    """Shorthand for handler calls on values of one dtype."""

    def __init__(self, ops: Ops[V], dtype: np.dtype[Any]) -> None:
        self.ops, self.dtype = ops, dtype

    def __call__(self, op: str, *args: V) -> V:
        return self.ops.scalar(op, {}, args, [self.dtype] * len(args), self.dtype)

    def test(self, op: str, *args: V) -> V:
        return self.ops.scalar(op, {}, args, [self.dtype] * len(args), _BOOL)

    def pick(self, predicate: V, then: V, otherwise: V) -> V:
        return self.ops.scalar(
            "select_n", {}, [predicate, otherwise, then], [_BOOL, self.dtype, self.dtype], self.dtype
        )

    def const(self, value: bool | int | float) -> V:
        return self.ops.const(value, self.dtype)

    def fold(self, op: str, value: V) -> V:
        return self.ops.fold(op, value, self.dtype)

    def masked(self, op: str, value: V) -> V:
        return self.ops.valid(value, self.const(neutral(op, self.dtype)))


def direct[V](ops: Ops[V], op: str, item: Item[V], count: int, outs: Sequence[np.dtype[Any]]) -> tuple[V, ...]:
    """Reduces rows that a tile holds whole."""
    x = _Calls(ops, item.dtype)
    match op:
        case "argmax" | "argmin":
            best, index, nan = _arg_candidates(ops, op, item)
            return (_arg_result(ops, op, item.dtype, best, index, nan, outs[0]),)
        case "moments":
            total = x.fold("sum", x.masked("sum", item.value))
            mean = x("mul", total, x.const(1.0 / count))
            deviation = x.masked("sum", x("sub", item.value, mean))
            return total, x.fold("sum", x("mul", deviation, deviation))
        case "sumexp":
            top = x.fold("max", x.masked("max", item.value))
            return top, x.fold("sum", x.masked("sum", x("exp", x("sub", item.value, top))))
        case _:
            return (x.fold(op, x.masked(op, item.value)),)


def initial[V](ops: Ops[V], op: str, dtype: np.dtype[Any], tile: Tile) -> tuple[V, ...]:
    """The loop-carried tiles of a reduction."""
    match op:
        case "argmax" | "argmin":
            worst = neutral("max" if op == "argmax" else "min", dtype)
            return ops.carry(tile, worst, dtype), ops.carry(tile, _NO_INDEX, _INT32), ops.carry(tile, _NO_INDEX, _INT32)
        case "moments":
            return ops.carry(tile, 0.0, dtype), ops.carry(tile, 0.0, dtype)
        case "sumexp":
            # not -inf: the distance of a first element would be inf - inf
            return ops.carry(tile, float(np.finfo(compute_dtype(dtype)).min), dtype), ops.carry(tile, 0.0, dtype)
        case _:
            return (ops.carry(tile, neutral(op, dtype), dtype),)


def step[V](ops: Ops[V], op: str, item: Item[V], carried: Sequence[V]) -> None:
    """Takes one block into the carried tiles, column by column."""
    x = _Calls(ops, item.dtype)
    match op:
        case "argmax" | "argmin":
            _arg_step(ops, op, item, carried)
        case "moments":  # Welford's update in every column: mean += (x-mean)/n, m2 += (x-mean_old)*(x-mean_new)
            mean, m2 = carried
            delta = x("sub", item.value, mean)
            share = x("div", x.const(1.0), _counts_as(ops, ops.step_count(), item.dtype))
            # a mean that is infinite stays so unless x is its opposite or nan: inf + (x - inf)/n would be nan
            endless = x.test("eq", ops.scalar("abs", {}, [mean], [item.dtype], item.dtype), x.const(np.inf))
            new = x("add", mean, x("mul", x.pick(endless, item.value, delta), share))
            square = x("mul", delta, x("sub", item.value, new))
            ops.assign(m2, x("add", m2, ops.valid(square, x.const(0.0))))
            ops.assign(mean, ops.valid(new, mean))
        case "sumexp":  # e = exp(-|x-m|); where x > m: s = s*e + 1, m = x; else s = s + e
            top, total = carried
            value = x.masked("max", item.value)
            distance = x("sub", value, top)
            decay = x("exp", x("neg", x("abs", distance)))
            grows = x.test("gt", distance, x.const(0.0))
            kept = x("mul", total, x.pick(grows, decay, x.const(1.0)))
            ops.assign(total, x("add", kept, x.pick(grows, x.const(1.0), decay)))
            ops.assign(top, x("max", top, value))
        case _:
            (acc,) = carried
            ops.assign(acc, x(COMBINES[op], acc, x.masked(op, item.value)))


def finish[V](
    ops: Ops[V],
    op: str,
    dtype: np.dtype[Any],
    carried: Sequence[V],
    count: int,
    tile: Tile,
    outs: Sequence[np.dtype[Any]],
) -> tuple[V, ...]:
    """One value a row from the carried tiles."""
    x = _Calls(ops, dtype)
    match op:
        case "argmax" | "argmin":
            best, index, nan = carried
            return (_arg_result(ops, op, dtype, best, index, nan, outs[0]),)
        case "moments":  # Chan: m2 = sum(m2_c) + sum(n_c * (mean_c - mean)^2)
            mean, m2 = carried
            counts = _counts_as(ops, ops.column_counts(tile), dtype)
            total = x.fold("sum", x("mul", counts, mean))
            shift = x("sub", mean, x("mul", total, x.const(1.0 / count)))
            return total, x.fold("sum", x("add", m2, x("mul", counts, x("mul", shift, shift))))
        case "sumexp":
            top, total = carried
            peak = x.fold("max", top)
            share = x.fold("sum", x("mul", total, x("exp", x("sub", top, peak))))
            # a sum of 0: only -inf came, whose maximum is -inf; then, and with +inf, exp(x - max) is nan
            empty = x.test("eq", share, x.const(0.0))
            endless = x.test("eq", peak, x.const(np.inf))
            share = x.pick(empty, x.const(np.nan), x.pick(endless, x.const(np.nan), share))
            return x.pick(empty, x.const(-np.inf), peak), share
        case _:
            return (x.fold(op, carried[0]),)


def _counts_as[V](ops: Ops[V], counts: V, dtype: np.dtype[Any]) -> V:
    if compute_dtype(dtype) == _FLOAT32:
        return counts
    return ops.scalar("convert_element_type", {"new_dtype": dtype.name}, [counts], [_FLOAT32], dtype)


def _arg_candidates[V](ops: Ops[V], op: str, item: Item[V]) -> tuple[V, V, V]:
    """(values with NaN taken out, index, index where NaN), columns past the end taken out of all three."""
    assert item.index is not None
    x, i = _Calls(ops, item.dtype), _Calls(ops, _INT32)
    order = "max" if op == "argmax" else "min"
    value = item.value
    index = ops.valid(item.index, i.const(_NO_INDEX))
    nan = ops.valid(i.const(_NO_INDEX), i.const(_NO_INDEX))
    if is_float(item.dtype):
        is_nan = x.test("ne", value, value)
        nan = ops.valid(i.pick(is_nan, item.index, i.const(_NO_INDEX)), i.const(_NO_INDEX))
        value = x.pick(is_nan, x.const(neutral(order, item.dtype)), value)
    return x.masked(order, value), index, nan


def _arg_step[V](ops: Ops[V], op: str, item: Item[V], carried: Sequence[V]) -> None:
    x, i, b = _Calls(ops, item.dtype), _Calls(ops, _INT32), _Calls(ops, _BOOL)
    best, best_index, first_nan = carried
    value, index, nan = _arg_candidates(ops, op, item)
    first = b("and", i.test("eq", best_index, i.const(_NO_INDEX)), i.test("lt", index, i.const(_NO_INDEX)))
    better = b("or", x.test("gt" if op == "argmax" else "lt", value, best), first)
    ops.assign(best_index, i.pick(better, index, best_index))
    ops.assign(best, x("max" if op == "argmax" else "min", best, value))
    ops.assign(first_nan, i("min", first_nan, nan))


def _arg_result[V](ops: Ops[V], op: str, dtype: np.dtype[Any], best: V, index: V, nan: V, out: np.dtype[Any]) -> V:
    x, i = _Calls(ops, dtype), _Calls(ops, _INT32)
    peak = x.fold("max" if op == "argmax" else "min", best)
    first = i.fold("min", i.pick(x.test("eq", best, peak), index, i.const(_NO_INDEX)))
    first_nan = i.fold("min", nan)
    winner = i.pick(i.test("lt", first_nan, i.const(_NO_INDEX)), first_nan, first)
    return ops.scalar("convert_element_type", {"new_dtype": out.name}, [winner], [_INT32], out)
