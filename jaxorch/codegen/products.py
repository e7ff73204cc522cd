"""What kernels around contractions share: their scopes, and where each is in the index space.

Input: a kernel with a `Core`.  Output: scopes (planes) over pairs of spans - rows, keys, inner products,
columns - and the coordinates of the core's index space in each.  Invariant: an operand's scope has the
two spans that it varies along, so that a tile of it is one block of memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from jaxorch.codegen.body import Body
from jaxorch.codegen.launches import Launch, combine_config, early_outputs, launch_buffers
from jaxorch.codegen.ops import Product, ProductOps, Tile
from jaxorch.codegen.values import Coords
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const as IrConst
from jaxorch.ir.graph import Contract, Graph, Map, Reduce, Scatter
from jaxorch.ir.index import Bound, Const, Dim, Expr, Guard, Lookup, Segment
from jaxorch.ir.simplify import coords_of, simplify, simplify_guard
from jaxorch.ir.view import Value, View, map_piece, simplify_view
from jaxorch.kernels.access import operand_coords, pieces_at, without_zero
from jaxorch.kernels.choices import one_load
from jaxorch.kernels.configs import Config, power_of_two
from jaxorch.kernels.frame import COLUMN, GRID, HEAD, ROW
from jaxorch.kernels.kernel import Kernel
from jaxorch.kernels.sides import Core, Placed, Stored
from jaxorch.kernels.stretches import Stretch

__all__ = ["ProductBody", "Span"]

type Span = Literal["row", "block", "column", "key", "inner", "one"]  # "block": of rows that are held together


class ProductBody[V](Body[V]):
    """The walk of a kernel around contractions."""

    def __init__(self, graph: Graph, kernel: Kernel, config: Config, ops: ProductOps[V], launch: Launch) -> None:
        super().__init__(graph, kernel, combine_config(kernel, config) if launch == "combine" else config, ops)
        assert kernel.core is not None
        self.ops: ProductOps[V] = ops  # pyright: ignore[reportIncompatibleVariableOverride]
        self.core: Core = kernel.core
        assert launch != "combine" or kernel.core.segment is None, "tiles that begin where segments do"
        self.launch = launch
        self.splits = config.splits
        self.points, self.heads, self.turns = config.points, config.heads, config.turns
        self.parted = launch in ("partial", "joined")  # whether a program has one part of the sums
        self.stretch: Stretch | None = None  # the keys that the loop being written runs over, if not over all
        self.neighbour = 0  # which of a block's the scope of blocks is of
        self.in_one_step = False  # whether the stretch is one step, without a loop
        self.grid = self.frame.sizes[GRID]
        self.bound: dict[Value, V] = {}  # values that the schedule computes itself
        found = kernel.core.segment
        self.segment = found and replace(found, index=())  # that of the program's rows
        self.plane_values: dict[Tile, dict[Any, Any]] = {}
        ins, outs = launch_buffers(graph, kernel, config, launch)
        self.scratch = [b for b in (*ins, *outs) if b.name.startswith("part")]
        self.tickets = [b for b in ins if b.name == "tickets"]

    # Scopes

    def extent(self, span: Span) -> tuple[int, int]:
        """The extent of a span in a program's share, and its block."""
        match span:
            case "row":
                return self.frame.sizes[ROW], self.config.block_rows
            case "block":
                blocks, held = (n // self.frame.neighbours for n in (self.frame.sizes[ROW], self.config.block_rows))
                assert held > 1 or blocks == 1, "a span of single elements lies at the first of them"
                return blocks, held
            case "column":
                return self.frame.sizes[COLUMN], self.config.block_columns
            case "key" if self.stretch is not None:
                longest, stretch = self.config.block_keys, self.stretch
                block = stretch.whole_block(self.least) if self.in_one_step else stretch.block(longest, self.least)
                return stretch.count, block
            case "key":
                return self.core.key, self.config.block_keys
            case "inner":
                return self.inner, max(power_of_two(self.inner), self.least)
            case "one":
                return 1, 1

    @property
    def inner(self) -> int:
        return 1

    @property
    def least(self) -> int:
        """The least number of products the matrix unit sums at once."""
        return 32 if self.dtype(self.core.last).itemsize == 1 else 16

    def plane(self, rows: Span, columns: Span, repeats: int = 1) -> Tile:
        """The scope of tiles that vary along two spans."""
        (size_r, block_r), (size_c, block_c) = self.extent(rows), self.extent(columns)
        # where a program does several points, or several blocks of rows, each sum is one step
        whole = self.points > 1 or self.in_one_step
        looped = "row" if self.turns > 1 else "" if whole else "key"
        loops = frozenset(axis for axis, span in ((ROW, rows), (COLUMN, columns)) if span == looped)
        walk = "grid" if columns in ("key", "column") else "tile"
        splits = self.splits if self.parted else 1
        sizes, spans = (self.grid * splits, size_r, size_c, *self.frame.sizes[HEAD:]), (rows, columns)
        return Tile(
            sizes,
            block_r,
            block_c,
            walk,
            spans,
            loops,
            repeats,
            splits,
            self.points,
            block_heads=self.heads,
            segments=self.core.segments,
            turns=self.turns,
        )

    @contextmanager
    def scope(self, tile: Tile) -> Generator[None]:
        outer, self.tile = self.tile, tile
        if tile.walk == "loop":  # a loop of its own, of one scope
            self.plane_values[tile] = {}  # values of an earlier loop are gone
            with self.ops.loop(tile, (), None), self.ops.scope(tile):
                yield
        else:
            with self.ops.scope(tile):
                yield
        self.tile = outer

    def cached(self, key: Any, dims: frozenset[int]) -> dict[Any, Any]:
        assert self.tile is not None
        home = self.plane_values.setdefault(self.tile, {})
        for cache in (*reversed(self.layers), home):
            if key in cache:
                return cache
        return self.layers[-1] if self.layers else home

    # Where a scope is

    def space(self, tile: Tile) -> list[Expr]:
        """Coordinates of (*domain, KEY, INNER) over the scope's axes; 0 along spans that it does not have."""
        split_grid: Expr = Dim(GRID)
        if self.parted:
            split_grid = ix.mod(Dim(GRID), self.grid)
        frame, extents = self.frame, self.frame.extents
        found: list[Expr] = [Const(0)] * len(extents)
        at = {span: Dim(axis) for axis, span in ((ROW, tile.spans[0]), (COLUMN, tile.spans[1]))}
        row, number = frame.apart(at["row"]) if "row" in at else (at.get("block", Const(0)), Const(self.neighbour))
        flat: tuple[tuple[tuple[int, ...], Expr], ...] = (
            (frame.grid, split_grid),
            (frame.rows, row),
            (frame.columns, at.get("column", Const(0))),
            (frame.heads, Dim(HEAD)),
        )
        for axes, place in flat:
            for a, e in zip(axes, coords_of(place, [extents[a] for a in axes], tile.sizes), strict=True):
                found[a] = e
        return [*frame.neighbour(found, number), at.get("key", Const(0)), at.get("inner", Const(0))]

    def operand_at(self, node: Contract | Reduce, at: Coords, axis: int, tile: Tile) -> Coords:
        """Coordinates in a node's domain over the scope's; `axis` of the space runs over the axes it sums over."""
        space = self.space(tile)
        kept = tuple(simplify(ix.substitute(e, space), tile.sizes) for e in at)
        if self.stretch is not None and axis == len(self.frame.domain):
            summed = self.stretch.moved(coords_of(space[axis], self.stretch.extents, tile.sizes))
        else:
            summed = coords_of(space[axis], [node.domain[a] for a in node.axes], tile.sizes)
        return operand_coords(node, kept, summed)

    def contract(self, number: int) -> Contract:
        """A node that is a Contract; what is looked up by a row's segment is by that of the program's rows."""
        node = self.graph.nodes[number]
        assert isinstance(node, Contract)
        if self.segment is None:
            return node
        left, right = (self.within_segment(view) for view in node.operands)
        return replace(node, operands=(left, right))

    def within_segment(self, view: View) -> View:
        def new(lookup: Lookup) -> Expr:
            return self.segment if isinstance(lookup, Segment) and self.segment else lookup

        return simplify_view(View(view.domain, tuple(map_piece(piece, new) for piece in view.pieces)))

    def bind(self, lookups: Iterable[Lookup]) -> None:
        super().bind(lookup for lookup in lookups if lookup != self.segment)

    def dtype(self, number: int) -> np.dtype[Any]:
        """The dtype of a Contract's operands."""
        return self.graph.array(self.contract(number).operands[0].pieces[0].value).dtype

    def product(self, number: int, summed: int, *, transposed: bool, turned: bool = False) -> Product:
        params = dict(self.contract(number).params)
        accumulate = np.dtype(str(params["accumulate"]))
        return Product(self.dtype(number), accumulate, str(params["precision"]), summed, transposed, turned)

    # Values

    def view(self, view: View, coords: Coords, guard: Guard) -> V:
        """As of any kernel; what is selected for an operand, or chosen for it, is not for its next reader once more."""
        chosen = not (self.core.stored or guard) and self.in_steps
        if not self.core.stored and not chosen:
            return super().view(view, coords, guard)
        key = (tuple(pieces_at(view, coords, self.sizes)), guard)
        cache = self.cached(key, frozenset())
        if key not in cache:
            found = self.loaded_once(view, coords) if chosen else None
            if found is None and chosen:
                return super().view(view, coords, guard)
            cache[key] = super().view(view, coords, guard) if found is None else found
        return cache[key]

    @property
    def in_steps(self) -> bool:
        """Whether the scope is of a loop of several steps, in which a choice would hold up the next one's loads."""
        tile = self.tile
        return tile is not None and any(tile.sizes[a] > tile.blocks[a] * tile.splits for a in tile.loops)

    def loaded_once(self, view: View, coords: Coords) -> V | None:
        """A view of several arrays among which the grid's point chooses, read by one load; None if it is none."""
        found = one_load(self.graph, self.members, pieces_at(view, coords, self.sizes), self.sizes)
        if found is None:
            return None
        load, rest = found
        choices = [(guard, self.ins[value], start) for guard, value, start in load.choices]
        loaded = self.ops.load_chosen(choices, load.offset, load.lanes)
        if not rest:
            return loaded
        ((own, value, index),) = rest
        return self.ops.select(load.lanes, loaded, self.value(value, index, own))

    def compute(self, value: Value, coords: Coords, guard: Guard) -> V:
        if value in self.bound:
            return self.bound[value]
        return super().compute(value, coords, guard)

    def tile_of(self, number: int, operand: int, at: Coords, axis: int, tile: Tile, *, zeroed: bool = True) -> V:
        """An operand of a Contract over the current scope; 0 past the last contracted element if `zeroed`."""
        view, coords = self.contract(number).operands[operand], self.operand_at(self.contract(number), at, axis, tile)
        value, zero = self.view(view, coords, ()), self.ops.const(0, self.dtype(number))
        for stored in self.core.stored:
            if (stored.contract, stored.operand) == (number, operand):
                self.store_operand(stored, tile)
        masked = self.masked(view, coords, tile) if zeroed else frozenset((ROW, COLUMN))
        for place, span in ((ROW, tile.spans[0]), (COLUMN, tile.spans[1])):
            if span in ("key", "inner") and place not in masked:
                value = self.ops.within(value, zero, place)
        computed = any(p.value.node in self.members for p in view.pieces)
        return self.ops.operand(value, self.dtype(number), of_windows=computed and bool(self.kernel.unrolled))

    def masked(self, view: View, coords: Coords, tile: Tile) -> frozenset[int]:
        """The axes past whose end the view is 0 by itself: if it is loads alone, those that all of them vary along.

        Through copies in the kernel, too: a test after the load would keep it from shared memory's own way there.
        """
        found = frozenset((ROW, COLUMN))
        pieces = pieces_at(view, coords, tile.sizes)
        for _, value, index in without_zero(self.graph, self.members, pieces):
            node = self.graph.nodes[value.node]
            if self.is_loaded(value):
                found &= frozenset[int]().union(*(ix.dims_of(e) for e in index))
            elif isinstance(node, Map) and node.op == "copy":
                found &= self.masked(node.operands[0], index, tile)
            else:
                return frozenset()
        return found

    def is_one_load(self, view: View, coords: Coords, tile: Tile) -> bool:
        """Whether a view is a whole tile as one load gives it, the zeros of its mask included; through copies, too."""
        pieces = without_zero(self.graph, self.members, pieces_at(view, coords, tile.sizes))
        _, value, index = pieces[0]
        node = self.graph.nodes[value.node]
        if len(pieces) > 1:
            return False
        if self.is_loaded(value):
            return {ROW, COLUMN} <= ix.coords_dims(index)
        return isinstance(node, Map) and node.op == "copy" and self.is_one_load(node.operands[0], index, tile)

    def is_loaded(self, value: Value) -> bool:
        node = self.graph.nodes[value.node]
        return value.node not in self.members and not isinstance(node, IrConst)

    # Stores

    def store_outputs(self) -> None:
        """The outputs over (rows, columns), and those of rows alone."""
        tile, early = self.plane("row", "column"), early_outputs(self.kernel)
        with self.scope(tile):
            placed = {p.value for p in self.core.placed}
            self.store([k for k, o in enumerate(self.kernel.outputs) if k not in early and o.value not in placed])
        for place in self.core.placed:
            with self.scope(self.plane("row", "one") if place.per_row else tile):
                self.store_placed(place)

    def store_placed(self, placed: Placed) -> None:
        """Stores an output that is a part of the product, where the tile is of that part."""
        coords, guard = self.at_place(placed)
        value, node = placed.value, self.graph.nodes[placed.value.node]
        buffer = self.outs[[o.value for o in self.kernel.outputs].index(value)]
        with self.where(guard) as inside:
            if isinstance(node, Scatter):
                self.write(buffer, node, coords, inside)
            else:
                offset = self.offset(coords, self.graph.array(value).shape)
                self.ops.store(buffer, offset, self.value(value, coords, inside), inside)

    def at_place(self, placed: Placed) -> tuple[Coords, Guard]:
        """Where in an output the scope's points are, and which of them are in it."""
        assert self.tile is not None
        moved = placed.moved(self.space(self.tile), self.tile.sizes)
        return moved.at, moved.guard

    @contextmanager
    def where(self, guard: Guard) -> Generator[Guard]:
        """Inside, `guard` holds, or what is given of it is still to be tested at each point."""
        if not guard or not self.uniform(guard):
            yield guard
            return
        self.layers.append({})
        with self.ops.when(guard):
            yield ()
        self.layers.pop()

    def store_operand(self, stored: Stored, tile: Tile) -> None:
        """Stores an output from an operand's tile; along axes that it does not vary along, the first point does."""
        space, array = self.space(tile), self.graph.array(stored.value)
        coords = tuple(simplify(ix.substitute(e, space), tile.sizes) for e in stored.at)
        varied = frozenset[int]().union(*(ix.dims_of(e) for e in stored.at))
        repeated = [e for axis, e in enumerate(space) if axis not in varied]
        if "key" not in tile.spans and self.parted:  # which every share of the keys reads
            repeated.append(ix.floordiv(Dim(GRID), self.grid))
        guard = simplify_guard(tuple(Bound(e, 0, 1) for e in repeated), tile.sizes)
        assert guard is not None
        buffer = self.outs[[o.value for o in self.kernel.outputs].index(stored.value)]
        self.ops.store(buffer, self.offset(coords, array.shape), self.value(stored.value, coords, ()), guard)

    @contextmanager
    def joining(self) -> Generator[None]:
        """What the last program to leave its part of a tile does; inside, scopes are those of the whole.

        Few rows are no longer padded to what the matrix unit takes: that is as many times the instructions.
        """
        with self.ops.last(self.plane("row", "column"), *self.tickets):
            self.parted = False
            if self.frame.sizes[ROW] < self.config.block_rows and self.segment is None:
                self.config = replace(self.config, block_rows=max(power_of_two(self.frame.sizes[ROW]), 2))
            yield

    def store_part(self, number: int, tile: Tile, value: V) -> None:
        """Leaves one array of the partial result."""
        with self.scope(tile):
            self.ops.store(self.scratch[number], self.part_offset(tile, 0), value)

    def load_part(self, number: int, tile: Tile, split: int) -> V:
        return self.ops.load(self.scratch[number], self.part_offset(tile, split), ())

    def part_offset(self, tile: Tile, split: int) -> Expr:
        grid = ix.add(Dim(GRID), Const(split * self.grid))
        _, rows, columns, *heads = tile.sizes
        place = (grid, Dim(ROW), *(Dim(HEAD) for _ in heads), Dim(COLUMN))
        return simplify(ix.linearize(place, (1, rows, *heads, columns)), tile.sizes)
