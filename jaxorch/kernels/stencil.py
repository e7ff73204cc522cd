"""Frames of kernels that read windows point by point: neighbours held together share what their windows share.

Input: a kernel's domain and what it reads.  Output: frames with rows of pixels and columns of what lies side by side in
memory.  Invariant: as for every frame, grid, rows, columns and what is held partition the domain.

A window of 5 elements along an axis, at 4 neighbours, reads 8 elements and not 20; each is loaded and cast once, and so
are the weights of a convolution, where a program holds the four as values of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxorch.ir import index as ix
from jaxorch.ir.index import Const, Dim
from jaxorch.ir.simplify import simplify
from jaxorch.kernels.access import Accesses
from jaxorch.kernels.frame import Frame

__all__ = ["stencil_frames"]

_SHORTEST = 16  # columns below which a tile of rows would be mostly holes
_HELD = (4, 2)  # neighbours held, best guess first
_WORTH = 0.85  # the part of the loads that holding neighbours must leave at most


def stencil_frames(domain: tuple[int, ...], accesses: Accesses) -> tuple[Frame, ...]:
    """Frames for a kernel with unrolled windows over `domain`, those that load least first."""
    last = len(domain) - 1
    if last < 1 or domain[last] < _SHORTEST:
        return ()
    found = sorted(_holding(domain, accesses), key=lambda f: f[0])
    plain = Frame(domain, (), tuple(range(last)), (last,))
    return (*(frame for _, frame in found[:2]), plain)


def _holding(domain: tuple[int, ...], accesses: Accesses) -> Iterator[tuple[float, Frame]]:
    """Frames that hold neighbours along an axis, each with its loads for one that does not."""
    last = len(domain) - 1
    for axis in reversed(range(last)):
        count = next((n for n in _HELD if domain[axis] % n == 0), 1)
        share = _loads(domain, accesses, axis, count) / (count * max(len(accesses.loads), 1))
        if count > 1 and share <= _WORTH:
            sizes = (*domain[:axis], domain[axis] // count, count, *domain[axis + 1 :])
            rows = tuple(a for a in range(last + 1) if a != axis + 1)
            yield share, Frame(sizes, (), rows, (last + 1,), held=(axis + 1,))


def _loads(domain: Sequence[int], accesses: Accesses, axis: int, count: int) -> int:
    """How many different loads `count` neighbours along an axis have together."""
    found = set[object]()
    sizes = tuple(n // count if a == axis else n for a, n in enumerate(domain))
    for place in range(count):
        coords = [Dim(a) for a in range(len(domain))]
        at = [*coords[:axis], ix.add(ix.mul(Dim(axis), count), Const(place)), *coords[axis + 1 :]]
        found |= {(x.value, tuple(simplify(ix.substitute(e, at), sizes) for e in x.index)) for x in accesses.loads}
    return len(found)
