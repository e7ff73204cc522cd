"""The Triton handler's way from a program's number to the segment of rows that it has a block of.

Input: the lengths of the segments, in memory.  Output: lines that define `row_start` and `row_end`, the program's rows,
and the name of their segment.  Invariant: the blocks of all segments, and of the rows past the last one, are numbered
one after the other, so each row is one program's; programs that are left have no rows.
"""

from __future__ import annotations

from jaxorch.codegen.ops import Buffer, Tile
from jaxorch.codegen.triton_writer import Writer
from jaxorch.ir.index import Segment
from jaxorch.kernels.configs import power_of_two
from jaxorch.kernels.frame import ROW

__all__ = ["find_segment"]


def find_segment(ops: Writer, tile: Tile, lengths: Buffer, segment: Segment) -> str:
    """Writes what finds the rows of block number `row_block`; the name of their segment, clamped.

    Lengths are as they come: whatever they are, rows are rows of the array, and each is at most one program's.
    """
    count, rows, block = segment.high + 1, tile.sizes[ROW], tile.block_rows
    number = "row_block" if tile.row_blocks > 1 else "0"
    narrow = "" if ops.lane_type else ".to(tl.int32)"
    ops.put(f"segment_lane = tl.arange(0, {power_of_two(count)})")
    mask = f", mask=segment_lane < {count}, other=0" if power_of_two(count) > count else ""
    ops.put(f"lengths = tl.load({lengths.name} + segment_lane{mask}).to(tl.int64)")
    ops.put(f"lengths = tl.minimum(tl.maximum(lengths, 0), {rows})")
    ops.put(f"blocks = (lengths + {block - 1}) // {block}")
    ops.put(f"before = (tl.cumsum(blocks, axis=0) <= {number}) & (segment_lane < {count})")
    ops.put("segment = tl.sum(before.to(tl.int32), axis=0)")
    ops.put("first = tl.sum(tl.where(before, lengths, 0), axis=0)")
    ops.put("first_block = tl.sum(tl.where(before, blocks, 0), axis=0)")
    ops.put("last = first + tl.sum(tl.where(segment_lane == segment, lengths, 0), axis=0)")
    ops.put(f"last = tl.minimum(tl.where(segment < {count}, last, {rows}), {rows})")
    ops.put(f"row_start = tl.minimum(first + ({number} - first_block) * {block}, {rows}){narrow}")
    ops.put(f"row_end = last{narrow}")
    ops.put(f"own = tl.minimum(segment, {segment.high}){ops.lane_type}")
    return "own"
