"""The sides of a kernel around one contraction, and the reductions before, beside and after it.

Input: a core, and what follows the contraction.  Output: what each operand reads, or the reason why there is no such
kernel.  Invariant: reductions before the product are of the operand's rows that has the tile's, those beside it ride
along in its loop, and those after it are of rows that a tile holds whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Reduce
from jaxorch.ir.index import Segment
from jaxorch.kernels.access import Accesses, Reduction, Walk, pieces_at
from jaxorch.kernels.rows import reduced_rows
from jaxorch.kernels.sides import Core, Sides, contract_of, dims, merge, operand

__all__ = ["OUTSIDE", "PLACES", "gemm_sides"]

PLACES = "several places of one contraction"
OUTSIDE = "a contraction or a reduction at places that it does not have"

_RIDING = frozenset(("sum", "prod", "max", "min"))  # reductions that a product's loop over keys may take along


def gemm_sides(
    graph: Graph,
    members: frozenset[int],
    core: Core,
    epilogue: Accesses,
    sizes: tuple[int, ...],
    unrolled: frozenset[int],
) -> Sides | str:
    """What the operands of the Contract `core.last` read, given what follows it, or why no kernel does that."""
    node, key = contract_of(graph, core.last), len(sizes) - 2
    riding, sums = _riding(graph, members, epilogue, sizes, unrolled)
    after = [r for r in epilogue.reductions if r not in riding]
    if len({r.node for r in riding}) < len(riding):
        return "several places of one reduction after a contraction"
    sides = (Accesses(), Accesses())
    for view, side in zip(node.operands, sides, strict=True):
        Walk(graph, members, side, unrolled).view(view, operand(node, core.at, key, sizes), (), sizes)
        if side.contractions:
            return "a contraction inside another"
        if side.outside:
            return "a reduction at rows that its operand does not have"
        if any(key in ix.dims_of(e) for r in side.reductions for e in r.coords):
            return "a reduction that varies along the contracted axis"
    if all(side.reductions for side in sides):
        return "reductions on both operands"
    segment = _segment(graph, members, core, sides, (sums, epilogue)) if node.segment else None
    if isinstance(segment, str):
        return segment
    left = next(
        (k for k in (0, 1) if not sides[1 - k].reductions and _is_same(node, k, core, key, sizes)),
        None,
    )
    if left is None:
        return PLACES
    if not dims((sums,)) <= dims((sides[left],)):
        left = 1 - left
        if sides[1 - left].reductions or core.beside or not dims((sums,)) <= dims((sides[left],)):
            return "a reduction after a contraction"
    if segment and left:
        return "a reduction of matrices that rows in segments share"
    every, others = Accesses(), Accesses()
    for at in core.beside:
        Walk(graph, members, others, unrolled).view(node.operands[1 - left], operand(node, at, key, sizes), (), sizes)
    core = replace(core, left=left, sums=tuple(riding), segment=segment)
    made = Sides(core, (sides[left], sums), (sides[1 - left],), every, others)
    if after:
        found = _with_rows(graph, members, made, after, sizes, unrolled)
        if isinstance(found, str):
            return found
        made, statistics = found
        merge(every, statistics)
    for side in (*sides, others, sums, epilogue):
        merge(every, side)
    return made


def _segment(
    graph: Graph,
    members: frozenset[int],
    core: Core,
    sides: tuple[Accesses, Accesses],
    others: tuple[Accesses, Accesses],
) -> Segment | str:
    """What says which of the right operand's matrices a row is multiplied by; why a tile has no such rows, if so."""
    found = [replace(s, low=0, high=graph.array(s.value).size - 1) for side in sides for s in side.segments]
    if len({*found}) != 1 or any(side.segments for side in others):
        return "rows in segments of several kinds"
    if core.beside or core.placed or any(side.reductions for side in others):
        return "reductions or parts of a product of rows in segments"
    if found[0].value.node in members:
        return "lengths of segments that the kernel computes"
    return found[0]


def _riding(
    graph: Graph, members: frozenset[int], epilogue: Accesses, sizes: tuple[int, ...], unrolled: frozenset[int]
) -> tuple[list[Reduction], Accesses]:
    """The epilogue's reductions over the contracted elements of what no product is needed for, and what they read."""
    key, every = len(sizes) - 2, Accesses()
    riding: list[Reduction] = []
    for reduction in epilogue.reductions:
        node, found = graph.nodes[reduction.node], Accesses()
        assert isinstance(node, Reduce)
        if node.op not in _RIDING or node.count != sizes[key]:
            continue
        coords = operand(node, reduction.coords, key, sizes)
        for view in node.operands:
            Walk(graph, members, found, unrolled).view(view, coords, (), sizes)
        if not (found.contractions or found.reductions or found.outside):
            riding.append(reduction)
            merge(every, found)
    return riding, every


def _with_rows(
    graph: Graph,
    members: frozenset[int],
    made: Sides,
    after: Sequence[Reduction],
    sizes: tuple[int, ...],
    unrolled: frozenset[int],
) -> tuple[Sides, Accesses] | str:
    """The sides with the product's rows reduced, along columns that a tile holds whole, and what that reads.

    Columns along which the reductions differ, as the heads of a norm of each, are the grid's.
    """
    if made.core.beside:
        return PLACES
    fixed = made.core.sums or made.columns[0].reductions or made.rows[0].reductions
    reason = ""
    for sides in (made,) if fixed else (made, made.turned()):
        columns = sides.columns_of(len(sizes) - 2)
        apart = frozenset[int]().union(*(ix.dims_of(e) for r in after for e in r.coords)) & columns
        found = reduced_rows(graph, members, unrolled, sides.core, after, sorted(columns - apart), sizes)
        if not isinstance(found, str):
            core = replace(sides.core, after=tuple(sorted({r.node for r in (*after, *found.reductions)})))
            return replace(sides, core=core, apart=apart), found
        reason = reason or found
    return reason


def _is_same(node: Contract, left: int, core: Core, key: int, sizes: tuple[int, ...]) -> bool:
    """Whether an operand is the same at all places where the contraction is wanted."""
    places = [operand(node, at, key, sizes) for at in (core.at, *core.beside)]
    first, *others = (pieces_at(node.operands[left], place, sizes) for place in places)
    return all(other == first for other in others)
