"""Kernels around contractions: one product of matrices, or two with a softmax between them.

Input: a graph, a set of nodes with one or two Contracts, and the values to store.  Output: the roles of the
axes and the `Core`, or the reason why there is none.  Invariant: every axis of the outputs is one of the
grid, the rows or the columns of an accumulator's tile, and each operand varies along two of rows, keys,
inner products and columns only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Reduce
from jaxorch.ir.index import Dim, Expr, Lookup
from jaxorch.ir.simplify import coords_of
from jaxorch.ir.view import Value
from jaxorch.kernels.access import Accesses, Reduction, ShallowWalk, Walk, operand_coords, pieces_at, stored_array
from jaxorch.kernels.frame import Frame, refine
from jaxorch.kernels.softmax import Form, Softmax

__all__ = ["LARGEST_INNER", "Contracted", "Core", "contracted", "unsupported"]

LARGEST_INNER = 256
"""The most elements along an axis that an online tile holds whole: inner products, and columns."""

_RIDING = frozenset(("sum", "prod", "max", "min"))  # reductions that a product's loop over keys may take along
_FLOATS = frozenset(("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"))


@dataclass(frozen=True, slots=True)
class Core:
    """The contractions of a kernel.  Coordinates are over (*domain, KEY, INNER): the frame's axes, then two more.

    last: the Contract that the tile of rows and columns accumulates; `at` its coordinates, `key` the products that each
    of its elements sums, `left` its operand that varies along the rows.  `beside`: other coordinates at which it is
    wanted, the same for all columns, as the denominators that a product of a column of ones gives.  `sums`: reductions
    of rows over the contracted elements that what follows the product wants, as a norm's factor.
    """

    last: int
    at: tuple[Expr, ...]
    left: int
    key: int
    softmax: Softmax | None = None
    beside: tuple[tuple[Expr, ...], ...] = ()
    sums: tuple[Reduction, ...] = ()

    def renamed(self, new: Callable[[Value], Value]) -> Core:
        """The core with its nodes and values renamed."""

        def look(lookup: Lookup) -> Lookup:
            return replace(lookup, value=new(lookup.value))

        at = tuple(ix.map_lookups(e, look) for e in self.at)
        softmax = self.softmax and self.softmax.renamed(new, look)
        beside = tuple(tuple(ix.map_lookups(e, look) for e in place) for place in self.beside)
        sums = tuple(
            Reduction(new(Value(r.node)).node, tuple(ix.map_lookups(e, look) for e in r.coords)) for r in self.sums
        )
        return replace(self, last=new(Value(self.last)).node, at=at, softmax=softmax, beside=beside, sums=sums)


@dataclass(frozen=True, slots=True)
class Contracted:
    """What a kernel around contractions is made of."""

    core: Core
    frame: Frame
    inputs: tuple[Value, ...]


def contracted(
    graph: Graph, members: frozenset[int], outputs: tuple[Value, ...], unrolled: frozenset[int] = frozenset()
) -> Contracted | str:
    """The kernel's core and frame, or why there is none; what is `unrolled` counts as a Map."""
    numbers = [n for n in sorted(members - unrolled) if isinstance(graph.nodes[n], Contract)]
    if len(numbers) > 2:
        return "more than two contractions"
    if len(numbers) == 2 and unrolled:
        return "a window beside two contractions"
    if len({stored_array(graph, v).size for v in outputs}) != 1:
        return "outputs of different sizes"
    for number in numbers:
        reason = unsupported(graph, _contract(graph, number))
        if reason is not None:
            return reason
    shape = stored_array(graph, outputs[0]).shape
    found = _at(graph, members, outputs, shape, numbers, unrolled)
    if isinstance(found, str):
        return found
    domain, _ = refine(shape, found.every)
    if domain != shape:
        found = _at(graph, members, outputs, domain, numbers, unrolled)
    return found if isinstance(found, str) else found.contracted(graph, domain)


def unsupported(graph: Graph, node: Contract) -> str | None:
    """Why the matrix unit does not compute the Contract as it is, if so."""
    params = dict(node.params)
    names = {graph.array(p.value).dtype.name for v in node.operands for p in v.pieces}
    if names <= _FLOATS and params["accumulate"] == "float32":
        return None
    if names == {"int8"} and params["accumulate"] == "int32":
        return None
    return f"no matrix unit for {', '.join(sorted(names))} summed in {params['accumulate']}"


