"""The Triton handler's loops over products: the share of one that a program takes, and its phases under a mask.

Input: the calls of `gemm` and `online`.  Output: loops and conditions of one `@triton.jit` function.  Invariant: the
shares of all programs together are the loop's axis, or the part of it that a mask leaves, each block once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from jaxorch.codegen.ops import Buffer, Tile, ahead
from jaxorch.codegen.triton_planes import TritonPlanes
from jaxorch.codegen.triton_ranges import live_range
from jaxorch.codegen.triton_writer import Block, Text
from jaxorch.ir.index import Expr, Guard
from jaxorch.kernels.frame import COLUMN, GRID, ROW

__all__ = ["TritonLoops"]

_WRITTEN_OUT = 16  # steps of a loop


@dataclass(frozen=True, slots=True)
class _Shares:
    """The program's share of a loop's axis, and where all shares begin and end if that is not the whole of it."""

    first: str
    last: str
    live: tuple[str, str] | None = None


class TritonLoops(TritonPlanes):
    """TritonPlanes with loops over one span of theirs."""

    computes_windows = False  # whether each element of an operand is computed from many reads

    def loop(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tile: Tile, live: Guard, doubt: Callable[[], Text] | None
    ) -> AbstractContextManager[None]:
        axis = min(tile.loops)
        counter, block = f"{tile.spans[axis - 1]}_start", tile.blocks[axis]
        if tile.turns > 1:  # along the rows
            first = f"row_block * {block}" if self.row_blocks > 1 else "0"
            return self.steps(counter, block * self.row_blocks, first, str(tile.sizes[axis]))
        shares = self.shares(tile, live)
        if shares.live is not None and doubt is not None:
            return self.phases(tile, counter, block, shares, doubt)
        return self.steps(counter, block, shares.first, shares.last)

    def shares(self, tile: Tile, live: Guard) -> _Shares:
        """Which part of a loop's axis the program takes."""
        axis, outer = min(tile.loops), self.tile
        size, block = tile.sizes[axis], tile.blocks[axis]
        self.tile = ahead(tile)
        ends = live_range(self, live, block) if live else None
        self.tile = outer
        if ends is not None:
            low, high = (self.once(name, text) for name, text in zip(("live_first", "live_last"), ends, strict=True))
            if tile.splits == 1:
                return _Shares(low, high, (low, high))
            step = block * tile.splits
            share = self.once("share", f"({high} - {low} + {step - 1}) // {step} * {block}")
            first = self.once("share_first", f"{low} + {self.share_number(tile)} * {share}")
            return _Shares(first, self.once("share_last", f"tl.minimum({first} + {share}, {high})"), (low, high))
        end = f"{tile.spans[axis - 1]}_end" if tile.segments else str(size)
        if tile.segments:
            self.once(end, f"tl.where(segment < {tile.segments}, {size}, 0)")
        if tile.splits == 1:
            return _Shares("0", end)
        share = -(-size // (block * tile.splits)) * block
        first = self.once("share_first", f"{self.share_number(tile)} * {share}")
        return _Shares(first, self.once("share_last", f"tl.minimum({first} + {share}, {end})"))

    @contextmanager
    def owner(self, tile: Tile, live: Guard, place: Expr) -> Generator[None]:
        if tile.splits == 1:
            yield
            self.put("tl.debug_barrier()")
            return
        shares, where = self.shares(tile, live), self.text(place, self.axes())
        test = f"({where} >= {shares.first}) & ({where} < {shares.last})"
        if shares.live is not None:
            low, high = shares.live
            test = f"{test} | (({where} < {low}) | ({where} >= {high})) & ({self.share_number(tile)} == 0)"
        self.blocks.append(Block("branch"))
        yield
        self.put("tl.debug_barrier()")
        body = self.blocks.pop()
        self.indented(f"if {test}:", body)

    def share_number(self, tile: Tile) -> str:
        """Which share of a loop the program takes."""
        grid = tile.sizes[GRID] // tile.splits
        return self.once("split", f"grid // {grid}" if grid > 1 else "grid")

    @contextmanager
    def steps(self, counter: str, block: int, first: str, last: str) -> Generator[None]:
        self.blocks.append(Block("loop"))
        if self.lane_type:
            self.put(f"{counter} = {counter}_narrow + tl.full([], 0, tl.int64)")
        yield
        body = self.blocks.pop()
        variable = f"{counter}_narrow" if self.lane_type else counter
        kind = "tl.static_range" if counter == "key_start" and self.written_out(first, last, block) else "range"
        self.indented(f"for {variable} in {kind}({first}, {last}, {block}):", body)

    def written_out(self, first: str, last: str, block: int) -> bool:
        """Whether a loop of products is written out: if it has few steps, which load, and share no stages.

        A thread's places in a window are then numbers, and none of what they are divided and tested by is computed.
        """
        known = first == "0" and last.isdecimal() and self.num_stages == 1 and not self.lane_type
        plain = not self.computes_windows and not self.has_heads
        return known and plain and 1 < -(-int(last) // block) <= _WRITTEN_OUT

    @contextmanager
    def phases(
        self, tile: Tile, counter: str, block: int, shares: _Shares, doubt: Callable[[], Text]
    ) -> Generator[None]:
        """First the program's share of the live blocks, then those before and those after if a row is in doubt.

        Of several splits, the first one alone visits the latter: if none of its rows is in doubt, none of the whole is.
        """
        assert shares.live is not None
        (low, high), size = shares.live, tile.sizes[COLUMN]
        others = f"(doubt > 0) & ({self.share_number(tile)} == 0)" if tile.splits > 1 else "doubt > 0"
        zero = "tl.full([], 0, tl.int32)"
        for name, start in (("phase", "0"), ("first", shares.first), ("last", shares.last)):
            self.put(f"{name} = ({zero} + {start}).to(tl.int32)")  # of one type in all turns; they are columns
        self.blocks.append(Block("loop"))
        with self.steps(counter, block, "first", "last"):
            yield
        rows = doubt()
        if self.tile_rows_overrun:
            rows = Text(f"({rows.name} & {self.row_mask()})", rows.dims)
        self.put(f"doubt = tl.max(tl.max({rows.name}.to(tl.int32), axis=1), axis=0)")
        self.put(f"first = tl.where(phase == 0, 0, {high}).to(tl.int32)")
        self.put(f"last = tl.where(phase == 0, {low}, {size}).to(tl.int32)")
        self.put(f"phase = tl.where({others}, phase + 1, 3)")
        body = self.blocks.pop()
        self.indented("while phase < 3:", body)

    @contextmanager
    def last(self, tile: Tile, tickets: Buffer) -> Generator[None]:
        grid = tile.sizes[GRID] // tile.splits
        counter = f"{tickets.name} + program % {grid * self.row_blocks * self.head_blocks * self.column_blocks}"
        self.put("tl.debug_barrier()")  # all threads have stored before one of them says so
        self.put(f"ticket = tl.atomic_add({counter}, 1)")
        self.blocks.append(Block("branch"))
        self.put(f"tl.store({counter}, 0)")
        if grid > 1:
            self.put(f"point = grid % {grid}")
        self.grid = "point"
        yield
        self.grid = "grid"
        body = self.blocks.pop()
        self.indented(f"if ticket == {tile.splits - 1}:", body)

    @property
    def tile_rows_overrun(self) -> bool:
        return bool(self.frame.sizes[ROW] % self.frame.block_rows)

    def row_mask(self) -> str:
        coordinate, _, _ = self.span("row", self.frame.sizes[ROW], self.frame.block_rows, ROW)
        return f"{coordinate}_mask"
