"""Frames of kernels that read windows point by point: neighbours held together share what their windows share.

Input: what a kernel, or a product's left operand, reads, and a frame whose columns lie side by side in memory.  Output:
frames that hold blocks of neighbours.  Invariant: what is held divides the extents of row axes.

Windows of 5 x 5 elements, at 2 x 4 neighbours, read 6 x 8 elements and not 200; each is loaded and cast once, and so
are the weights of a convolution, where a program holds the eight as values of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from jaxorch.ir.graph import Graph
from jaxorch.ir.index import Dim, Expr, dims_of
from jaxorch.ir.simplify import linear_terms
from jaxorch.ir.value import Value
from jaxorch.kernels.access import Accesses, Load
from jaxorch.kernels.frame import Frame

__all__ = ["holding_frames", "stencil_frames"]

_SHORTEST = 16  # columns below which a tile of rows would be mostly holes
_LONGEST = 8  # neighbours held along one axis
_HELD = (8, 16)  # neighbours held in all, best guess first
_FEWEST = 1 << 17  # points of the tiles, in all, that keep a large GPU busy
_WORTH = 0.85  # the part of the loads that holding (more) neighbours must leave at most
_MOST_BYTES = 640  # of the loads for one point of a tile: what a thread may have to keep


@dataclass(frozen=True, slots=True)
class _Read:
    """A load whose indices move in steps of constants along the rows: where it is, and its steps by axis."""

    value: Value
    terms: tuple[tuple[tuple[Expr, int], ...], ...]
    start: tuple[int, ...]
    steps: Mapping[int, tuple[int, ...] | None]  # None: neighbours along the axis have nothing in common

    def at(self, places: Mapping[int, int]) -> tuple[object, ...]:
        """What tells the read of one neighbour from those of others."""
        index, apart = self.start, list[int]()
        for axis, place in places.items():
            step = self.steps[axis]
            if step is None:
                apart.append(place)
            else:
                index = tuple(i + place * k for i, k in zip(index, step, strict=True))
        return self.value, self.terms, index, tuple(apart)


def stencil_frames(graph: Graph, accesses: Accesses, plain: Frame) -> tuple[Frame, ...]:
    """`plain`, for a kernel with unrolled windows, after frames that hold neighbours of its rows, the best first."""
    if not plain.rows or plain.sizes[2] < _SHORTEST:
        return ()
    return (*holding_frames(graph, accesses, plain), plain)


def holding_frames(graph: Graph, accesses: Accesses, plain: Frame, *, stacked: bool = False) -> tuple[Frame, ...]:
    """`plain` with blocks of neighbours held, the best first; `stacked`: of a product, whose left operand they are."""
    scopes: dict[tuple[int, ...], list[_Read]] = {}
    for load in accesses.loads:
        scopes.setdefault(load.sizes, []).append(_read(load, plain.rows))
    blocks = dict(_blocks(graph, tuple(scopes.values()), plain))
    if stacked:  # which is done two by two
        blocks = {b: share for b, share in blocks.items() if math.prod(n for _, n in b).bit_count() == 1}
    found: list[Mapping[int, int]] = []
    least = _WORTH
    for most in _HELD:
        shares = {b: share for b, share in blocks.items() if math.prod(n for _, n in b) <= most}
        best = min(shares, key=lambda b: (shares[b], len(b), b), default=None)
        if best is not None and shares[best] <= least:
            least = shares[best] * _WORTH
            found.append(dict(best))
    return tuple(replace(plain, held=tuple(sorted(block.items())), stacked=stacked) for block in found)


type _Block = tuple[tuple[int, int], ...]  # (axis, neighbours held along it)


def _blocks(graph: Graph, scopes: Sequence[Sequence[_Read]], plain: Frame) -> Iterator[tuple[_Block, float]]:
    """Blocks of neighbours along one or two axes of the rows, each with its bytes for one byte of single points."""

    def loaded(block: _Block) -> int:
        """The bytes of the different loads that the block's points have together, in the widest scope."""
        places = [dict(zip(dict(block), at, strict=True)) for at in product(*(range(n) for _, n in block))]
        different = ({read.at(p): read.value for read in reads for p in places} for reads in scopes)
        return max((sum(graph.array(v).dtype.itemsize for v in each.values()) for each in different), default=0)

    alone, points = max(loaded(()), 1), math.prod(plain.domain)
    counts = {a: [n for n in range(2, _LONGEST + 1) if plain.domain[a] % n == 0] for a in plain.rows}
    single: list[_Block] = [((a, n),) for a, each in counts.items() for n in each]
    shares = {block: loaded(block) / (block[0][1] * alone) for block in single}
    useful = [a for a in sorted(counts) if any(shares[b] <= _WORTH for b in single if b[0][0] == a)]
    useful = sorted(useful, key=lambda a: min(shares[b] for b in single if b[0][0] == a))[:2]
    pairs = (zip(sorted(axes), ns, strict=True) for axes in combinations(useful, 2) for ns in _counts(counts, axes))
    for block in (*(b for b in single if b[0][0] in useful), *map(tuple, pairs)):
        held = math.prod(n for _, n in block)
        if held > _HELD[-1] or points // held < min(_FEWEST, points // 4):
            continue
        share = shares.get(block) or loaded(block) / (held * alone)
        if share * held * alone <= _MOST_BYTES:
            yield block, share


def _counts(counts: Mapping[int, Sequence[int]], axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    yield from product(*(counts[a] for a in sorted(axes)))


def _read(load: Load, rows: Sequence[int]) -> _Read:
    parts = [linear_terms(e, load.sizes) for e in load.index]
    terms = tuple(t for t, _ in parts)
    steps = {a: tuple(map(_step, terms, [a] * len(terms))) for a in rows}
    linear = {a: None if None in found else tuple(k for k in found if k is not None) for a, found in steps.items()}
    return _Read(load.value, terms, tuple(c for _, c in parts), linear)


def _step(terms: Sequence[tuple[Expr, int]], axis: int) -> int | None:
    """By how much a sum of terms grows from one place along the axis to the next; None if not always by as much."""
    if any(axis in dims_of(atom) for atom, _ in terms if atom != Dim(axis)):
        return None
    return next((k for atom, k in terms if atom == Dim(axis)), 0)
