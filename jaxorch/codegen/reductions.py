"""Reductions of a tile's rows, written in handler calls: at once, or block by block in a loop.

Input: the reduced operand's tile.  Output: one value a row for each output of the Reduce.  Invariant:
columns past the end of the row never count, and a NaN among max/min/argmax operands wins, as in lax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from jaxorch.codegen.ops import Ops, Tile
from jaxorch.ir.dtypes import compute_dtype, is_float
from jaxorch.ir.monoid import COMBINES, neutral

__all__ = ["Item", "chain", "direct", "finish", "initial", "products", "step", "wants_first"]

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
    """Shorthand for handler calls on values of one dtype; constants are those of the dtype it is held in."""

    def __init__(self, ops: Ops[V], dtype: np.dtype[Any]) -> None:
        self.ops, self.dtype = ops, dtype

    def __call__(self, op: str, *args: V) -> V:
        return self.ops.scalar(op, {}, args, [self.dtype] * len(args), self.dtype)

    def fast(self, op: str, *args: V) -> V:
        return self.ops.scalar(op, {}, args, [self.dtype] * len(args), self.dtype, relaxed=True)

    def test(self, op: str, *args: V) -> V:
        return self.ops.scalar(op, {}, args, [self.dtype] * len(args), _BOOL)

    def pick(self, predicate: V, then: V, otherwise: V) -> V:
        return self.ops.scalar(
            "select_n", {}, [predicate, otherwise, then], [_BOOL, self.dtype, self.dtype], self.dtype
        )

    def const(self, value: bool | int | float) -> V:
        return self.ops.const(value, compute_dtype(self.dtype))

    def neutral(self, op: str) -> V:
        return self.const(neutral(op, compute_dtype(self.dtype)))

    def fold(self, op: str, value: V) -> V:
        return self.ops.fold(op, value, self.dtype)

    def masked(self, op: str, value: V) -> V:
        return self.ops.valid(value, self.neutral(op))


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


def wants_first(op: str) -> bool:
    """Whether a loop's state starts from the elements of its first block."""
    return op == "moments"


def chain[V](ops: Ops[V], op: str, elements: Sequence[V], dtype: np.dtype[Any]) -> V:
    """x0 . x1 . x2 ... of an unrolled reduction, held in the compute dtype."""
    return reduce(partial(_Calls(ops, dtype), COMBINES[op]), elements)


def products[V](ops: Ops[V], pairs: Sequence[Sequence[V]], dtype: np.dtype[Any], sums: np.dtype[Any]) -> V:
    """x0*y0 + x1*y1 + ... of an unrolled contraction of operands of `dtype`, held as `sums`."""

    def held(value: V) -> V:
        if compute_dtype(dtype) == sums:
            return value
        return ops.scalar("convert_element_type", {"new_dtype": sums.name}, [value], [dtype], sums)

    calls = _Calls(ops, sums)
    return reduce(partial(calls, "add"), (calls("mul", *map(held, pair)) for pair in pairs))


def initial[V](ops: Ops[V], op: str, dtype: np.dtype[Any], tile: Tile, first: Item[V] | None) -> tuple[V, ...]:
    """What a loop carries for a reduction: tiles that `step` assigns, after the shift of moments, which stays.

    `first`: the first block's elements, where `wants_first`; then called in their scope.
    """
    match op:
        case "argmax" | "argmin":
            worst = neutral("max" if op == "argmax" else "min", compute_dtype(dtype))
            return ops.carry(tile, worst, dtype), ops.carry(tile, _NO_INDEX, _INT32), ops.carry(tile, _NO_INDEX, _INT32)
        case "moments":
            assert first is not None
            x = _Calls(ops, dtype)
            # an infinite shift would make nan of the sum, which is to be infinite
            shift = x.pick(x.test("is_finite", first.value), first.value, x.const(0.0))
            return ops.valid(shift, x.const(0.0)), ops.carry(tile, 0.0, dtype), ops.carry(tile, 0.0, dtype)
        case "sumexp":
            # not -inf: the distance of a first element would be inf - inf
            return ops.carry(tile, float(np.finfo(compute_dtype(dtype)).min), dtype), ops.carry(tile, 0.0, dtype)
        case _:
            return (ops.carry(tile, neutral(op, compute_dtype(dtype)), dtype),)


def step[V](ops: Ops[V], op: str, item: Item[V], carried: Sequence[V]) -> None:
    """Takes one block into the carried tiles, column by column."""
    x = _Calls(ops, item.dtype)
    match op:
        case "argmax" | "argmin":
            _arg_step(ops, op, item, carried)
        case "moments":  # of d = x - shift in every column: s1 += d, s2 += d^2
            shift, s1, s2 = carried
            distance = ops.valid(x("sub", item.value, shift), x.const(0.0))
            ops.assign(s1, x("add", s1, distance))
            ops.assign(s2, x("add", s2, x("mul", distance, distance)))
        case "sumexp":  # e = exp(-|x-m|); where x > m: s = s*e + 1, m = x; else s = s + e
            # The fast form's error of |d| units in the last place of exp(-|d|) is below one of a sum of at least 1.
            top, total = carried
            value = x.masked("max", item.value)
            distance = x("sub", value, top)
            decay = x.fast("exp", x("neg", x("abs", distance)))
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
        case "moments":
            return _combined_moments(x, carried, _counts_as(ops, ops.column_counts(tile), dtype), count)
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


def _combined_moments[V](x: _Calls[V], carried: Sequence[V], counts: V, count: int) -> tuple[V, V]:
    """(sum, m2) of a row from those of its columns: m2 = sum(m2_c) + sum(n_c * (mean_c - mean)^2), by Chan.

    m2_c = s2 - s1^2/n_c.  The shift is one of the column's own elements, so (mean_c - shift)^2 <= m2_c, and
    s2 = m2_c + n_c*(mean_c - shift)^2 <= (1 + n_c)*m2_c: the difference loses no more than a factor 1 + n_c of the
    precision, n_c being the blocks of the loop, however far from zero the row is.
    """
    shift, s1, s2 = carried
    each = x("max", counts, x.const(1.0))  # a column that is never inside has sums of 0
    total = x.fold("sum", x("add", s1, x("mul", counts, shift)))
    average = x("div", s1, each)
    # where s2 has overflowed it stays, unless s1 is infinite or nan too
    excess = x.pick(x.test("eq", s2, x.const(np.inf)), x("sub", s1, s1), x("mul", s1, average))
    own = x("max", x("sub", s2, excess), x.const(0.0))
    distance = x("sub", x("add", shift, average), x("mul", total, x.const(1.0 / count)))
    return total, x.fold("sum", x("add", own, x("mul", counts, x("mul", distance, distance))))


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
        value = x.pick(is_nan, x.neutral(order), value)
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
