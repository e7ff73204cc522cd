"""What the operands of contractions read, and what that makes of the outputs' axes: grid, rows or columns.

Input: the accesses of each operand and of what follows.  Output: the frames, or the reason why there is none.
Invariant: every axis of the outputs has one role, and each operand varies along rows or columns, not both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Map, Reduce
from jaxorch.ir.index import Const, Dim, Expr, Guard, Lookup, Segment
from jaxorch.ir.simplify import coords_of, simplify, simplify_guard
from jaxorch.ir.view import Value, View
from jaxorch.kernels.access import Accesses, Reduction, operand_coords
from jaxorch.kernels.frame import Frame
from jaxorch.kernels.heads import heads_frame
from jaxorch.kernels.softmax import Softmax
from jaxorch.kernels.stencil import holding_frames

__all__ = [
    "LARGEST_INNER",
    "Contracted",
    "Core",
    "Placed",
    "Sides",
    "Stored",
    "Written",
    "computes_left",
    "contract_of",
    "dims",
    "merge",
    "operand",
]

LARGEST_INNER = 256
"""The most elements along an axis that an online tile holds whole: inner products, and columns."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An output that is stored from the tile of operand number `operand` of a Contract, whose points are at `at` in it.

    Each is a sum of axes, so that nothing is looked up in `at`.
    """

    value: Value
    contract: int
    operand: int
    at: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """Updates of a Scatter that are `count` keys, from `key` on, of operand number `operand` of a Contract.

    `at` is the update of a point whose keys are counted from there, with nothing looked up; a program writes those that
    it then reads.
    """

    value: Value
    contract: int
    operand: int
    key: Expr
    count: int
    at: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """An output of whose elements the product's, or its rows if `per_row`, have one each where `guard` holds, at `at`.

    Both are over the axes of the frame's domain, with nothing looked up.
    """

    value: Value
    guard: Guard
    at: tuple[Expr, ...]
    per_row: bool

    def moved(self, coords: Sequence[Expr], sizes: tuple[int, ...]) -> Placed:
        """The same over axes of `sizes`, given the old ones over these."""
        guard = simplify_guard(ix.substitute_guard(self.guard, coords), sizes)
        assert guard is not None
        return replace(self, guard=guard, at=tuple(simplify(ix.substitute(e, coords), sizes) for e in self.at))


@dataclass(frozen=True, slots=True)
class Core:
    """The contractions of a kernel.  Coordinates are over (*domain, KEY, INNER): the frame's axes, then two more.

    last: the Contract that the tile of rows and columns accumulates; `at` its coordinates, `key` the products that each
    of its elements sums, `left` its operand that varies along the rows.  `beside`: other coordinates at which it is
    wanted, the same for all columns, as the denominators that a product of a column of ones gives.  `sums`: reductions
    of rows over the contracted elements that what follows the product wants, as a norm's factor.  `after`: Reduces of
    the product's own rows, of which a tile then holds all columns.  `placed`: the outputs, if the frame's domain is not
    theirs but the product's.  `stored`: those that no product is needed for.  `written`: those that are written in
    place and read as an operand.  `segment`: what of a row says which of the right operand's matrices it is multiplied
    by; no tile has rows of two.
    """

    last: int
    at: tuple[Expr, ...]
    left: int
    key: int
    softmax: Softmax | None = None
    beside: tuple[tuple[Expr, ...], ...] = ()
    sums: tuple[Reduction, ...] = ()
    after: tuple[int, ...] = ()
    placed: tuple[Placed, ...] = ()
    stored: tuple[Stored, ...] = ()
    written: tuple[Written, ...] = ()
    segment: Segment | None = None

    @property
    def segments(self) -> int:
        """Among how many segments the rows are; 0 if all are alike."""
        return self.segment.high + 1 if self.segment else 0

    def renamed(self, new: Callable[[Value], Value]) -> Core:
        """The core with its nodes and values renamed."""

        def look(lookup: Lookup) -> Lookup:
            return replace(lookup, value=new(lookup.value))

        def moved(place: tuple[Expr, ...]) -> tuple[Expr, ...]:
            return tuple(ix.map_lookups(e, look) for e in place)

        def number(node: int) -> int:
            return new(Value(node)).node

        return replace(
            self,
            last=number(self.last),
            at=moved(self.at),
            softmax=self.softmax and self.softmax.renamed(new, look),
            beside=tuple(map(moved, self.beside)),
            sums=tuple(Reduction(number(r.node), moved(r.coords)) for r in self.sums),
            after=tuple(map(number, self.after)),
            placed=tuple(replace(p, value=new(p.value)) for p in self.placed),
            stored=tuple(replace(s, value=new(s.value), contract=number(s.contract)) for s in self.stored),
            written=tuple(
                replace(w, value=new(w.value), contract=number(w.contract), key=ix.map_lookups(w.key, look))
                for w in self.written
            ),
            segment=self.segment and replace(self.segment, value=new(self.segment.value)),
        )


@dataclass(frozen=True, slots=True)
class Contracted:
    """What a kernel around contractions is made of."""

    core: Core
    frames: tuple[Frame, ...]
    inputs: tuple[Value, ...]


def contract_of(graph: Graph, number: int) -> Contract:
    """The node `number`, which is a Contract."""
    node = graph.nodes[number]
    assert isinstance(node, Contract)
    return node


def computes_left(graph: Graph, members: Collection[int], core: Core) -> bool:
    """Whether a kernel of nodes `members` computes the left operand, and does not only load it."""
    return _computes(graph, members, contract_of(graph, core.last).operands[core.left])


def _computes(graph: Graph, members: Collection[int], view: View) -> bool:
    inside = [graph.nodes[value.node] for value in view.values if value.node in members]
    return any(not (isinstance(n, Map) and n.op == "copy") or _computes(graph, members, n.operands[0]) for n in inside)


@dataclass(slots=True)
class Sides:
    """What each operand reads, and all of it together."""

    core: Core
    rows: Sequence[Accesses]  # vary along the tile's rows
    columns: Sequence[Accesses]
    every: Accesses
    beside: Accesses = field(default_factory=Accesses)  # what the right operand reads where no columns are
    apart: frozenset[int] = frozenset()  # columns that no two of a tile's differ in

    def columns_of(self, rank: int) -> frozenset[int]:
        """The axes of the outputs that the operand with the columns alone varies along."""
        return frozenset((dims(self.columns, self.core.segment) - dims(self.rows)) & {*range(rank)})

    def turned(self) -> Sides:
        """The same with the operands' roles exchanged; for products without reductions before them."""
        core = replace(self.core, left=1 - self.core.left)
        return replace(self, core=core, rows=self.columns, columns=self.rows[:1])

    def contracted(self, graph: Graph, domain: tuple[int, ...], *, windows: bool = False) -> Contracted | str:
        """The kernel's core and frames, or why there is none; `windows`: an operand is computed from some."""
        rank = len(domain)
        row_dims = (dims(self.rows) - dims(self.columns, self.core.segment)) & {*range(rank)}
        own = self._online_axes(rank) if self.core.softmax else (row_dims, {*self.columns_of(rank)} - self.apart)
        rows, columns = (tuple(sorted(axes)) for axes in own)
        core, left, right = self.core, self.rows[0], self.columns[0]
        if core.softmax is None and max(rows, default=-1) > max(columns, default=-1) and self.may_swap:
            rows, columns, left, right = columns, rows, right, left
            core = replace(core, left=1 - core.left)
        grid = self._grid(graph, [a for a in range(rank) if a not in rows and a not in columns])
        frame = Frame(domain, grid, rows, columns)
        if core.softmax is not None and not columns:
            return "a second product without columns"
        if core.softmax is not None and frame.sizes[2] > LARGEST_INNER:
            return f"a second product of {frame.sizes[2]} columns"
        if any(not ix.dims_of(e) <= {*grid, *rows} for r in self.every.reductions for e in r.coords):
            return "a reduction that varies along the columns of a product"
        if dims((self.beside,)) & {*rows, *columns}:
            return "several places of one contraction"
        inputs = tuple(sorted({load.value for load in self.every.loads}))
        if core.segment and not self._lies_along(core.segment, frame):
            return "rows in segments that are not those of the tile"
        if core.softmax or core.segment or self.every.reductions:
            return Contracted(core, (frame,), inputs)
        last = contract_of(graph, core.last)
        summed = [last.domain[a] for a in last.axes]
        headed = heads_frame(graph, left, right, frame, summed, beside=bool(core.beside))
        frames = (frame, headed) if headed else (frame,)
        if windows and frames[-1].keys_along[0] and not (core.beside or core.sums or core.after):
            frames += holding_frames(graph, left, frames[-1], stacked=True)
        return Contracted(core, frames, inputs)

    def _grid(self, graph: Graph, axes: Sequence[int]) -> tuple[int, ...]:
        """The grid's axes, the fastest last: those along which most bytes stay the same, for neighbours to share."""

        def shared(axis: int) -> int:
            kept = {load.value for load in self.every.loads if not any(axis in ix.dims_of(e) for e in load.index)}
            return sum(graph.array(value).nbytes for value in kept)

        return tuple(sorted(axes, key=lambda a: (shared(a), a)))

    def _lies_along(self, segment: Segment, frame: Frame) -> bool:
        """Whether the tile's rows are counted as the places of the segment are."""
        row = ix.linearize([Dim(a) for a in frame.rows], [frame.domain[a] for a in frame.rows])
        return simplify(row, frame.domain) == simplify(segment.index[0], frame.domain)

    @property
    def may_swap(self) -> bool:
        """Whether either operand may vary along the rows."""
        # `every` has the reductions that ride along, too
        return not (self.core.segment or self.core.placed or self.core.beside or self.every.reductions)

    def _online_axes(self, rank: int) -> tuple[set[int], set[int]]:
        """Rows: what queries and scores vary along, and neither keys nor values; columns: what values alone do."""
        queries, scores = (dims((side,)) for side in self.rows)
        keys, values = (dims((side,)) for side in self.columns)
        inside = set(range(rank))
        return (queries | scores) - (keys | values) & inside, (values - queries - scores - keys) & inside


