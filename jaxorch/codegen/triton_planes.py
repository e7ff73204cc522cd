"""The Triton handler's scopes around contractions: tiles over any two spans, in the loops over them.

Input: the calls of `gemm` and `online`.  Output: coordinates and conditions of one `@triton.jit` function.
Invariant: what changes from one step of a loop to the next has the pseudo-axis STEP among its axes, so that nothing of
it leaves the loop.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace

from jaxorch.codegen.ops import Buffer, Tile, moves
from jaxorch.codegen.triton_interleaved import Interleaving
from jaxorch.codegen.triton_ops import TritonOps
from jaxorch.codegen.triton_segments import find_segment
from jaxorch.codegen.triton_writer import Axes, Block, Names, Text, heads_between
from jaxorch.ir import index as ix
from jaxorch.ir.index import Dim, Expr, FloorDiv, Guard, Lookup, Mod, Segment
from jaxorch.ir.simplify import linear_terms, simplify
from jaxorch.kernels.frame import COLUMN, GRID, HEAD, ROW

__all__ = ["STEP", "TritonPlanes"]

STEP = 4  # beside GRID, ROW, COLUMN and HEAD: what differs from one step of a loop to the next; the step's number
_LANE = 5  # the place in a step's block

_WAYS = {ROW: "down", COLUMN: "along", HEAD: "across"}


class TritonPlanes(TritonOps):
    """TritonOps whose scopes are planes: tiles over two of the kernel's spans."""

    def __init__(self, tile: Tile, *, column_blocks: int, num_stages: int, wide: bool, arch: int | None) -> None:
        """`arch`: the compute capability that the kernel is for, None of the interpreter."""
        self.arch = arch
        self.grid = "grid"  # the name of the scope's coordinate there
        self.blocked: dict[str, int] = {}  # by span, the block of the first loop over it
        self.extents: dict[str, int] = {}  # by span without a loop, the first extent that it has
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
        whose = "row" if name == "block" else name
        blocks = {"row": self.row_blocks, "column": self.column_blocks, "head": self.head_blocks}.get(whose, 1)
        looped = axis in self.tile.loops
        segmented = self.is_segmented(axis)
        start = f"{name}_start" if looped or blocks > 1 or segmented else ""
        if start and not looped and not segmented:
            self.once(start, f"{whose}_block * {block}")
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

    @contextmanager
    def when(self, guard: Guard) -> Generator[None]:
        condition = self.condition(guard, self.axes(), start=True)
        self.blocks.append(Block("branch"))
        yield
        self.indented(f"if {condition}:", self.blocks.pop())

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
            if span not in self.tile.spans and not (span == "row" and "block" in self.tile.spans):
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
