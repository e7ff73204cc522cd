"""Heads: a batch axis of a product that lies behind a short axis in memory, of which a tile holds several indices.

Input: what each operand of a contraction reads, and the frame with all batch axes in the grid.  Output: the frame whose
tiles have heads, if one pays.  Invariant: no operand and no product mixes two heads.

With heads in the grid each of a program's reads would be a run of a few bytes, of a line that other programs read, too:
of q = qkv[n, h, :16] in bfloat16 32 bytes in every 96.  With heads in the tile its lanes run along both axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.kernels.access import Accesses, Load
from jaxorch.kernels.frame import Frame

__all__ = ["LINE", "heads_frame"]

LINE = 128
"""Bytes of a cache line."""


def heads_frame(graph: Graph, left: Accesses, right: Accesses, frame: Frame, *, beside: bool) -> Frame | None:
    """The frame with heads, given what the operands with the rows and with the columns read over (*domain, KEY, ..).

    `beside`: the left operand's tile is summed along its columns, too, which so are the contracted elements.
    """
    loads = [*left.loads, *right.loads]
    largest = max((graph.array(load.value).nbytes for load in loads), default=0)
    large = [load for load in loads if 2 * graph.array(load.value).nbytes >= largest]
    found = (_behind(_strides(graph, load), load, graph, frame.grid) for load in large)
    axis = next((axis for axis in found if axis is not None), None)
    if axis is None:
        return None
    key, grid = len(frame.domain), tuple(a for a in frame.grid if a != axis)
    along = [any(_strides(graph, load).get(key) == 1 for load in side.loads) for side in (left, right)]
    return replace(frame, grid=grid, heads=(axis,), keys_along=(beside or along[0], along[1]))


def _strides(graph: Graph, load: Load) -> dict[int, int]:
    """How far apart in memory neighbours along each axis are, for axes along which that is always as far."""
    offset = simplify(ix.linearize(load.index, graph.array(load.value).shape), load.sizes)
    found = {axis: coefficient(offset, axis, load.sizes) for axis, size in enumerate(load.sizes) if size > 1}
    return {axis: stride for axis, stride in found.items() if stride}


def _behind(strides: dict[int, int], load: Load, graph: Graph, grid: Sequence[int]) -> int | None:
    """The axis of the grid that follows runs of less than a line, if one does."""
    run, itemsize = 1, graph.array(load.value).dtype.itemsize
    for axis in sorted(strides, key=lambda a: abs(strides[a])):
        if axis in grid:
            return axis if run > 1 and run * itemsize < LINE and strides[axis] > 0 else None
        if strides[axis] != run:
            return None
        run *= load.sizes[axis]
    return None
