"""Outputs that a kernel stores from the tiles of its operands, which it reads anyway.

Input: a core, its frame, and an output that no contraction is needed for.  Output: where each element of an operand's
scope stands in it, or the reason why it cannot be stored from there.  Invariant: the points of the scope are the
output's elements, each once, but for axes along which the operand is the same: there the first point stores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Graph, Map, is_empty
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.simplify import linear_terms, simplify
from jaxorch.ir.view import Value, View
from jaxorch.kernels.access import Accesses, Walk
from jaxorch.kernels.frame import refine, split_axis
from jaxorch.kernels.sides import Contracted, Stored, contract_of, operand

__all__ = ["OperandTile", "is_covered", "operand_tiles", "with_stores"]

type Coords = tuple[Expr, ...]


def with_stores(
    graph: Graph, members: frozenset[int], unrolled: frozenset[int], made: Contracted, outputs: Sequence[Value]
) -> Contracted | str:
    """The kernel storing `outputs` from its operands' tiles, which then have no heads, or why it cannot."""
    tiles = list(operand_tiles(graph, made))
    found: list[Stored] = []
    for value in outputs:
        stored = _Search(graph, members, unrolled, value).stored(tiles)
        if isinstance(stored, str):
            return stored
        found.append(stored)
    return replace(made, core=replace(made.core, stored=tuple(found)), frames=made.frames[:1])


@dataclass(frozen=True, slots=True)
class OperandTile:
    """An operand of a Contract at `coords` of the core's index space of `sizes`, and the axes that its scope has."""

    contract: int
    operand: int
    view: View
    coords: Coords
    sizes: tuple[int, ...]
    axes: frozenset[int]


def operand_tiles(graph: Graph, made: Contracted) -> Iterator[OperandTile]:
    """The operands that are no other product's result."""
    core, frame = made.core, made.frames[0]
    key, inner = len(frame.domain), len(frame.domain) + 1
    softmax = core.softmax
    sizes = (*frame.domain, core.key, contract_of(graph, softmax.first if softmax else core.last).count)

    def tile(number: int, side: int, at: Coords, axis: int, axes: Sequence[int]) -> OperandTile:
        node = contract_of(graph, number)
        coords = operand(node, at, axis, sizes)
        return OperandTile(number, side, node.operands[side], coords, sizes, frozenset((*frame.grid, axis, *axes)))

    if softmax is None:
        yield tile(core.last, core.left, core.at, key, frame.rows)
    else:
        yield tile(softmax.first, softmax.query, softmax.at, inner, frame.rows)
        yield tile(softmax.first, 1 - softmax.query, softmax.at, inner, (key,))
    yield tile(core.last, 1 - core.left, core.at, key, frame.columns)


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks for an output in the operands' tiles."""

    graph: Graph
    members: frozenset[int]
    unrolled: frozenset[int]
    value: Value

    def stored(self, tiles: Sequence[OperandTile]) -> Stored | str:
        node = self.graph.nodes[self.value.node]
        if not isinstance(node, Map) or is_empty(node):
            return "outputs of different sizes"
        for tile in tiles:
            read = self.walk(tile.view, tile.coords, tile.sizes)
            for at in self.places(read, tile):
                if is_covered(at, self.shape, tile) and self.is_within(at, read, tile):
                    return Stored(self.value, tile.contract, tile.operand, at)
        return "an output of which no operand of a contraction reads every element, each once"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.graph.array(self.value).shape

    def walk(self, view: View, coords: Coords, sizes: tuple[int, ...]) -> Walk:
        walk = Walk(self.graph, self.members, Accesses(), self.unrolled)
        walk.view(view, coords, (), sizes)
        return walk

    def at(self, coords: Coords, sizes: tuple[int, ...]) -> Walk:
        walk = Walk(self.graph, self.members, Accesses(), self.unrolled)
        walk.value(self.value, coords, (), sizes)
        return walk

    def is_within(self, at: Coords, read: Walk, tile: OperandTile) -> bool:
        """Whether the output at `at` reads nothing but what the operand reads."""
        own = self.at(at, tile.sizes).into
        inside = own.loads.keys() <= read.into.loads.keys() and own.reductions.keys() <= read.into.reductions.keys()
        return inside and not own.contractions and not own.outside

    def places(self, read: Walk, tile: OperandTile) -> Iterator[Coords]:
        """Where in the output a point of the scope may stand: where the operand reads it, or where both read the same.

        Movement is composed into its readers, so an array that the operand holds may be one that it does not read.
        """
        for value, coords, guard, sizes in read.levels:
            if value == self.value and not guard and sizes == tile.sizes:
                yield coords
        accesses = self.at(tuple(Dim(a) for a in range(len(self.shape))), self.shape).into
        domain, old = refine(self.shape, accesses)
        first: dict[Value, Coords] = {}
        for value, coords, _, sizes in self.at(old, domain).levels:
            if value != self.value and sizes == domain and not isinstance(self.graph.nodes[value.node], Const):
                first.setdefault(value, coords)
        for value, coords, _, sizes in read.levels:
            if value in first and sizes == tile.sizes:
                place = _solved(first[value], coords, domain, sizes)
                if place is not None:
                    yield tuple(simplify(ix.substitute(e, place), sizes) for e in old)


def _solved(ours: Coords, theirs: Coords, domain: tuple[int, ...], sizes: tuple[int, ...]) -> Coords | None:
    """The point of `domain` at which coordinates `ours` are `theirs` over `sizes`, if each axis is a digit of one."""
    found: dict[int, Expr] = {a: ix.Const(0) for a, n in enumerate(domain) if n == 1}
    for own, wanted in zip(ours, theirs, strict=True):
        terms, const = linear_terms(own, domain)
        for atom, factor in terms:
            if isinstance(atom, Dim) and factor > 0:
                digit = ix.mod(ix.floordiv(ix.sub(wanted, ix.Const(const)), factor), domain[atom.axis])
                found.setdefault(atom.axis, simplify(digit, sizes))
    return tuple(found[a] for a in range(len(domain))) if len(found) == len(domain) else None


def is_covered(at: Coords, shape: tuple[int, ...], tile: OperandTile) -> bool:
    """Whether the scope's points stand at all of the array's elements, at each once but for axes not in `at`."""
    ranges = zip((ix.range_of(e, tile.sizes) for e in at), shape, strict=True)
    if any(low < 0 or high >= size for (low, high), size in ranges):
        return False
    flat = ix.linearize(at, shape)
    varied = ix.dims_of(flat)
    if not varied <= tile.axes:
        return False
    sizes: list[int] = []
    coords: list[Expr] = []
    expected: set[int] = set()
    for axis, size in enumerate(tile.sizes):
        factors = split_axis([flat], axis, size)
        parts = range(len(sizes), len(sizes) + len(factors))
        coords.append(ix.linearize([Dim(a) for a in parts], factors))
        sizes.extend(factors)
        expected |= {a for a in parts if axis in varied and sizes[a] > 1}
    terms, const = linear_terms(simplify(ix.substitute(flat, coords), sizes), sizes)
    stride = 1
    for atom, factor in sorted(terms, key=lambda t: t[1]):
        if not isinstance(atom, Dim) or factor != stride:
            return False
        expected.discard(atom.axis)
        stride *= sizes[atom.axis]
    return not const and not expected and stride == math.prod(shape)
