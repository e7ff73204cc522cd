"""The body of kernels around one contraction: statistics of rows, the loop over products, the epilogue.

Input: a "gemm" kernel in one configuration.  Output: calls on a handler.  Invariant: the accumulator is
the contraction's result over (rows, columns); in a split kernel it is a part of it until the combine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from jaxorch.codegen import reductions
from jaxorch.codegen.launches import early_outputs
from jaxorch.codegen.ops import Product, Tile
from jaxorch.codegen.products import ProductBody
from jaxorch.codegen.values import Coords
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.index import Guard
from jaxorch.ir.simplify import simplify
from jaxorch.ir.view import Value
from jaxorch.kernels.access import Accesses, Reduction, Walk
from jaxorch.kernels.configs import power_of_two
from jaxorch.kernels.frame import COLUMN, ROW
from jaxorch.kernels.order import KEPT_BYTES
from jaxorch.kernels.stretches import Stretch, stretches

__all__ = ["GemmBody"]

_GROUP = 8  # blocks of rows that go along the columns together
# bytes of a thread's registers for operands that are loaded before any of them is multiplied, and with the tile's sums
_AT_ONCE, _WITH_SUMS = 640, 896
_MOST_GROUPS = 4  # of such operands, where there are no stages
_WHOLE_ROW = 16384  # elements of a tile that holds rows whole while their statistics are taken


class GemmBody[V](ProductBody[V]):
    """The walk of a "gemm" kernel."""

    def run(self) -> None:
        self.ops.begin(group=self.group())
        if self.segment is None:
            self.tiles()
            return
        for _ in self.ops.segmented(self.plane("row", "column"), self.ins[self.segment.value], self.segment):
            self.plane_values.clear()
            self.reduced.clear()
            self.tiles()

    def group(self) -> int:
        """How many blocks of rows go along the columns together, for one to find what the others have loaded of them.

        One after the other, which is 0, where the right operand stays in the cache from one to the next.
        """
        rows = -(-self.frame.sizes[ROW] // self.config.block_rows)
        columns = -(-self.frame.sizes[COLUMN] // self.config.block_columns)
        nbytes = self.core.key * self.frame.sizes[COLUMN] * self.dtype(self.core.last).itemsize
        if self.launch == "combine" or self.frame.heads or self.core.segments or min(rows, columns) < 2:
            return 0
        return min(rows, _GROUP) if nbytes > KEPT_BYTES else 0

    def tiles(self) -> None:
        """The program's tile, or its part of one."""
        tile = self.plane("row", "column")
        value = Value(self.core.last)
        self.rows: list[V] = []
        self.ridden: list[V] = []  # what the loop has reduced, once it has ended
        if self.launch == "combine":
            self.bound[value] = self.combined(tile)
        else:
            if self.needed():
                self.reduce_all(reread=True)
            self.bound[value] = self.accumulated(tile)
        if not self.parted:
            self.finish()
            return
        self.store_part(0, tile, self.bound[value])
        if self.launch == "joined":
            with self.joining():
                self.bound[value] = self.combined(self.plane("row", "column"))
                self.finish()

    def finish(self) -> None:
        """What follows the product: reductions of its rows, then the stores."""
        if self.core.after:
            self.reduce_rows()
        self.store_outputs()

    def combined(self, tile: Tile) -> V:
        """The sum of all parts, in their order."""
        dtype = self.scratch[0].array.dtype
        with self.scope(tile):
            total = self.load_part(0, tile, 0)
            for split in range(1, self.splits):
                total = self.ops.scalar("add", {}, [total, self.load_part(0, tile, split)], [dtype, dtype], dtype)
        return total

    def accumulated(self, tile: Tile) -> V:
        """The sum of the products, or the program's part of it: in one loop over the keys, or one for each stretch."""
        accumulate = self.product(self.core.last, 0, transposed=False).accumulate
        acc = self.ops.carry(tile, 0, accumulate)
        row = self.row_plane()
        carried = [reductions.initial(self.ops, self.node(r).op, self.summed(r), row, None) for r in self.core.sums]
        self.rows = [self.ops.carry(self.plane("row", "one"), 0, accumulate) for _ in self.core.beside]
        found = self.stretches()
        groups = self.at_once(found)
        for group in groups:
            self.add_at_once(group, tile, acc)
        for stretch in () if groups else found or (None,):
            self.stretch = stretch
            self.add_products(tile, acc, carried)
        self.stretch = None
        with self.scope(replace(row, loops=frozenset())):
            for riding, state in zip(self.core.sums, carried, strict=True):
                node, dtype = self.node(riding), self.summed(riding)
                (total,) = reductions.finish(self.ops, node.op, dtype, state, node.count, row, [node.arrays[0].dtype])
                self.ridden.append(total)
        return acc

    def operand_planes(self) -> tuple[Tile, Tile]:
        """The scopes of the left operand and the right one."""
        size, block = self.extent("column")
        blocks = self.plane("row", "column").row_blocks, -(-size // block)
        turned, transposed = not self.frame.keys_along[0], self.frame.keys_along[1]
        rows = "block" if self.frame.stacked else "row"
        a = self.plane("key", rows, blocks[1]) if turned else self.plane(rows, "key", blocks[1])
        b = self.plane("column", "key", blocks[0]) if transposed else self.plane("key", "column", blocks[0])
        return a, b

    def row_plane(self) -> Tile:
        """The left operand's scope, for what rides along in its loop."""
        plane = self.operand_planes()[0]
        return plane if self.frame.stacked else replace(plane, block_rows=self.rows_at_once)

    def add_products(self, tile: Tile, acc: V, carried: Sequence[tuple[V, ...]]) -> None:
        """The loop over the keys, or over a stretch of them; `carried` are the reductions that ride along."""
        (a, b), (size, block) = self.operand_planes(), self.extent("key")
        row = self.row_plane()
        product = self.product_of(-(-size // block) * block)
        key, left = len(self.frame.domain), self.core.left
        if self.stretch is not None:  # values of an earlier loop are gone
            for plane in (a, b):
                self.plane_values.pop(plane, None)
        with self.ops.loop(a, (), None):
            with self.scope(a):
                for at, total in zip(self.core.beside, self.rows, strict=True):
                    self.add_row(a, at, total)
                elements = [self.element(riding, a) for riding in self.core.sums]
                x = self.left_tile(a)
            with self.scope(row):
                for riding, element, state in zip(self.core.sums, elements, carried, strict=True):
                    reductions.step(self.ops, self.node(riding).op, element, state)
            with self.scope(b):
                y = self.tile_of(self.core.last, 1 - left, self.core.at, key, b)
            with self.scope(tile):
                made = self.ops.dot(x, y, acc, product)
                self.ops.assign(acc, self.ops.finished(made, product) if self.left_in_registers(a) else made)

    def left_tile(self, tile: Tile) -> V:
        """The left operand over its scope; of neighbours that are held together their tiles, stacked."""
        key, found = len(self.frame.domain), list[V]()
        for number in range(self.frame.neighbours):
            self.neighbour = number
            found.append(self.tile_of(self.core.last, self.core.left, self.core.at, key, tile))
        return self.ops.stacked(found) if self.frame.stacked else found[0]

    def at_once(self, found: Sequence[Stretch]) -> tuple[Sequence[Stretch], ...]:
        """Stretches whose operands are loaded before the first of them is multiplied, in groups that registers allow.

        A loop of a step or two would wait for its loads, and so would the next one. None where a stretch is too long
        for that, or where there are so many groups that loops with loads under way in stages may be better.
        """
        config, itemsize = self.config, self.dtype(self.core.last).itemsize
        wide, threads = (config.block_rows + config.block_columns) * itemsize, 32 * config.num_warps
        sums = 4 * config.block_rows * config.block_columns
        most = min(_AT_ONCE * threads, _WITH_SUMS * threads - sums)
        groups, left = list[list[Stretch]](), 0
        for stretch in found:
            nbytes = wide * stretch.whole_block(self.least)
            if nbytes > most:
                return ()
            if nbytes > left:
                groups.append([])
                left = most
            groups[-1].append(stretch)
            left -= nbytes
        return tuple(groups) if len(groups) <= (_MOST_GROUPS if config.num_stages == 1 else 1) else ()

    def add_at_once(self, found: Sequence[Stretch], tile: Tile, acc: V) -> None:
        """The products of stretches that are a step each."""
        key, left, loaded = len(self.frame.domain), self.core.left, list[tuple[V, V]]()
        self.in_one_step = True
        for stretch in found:
            self.stretch = stretch
            a, b = self.operand_planes()
            with self.scope(a):
                x = self.tile_of(self.core.last, left, self.core.at, key, a)
            with self.scope(b):
                loaded.append((x, self.tile_of(self.core.last, 1 - left, self.core.at, key, b)))
        self.in_one_step = False
        for stretch, (x, y) in zip(found, loaded, strict=True):
            product = self.product_of(stretch.whole_block(self.least))
            with self.scope(tile):
                self.ops.assign(acc, self.ops.dot(x, y, acc, product))

    def product_of(self, keys: int) -> Product:
        """The product of operands as they lie, over so many keys, those past the end included."""
        along, transposed = self.frame.keys_along
        return self.product(self.core.last, keys, transposed=transposed, turned=not along)

    def left_in_registers(self, tile: Tile) -> bool:
        """Whether Hopper's matrix unit reads the left operand of scope `tile` from registers: it is no plain load."""
        if self.config.block_rows < 64 or self.config.num_warps < 4 or self.heads > 1:
            return False
        node, key = self.contract(self.core.last), len(self.frame.domain)
        coords = self.operand_at(node, self.core.at, key, tile)
        return not self.is_one_load(node.operands[self.core.left], coords, tile)

    def stretches(self) -> tuple[Stretch, ...]:
        """The keys in stretches that an operand reads from one array each; none where one loop is as good."""
        core, config = self.core, self.config
        alone = not (core.sums or core.beside or core.stored or core.segment or self.reduces or self.frame.stacked)
        if not alone or self.parted or config.heads > 1 or config.points > 1:
            return ()
        return stretches(
            self.graph,
            self.members,
            self.kernel.unrolled,
            self.contract(core.last),
            core.at,
            (*self.frame.domain, 1, 1),
            (config.block_keys, self.least),
        )

    # Reductions of rows that the loop over keys takes along

    def summed(self, reduction: Reduction) -> np.dtype[Any]:
        return self.graph.array(self.node(reduction).operands[0].values[0]).dtype

    def element(self, reduction: Reduction, tile: Tile) -> reductions.Item[V]:
        """What a block of keys adds to a reduction."""
        coords = self.operand_at(self.node(reduction), reduction.coords, len(self.frame.domain), tile)
        return reductions.Item(self.view(self.node(reduction).operands[0], coords, ()), self.summed(reduction), None)

    def add_row(self, tile: Tile, at: Coords, total: V) -> None:
        """Adds a block's products to a sum that has one element a row."""
        dtype, key, last = self.dtype(self.core.last), len(self.frame.domain), self.core.last
        held = compute_dtype(self.product(last, 0, transposed=False).accumulate)
        both = [
            self.view(self.contract(last).operands[k], self.operand_at(self.contract(last), place, key, tile), ())
            for k, place in ((self.core.left, self.core.at), (1 - self.core.left, at))
        ]
        product = self.ops.scalar("mul", {}, both, [dtype, dtype], held)
        zero = self.ops.const(0, held)
        summed = self.ops.fold("sum", self.ops.valid(product, zero), held)
        self.ops.assign(total, self.ops.scalar("add", {}, [total, summed], [held, held], held))

    def compute(self, value: Value, coords: Coords, guard: Guard) -> V:
        beside = self.core.beside if value == Value(self.core.last) else ()
        for at, total in zip(beside, self.rows, strict=bool(beside)):
            if self.is_at(coords, at):
                return total
        for riding, total in zip(self.core.sums, self.ridden, strict=False):
            if value == Value(riding.node):  # each is wanted at one place
                return total
        return super().compute(value, coords, guard)

    def is_at(self, coords: Coords, at: Coords) -> bool:
        """Whether `coords` of the current scope are the place `at`."""
        assert self.tile is not None
        space, sizes = self.space(self.tile), self.tile.sizes
        return coords == tuple(simplify(ix.substitute(e, space), sizes) for e in at)

    # Reductions of the product's rows

    def reduce_rows(self) -> None:
        """All of them over the tile, which has every column of its rows, those first that others need."""
        tile = self.plane("row", "column")
        with self.scope(tile):
            levels = self.following(tile)
            for key in sorted((k for k in levels if k.node in self.core.after), key=levels.__getitem__):
                node = self.node(key)
                outs = [a.dtype for a in node.arrays]
                self.reduced[key] = reductions.direct(self.ops, node.op, self.item(key, node), node.count, outs)

    def following(self, tile: Tile) -> dict[Reduction, int]:
        """The reductions that the outputs need, with their levels."""
        found, early = Accesses(), early_outputs(self.kernel)
        walk = Walk(self.graph, self.members, found, self.kernel.unrolled)
        places = {p.value: self.at_place(p) for p in self.core.placed}
        for output in (o for k, o in enumerate(self.kernel.outputs) if k not in early):
            coords, guard = places.get(output.value) or (self.coords(output), ())
            walk.value(output.value, coords, guard, tile.sizes)
        return found.reductions

    # Statistics of the left operand's rows

    def needed(self) -> dict[Reduction, int]:
        if not self.reduces:
            return {}
        tile, key = self.plane("row", "key"), len(self.frame.domain)
        found = Accesses()
        view = self.contract(self.core.last).operands[self.core.left]
        coords = self.operand_at(self.contract(self.core.last), self.core.at, key, tile)
        Walk(self.graph, self.members, found, self.kernel.unrolled).view(view, coords, (), tile.sizes)
        return found.reductions

    def is_looped(self, count: int) -> bool:
        return self.rows_at_once * power_of_two(count) > _WHOLE_ROW

    @property
    def rows_at_once(self) -> int:
        """The rows of a tile of statistics: a single one is not padded for a unit that does not see it."""
        return 1 if self.frame.sizes[ROW] == 1 else self.config.block_rows

    def scope_of(self, columns: int, walk: Literal["grid", "tile", "loop"]) -> Tile:
        grid, rows, *_ = self.plane("row", "one").sizes
        block = power_of_two(columns)
        if walk == "loop":
            block = min(block, max(_WHOLE_ROW // self.rows_at_once, 16))
        loops = frozenset((COLUMN,)) if walk == "loop" else frozenset[int]()
        blocks = -(-self.frame.sizes[COLUMN] // self.config.block_columns)  # each takes the statistics of its rows
        repeats = blocks * (self.splits if self.grid == 1 else 1)
        spans = ("row", f"stat{columns}")
        segments = self.core.segments
        return Tile((grid, rows, columns), self.rows_at_once, block, walk, spans, loops, repeats, segments=segments)