def dims(sides: Iterable[Accesses], segment: Segment | None = None) -> set[int]:
    """The axes that what the sides read varies along, but for what `segment` does."""

    def fixed(lookup: Lookup) -> Expr:
        return lookup if segment is None or not _is_of(lookup, segment) else Const(0)

    def own(guard: Guard) -> frozenset[int]:
        return ix.guard_dims(ix.map_guard(guard, fixed) if segment else guard)

    found = set[int]()
    for side in sides:
        for load in side.loads:
            index = (ix.map_lookups(e, fixed) for e in load.index) if segment else load.index
            found |= own(load.guard).union(*map(ix.dims_of, index))
        for guard, _ in side.guards:
            found |= own(guard)
        found |= set[int]().union(*(ix.dims_of(e) for e in side.indices))
    return found


def _is_of(lookup: Lookup, segment: Segment) -> bool:
    """Whether a Lookup is that Segment, clamped in whichever way."""
    return isinstance(lookup, Segment) and (lookup.value, lookup.index) == (segment.value, segment.index)


def merge(every: Accesses, side: Accesses) -> None:
    """Adds what `side` reads to `every`."""
    every.loads.update(side.loads)
    every.guards.update(side.guards)
    every.indices.update(side.indices)
    every.contractions.update(side.contractions)
    every.reductions.update(side.reductions)
    every.segments.update(side.segments)


def operand(node: Contract | Reduce, at: tuple[Expr, ...], axis: int, sizes: tuple[int, ...]) -> tuple[Expr, ...]:
    """Coordinates in the node's domain, the axes it sums over flattened into Dim(axis)."""
    return operand_coords(node, at, coords_of(Dim(axis), [node.domain[a] for a in node.axes], sizes))
