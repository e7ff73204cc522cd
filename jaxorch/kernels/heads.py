"""Heads: a batch axis of a product that lies behind a short axis in memory, of which a tile holds several indices.

Input: what each operand of a contraction reads, and the frame with all batch axes in the grid.  Output: the frame whose
tiles have heads, if one pays.  Invariant: no operand and no product mixes two heads.

With heads in the grid each of a program's reads would be a run of a few bytes, of a line that other programs read, too:
of q = qkv[n, h, :16] in bfloat16 32 bytes in every 96.  With heads in the tile its lanes run along both axes.  The
groups of a convolution are such an axis, behind the features of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph
from jaxorch.ir.index import Dim
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.kernels.access import Accesses, Load
from jaxorch.kernels.frame import Frame

__all__ = ["LINE", "heads_frame"]

LINE = 128
"""Bytes of a cache line."""


def heads_frame(
    graph: Graph, left: Accesses, right: Accesses, frame: Frame, contracted: Sequence[int], *, beside: bool
) -> Frame | None:
    """The frame with heads, given what the operands with the rows and with the columns read over (*domain, KEY, ..).

    `contracted`: the sizes of the axes that are flattened into KEY.
    `beside`: the left operand's tile is summed along its columns, too, which so are the contracted elements.
    """
    loads = [*left.loads, *right.loads]
    largest = max((graph.array(load.value).nbytes for load in loads), default=0)
    large = [load for load in loads if 2 * graph.array(load.value).nbytes >= largest]
    key = len(frame.domain)
    found = (_behind(_apart(graph, load, key, contracted), load, graph, frame.grid) for load in large)
    axis = next((axis for axis in found if axis is not None), None)
    if axis is None:
        return None
    grid, fastest = tuple(a for a in frame.grid if a != axis), key + len(contracted) - 1
    along = [
        any(_apart(graph, load, key, contracted).get(fastest, (0, 0))[0] == 1 for load in side.loads)
        for side in (left, right)
    ]
    return replace(frame, grid=grid, heads=(axis,), keys_along=(beside or along[0], along[1]))


def _apart(graph: Graph, load: Load, key: int, contracted: Sequence[int]) -> dict[int, tuple[int, int]]:
    """How far apart in memory neighbours along each axis are, for axes along which that is always as far, and its size.

    The axes are those of the frame's domain and then the contracted ones, each by itself.
    """
    sizes = (*load.sizes[:key], *contracted)
    flat = ix.linearize([Dim(key + k) for k in range(len(contracted))], contracted)
    coords = [*map(Dim, range(key)), flat, *(ix.Const(0) for _ in load.sizes[key + 1 :])]
    index = [ix.substitute(e, coords) for e in load.index]
    offset = simplify(ix.linearize(index, graph.array(load.value).shape), sizes)
    found = ((axis, coefficient(offset, axis, sizes), size) for axis, size in enumerate(sizes) if size > 1)
    return {axis: (stride, size) for axis, stride, size in found if stride}


def _behind(apart: Mapping[int, tuple[int, int]], load: Load, graph: Graph, grid: Sequence[int]) -> int | None:
    """The axis of the grid that follows runs of less than a line, if one does."""
    run, itemsize = 1, graph.array(load.value).dtype.itemsize
    for axis, (stride, size) in sorted(apart.items(), key=lambda a: abs(a[1][0])):
        if axis in grid:
            return axis if run > 1 and run * itemsize < LINE and stride > 0 else None
        if stride != run:
            return None
        run *= size
    return None
