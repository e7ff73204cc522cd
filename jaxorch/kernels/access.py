"""What a set of nodes reads when it computes a value: loads and reductions, as index expressions.

Input: a graph, the nodes of a kernel, and the coordinates at which a value is wanted.  Output: the
loads and the reductions met, each once.  Invariant: only values made outside the kernel are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Array, Const, Contract, Graph, Map, Reduce, Scatter, operands_of, reads
from jaxorch.ir.index import Dim, Expr, Guard, Lookup, Segment
from jaxorch.ir.simplify import clamp, simplify, simplify_guard
from jaxorch.ir.view import Value, View, expressions

__all__ = [
    "Accesses",
    "Load",
    "Reduction",
    "ShallowWalk",
    "Walk",
    "collect",
    "looked_up_at",
    "nodes_after",
    "operand_coords",
    "pieces_at",
    "stored_array",
    "taps",
    "without_zero",
]

type Coords = tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """One read of a value at `index`, where `guard` holds, with the axes' sizes it is written in."""

    value: Value
    index: Coords
    guard: Guard
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reduction:
    """A Reduce or Contract node evaluated at `coords` of its remaining axes."""

    node: int
    coords: Coords


@dataclass(slots=True)
class Accesses:
    """Loads in the order met; reductions with their level: 0 needs no other reduction first."""

    loads: dict[Load, None] = field(default_factory=dict[Load, None])
    reductions: dict[Reduction, int] = field(default_factory=dict[Reduction, int])
    guards: dict[tuple[Guard, tuple[int, ...]], None] = field(default_factory=dict[tuple[Guard, tuple[int, ...]], None])
    places: dict[Coords, None] = field(default_factory=dict[Coords, None])  # index and guard of what is written
    outside: dict[int, None] = field(default_factory=dict[int, None])  # Reduces, Contracts wanted where they end
    contractions: dict[Reduction, None] = field(default_factory=dict[Reduction, None])  # met, not walked into
    indices: dict[Expr, None] = field(default_factory=dict[Expr, None])  # coordinates that iotas yield
    segments: dict[Segment, None] = field(default_factory=dict[Segment, None])  # whose lengths are read, all of them

    def offsets(self, graph: Graph) -> list[tuple[Expr, int]]:
        """(flat offset, element count of the buffer) of each load."""
        found: list[tuple[Expr, int]] = []
        for load in self.loads:
            array = graph.array(load.value)
            found.append((simplify(ix.linearize(load.index, array.shape), load.sizes), array.size))
        return found

    def expressions(self) -> Iterator[Expr]:
        for load in self.loads:
            yield from load.index
            yield from (b.expr for b in load.guard)
        for reduction in (*self.reductions, *self.contractions):
            yield from reduction.coords
        yield from self.indices
        for guard, _ in self.guards:
            yield from (b.expr for b in guard)
        for place in self.places:
            yield from place


def stored_array(graph: Graph, value: Value) -> Array:
    """What a kernel that stores `value` writes: the array, or for a Scatter the updates."""
    node = graph.nodes[value.node]
    return Array(node.updates.domain, node.array.dtype) if isinstance(node, Scatter) else graph.array(value)


def nodes_after(graph: Graph, members: Collection[int], first: Collection[int]) -> set[int]:
    """The nodes `first`, and the members that need one of them."""
    after = set(first)
    for number in sorted(members):
        if number > min(first) and any(value.node in after for value in reads(graph.nodes[number])):
            after.add(number)
    return after


def pieces_at(view: View, coords: Coords, sizes: tuple[int, ...]) -> list[tuple[Guard, Value, Coords]]:
    """The pieces of `view` that may be selected at `coords` over axes of `sizes`; the last is the one left over."""
    found: list[tuple[Guard, Value, Coords]] = []
    for piece in view.pieces:
        guard = _guard_at(piece.guard, coords, sizes) if piece.guard else ()
        if guard is None:
            continue
        found.append((guard, piece.value, _index_at(piece.index, coords, sizes)))
        if not guard:
            break
    return found


# every candidate that holds a node reads the same for it


@lru_cache(maxsize=1 << 16)
def _guard_at(guard: Guard, coords: Coords, sizes: tuple[int, ...]) -> Guard | None:
    return simplify_guard(ix.substitute_guard(guard, coords), sizes)


@lru_cache(maxsize=1 << 16)
def _index_at(index: Coords, coords: Coords, sizes: tuple[int, ...]) -> Coords:
    return tuple(simplify(ix.substitute(e, coords), sizes) for e in index)


def without_zero(
    graph: Graph, members: Collection[int], pieces: Sequence[tuple[Guard, Value, Coords]]
) -> Sequence[tuple[Guard, Value, Coords]]:
    """The pieces without a zero left over after a load: where its guard does not hold, a load gives zero."""
    if len(pieces) < 2:
        return pieces
    rest, loaded = (graph.nodes[value.node] for _, value, _ in (pieces[-1], pieces[-2]))
    is_load = pieces[-2][1].node not in members and not isinstance(loaded, Const)
    # a zero of either sign is equal to 0, a load's is positive
    is_zero = isinstance(rest, Const) and rest.value == 0 and math.copysign(1, rest.value) > 0
    return pieces[:-1] if is_load and is_zero else pieces


def operand_coords(node: Reduce | Contract, coords: Coords, reduced: Coords) -> Coords:
    """Coordinates in the reduction's domain: `coords` on the remaining axes, `reduced` on the reduced ones."""
    kept, gone = iter(coords), iter(reduced)
    return tuple(next(gone) if axis in node.axes else next(kept) for axis in range(len(node.domain)))


