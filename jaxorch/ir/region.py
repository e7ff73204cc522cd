"""Regions: boxes of an array, with strides, that writes fill; and which arrays are filled.

Input: views, places and nodes.  Output: the boxes over which a view has one source, and the arrays with elements that
no write is known to have reached.  Invariant: what counts as filled has had each element written exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, Node, Scatter, is_empty, operands_of
from jaxorch.ir.index import Guard
from jaxorch.ir.simplify import linear_terms
from jaxorch.ir.view import Piece, Value, View, lookups

__all__ = ["Region", "boxes", "partitioned", "unfilled", "unfilled_reads", "written"]

type Region = tuple[range, ...]
"""One range an axis: the elements whose coordinates are in them."""

_LONGEST = 1 << 20  # an axis that guards are evaluated along
_MOST_CELLS = 256  # boxes before neighbours are joined


# What is filled


def written(place: Piece, domain: tuple[int, ...]) -> Region | None:
    """Where a place over `domain` writes, each element once; None if that is no box."""
    if place.guard:
        return None
    ranges: list[range] = []
    axes: list[int] = []
    for expr in place.index:
        match linear_terms(expr, domain):
            case (), start:
                ranges.append(range(start, start + 1))
            case ((ix.Dim(axis), step),), start if step > 0:
                ranges.append(range(start, start + step * (domain[axis] - 1) + 1, step))
                axes.append(axis)
            case _:
                return None
    return tuple(ranges) if sorted(axes) == [a for a, n in enumerate(domain) if n > 1] else None


def partitioned(shape: tuple[int, ...], regions: Sequence[Region]) -> bool:
    """Whether every element of an array of `shape` is in exactly one of the regions."""
    inside = all(r.start >= 0 and r.stop <= n for region in regions for r, n in zip(region, shape, strict=True))
    if not inside or sum(math.prod(map(len, region)) for region in regions) != math.prod(shape):
        return False
    return not any(all(map(_meet, a, b)) for a, b in combinations(regions, 2))


def _meet(a: range, b: range) -> bool:
    if a.start >= b.stop or b.start >= a.stop or (a.start - b.start) % math.gcd(a.step, b.step):
        return False
    return any(k in b for k in a)


def unfilled(nodes: Sequence[Node]) -> dict[int, int]:
    """The arrays that may have elements nobody wrote, or wrote twice: the empty ones, and those written since.

    Each (a node's number) with the empty array that it started as.  Once writes partition it, it is none of them.
    """
    root: dict[int, int] = {}
    regions: dict[int, list[Region | None]] = {}
    for number, node in enumerate(nodes):
        if is_empty(node):
            root[number], regions[number] = number, []
        elif isinstance(node, Scatter) and node.base.node in root:
            region = written(node.place, node.updates.domain) if node.combine == "set" else None
            so_far = [*regions[node.base.node], region]
            known = [r for r in so_far if r is not None]
            if len(known) < len(so_far) or not partitioned(node.array.shape, known):
                root[number], regions[number] = root[node.base.node], so_far
    return root


def unfilled_reads(graph: Graph, open_: Mapping[int, int]) -> list[tuple[int | None, Value]]:
    """Who reads one of the arrays `open_` otherwise than to write into it, and which; None is the program's caller."""
    if not open_:
        return []
    found: list[tuple[int | None, Value]] = []
    for number, node in enumerate(graph.nodes):
        values = [value for view in operands_of(node) for value in view.values]
        values += [lookup.value for lookup in lookups(node.place)] if isinstance(node, Scatter) else []
        found += [(number, value) for value in values if value.node in open_]
    return [*found, *((None, value) for value in graph.outputs if value.node in open_)]


# The sources of a view


def boxes(view: View) -> list[tuple[int, Region]] | None:
    """The domain in boxes, each with the number of the piece that is selected all over it, in order of the pieces.

    None where some guard is not bounds on single axes known at compile time, or there are very many boxes.
    """
    # the last piece applies wherever no other does
    conditions = [_by_axis(p.guard, view.domain) for p in view.pieces[:-1]]
    known = [c for c in conditions if c is not None]
    if len(known) < len(conditions) or 0 in view.domain:
        return None
    axes = [_classes([c.get(a) for c in known], n) for a, n in enumerate(view.domain)]
    if math.prod(map(len, axes)) > _MOST_CELLS:
        return None
    cells: list[tuple[int, Region]] = []
    for cell in product(*axes):
        holds = [all(truths[k] for _, truths in cell) for k in range(len(known))]
        cells.append(((*holds, True).index(True), tuple(r for r, _ in cell)))
    for axis in reversed(range(len(view.domain))):
        cells = _joined(cells, axis)
    return sorted(cells, key=lambda cell: (cell[0], [r.start for r in cell[1]]))


type _Mask = np.ndarray[Any, np.dtype[np.bool_]]


def _by_axis(guard: Guard, domain: tuple[int, ...]) -> dict[int, _Mask] | None:
    """Where along each axis the guard holds, if it asks nothing else."""
    found: dict[int, _Mask] = {}
    for bound in guard:
        axes = sorted(ix.dims_of(bound.expr))
        if len(axes) != 1 or any(ix.lookups_in(bound.expr)) or domain[axes[0]] > _LONGEST:
            return None
        (axis,) = axes
        points: list[Any] = [0] * len(domain)
        points[axis] = np.arange(domain[axis])
        here = np.asarray(ix.holds((bound,), points)).astype(np.bool_)
        found[axis] = found[axis] & here if axis in found else here
    return found


def _classes(masks: Sequence[_Mask | None], size: int) -> list[tuple[range, tuple[bool, ...]]]:
    """An axis in ranges over which every mask has one truth value, with those."""
    if all(m is None for m in masks):
        return [(range(size), (True,) * len(masks))]
    truth = np.stack([np.ones(size, np.bool_) if m is None else m for m in masks])
    kinds = np.unique(truth, axis=1)
    found: list[tuple[range, tuple[bool, ...]]] = []
    for kind in kinds.T:
        places = np.flatnonzero((truth == kind[:, None]).all(0))
        found += [(r, tuple(map(bool, kind))) for r in _progressions(places)]
    return sorted(found, key=lambda item: item[0].start)


def _progressions(places: np.ndarray[Any, Any]) -> list[range]:
    """Ascending integers as one range if their distances are equal, else as runs of neighbours."""
    steps = np.diff(places)
    if not steps.size or (steps == steps[0]).all():
        step = int(steps[0]) if steps.size else 1
        return [range(int(places[0]), int(places[-1]) + 1, step)]
    cuts = [0, *(int(k) + 1 for k in np.flatnonzero(steps != 1)), len(places)]
    return [range(int(places[a]), int(places[b - 1]) + 1) for a, b in pairwise(cuts)]


def _joined(cells: Sequence[tuple[int, Region]], axis: int) -> list[tuple[int, Region]]:
    """The boxes, neighbours along an axis that have one source made one."""
    found: list[tuple[int, Region]] = []

    def order(cell: tuple[int, Region]) -> tuple[int, list[tuple[int, int, int]], int]:
        return cell[0], [(r.start, r.stop, r.step) for r in _without(cell[1], axis)], cell[1][axis].start

    for piece, region in sorted(cells, key=order):
        if found and found[-1][0] == piece and _without(found[-1][1], axis) == _without(region, axis):
            before, here = found[-1][1][axis], region[axis]
            if before.stop == here.start and before.step == here.step == 1:
                found[-1] = piece, (*region[:axis], range(before.start, here.stop), *region[axis + 1 :])
                continue
        found.append((piece, region))
    return found


def _without(region: Region, axis: int) -> Region:
    return region[:axis] + region[axis + 1 :]
