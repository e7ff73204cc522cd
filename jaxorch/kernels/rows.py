"""Reductions of a product's rows in its kernel: a norm or a softmax of what the product gives.

Input: a core, and the reductions that what follows the product reads.  Output: what they read over the tile, or the
reason why they are none of its rows'.  Invariant: a tile holds all columns of its rows, and each reduction is over the
elements of one row, all of them, each at the point of the tile that has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, Reduce
from jaxorch.ir.index import Dim
from jaxorch.ir.simplify import coords_of
from jaxorch.kernels.access import Accesses, Reduction, ShallowWalk, operand_coords
from jaxorch.kernels.sides import Core

__all__ = ["LONGEST_ROW", "reduced_rows"]

LONGEST_ROW = 512
"""The most columns of a product that a tile holds, for its rows to be reduced."""


def reduced_rows(
    graph: Graph,
    members: frozenset[int],
    unrolled: frozenset[int],
    core: Core,
    reductions: Sequence[Reduction],
    columns: Sequence[int],
    sizes: tuple[int, ...],
) -> Accesses | str:
    """What the reductions, and those that they need, read at the points of a tile whose columns are the axes `columns`.

    Reduced elements are counted as the columns are, so that each is at the point that has its product.
    """
    counts = [sizes[a] for a in columns]
    flat, found = ix.linearize([Dim(a) for a in columns], counts), Accesses()
    if math.prod(counts) > LONGEST_ROW:
        return f"a reduction after a contraction of {math.prod(counts)} columns"
    pending = list(reductions)
    for reduction in pending:
        node = graph.nodes[reduction.node]
        assert isinstance(node, Reduce)
        if node.count != math.prod(counts) or any(ix.dims_of(e) & {*columns} for e in reduction.coords):
            return "a reduction after a contraction"
        coords = operand_coords(node, reduction.coords, coords_of(flat, [node.domain[a] for a in node.axes], sizes))
        for view in node.operands:
            ShallowWalk(graph, members, found, unrolled).view(view, coords, (), sizes)
        pending += [r for r in found.reductions if r not in pending]
    if found.outside or any((r.node, r.coords) != (core.last, core.at) for r in found.contractions):
        return "a reduction after a contraction"
    return found
