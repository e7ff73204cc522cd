"""Frames of kernels that read windows point by point: neighbours held together share what their windows share.

Input: what a kernel reads, and a frame whose columns lie side by side in memory.  Output: frames that hold neighbours.
Invariant: as for every frame, grid, rows, columns and what is held partition the domain.

A window of 5 elements along an axis, at 4 neighbours, reads 8 elements and not 20; each is loaded and cast once, and so
are the weights of a convolution, where a program holds the four as values of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph
from jaxorch.ir.index import Const, Dim, Expr
from jaxorch.ir.simplify import simplify
from jaxorch.ir.value import Value
from jaxorch.kernels.access import Accesses
from jaxorch.kernels.frame import Frame

__all__ = ["stencil_frames"]

_SHORTEST = 16  # columns below which a tile of rows would be mostly holes
_HELD = (4, 2)  # neighbours held, best guess first
_WORTH = 0.85  # the part of the loads that holding neighbours must leave at most
_MOST_BYTES = 240  # of one point's loads: what a thread may have in its registers at once for eight points


def stencil_frames(graph: Graph, accesses: Accesses, plain: Frame) -> tuple[Frame, ...]:
    """`plain`, for a kernel with unrolled windows, after frames that hold neighbours of its rows, the best first."""
    if not plain.rows or plain.sizes[2] < _SHORTEST:
        return ()
    found = sorted(_holding(graph, accesses, plain), key=lambda f: f[0])
    return (*(frame for _, frame in found[:2]), plain)


def _holding(graph: Graph, accesses: Accesses, plain: Frame) -> Iterator[tuple[float, Frame]]:
    """Frames that hold neighbours along a row axis, each with its bytes for one byte of `plain`."""
    domain = plain.domain
    alone = max(_loaded(graph, accesses, plain.rows[0], 1), 1)
    for axis in reversed(plain.rows):
        fitting = ((n, _loaded(graph, accesses, axis, n)) for n in _HELD if domain[axis] % n == 0)
        count, loaded = next(((n, b) for n, b in fitting if b <= _MOST_BYTES), (1, alone))
        share = loaded / (count * alone)
        if count > 1 and share <= _WORTH:
            sizes = (*domain[:axis], domain[axis] // count, count, *domain[axis + 1 :])
            rows, columns = (tuple(a + (a > axis) for a in axes) for axes in (plain.rows, plain.columns))
            yield share, Frame(sizes, (), rows, columns, held=(axis + 1,))


def _loaded(graph: Graph, accesses: Accesses, axis: int, count: int) -> int:
    """The bytes of the different loads that `count` neighbours along an axis have together, in the widest scope."""
    found: dict[tuple[int, ...], set[tuple[Value, tuple[Expr, ...]]]] = {}
    for load in accesses.loads:
        sizes = tuple(n // count if a == axis else n for a, n in enumerate(load.sizes))
        coords = [Dim(a) for a in range(len(sizes))]
        for place in range(count):
            at = [*coords[:axis], ix.add(ix.mul(Dim(axis), count), Const(place)), *coords[axis + 1 :]]
            index = tuple(simplify(ix.substitute(e, at), sizes) for e in load.index)
            found.setdefault(sizes, set()).add((load.value, index))
    scopes = (sum(graph.array(value).dtype.itemsize for value, _ in loads) for loads in found.values())
    return max(scopes, default=0)