def _contract(graph: Graph, number: int) -> Contract:
    node = graph.nodes[number]
    assert isinstance(node, Contract)
    return node


@dataclass(slots=True)
class _Sides:
    """What each operand reads, and all of it together."""

    core: Core
    rows: Sequence[Accesses]  # vary along the tile's rows
    columns: Sequence[Accesses]
    every: Accesses
    beside: Accesses = field(default_factory=Accesses)  # what the right operand reads where no columns are

    def contracted(self, graph: Graph, domain: tuple[int, ...]) -> Contracted | str:
        rank = len(domain)
        row_dims, column_dims = (_dims(side) & set(range(rank)) for side in (self.rows, self.columns))
        own = self._online_axes(rank) if self.core.softmax else (row_dims - column_dims, column_dims - row_dims)
        rows, columns = (tuple(sorted(axes)) for axes in own)
        core = self.core
        if core.softmax is None and max(rows, default=-1) > max(columns, default=-1) and self.may_swap:
            rows, columns, core = columns, rows, replace(core, left=1 - core.left)
        grid = self._grid(graph, [a for a in range(rank) if a not in rows and a not in columns])
        frame = Frame(domain, grid, rows, columns)
        if core.softmax is not None and not columns:
            return "a second product without columns"
        if core.softmax is not None and frame.sizes[2] > LARGEST_INNER:
            return f"a second product of {frame.sizes[2]} columns"
        if any(not ix.dims_of(e) <= {*grid, *rows} for r in self.every.reductions for e in r.coords):
            return "a reduction that varies along the columns of a product"
        if _dims((self.beside,)) & {*rows, *columns}:
            return "several places of one contraction"
        inputs = tuple(sorted({load.value for load in self.every.loads}))
        return Contracted(core, frame, inputs)

    def _grid(self, graph: Graph, axes: Sequence[int]) -> tuple[int, ...]:
        """The grid's axes, the fastest last: those along which most bytes stay the same, for neighbours to share."""

        def shared(axis: int) -> int:
            kept = {load.value for load in self.every.loads if not any(axis in ix.dims_of(e) for e in load.index)}
            return sum(graph.array(value).nbytes for value in kept)

        return tuple(sorted(axes, key=lambda a: (shared(a), a)))

    @property
    def may_swap(self) -> bool:
        """Whether either operand may vary along the rows."""
        return not self.every.reductions and not self.core.beside  # `every` has those that ride along, too

    def _online_axes(self, rank: int) -> tuple[set[int], set[int]]:
        """Rows: what queries and scores vary along, and neither keys nor values; columns: what values alone do."""
        queries, scores = (_dims((side,)) for side in self.rows)
        keys, values = (_dims((side,)) for side in self.columns)
        inside = set(range(rank))
        return (queries | scores) - (keys | values) & inside, (values - queries - scores - keys) & inside


def _dims(sides: Iterable[Accesses]) -> set[int]:
    """The axes that what the sides read varies along."""
    found = set[int]()
    for side in sides:
        for load in side.loads:
            found |= ix.guard_dims(load.guard).union(*(ix.dims_of(e) for e in load.index))
        for guard, _ in side.guards:
            found |= ix.guard_dims(guard)
        found |= set[int]().union(*(ix.dims_of(e) for e in side.indices))
    return found


def _merge(every: Accesses, side: Accesses) -> None:
    every.loads.update(side.loads)
    every.guards.update(side.guards)
    every.indices.update(side.indices)
    every.contractions.update(side.contractions)
    every.reductions.update(side.reductions)


