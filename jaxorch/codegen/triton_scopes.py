"""The Triton handler's scopes: the program's place in the grid, the coordinates of tiles, loops, and masks.

Input: the scopes of the walk in `body`.  Output: the lines that define coordinates.  Invariant: a coordinate is defined
once, at the function's level or, where it runs over a loop, at the loop's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

from jaxorch.codegen.ops import Tile
from jaxorch.codegen.triton_interleaved import Interleaving
from jaxorch.codegen.triton_writer import Axes, Block, Writer
from jaxorch.ir.index import Dim, Guard
from jaxorch.kernels.configs import power_of_two
from jaxorch.kernels.frame import COLUMN, GRID, HEAD, ROW

__all__ = ["TritonScopes"]


class TritonScopes(Writer):
    """A Writer that knows the scope whose values are being written, `tile`."""

    def __init__(self, tile: Tile, *, column_blocks: int, num_stages: int, wide: bool, side: Interleaving) -> None:
        """`tile`: the frame's extents and blocks; `wide`: offsets need 64 bits; `side`: what is unrolled."""
        super().__init__(tile)
        self.tile, self.side, self.num_stages = tile, side, num_stages
        self.lane_type = ".to(tl.int64)" if wide else ""
        self.row_blocks = tile.row_blocks
        self.points_each = tile.points
        self.column_blocks = column_blocks
        self.head_blocks = -(-tile.sizes[HEAD] // tile.block_heads) if tile.sizes[HEAD:] else 1
        self.column = "column"
        self.row_start = ""
        self.prologue(wide)

    def prologue(self, wide: bool) -> None:
        """The program's place in the grid: grid point, row block, block of heads and column block, fastest last."""
        self.put("program = tl.program_id(0)" + (".to(tl.int64)" if wide else ""))
        rest = "program"
        many = self.frame.sizes[GRID] > 1
        if self.column_blocks > 1:
            alone = self.row_blocks == self.head_blocks == 1 and not many
            self.put(f"column_block = {rest}" if alone else f"column_block = {rest} % {self.column_blocks}")
            rest = f"{rest} // {self.column_blocks}"
        if self.head_blocks > 1:
            self.put(f"head_block = ({rest}) % {self.head_blocks}")
            rest = f"{rest} // {self.head_blocks}"
        if self.row_blocks > 1:
            self.put(f"row_block = ({rest}) % {self.row_blocks}" if many else f"row_block = {rest}")
        if many:
            rest = f"({rest}) // {self.row_blocks}" if self.row_blocks > 1 else rest
            self.put(f"grid = {rest}" if self.points_each == 1 else f"grid = ({rest}) * {self.points_each}")
        self.rows()

    def rows(self) -> None:
        size, block = self.frame.sizes[ROW], self.frame.block_rows
        if size == 1:
            return
        if self.flat:
            self.put("row = row_block" if self.row_blocks > 1 else "row = 0")
            self.row_start = "row"
            return
        if self.row_blocks > 1:
            self.put(f"row_start = row_block * {block}")
            self.row_start = "row_start"
        self.put(f"row_lane = tl.arange(0, {block})[:, None]{self.lane_type}")
        self.put("row = row_start + row_lane" if self.row_start else "row = row_lane")
        if size % block:
            self.put(f"row_mask = row < {size}")

    # Scopes

    def scope(self, tile: Tile) -> AbstractContextManager[None]:
        return self.loop(tile) if tile.walk == "loop" else self.straight(tile)

    def write_column(self) -> None:
        """Defines the scope's column coordinate, and its mask where the last block overruns."""
        axes, size = self.axes(), self.tile.sizes[COLUMN]
        start, lane = axes.column_start, axes.column_lane
        self.put(f"{self.column} = {start} + {lane}" if start else f"{self.column} = {lane}")
        if size % self.tile.block_columns:
            self.put(f"{self.column}_mask = {self.column} < {size}")

    @contextmanager
    def straight(self, tile: Tile) -> Generator[None]:
        outer, self.tile, self.column = (self.tile, self.column), tile, _straight_name(tile)
        if self.column not in self.blocks[0].names:
            self.blocks[0].names[self.column] = self.column
            self.write_column()
        yield
        self.tile, self.column = outer

    @contextmanager
    def loop(self, tile: Tile) -> Generator[None]:
        outer, self.tile, self.column = (self.tile, self.column), tile, f"column_{self.count}"
        self.count += 1
        self.arange(tile.block_columns)
        self.blocks.append(Block("loop"))
        start = counter = self.axes().column_start
        if self.lane_type:
            counter = f"{start}_narrow"
            self.put(f"{start} = {counter} + tl.full([], 0, tl.int64)")
        self.write_column()
        yield
        body = self.blocks.pop()
        stages = "" if self.num_stages < 2 else f", num_stages={self.num_stages}"
        function = "tl.range" if stages else "range"
        self.indented(f"for {counter} in {function}(0, {tile.sizes[COLUMN]}, {tile.block_columns}{stages}):", body)
        self.tile, self.column = outer

    def axes(self) -> Axes:
        if self.tile.walk == "loop":
            start = "start" + self.column.removeprefix("column")
        elif self.tile.walk == "grid" and self.column_blocks > 1:
            start = self.once(f"{self.column}_start", f"column_block * {self.tile.block_columns}")
        else:
            start = ""
        lane = self.arange(self.tile.block_columns)
        row_lane = "" if self.flat else "row_lane"
        return Axes(("grid", "row", self.column), self.tile.sizes, self.row_start, row_lane, start, lane)

    def wide_axes(self, part: int | None) -> Axes:
        """Axes whose column counts single elements rather than columns of unrolled ones, of one part of them or all."""
        side, block = self.side, self.tile.block_columns
        name = f"{self.column}_wide" if part is None else f"{self.column}_part{part}"
        grid, rows, columns = self.tile.sizes
        start = ""
        if self.column_blocks > 1:
            start = self.once(f"{self.column}_wide_start", f"column_block * {block * side.count}")
        lane = self.arange(side.lanes(block) if part is None else block)
        if part is not None:
            lane = self.once(f"{name}_lane", side.element_of_part(lane, part))
        elif side.is_padded:
            self.once(f"{name}_inside", f"{lane} % {side.padded} < {side.length}")
            lane = self.once(f"{name}_lane", side.element(lane))
        self.once(name, f"{start} + {lane}" if start else lane)
        if columns % block:
            self.once(f"{name}_mask", f"{name} < {columns * side.count}")
        row_lane = "" if self.flat else "row_lane"
        return Axes(("grid", "row", name), (grid, rows, columns * side.count), self.row_start, row_lane, start, lane)

    @property
    def whole(self) -> frozenset[int]:
        """The axes that a whole tile varies along."""
        return frozenset((COLUMN,)) if self.flat else frozenset((ROW, COLUMN))

    def shape(self, columns: int, rows: int | None = None) -> list[int]:
        """The shape of a tile of so many columns; its rows are the frame's unless given."""
        return [columns] if self.flat else [self.frame.block_rows if rows is None else rows, columns]

    def mask(self, dims: frozenset[int], guard: Guard, axes: Axes) -> str:
        """The mask argument of a load or store that varies along `dims` (empty if none is needed)."""
        overruns = (
            (ROW, "row_mask", not self.flat and self.frame.sizes[ROW] % self.frame.block_rows),
            (COLUMN, f"{axes.names[COLUMN]}_mask", self.tile.sizes[COLUMN] % self.tile.block_columns),
        )
        tests = [name for axis, name, over in overruns if over and axis in dims and not self.ends(guard, axis)]
        if guard:
            tests.append(self.condition(guard, axes))
        return f", mask={' & '.join(tests)}" if tests else ""

    def ends(self, guard: Guard, axis: int) -> bool:
        """Whether the guard itself ends before the axis does; another test would make the mask's runs shorter."""
        return any(b.expr == Dim(axis) and b.high < self.tile.sizes[axis] for b in guard)


def _straight_name(tile: Tile) -> str:
    size, block = tile.sizes[COLUMN], tile.block_columns
    return f"column{size}_of_{block}" if tile.walk == "tile" and block != power_of_two(size) else f"column{size}"
