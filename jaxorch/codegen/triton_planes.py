"""The Triton handler's scopes around contractions: tiles over any two spans, and the loops in which they lie.

Input: the calls of `gemm` and `online`.  Output: coordinates, loops and conditions of one `@triton.jit` function.
Invariant: what changes from one step of a loop to the next has the pseudo-axis STEP among its axes, so that nothing of
it leaves the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from jaxorch.codegen.ops import Buffer, Tile, ahead, moves
from jaxorch.codegen.triton_interleaved import Interleaving
from jaxorch.codegen.triton_ops import TritonOps
from jaxorch.codegen.triton_ranges import live_range
from jaxorch.codegen.triton_segments import find_segment
from jaxorch.codegen.triton_writer import Axes, Block, Names, Text, heads_between
from jaxorch.ir import index as ix
from jaxorch.ir.index import Dim, Expr, FloorDiv, Guard, Lookup, Mod, Segment
from jaxorch.ir.simplify import linear_terms, simplify
from jaxorch.kernels.frame import COLUMN, GRID, HEAD, ROW

__all__ = ["STEP", "TritonPlanes"]

STEP = 4  # beside GRID, ROW, COLUMN and HEAD: what differs from one step of a loop to the next; the step's number
_LANE = 5  # the place in a step's block

_WRITTEN_OUT = 16  # steps of a loop

_WAYS = {ROW: "down", COLUMN: "along", HEAD: "across"}


@dataclass(frozen=True, slots=True)
class _Shares:
    """The program's share of a loop's axis, and where all shares begin and end if that is not the whole of it."""

    first: str
    last: str
    live: tuple[str, str] | None = None


class TritonPlanes(TritonOps):
    """TritonOps whose scopes are planes: tiles over two of the kernel's spans."""

    def __init__(self, tile: Tile, *, column_blocks: int, num_stages: int, wide: bool, arch: int | None) -> None:
        """`arch`: the compute capability that the kernel is for, None of the interpreter."""
        self.arch = arch
        self.grid = "grid"  # the name of the scope's coordinate there
        self.blocked: dict[str, int] = {}  # by span, the block of the first loop over it
        self.extents: dict[str, int] = {}  # by span without a loop, the first extent that it has
        self.computes_windows = False  # whether each element of an operand is computed from many reads
        self.narrow: dict[str, Text] = {}  # values held in float32: what they are in the dtype they came in
        super().__init__(
            tile,
            column_blocks=column_blocks,
            num_stages=num_stages,
            wide=wide,
            side=Interleaving(1, 1),
            interpret=arch is None,
        )

    @property
    def flat(self) -> bool:
        return False

    def prologue(self, wide: bool) -> None:
        pass  # `begin` writes it

    def begin(self, *, descending: int = 0, group: int = 0) -> None:
        if not descending and not group:
            super().prologue(bool(self.lane_type))
            return
        assert self.head_blocks == self.points_each == 1
        self.put("program = tl.program_id(0)" + (".to(tl.int64)" if self.lane_type else ""))
        if group:
            self.grouped(group)
            return
        assert self.column_blocks == 1
        rows = self.row_blocks
        self.put(f"row_block = {rows - 1} - program // {descending} % {rows}")
        slow = f"program // {descending * rows} * {descending} + "
        self.put(f"grid = {slow if descending < self.frame.sizes[GRID] else ''}program % {descending}")

    def grouped(self, group: int) -> None:
        """The program's tile where `group` blocks of rows go along the columns together."""
        rows, columns, tile = self.row_blocks, self.column_blocks, "program"
        if self.frame.sizes[GRID] > 1:
            self.put(f"grid = program // {rows * columns}")
            tile = self.once("tile", f"program % {rows * columns}")
        if group >= rows:
            self.put(f"row_block = {tile} % {rows}")
            self.put(f"column_block = {tile} // {rows}")
            return
        self.put(f"group_first = {tile} // {group * columns} * {group}")
        self.put(f"group_rows = tl.minimum({rows} - group_first, {group})")
        self.put(f"row_block = group_first + {tile} % {group * columns} % group_rows")
        self.put(f"column_block = {tile} % {group * columns} // group_rows")

    def rows(self) -> None:
        pass  # spans are defined where they are first used

    # Scopes

    @contextmanager
    def scope(self, tile: Tile) -> Generator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        outer, self.tile = self.tile, tile
        yield
        self.tile = outer

    def axes(self) -> Axes:
        tile = self.tile
        row = self.span(tile.spans[0], tile.sizes[ROW], tile.block_rows, ROW)
        column = self.span(tile.spans[1], tile.sizes[COLUMN], tile.block_columns, COLUMN)
        heads = tile.sizes[HEAD] if self.has_heads else 1
        head = self.span("head", heads, tile.block_heads, HEAD)
        names, sizes = (self.grid, row[0], column[0], head[0]), (*tile.sizes[:HEAD], heads)
        places = (*row[1:], *column[1:], *head[1:])
        if not tile.loops:
            return Axes(names, sizes, *places)
        axis = min(tile.loops)
        block = tile.blocks[axis]
        step, lane = f"{tile.spans[axis - 1]}_step", (row if axis == ROW else column)[2]
        counts = (-(-sizes[axis] // block), block)
        return Axes((*names, step, lane), (*sizes, *counts), *places)

    @property
    def scalars(self) -> frozenset[int]:
        return frozenset((GRID, STEP))

    def stepped(self, expr: Expr, axes: Axes) -> Expr:
        """The expression over the step and the lane of a loop's axis where its quotients fall apart into those.

        With 128 features a block of 64 elements is at one place of a window: x // 128 = step // 2,
        x % 128 = 64*(step % 2) + lane.
        """
        if not any(isinstance(a, FloorDiv | Mod) and ix.dims_of(a) & self.tile.loops for a in _atoms(expr, axes.sizes)):
            return expr
        axis = min(self.tile.loops)
        coords: list[Expr] = [Dim(a) for a in (GRID, ROW, COLUMN, HEAD)]
        coords[axis] = ix.add(ix.mul(Dim(STEP), axes.sizes[_LANE]), Dim(_LANE))
        found = simplify(ix.substitute(expr, coords), axes.sizes)
        if any({STEP, _LANE} <= ix.dims_of(a) for a in _atoms(found, axes.sizes)):
            return expr
        name, block = axes.names[STEP], self.loop_block
        if name not in block.names:
            block.names[name] = name
            block.lines.append(f"{name} = {self.tile.spans[axis - 1]}_start // {axes.sizes[_LANE]}")
        return found

    def in_steps(self, guard: Guard, axes: Axes) -> Guard:
        """`stepped` on every bound; the condition may then have fewer axes."""
        return tuple(replace(b, expr=self.stepped(b.expr, axes)) for b in guard)

    def pointer(self, buffer: Buffer, offset: Expr, axes: Axes) -> str:
        found = self.stepped(offset, axes)
        # the lanes give the pointers their shape
        return super().pointer(buffer, found if _LANE in ix.dims_of(found) else offset, axes)

    def span(self, name: str, size: int, block: int, axis: int) -> tuple[str, str, str]:
        """The names of a span's coordinate, its start and its lanes, lying along `axis`."""
        if block == 1:
            return "0", "", ""
        way, shape = _WAYS[axis], ", ".join(":" if a == axis else "None" for a in self.order)
        lane = self.once(f"lane{block}_{way}", f"tl.arange(0, {block})[{shape}]{self.lane_type}")
        blocks = {"row": self.row_blocks, "column": self.column_blocks, "head": self.head_blocks}.get(name, 1)
        looped = axis in self.tile.loops
        segmented = self.is_segmented(axis)
        start = f"{name}_start" if looped or blocks > 1 or segmented else ""
        if start and not looped and not segmented:
            self.once(start, f"{name}_block * {block}")
        usual = self.frame.block_rows if name == "row" else self.blocked.setdefault(name, block) if looped else block
        fewer = "" if block == usual else str(block)
        if not looped and self.extents.setdefault(name, size) != size:  # of several stretches, each in one step
            fewer = f"_of{size}"
        coordinate, place = f"{name}{fewer}_{way}", self.loop_block if looped else self.blocks[0]
        if coordinate not in place.names:
            place.names[coordinate] = coordinate
            place.lines.append(f"{coordinate} = {start} + {lane}" if start else f"{coordinate} = {lane}")
            if size % block or segmented:
                place.lines.append(f"{coordinate}_mask = {coordinate} < {'row_end' if segmented else size}")
        return coordinate, start, lane

    def is_segmented(self, axis: int) -> bool:
        """Whether what lies along an axis of the scope is rows of one segment, which begins and ends anywhere."""
        return self.frame.segments > 0 and self.tile.spans[axis - 1 : axis] == ("row",)

    def segmented(self, tile: Tile, lengths: Buffer, segment: Segment) -> Iterator[None]:
        found = Text(find_segment(self, tile, lengths, segment), frozenset())
        self.bound[found.name] = found.dims
        self.remember(segment, found, self.axes())
        yield

    @property
    def loop_block(self) -> Block:
        return next(b for b in reversed(self.blocks) if b.kind == "loop")

    @property
    def before_loop(self) -> Block:
        first = next(k for k, b in enumerate(self.blocks) if b.kind == "loop")
        return self.blocks[first - 1]

    def varies(self, dims: frozenset[int]) -> bool:
        return STEP in dims or bool(dims & self.tile.loops)

    def name(self, expr: str, dims: frozenset[int], prefix: str = "v") -> Text:
        return super().name(expr, dims | {STEP} if self.varies(dims) else dims, prefix)

    def loop(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tile: Tile, live: Guard, doubt: Callable[[], Text] | None
    ) -> AbstractContextManager[None]:
        axis = min(tile.loops)
        counter, block = f"{tile.spans[axis - 1]}_start", tile.blocks[axis]
        shares = self.shares(tile, live)
        if shares.live is not None and doubt is not None:
            return self.phases(tile, counter, block, shares.live, shares, doubt)
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

    @contextmanager
    def when(self, guard: Guard) -> Generator[None]:
        condition = self.condition(guard, self.axes(), start=True)
        self.blocks.append(Block("branch"))
        yield
        self.indented(f"if {condition}:", self.blocks.pop())

    def share_number(self, tile: Tile) -> str:
        """Which share of a loop the program takes."""
        grid = tile.sizes[GRID] // tile.splits
        return self.once("split", f"grid // {grid}" if grid > 1 else "grid")

    @contextmanager
    def over_points(self, count: int) -> Generator[None]:
        if count == 1:
            yield
            return
        self.blocks.append(Block("loop"))
        self.put("here = grid + point")
        self.grid = "here"
        yield
        self.grid = "grid"
        self.indented(f"for point in range(0, {count}):", self.blocks.pop())

    def dims(self, expr: Expr) -> frozenset[int]:
        return super().dims(expr) | (frozenset((STEP,)) if moves(expr, self.tile) else frozenset[int]())

    def same(self, expr: Expr, names: Names) -> Names:
        """`names`, but before the loop over points for an expression that is the same for all of them."""
        return ("grid", *names[1:]) if names[GRID] == "here" and STEP not in self.dims(expr) else names

    def remember(self, lookup: Lookup, text: Text, axes: Axes) -> None:
        super().remember(lookup, text, replace(axes, names=self.same(lookup, axes.names)))

    def known(self, atom: Expr, axes: Axes, names: Names) -> str | None:
        return super().known(atom, axes, self.same(atom, names))

    def atom(self, atom: Expr, axes: Axes, names: Names) -> str:
        known = self.known(atom, axes, names)
        if known is not None:
            return known
        if self.blocks[-1].kind == "branch" or self.same(atom, names) == names:
            return super().atom(atom, axes, names)
        # The same for all points: written before their loop, at the first of them.
        here, self.grid = self.blocks.pop(), "grid"
        fixed = replace(axes, names=self.same(atom, axes.names))
        found = super().atom(atom, fixed, fixed.names if names == axes.names else fixed.starts)
        self.blocks.append(here)
        self.grid = "here"
        return found

    def branch(self, guard: Guard):
        made = super().branch(guard)
        if self.grid == "here":  # it stands in the loop over points
            made.dims |= {STEP}
        return made

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
        self,
        tile: Tile,
        counter: str,
        block: int,
        live: tuple[str, str],
        shares: _Shares,
        doubt: Callable[[], Text],
    ) -> Generator[None]:
        """First the program's share of the live blocks, then those before and those after if a row is in doubt.

        Of several splits, the first one alone visits the latter: if none of its rows is in doubt, none of the whole is.
        """
        (low, high), size = live, tile.sizes[COLUMN]
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

    @property
    def has_heads(self) -> bool:
        """Whether tiles have heads, as a third axis between the two others."""
        return self.frame.block_heads > 1

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of tiles, in their order."""
        return heads_between() if self.has_heads else (ROW, COLUMN)

    @property
    def repeats(self) -> Iterator[tuple[str, int]]:
        """The spans that the scope does not have, and over how many programs they are spread."""
        for span, blocks in (("row", self.row_blocks), ("column", self.column_blocks)):
            if span not in self.tile.spans:
                yield span, blocks

    def turn(self, block: str, blocks: int) -> str:
        """Whether it is the program's turn to store what it has in common with those of other blocks."""
        if not self.tile.loops:
            return f"({block} == 0)"
        axis = min(self.tile.loops)
        size = self.tile.block_columns if axis == COLUMN else self.tile.block_rows
        return f"({self.tile.spans[axis - 1]}_start // {size} % {blocks} == {block})"


def _atoms(expr: Expr, sizes: tuple[int, ...]) -> list[Expr]:
    return [atom for atom, _ in linear_terms(expr, sizes)[0]]