def looked_up_at(lookup: Lookup, array: Array, sizes: tuple[int, ...]) -> Coords:
    """Where a Lookup reads `array`: its index, moved to the edge where the piece that needs it is not selected.

    Whatever guards its use, a Lookup so has one value at each point, and may be read anywhere.
    """
    return tuple(clamp(e, 0, size - 1, sizes) for e, size in zip(lookup.index, array.shape, strict=True))


def taps(node: Reduce | Contract, coords: Coords) -> Iterator[Coords]:
    """The coordinates in the node's domain of each element that is reduced at `coords`, in row-major order."""
    for place in product(*(range(node.domain[a]) for a in node.axes)):
        yield operand_coords(node, coords, tuple(map(ix.Const, place)))


def collect(
    graph: Graph,
    members: Collection[int],
    value: Value,
    coords: Coords,
    sizes: tuple[int, ...],
    into: Accesses,
    unrolled: Collection[int] = (),
) -> None:
    """Adds to `into` what computing `value` at `coords` (over axes of `sizes`) reads.

    Reduces and Contracts among `unrolled` are no reductions but sums of reads, as it were.
    """
    Walk(graph, members, into, unrolled).value(value, coords, (), sizes)


class Walk:
    """A walk over what a value needs, in one index space; a Contract is recorded and not walked into."""

    def __init__(self, graph: Graph, members: Collection[int], into: Accesses, unrolled: Collection[int] = ()) -> None:
        self.graph, self.members, self.into, self.unrolled = graph, members, into, unrolled
        self.levels: dict[tuple[Value, Coords, Guard, tuple[int, ...]], int] = {}

    def value(self, value: Value, coords: Coords, guard: Guard, sizes: tuple[int, ...]) -> int:
        """Walks one value; the result is the level of reduction it needs (0: none)."""
        key = (value, coords, guard, sizes)
        level = self.levels.get(key)
        if level is None:
            level = self.levels[key] = self.compute(value, coords, guard, sizes)
        return level

    def compute(self, value: Value, coords: Coords, guard: Guard, sizes: tuple[int, ...]) -> int:
        node = self.graph.nodes[value.node]
        if isinstance(node, Const):
            return 0
        if value.node not in self.members:
            self.into.loads[Load(value, coords, guard, sizes)] = None
            return 0
        match node:
            case Map("iota"):
                axis = dict(node.params)["dimension"]
                assert isinstance(axis, int)
                self.into.indices[coords[axis]] = None
                return 0
            case Map():
                return max((self.view(v, coords, guard, sizes) for v in operands_of(node)), default=0)
            case Reduce() | Contract() if value.node in self.unrolled:
                return max(self.view(v, tap, guard, sizes) for tap in taps(node, coords) for v in node.operands)
            case Reduce():
                return self.reduction(value.node, node, coords, guard, sizes)
            case Scatter():  # coords are those of the updates
                place = tuple(simplify(ix.substitute(e, coords), sizes) for e in expressions(node.place))
                self.into.places[place] = None
                return max(self.lookups(ix.coords_lookups(place), sizes), self.view(node.updates, coords, guard, sizes))
            case Contract():
                self.note_outside(value.node, node.array, coords, guard, sizes)
                self.into.contractions[Reduction(value.node, coords)] = None
                return 0
            case _:
                raise AssertionError(f"{type(node).__name__} inside a kernel")

    def view(self, view: View, coords: Coords, guard: Guard, sizes: tuple[int, ...]) -> int:
        level = 0
        for own, value, index in pieces_at(view, coords, sizes):
            if own:
                self.into.guards[own, sizes] = None
            level = max(level, self.lookups((*ix.guard_lookups(own), *ix.coords_lookups(index)), sizes))
            level = max(level, self.value(value, index, ix.both(guard, own), sizes))
        return level

    def lookups(self, found: tuple[Lookup, ...], sizes: tuple[int, ...]) -> int:
        level = 0
        for lookup in dict.fromkeys(found):
            if isinstance(lookup, Segment):
                self.into.segments[lookup] = None
                self.into.loads[Load(lookup.value, (ix.Const(0),), (), sizes)] = None
                continue
            index = looked_up_at(lookup, self.graph.array(lookup.value), sizes)
            level = max(level, self.value(lookup.value, index, (), sizes))
        return level

    def note_outside(self, number: int, array: Array, coords: Coords, guard: Guard, sizes: tuple[int, ...]) -> None:
        # a guard is not applied inside a reduction, so it must not be what keeps the coordinates inside the array
        ranges = zip((ix.range_of(e, sizes) for e in coords), array.shape, strict=True)
        if guard and any(low < 0 or high >= size for (low, high), size in ranges):
            self.into.outside[number] = None

    def reduction(self, number: int, node: Reduce, coords: Coords, guard: Guard, sizes: tuple[int, ...]) -> int:
        self.note_outside(number, node.arrays[0], coords, guard, sizes)
        extents = tuple(node.domain[a] for a in node.axes)
        inner_sizes = sizes + extents
        inner = operand_coords(node, coords, tuple(Dim(len(sizes) + k) for k in range(len(extents))))
        level = max(self.view(v, inner, (), inner_sizes) for v in node.operands)
        key = Reduction(number, coords)
        self.into.reductions[key] = level
        return level + 1


class ShallowWalk(Walk):
    """A walk that records reductions and does not walk into them."""

    def reduction(self, number: int, node: Reduce, coords: Coords, guard: Guard, sizes: tuple[int, ...]) -> int:
        self.note_outside(number, node.arrays[0], coords, guard, sizes)
        self.into.reductions[Reduction(number, coords)] = 0
        return 1
