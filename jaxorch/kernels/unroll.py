"""Unrolled reductions: a Reduce of few elements, computed at every point as a chain of reads.

Input: a graph and the nodes of a kernel.  Output: which of its Reduces are unrolled, or that they would read too
much.  Invariant: an unrolled Reduce counts as a Map; its elements are joined in row-major order.

A window (pooling) overlaps its neighbours and slides along the axes that are kept, so as a row it would give a
tile of 9 or 25 columns, gathered with holes; unrolled, neighbouring lanes read neighbouring elements and find
what they share in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Collection

from jaxorch.ir.graph import Graph, Node, Reduce, reads
from jaxorch.ir.monoid import COMBINES
from jaxorch.passes.derive import MOST_TAPS
from jaxorch.passes.derive.match import is_window, overlap

__all__ = ["inner", "repeats_rows", "taps_of", "windows"]


def _small(node: Node) -> bool:
    """Whether a node is a reduction that can be unrolled."""
    return isinstance(node, Reduce) and node.op in COMBINES and 1 < node.count <= MOST_TAPS


def windows(graph: Graph, members: Collection[int]) -> frozenset[int]:
    """The reductions of a kernel that are better unrolled than rows of a tile."""
    return frozenset(n for n in members if _small(graph.nodes[n]) and (is_window(graph.nodes[n]) or _pools(graph, n)))


def _pools(graph: Graph, number: int) -> bool:
    """Whether a reduction joins blocks along an axis that is not the last of what it reads: rows with holes."""
    node = graph.nodes[number]
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
    found: dict[int, int] = {}
    for number in sorted(members):
        node = graph.nodes[number]
        inner = max((found.get(v.node, 1) for v in reads(node)), default=1)
        found[number] = inner * (node.count if number in unrolled and isinstance(node, Reduce) else 1)
    return max(found.values(), default=1)