def _at(
    graph: Graph,
    members: frozenset[int],
    outputs: Sequence[Value],
    domain: tuple[int, ...],
    numbers: Sequence[int],
    unrolled: frozenset[int],
) -> _Sides | str:
    """The sides of the contractions `numbers`, for outputs over `domain`."""
    last = _contract(graph, numbers[-1])
    inner = _contract(graph, numbers[0]).count
    sizes = (*domain, last.count, inner)
    epilogue = Accesses()
    flat = ix.linearize([Dim(a) for a in range(len(domain))], domain)
    for value in outputs:
        coords = coords_of(flat, stored_array(graph, value).shape, domain)
        ShallowWalk(graph, members, epilogue, unrolled).value(value, coords, (), sizes)
    if epilogue.outside:
        return "a contraction or a reduction at places that it does not have"
    if not epilogue.contractions:
        return "a contraction that no output needs"
    if {found.node for found in epilogue.contractions} != {numbers[-1]}:
        return "two contractions side by side"
    # the place that varies along most axes is the tile; max takes the first of equals
    found = max(epilogue.contractions, key=lambda r: len(frozenset[int]().union(*(ix.dims_of(e) for e in r.coords))))
    beside = tuple(r.coords for r in epilogue.contractions if r != found)
    core = Core(found.node, found.coords, 0, last.count, beside=beside)
    if len(numbers) == 2 and beside:
        return "several places of one contraction"
    if len(numbers) == 1:
        return _gemm(graph, members, core, epilogue, sizes, unrolled)
    return _online(graph, members, core, epilogue, sizes, numbers[0])


def _operand(node: Contract, at: tuple[Expr, ...], axis: int, sizes: tuple[int, ...]) -> tuple[Expr, ...]:
    """Coordinates in the node's domain, its contracted axes flattened into Dim(axis)."""
    return operand_coords(node, at, coords_of(Dim(axis), [node.domain[a] for a in node.axes], sizes))


def _gemm(
    graph: Graph,
    members: frozenset[int],
    core: Core,
    epilogue: Accesses,
    sizes: tuple[int, ...],
    unrolled: frozenset[int],
) -> _Sides | str:
    node, key = _contract(graph, core.last), len(sizes) - 2
    sums = _sums(graph, members, epilogue, sizes, unrolled)
    if isinstance(sums, str):
        return sums
    sides = (Accesses(), Accesses())
    for view, side in zip(node.operands, sides, strict=True):
        Walk(graph, members, side, unrolled).view(view, _operand(node, core.at, key, sizes), (), sizes)
        if side.contractions:
            return "a contraction inside another"
        if side.outside:
            return "a reduction at rows that its operand does not have"
        if any(key in ix.dims_of(e) for r in side.reductions for e in r.coords):
            return "a reduction that varies along the contracted axis"
    if all(side.reductions for side in sides):
        return "reductions on both operands"
    left = next(
        (k for k in (0, 1) if not sides[1 - k].reductions and _is_same(node, k, core, key, sizes)),
        None,
    )
    if left is None:
        return "several places of one contraction"
    if not _dims((sums,)) <= _dims((sides[left],)):
        left = 1 - left
        if sides[1 - left].reductions or core.beside or not _dims((sums,)) <= _dims((sides[left],)):
            return "a reduction after a contraction"
    every, others = Accesses(), Accesses()
    for at in core.beside:
        Walk(graph, members, others, unrolled).view(node.operands[1 - left], _operand(node, at, key, sizes), (), sizes)
    for side in (*sides, others, sums, epilogue):
        _merge(every, side)
    core = replace(core, left=left, sums=tuple(epilogue.reductions))
    return _Sides(core, (sides[left], sums), (sides[1 - left],), every, others)


def _sums(
    graph: Graph, members: frozenset[int], epilogue: Accesses, sizes: tuple[int, ...], unrolled: frozenset[int]
) -> Accesses | str:
    """What the epilogue's reductions read, all of them over the contracted elements; why that is not so, if so."""
    key, found = len(sizes) - 2, Accesses()
    if len({reduction.node for reduction in epilogue.reductions}) < len(epilogue.reductions):
        return "several places of one reduction after a contraction"
    for reduction in epilogue.reductions:
        node = graph.nodes[reduction.node]
        assert isinstance(node, Reduce)
        if node.op not in _RIDING or node.count != sizes[key]:
            return "a reduction after a contraction"
        coords = operand_coords(node, reduction.coords, coords_of(Dim(key), [node.domain[a] for a in node.axes], sizes))
        for view in node.operands:
            Walk(graph, members, found, unrolled).view(view, coords, (), sizes)
    if found.contractions or found.reductions or found.outside:
        return "a reduction after a contraction"
    return found


