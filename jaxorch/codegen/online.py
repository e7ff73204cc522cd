"""The body of kernels of two contractions with a softmax between: one pass over the keys, rescaled on the way.

Input: an "online" kernel in one configuration.  Output: calls on a handler.  For each block of keys:

    m' = max(m, max u),  a = exp(m - m'),  e = exp(u - m'),  l = l*a + sum e,  acc = acc*a + e @ v

(Milakov and Gimelshein 2018; Dao 2023).  Invariant: a row gives what the two-pass form gives, rows of
masked scores alone included: where every score is -inf the sum is 0, and the result NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from jaxorch.codegen.ops import Tile, ahead
from jaxorch.codegen.products import ProductBody
from jaxorch.codegen.values import Coords
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Map, Scatter
from jaxorch.ir.index import Expr, Guard
from jaxorch.ir.simplify import simplify
from jaxorch.ir.view import Value, View
from jaxorch.kernels.access import pieces_at
from jaxorch.kernels.frame import COLUMN, GRID, ROW
from jaxorch.kernels.masks import grows, in_every_row, masked_values, unmasked
from jaxorch.kernels.order import KEPT_BYTES
from jaxorch.kernels.sides import Written
from jaxorch.kernels.softmax import Softmax, scale_of

__all__ = ["OnlineBody"]

_BOOL, _FLOAT32 = np.dtype(np.bool_), np.dtype(np.float32)
_LOWEST = float(np.finfo(np.float32).min)  # not -inf: the distance of a first score would be inf - inf
_FAR = 2e38
_RANGE = 2.0**96  # of scores in units of their scale, where exponentials are of those
_LOG2E = 1.4426950408889634
_NEGLIGIBLE = 256.0  # exp(-x) is 0 in float32 for every x above


class OnlineBody[V](ProductBody[V]):
    """The walk of an "online" kernel."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert self.core.softmax is not None
        self.softmax: Softmax = self.core.softmax
        self.fast = self.softmax.exponential in self.relaxed
        view, coords = self.shift(self.plane("row", "key"))
        self.scale = scale_of(self.graph, self.members, view, coords, self.plane("row", "key").sizes)
        if not self.fast or self.softmax.peaks_outside:
            self.scale = None
        self.masks = masked_values(self.graph, self.members, view)

    @property
    def inner(self) -> int:
        return self.contract(self.softmax.first).count

    def run(self) -> None:
        self.ops.begin(descending=self.descending())
        with self.ops.over_points(self.points):
            self.one_point()

    def descending(self) -> int:
        """Of how many points the last blocks of rows come first: where those have most keys, and would end last.

        So many as find their keys and values in the cache together.
        """
        points, blocks = self.frame.sizes[GRID], -(-self.frame.sizes[ROW] // self.config.block_rows)
        scores = self.plane("row", "key")
        if self.points > 1 or self.launch == "combine" or blocks < 2 or points < 2:
            return 0
        if self.stores_keys or not grows(self.live(scores)[0], scores.sizes):
            return 0
        each = self.core.key * (self.inner + self.frame.sizes[COLUMN]) * self.dtype(self.core.last).itemsize
        most = max(KEPT_BYTES // each, 1)
        return next(n for n in range(min(most, points), 0, -1) if points % n == 0)

    def one_point(self) -> None:
        """One point of the grid."""
        tile = self.plane("row", "column")
        peak, total, acc = self.combined(tile) if self.launch == "combine" else self.accumulated(tile)
        if not self.parted:
            self.finish(tile, peak, total, acc)
            self.store_outputs()
            return
        for number, (plane, value) in enumerate(((tile, acc), (self.row, peak), (self.row, total))):
            self.store_part(number, plane, value)
        if self.launch == "joined":
            with self.joining():
                tile = self.plane("row", "column")
                self.finish(tile, *self.combined(tile))
                self.store_outputs()

    @property
    def stores_keys(self) -> bool:
        """Whether an output is stored from the tiles of keys or values."""
        queries = (self.softmax.first, self.softmax.query)
        return any((s.contract, s.operand) != queries for s in self.core.stored)

    @property
    def row(self) -> Tile:
        return self.plane("row", "one")

    # One block after the other

    def accumulated(self, tile: Tile) -> tuple[V, V, V]:
        """The peak and the total of each row, and the sum of its products."""
        blocks = -(-self.frame.sizes[1] // self.config.block_rows)
        queries, scores = self.plane("row", "inner"), self.plane("row", "key")
        keys, values = self.plane("key", "inner", blocks), self.plane("key", "column", blocks)
        key, inner = len(self.frame.domain), len(self.frame.domain) + 1
        first, last = self.softmax, self.core
        live, floor = self.live(scores) if not self.stores_keys else ((), 0.0)  # what is stored is all read
        with self.scope(ahead(scores)):
            self.bind(ix.guard_lookups(live))  # before the queries, whose loads would be waited for first
        with self.scope(queries):
            q = self.tile_of(first.first, first.query, first.at, inner, queries)
        peak, total = self.ops.carry(self.row, self.lowest, _FLOAT32), self.ops.carry(self.row, 0.0, _FLOAT32)
        acc = self.ops.carry(tile, 0.0, _FLOAT32)
        self.write_keys(scores, live)
        with self.over_keys(scores, live, self.doubt(peak, floor) if self.may_count(scores, live, floor) else None):
            with self.scope(keys):
                k = self.tile_of(first.first, 1 - first.query, first.at, inner, keys)
            with self.scope(scores):
                product = self.product(first.first, self.extent("inner")[1], transposed=True)
                self.bound[Value(first.first)] = self.ops.dot(q, k, None, product)
                decay, e = self.exponential(scores, peak, total)
                self.bound[Value(first.exponential)] = e
                p = self.tile_of(last.last, last.left, last.at, key, scores, zeroed=first.scaled)
            with self.scope(values):
                v = self.tile_of(last.last, 1 - last.left, last.at, key, values)
            with self.scope(tile):
                product = self.product(last.last, last.key, transposed=False)
                self.ops.assign(acc, self.ops.dot(p, v, self.call("mul", acc, decay), product))
        if self.scale is None:
            return peak, total, acc
        with self.scope(self.row):
            return self.call("mul", peak, self.ops.const(self.scale, _FLOAT32)), total, acc

    def write_keys(self, scores: Tile, live: Guard) -> None:
        """Writes the keys and values that come new into their arrays, each by the program that will read it."""
        places: dict[tuple[Expr, int], list[Written]] = {}
        for written in self.core.written:
            places.setdefault((written.key, written.count), []).append(written)
        for (start, count), together in places.items():
            for number in range(count):
                with self.scope(ahead(scores)):
                    place = ix.add(start, ix.Const(number))
                    place = simplify(ix.substitute(place, self.space(scores)), scores.sizes)
                    self.bind(ix.lookups_in(place))
                    owner = self.ops.owner(scores, live, place)
                self.layers.append({})
                with owner:
                    for written in together:
                        self.write_key(written, number)
                self.layers.pop()

    def write_key(self, written: Written, number: int) -> None:
        """Writes one of an operand's keys."""
        node = self.graph.nodes[written.value.node]
        assert isinstance(node, Scatter)
        tile = self.plane("one", "column" if written.contract == self.core.last else "inner")
        with self.scope(tile):
            space = self.space(tile)
            space[len(self.frame.domain)] = ix.Const(number)
            coords = tuple(simplify(ix.substitute(e, space), tile.sizes) for e in written.at)
            self.write(self.ins[written.value], node, coords)

    def over_keys(self, tile: Tile, live: Guard, doubt: Callable[[], V] | None) -> AbstractContextManager[None]:
        """The loop over the keys of `tile`, if there is more than one block of them."""
        return self.ops.loop(tile, live, doubt) if tile.loops else nullcontext()

    @property
    def lowest(self) -> float:
        """What peaks start from: a number far below all scores, that stays one in every unit."""
        return _LOWEST if self.scale is None else -_FAR / max(self.scale * _LOG2E, 1.0)

    def exponential(self, tile: Tile, peak: V, total: V) -> tuple[V, V]:
        """What earlier sums are to be scaled by, and this block's exponentials; updates peak and total."""
        u = self.scores(tile)
        top = self.call("max", peak, self.ops.fold("peak", u, _FLOAT32))
        if self.scale is None:
            decay, e = self.exp(self.call("sub", peak, top)), self.exp(self.call("sub", u, top))
        else:  # exp(scale*(x - m)) = exp2(c*(x - m)) for c = scale*log2(e)
            c = self.ops.const(self.scale * _LOG2E, _FLOAT32)
            decay = self.exp2(self.call("mul", self.call("sub", peak, top), c))
            if any(m != -np.inf for m in self.masks) and not self.hides:
                e = self.exp2(self.call("mul", self.call("sub", u, top), c))
            else:
                # c*x - c*m is one multiply-add, exact but for the rounding of c*m: that of a masked value is no small
                # number, unless it is a power of two, and its row would not find its own maximum at a distance of 0
                e = self.exp2(self.call("sub", self.call("mul", u, c), self.call("mul", top, c)))
        summed = self.ops.fold("sum", e, _FLOAT32)
        self.ops.assign(total, self.call("add", self.call("mul", total, decay), summed))
        self.ops.assign(peak, top)
        return decay, e

    def scores(self, tile: Tile) -> V:
        """The scores, divided by `scale` if there is one; -inf past the last key."""
        view, coords = self.shift(tile)
        low = self.ops.const(-np.inf, _FLOAT32)
        u = self.view(view, coords, ()) if self.scale is None else self.unscaled(view, coords, ())
        return self.ops.valid(u, low)

    def in_units(self, masked: float) -> float:
        """A masked value in units of `scale`, above the number that peaks start from unless it is -inf."""
        if self.scale is None or masked == -np.inf:
            return masked
        return self.far if self.hides else max(masked / self.scale, self.far)

    @property
    def hides(self) -> bool:
        """Whether there is one masked value, below all scores in their range."""
        values = {m for m in self.masks if m != -np.inf}
        return self.scale is not None and len(values) == 1 and max(values) / self.scale <= -_RANGE

    @property
    def far(self) -> float:
        """The lowest masked value in units of `scale`: a power of two, whose products with it are exact."""
        return -(2.0 ** math.floor(math.log2(-0.5 * self.lowest)))

    def unscaled(self, view: View, coords: Coords, guard: Guard) -> V:
        """The scores in units of `scale`: what is multiplied by it as it is, masked values divided by it."""
        pieces = pieces_at(view, coords, self.sizes)
        for own, _, index in pieces:
            self.bind((*ix.guard_lookups(own), *ix.coords_lookups(index)))
        result: V | None = None
        for own, value, index in reversed(pieces):
            here = self.unscaled_value(value, index, ix.both(guard, own))
            result = here if result is None else self.ops.select(own, here, result)
        assert result is not None
        return result

    def unscaled_value(self, value: Value, coords: Coords, guard: Guard) -> V:
        node = self.graph.nodes[value.node]
        match node:
            case Const(number):
                return self.ops.const(self.in_units(float(number)), _FLOAT32)
            case Map("select_n", (predicate, *cases)):
                chosen = [self.unscaled(case, coords, guard) for case in cases]
                args, dtypes = [self.view(predicate, coords, guard), *chosen], [_BOOL, _FLOAT32, _FLOAT32]
                return self.ops.scalar("select_n", {}, args, dtypes, _FLOAT32)
            case Map("mul" | "div", (view, _)):
                return self.view(view, coords, guard)
            case _:
                return self.value(value, coords, guard)

    def shift(self, tile: Tile) -> tuple[View, Coords]:
        """The scores' view under the exponential, and where the scope reads it."""
        node = self.graph.nodes[self.softmax.shift]
        assert isinstance(node, Map)
        space = self.space(tile)
        return node.operands[0], tuple(simplify(ix.substitute(e, space), tile.sizes) for e in self.softmax.shift_at)

    def compute(self, value: Value, coords: Coords, guard: Guard) -> V:
        node = self.graph.nodes[value.node]
        for number, operand, _ in self.softmax.deferred:
            if number == value.node and isinstance(node, Map):
                return self.view(node.operands[1 - operand], coords, guard)
        return super().compute(value, coords, guard)

    # Blocks that a mask leaves out

    def live(self, tile: Tile) -> tuple[Guard, float]:
        """Where scores are not one masked value, and that value, as `masks.unmasked` has them."""
        view, coords = self.shift(tile)
        return unmasked(self.graph, self.members, view, coords, tile.sizes)

    def may_count(self, tile: Tile, live: Guard, floor: float) -> bool:
        """Whether what a mask leaves out may count in some row.

        Not if it is -inf, whose exponential is 0 beside any peak; nor if it is below all scores, and every row has one.
        """
        if not live or floor == -np.inf:
            return False
        return not self.hides or len(self.masks) > 1 or not in_every_row(live, tile.sizes)

    def doubt(self, peak: V, floor: float) -> Callable[[], V]:
        """Rows in which the masked value may count: their peak is not far above it."""

        def rows() -> V:
            with self.scope(self.row):
                unit = self.scale or 1.0
                low = np.float32(self.in_units(floor)) + np.float32(_NEGLIGIBLE / unit)
                bound = self.ops.const(float(low), _FLOAT32)
                above = self.ops.scalar("gt", {}, [peak, bound], [_FLOAT32, _FLOAT32], _BOOL)
                return self.ops.scalar("not", {}, [above], [_BOOL], _BOOL)

        return rows

    # The end

    def finish(self, tile: Tile, peak: V, total: V, acc: V) -> None:
        """Binds the row's statistics and the second product, with the factors that were deferred."""
        with self.scope(tile):
            nothing, nan = self.ops.const(0.0, _FLOAT32), self.ops.const(np.nan, _FLOAT32)
            empty = self.ops.scalar("eq", {}, [total, nothing], [_FLOAT32, _FLOAT32], _BOOL)
            low = self.ops.const(-np.inf, _FLOAT32)
            self.bound[self.softmax.peak] = self.pick(empty, low, peak)
            self.bound[self.softmax.total] = self.pick(empty, nan, total)
            result = self.pick(empty, nan, acc)
            for number, operand, at in self.softmax.deferred:
                node = self.graph.nodes[number]
                assert isinstance(node, Map)
                place = tuple(simplify(ix.substitute(e, self.space(tile)), tile.sizes) for e in at)  # at any key
                factor = self.view(node.operands[operand], place, ())
                result = self.call(node.op, result, factor)
            self.bound[Value(self.core.last)] = result

    def combined(self, tile: Tile) -> tuple[V, V, V]:
        """Peak, total and sum of products of all parts: each scaled to the common peak."""
        parts = range(self.splits)
        with self.scope(self.row):
            peaks = [self.load_part(1, self.row, s) for s in parts]
            peak = peaks[0]
            for other in peaks[1:]:
                peak = self.call("max", peak, other)
            scales = [self.call("exp", self.call("sub", p, peak)) for p in peaks]
            totals = [self.call("mul", self.load_part(2, self.row, s), scales[s]) for s in parts]
        with self.scope(tile):
            sums = [self.call("mul", self.load_part(0, tile, s), scales[s]) for s in parts]
        return peak, self.added(totals), self.added(sums)

    def added(self, values: list[V]) -> V:
        total = values[0]
        for value in values[1:]:
            total = self.call("add", total, value)
        return total

    # Shorthand for float32 calls

    def call(self, op: str, *args: V) -> V:
        return self.ops.scalar(op, {}, args, [_FLOAT32] * len(args), _FLOAT32, relaxed=self.fast)

    def exp(self, value: V) -> V:
        if not self.fast:
            return self.call("exp", value)
        # exp(x) = exp2(log2(e)*x); scaled after the subtraction, since a masked score times log2(e) may overflow
        return self.exp2(self.call("mul", value, self.ops.const(_LOG2E, _FLOAT32)))

    def exp2(self, value: V) -> V:
        return self.ops.scalar("exp2", {}, [value], [_FLOAT32], _FLOAT32, relaxed=True)

    def pick(self, predicate: V, then: V, otherwise: V) -> V:
        args, dtypes = [predicate, otherwise, then], [_BOOL, _FLOAT32, _FLOAT32]
        return self.ops.scalar("select_n", {}, args, dtypes, _FLOAT32)
