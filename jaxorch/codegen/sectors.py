"""The sectors of memory that the tiles of a load touch, found by evaluating its index at sample tiles.

Input: the flat offset and the guard of a load or a store, over a scope's sizes and blocks.  Output: sectors, and the
bytes moved for each byte wanted.  Invariant: the same offset, guard, sizes and blocks give the same samples; an index
known at run time only is taken to be scattered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.index import Expr, Guard, Lookup
from jaxorch.passes.derive import SECTOR

__all__ = ["Delivered", "Samples", "distinct", "fresh", "samples", "worst"]

_PIECE = 64  # bytes: the least that memory delivers to the second-level cache

_DENSE = 8  # places for each integer up to which different ones are marked and not sorted

type Samples = tuple[tuple[np.ndarray[Any, Any], float], ...]
"""Of two sample tiles: the sectors touched, ascending, and their bytes for each byte of the elements wanted."""


@lru_cache(maxsize=1 << 13)  # kernels that hold a node read the same for it
def samples(offset: Expr, guard: Guard, itemsize: int, sizes: tuple[int, ...], tiles: tuple[int, ...]) -> Samples:
    """What a tile at the start of the sizes and one in their middle touch, of elements of `itemsize` bytes."""
    found: list[tuple[np.ndarray[Any, Any], float]] = []
    for part in (0, 0.5):
        shapes = [*zip(sizes, tiles, (1, 64, 256, 64), strict=False)]
        places = (4 / 3 * part, part, part, part)  # of the grid no half, which is the start along most of its axes
        starts = [int(p * size) // block * block for p, (size, block, _) in zip(places, shapes, strict=False)]
        counts = [min(block, most, size - start) for start, (size, block, most) in zip(starts, shapes, strict=True)]
        lanes = _points(counts)
        coords = [start + lane for start, lane in zip(starts, lanes, strict=True)]
        at = np.asarray(ix.evaluate(offset, coords, _look))
        if guard:
            at, inside = np.broadcast_arrays(at, np.asarray(ix.holds(guard, coords, _look)).astype(bool))
            at = at[inside]
        sectors = distinct(at * itemsize // SECTOR)
        found.append((sectors, sectors.size * SECTOR / max(distinct(at).size * itemsize, SECTOR)))
    return tuple(found)


def worst(found: Samples) -> float:
    """Bytes moved for each byte wanted: the larger number of the two tiles, one at the least."""
    return max([1.0, *(waste for _, waste in found)])


@lru_cache(maxsize=1 << 12)
def fresh(offset: Expr, blocks: tuple[int, ...]) -> float:
    """The different elements that the points of a block read, for each of its points."""
    at = np.asarray(ix.evaluate(offset, _points(blocks), _look))
    return distinct(at).size / math.prod(blocks)


class Delivered:
    """What the loads of a kernel have fetched of each buffer, at the sample tiles."""

    def __init__(self) -> None:
        # by buffer and sample: the sectors fetched, and the pieces that these are in, both ascending
        self.known: dict[tuple[str, int], tuple[Any, Any]] = {}

    def more(self, buffer: str, found: Samples) -> float:
        """Bytes of the pieces that no load before has fetched for each byte wanted that none has; they now are."""
        most = 0.0
        for part, (sectors, waste) in enumerate(found):
            known, fetched = self.known.get((buffer, part), (sectors[:0], sectors[:0]))
            more = _without(sectors, known)
            pieces = _without(distinct(more // (_PIECE // SECTOR)), fetched)
            self.known[buffer, part] = _merged(known, more), _merged(fetched, pieces)
            most = max(most, waste * pieces.size * _PIECE / max(more.size * SECTOR, _PIECE))
        return most if any(sectors.size for sectors, _ in found) else 1.0


def _points(counts: Sequence[int]) -> list[Any]:
    """Coordinates from 0 along each axis, that broadcast together."""
    return list(np.ogrid[tuple(slice(n) for n in counts)])


def _without(values: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Those of ascending integers that are not among other ascending ones."""
    if not known.size:
        return values
    at = np.minimum(np.searchsorted(known, values), known.size - 1)
    return values[known[at] != values]


def _merged(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Both, ascending as each of them is."""
    return np.sort(np.concatenate([first, second]), kind="stable") if first.size else second


def distinct(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The different integers among `values`, ascending."""
    if not values.size:
        return values.reshape(-1)
    low, high = int(values.min()), int(values.max())
    if high - low < _DENSE * values.size:
        seen = np.zeros(high - low + 1, bool)
        seen[values - low] = True
        return np.flatnonzero(seen) + low
    ordered = np.sort(values, axis=None)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]


def _look(lookup: Lookup, index: tuple[Any, ...]) -> Any:
    """Some value for a run-time index: scattered, but the same whenever asked."""
    mixed: Any = 12345
    for i in index:
        mixed = mixed * 31 + np.asarray(i) * 40503
    return lookup.low + mixed % (lookup.high - lookup.low + 1)