def _is_same(node: Contract, left: int, core: Core, key: int, sizes: tuple[int, ...]) -> bool:
    """Whether an operand is the same at all places where the contraction is wanted."""
    places = [_operand(node, at, key, sizes) for at in (core.at, *core.beside)]
    first, *others = (pieces_at(node.operands[left], place, sizes) for place in places)
    return all(other == first for other in others)


def _online(
    graph: Graph, members: frozenset[int], core: Core, epilogue: Accesses, sizes: tuple[int, ...], first: int
) -> _Sides | str:
    last, scores, key = _contract(graph, core.last), _contract(graph, first), len(sizes) - 2
    sides = (Accesses(), Accesses())
    for view, side in zip(last.operands, sides, strict=True):
        ShallowWalk(graph, members, side).view(view, _operand(last, core.at, key, sizes), (), sizes)
    if bool(sides[0].contractions) == bool(sides[1].contractions):
        return "not one of the second product's operands depends on the first product"
    left = 0 if sides[0].contractions else 1
    probabilities, values = sides[left], sides[1 - left]
    if values.reductions:
        return "a reduction in the second product's other operand"
    reason = _statistics(graph, members, probabilities, epilogue, sizes)
    if reason is not None:
        return reason
    if len(probabilities.contractions) != 1:
        return "the scores are wanted at several places"
    (place,) = probabilities.contractions
    form = Form(graph, members, sizes)
    softmax = form.softmax(last.operands[left], _operand(last, core.at, key, sizes), place)
    if isinstance(softmax, str):
        return softmax
    known = {softmax.peak.node, softmax.total.node}
    if any(r.node not in known for r in (*probabilities.reductions, *epilogue.reductions)):
        return "a reduction that is not the softmax's"
    return _first(
        graph, members, replace(core, left=left, softmax=softmax), (probabilities, values, epilogue), scores, sizes
    )


def _statistics(
    graph: Graph, members: frozenset[int], into: Accesses, epilogue: Accesses, sizes: tuple[int, ...]
) -> str | None:
    """Walks into the reductions over the keys; why they are none, if so."""
    key, seen = len(sizes) - 2, set[Reduction]()
    while pending := [r for r in (*into.reductions, *epilogue.reductions) if r not in seen]:
        for found in pending:
            seen.add(found)
            node = graph.nodes[found.node]
            assert isinstance(node, Reduce)
            if node.count != sizes[key] or any(key in ix.dims_of(e) for e in found.coords):
                return "a reduction that is not over the second product's contracted axes"
            coords = operand_coords(node, found.coords, coords_of(Dim(key), [node.domain[a] for a in node.axes], sizes))
            for view in node.operands:
                ShallowWalk(graph, members, into).view(view, coords, (), sizes)
    return None


def _first(
    graph: Graph,
    members: frozenset[int],
    core: Core,
    found: tuple[Accesses, Accesses, Accesses],
    scores: Contract,
    sizes: tuple[int, ...],
) -> _Sides | str:
    """The sides of the first product: which operand has the keys."""
    probabilities, values, epilogue = found
    assert core.softmax is not None
    inner, key = len(sizes) - 1, len(sizes) - 2
    if sizes[inner] > LARGEST_INNER:
        return f"a first product over {sizes[inner]} elements"
    sides = (Accesses(), Accesses())
    for view, side in zip(scores.operands, sides, strict=True):
        ShallowWalk(graph, members, side).view(view, _operand(scores, core.softmax.at, inner, sizes), (), sizes)
        if side.reductions or side.contractions:
            return "a reduction in an operand of the first product"
    along = [key in _dims((side,)) for side in sides]
    if along[0] == along[1]:
        return "not one of the first product's operands varies along the keys"
    query = 1 if along[0] else 0
    every = Accesses()
    for side in (*sides, *found):
        _merge(every, side)
    every.reductions.clear()
    outside = any(r.node == core.softmax.peak.node for r in epilogue.reductions)
    softmax = replace(core.softmax, query=query, peaks_outside=outside)
    return _Sides(replace(core, softmax=softmax), (sides[query], probabilities), (sides[1 - query], values), every)
