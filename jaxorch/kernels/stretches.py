"""Stretches of a product's contracted axes in which an operand is read from one array, as those of a concatenation.

Input: a Contract, and where it is wanted.  Output: boxes of its contracted axes, which share them out; none where they
are no better apart.  Invariant: the boxes differ along one axis, where each has its elements in even steps.

Of arrays that are shuffled into each other, as features of groups are, a box has every second element or every fourth.
Places chosen in one array are stretches of a window alone, whose addresses and masks are long.  In any other product
they are a few scalars and lanes of one load, which a loop begins steps ahead: stretches would each fill and drain the
stages anew (a patch merging took 13.1 µs in four loops, and takes 8.1 in one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Map, operands_of
from jaxorch.ir.index import Dim, Expr, Guard, Select
from jaxorch.ir.simplify import linear_terms, simplify
from jaxorch.ir.view import View
from jaxorch.kernels.access import Accesses, Coords, Walk, operand_coords, pieces_at, without_zero
from jaxorch.kernels.contract_configs import power_of_two

__all__ = ["Stretch", "stretches"]

_MOST = 8  # stretches of a product: each is a loop of its own
_PADDED = 1.5  # times the steps that all contracted elements together take


@dataclass(frozen=True, slots=True)
class Stretch:
    """`extents` of the contracted axes, of which number `axis` begins at `start` and goes in steps of `step`."""

    extents: tuple[int, ...]
    axis: int
    start: int = 0
    step: int = 1

    @property
    def count(self) -> int:
        """The contracted elements in it."""
        return math.prod(self.extents)

    def block(self, longest: int, least: int) -> int:
        """The contracted elements of a step, of blocks that are powers of two."""
        return min(max(longest, least), self.whole_block(least))

    def whole_block(self, least: int) -> int:
        """The same where it is one step."""
        return max(power_of_two(self.count), least)

    def moved(self, coords: Coords) -> Coords:
        """Coordinates on the contracted axes, given those in the stretch."""
        moved = ix.add(ix.mul(coords[self.axis], self.step), ix.Const(self.start))
        return (*coords[: self.axis], moved, *coords[self.axis + 1 :])

    def part(self, first: int, step: int, count: int) -> Stretch:
        """Of its elements along the axis every `step`th from the `first` on, `count` in all."""
        extents = (*self.extents[: self.axis], count, *self.extents[self.axis + 1 :])
        return Stretch(extents, self.axis, self.start + first * self.step, step * self.step)


def stretches(
    graph: Graph,
    members: Collection[int],
    unrolled: Collection[int],
    node: Contract,
    at: Coords,
    sizes: tuple[int, ...],
    blocks: tuple[int, int],
) -> tuple[Stretch, ...]:
    """The stretches of a Contract wanted at coordinates `at` over axes of `sizes`.

    `blocks`: the contracted elements of a step, and the fewest that it may have.
    """
    if not _may_choose(graph, members, node):
        return ()
    extents, first = tuple(node.domain[a] for a in node.axes), len(sizes)

    def chosen(stretch: Stretch) -> Collection[Guard]:
        """What chooses among the sources in a stretch."""
        walk = _Sources(graph, members, unrolled, of_places=node.convolves)
        domain = (*sizes, *stretch.extents)
        summed = stretch.moved(tuple(Dim(first + k) for k in range(len(extents))))
        coords = tuple(simplify(e, domain) for e in operand_coords(node, at, summed))
        for view in node.operands:
            walk.view(view, coords, (), domain)
        return walk.guards

    for axis in range(len(extents)):
        whole = Stretch(extents, axis)
        found = tuple(islice(_parts(whole, sizes, chosen), _MOST + 1))
        if 1 < len(found) <= _MOST and sum(_padded(s, blocks) for s in found) <= _PADDED * _padded(whole, blocks):
            return found
    return ()


def _parts(
    stretch: Stretch, sizes: tuple[int, ...], chosen: Callable[[Stretch], Collection[Guard]]
) -> Iterator[Stretch]:
    """The parts of a stretch in each of which nothing along its axis chooses, as far as there are such."""
    axis, extent, domain = len(sizes) + stretch.axis, stretch.extents[stretch.axis], (*sizes, *stretch.extents)
    guards = [g for g in chosen(stretch) if axis in ix.guard_dims(g)]
    ends = sorted({end for end in _ends(guards, axis, domain) if 0 < end < extent})
    period = min(_periods([b.expr for g in guards for b in g], axis, domain), default=extent)
    if ends:
        parts = [stretch.part(low, 1, high - low) for low, high in pairwise((0, *ends, extent))]
    elif period < extent:
        parts = [stretch.part(k, period, -(-(extent - k) // period)) for k in range(period)]
    else:
        yield stretch
        return
    for part in parts[: _MOST + 1]:
        yield from _parts(part, sizes, chosen)


def _periods(exprs: Iterable[Expr], axis: int, sizes: tuple[int, ...]) -> Iterator[int]:
    """After how many steps along an axis remainders and quotients in expressions begin anew."""
    for atom, _ in (term for e in exprs for term in linear_terms(e, sizes)[0]):
        if isinstance(atom, ix.FloorDiv | ix.Mod):
            inner, _ = linear_terms(atom.expr, sizes)
            period = atom.divisor // math.gcd(atom.divisor, *(c for a, c in inner if a == Dim(axis)))
            if period > 1 and any(a == Dim(axis) for a, _ in inner):
                yield period
            yield from _periods([a for a, _ in inner], axis, sizes)


def _may_choose(graph: Graph, members: Collection[int], node: Contract) -> bool:
    """Whether a view of the Contract's, or of a Map's in the kernel, has several pieces or chooses among places."""
    maps = (graph.nodes[n] for n in sorted(members))
    views = [v for n in (node, *(m for m in maps if isinstance(m, Map))) for v in operands_of(n)]
    chosen = (_selections([e for p in v.pieces for e in p.index]) for v in views if node.convolves)
    return any(len(v.pieces) > 1 for v in views) or any(any(guards) for guards in chosen)


def _padded(stretch: Stretch, blocks: tuple[int, int]) -> int:
    block = stretch.block(*blocks)
    return -(-stretch.count // block) * block


def _ends(guards: Collection[Guard], axis: int, sizes: tuple[int, ...]) -> Iterator[int]:
    """Where along an axis the bounds on it alone begin and end."""
    for bound in (b for guard in guards for b in guard):
        terms, const = linear_terms(bound.expr, sizes)
        if terms == ((Dim(axis), 1),):
            yield from (bound.low - const, bound.high - const)


class _Sources(Walk):
    """A walk that notes what chooses among several sources of a value, and with `of_places` among places in one."""

    def __init__(self, graph: Graph, members: Collection[int], unrolled: Collection[int], *, of_places: bool) -> None:
        super().__init__(graph, members, Accesses(), unrolled)
        self.of_places = of_places
        self.guards: dict[Guard, None] = {}

    def view(self, view: View, coords: Coords, guard: Guard, sizes: tuple[int, ...]) -> int:
        pieces = without_zero(self.graph, self.members, pieces_at(view, coords, sizes))
        self.guards |= dict.fromkeys(own for own, _, _ in pieces[:-1])
        if self.of_places:
            self.guards |= dict.fromkeys(_selections([e for _, _, index in pieces for e in index]))
        return super().view(view, coords, guard, sizes)


def _selections(exprs: Sequence[Expr]) -> Iterator[Guard]:
    """The guards of the Selects in expressions."""
    for expr in exprs:
        match expr:
            case Select(guard, then, otherwise):
                yield guard
                yield from _selections([then, otherwise])
            case ix.Add(left, right):
                yield from _selections([left, right])
            case ix.Mul(inner, _) | ix.FloorDiv(inner, _) | ix.Mod(inner, _):
                yield from _selections([inner])
            case _:
                pass
