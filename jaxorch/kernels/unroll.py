"""Unrolled reductions: a Reduce or Contract of few elements, computed at every point as a chain of reads.

Input: a graph and the nodes of a kernel.  Output: which of its nodes are unrolled, or that they would read too
much.  Invariant: an unrolled node counts as a Map; its elements are joined in row-major order.

A window (pooling) overlaps its neighbours and slides along the axes that are kept, so as a row it would give a
tile of 9 or 25 columns, gathered with holes; unrolled, neighbouring lanes read neighbouring elements and find
what they share in the first-level cache. So does a convolution of each feature by itself: it has no product of
matrices, whose columns would all be padding but one.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Node, Reduce, reads
from jaxorch.ir.memo import remembered
from jaxorch.ir.monoid import COMBINES
from jaxorch.kernels.frame import split_axis
from jaxorch.passes.derive import MOST_TAPS
from jaxorch.passes.derive.arrange import varied_axes
from jaxorch.passes.derive.match import is_window, overlap

__all__ = ["inner", "is_stencil", "repeats_rows", "taps_of", "windows"]


def _small(node: Node) -> bool:
    """Whether a node is a reduction that can be unrolled."""
    return isinstance(node, Reduce) and node.op in COMBINES and 1 < node.count <= MOST_TAPS


def windows(graph: Graph, members: Collection[int]) -> frozenset[int]:
    """The reductions of a kernel that are better unrolled than rows of a tile, and its stencils."""
    return frozenset(n for n in members if _is_unrolled(graph.nodes[n]))


@remembered
def _is_unrolled(node: Node) -> bool:
    return (_small(node) and (is_window(node) or _pools(node))) or is_stencil(node)


def is_stencil(node: Node) -> bool:
    """Whether a node sums few products of a window, with two columns at most for a matrix unit to fill."""
    if not isinstance(node, Contract) or node.count > MOST_TAPS or node.segment:
        return False
    left, right = (varied_axes(view) for view in node.operands)
    alone = [a for a in right if a not in left and a not in node.axes]
    joined = (e for p in node.operands[0].pieces for e in (*p.index, *(b.expr for b in p.guard)))
    slides = any(ix.dims_of(e) & set(node.axes) and ix.dims_of(e) - set(node.axes) for e in joined)
    return slides and not alone and _columns(node) <= 2


def _columns(node: Contract) -> int:
    """Along the axes that both operands vary along: how many neighbours share one place in the left operand."""
    indices = [e for p in node.operands[0].pieces for e in p.index]
    shared = [a for a in varied_axes(node.operands[1]) if a not in node.axes]
    factors = [split_axis(indices, a, node.domain[a]) for a in shared]
    return math.prod(f[-1] for f in factors if len(f) > 1)


def _pools(node: Node) -> bool:
    """Whether a reduction joins blocks along an axis that is not the last of what it reads: rows with holes."""
    assert isinstance(node, Reduce)
    pieces = (piece for view in node.operands for piece in view.pieces)
    return any(overlap(e, node) for piece in pieces for e in piece.index[:-1])


def inner(graph: Graph, members: Collection[int]) -> frozenset[int]:
    """The windows, and the small reductions with more rows than another has: rows within that one's rows."""
    rows = {n: node.arrays[0].size for n in members if isinstance(node := graph.nodes[n], Reduce)}
    fewest = min(rows.values(), default=0)
    return windows(graph, members) | {n for n, count in rows.items() if count > fewest and _small(graph.nodes[n])}


def repeats_rows(graph: Graph, members: Collection[int], unrolled: Collection[int]) -> bool:
    """Whether an unrolled reduction needs a reduction that is not: that one would run for each of its elements."""
    if not unrolled:
        return False
    after: set[int] = set()  # members that need a row of the tile
    for number in sorted(members):
        node = graph.nodes[number]
        needs = any(v.node in after for v in reads(node))
        if needs and number in unrolled:
            return True
        if needs or (isinstance(node, Reduce) and number not in unrolled):
            after.add(number)
    return False


def taps_of(graph: Graph, members: Collection[int], unrolled: Collection[int]) -> int:
    """The most reads that one element of a member takes, unrolled reductions of unrolled reductions multiplied."""
    if not unrolled:
        return 1
    found: dict[int, int] = {}
    for number in sorted(members):
        node = graph.nodes[number]
        inner = max((found.get(v.node, 1) for v in reads(node)), default=1)
        found[number] = inner * (node.count if number in unrolled and isinstance(node, Reduce | Contract) else 1)
    return max(found.values(), default=1)
