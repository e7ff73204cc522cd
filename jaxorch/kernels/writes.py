"""Arrays that an attention kernel writes a few keys into and reads as its keys or values: a cache that is filled.

Input: a core, its frame, and Scatters whose arrays one operand reads.  Output: which key of the operand each update is,
or the reason why the kernel cannot write it.  Invariant: a program that reads an element that is written has written it
itself before, and no other program reads or writes that element.

In the identities, R(p) is the element that the operand reads at point p of the core's index space, U(e) the update that
is written to element e.  U(R(p)) exists for keys in [start, start + count) alone, and differs between any two points
with such keys, but for rows, which one tile holds.  So the programs of one point of the grid, which share its keys out
among them, are the only ones that read what is written there, and of these the one that has the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, Map, Scatter, pieces_of
from jaxorch.ir.index import Const, Dim, Expr
from jaxorch.ir.place import inverse
from jaxorch.ir.simplify import coefficient, simplify, simplify_guard
from jaxorch.ir.view import Value, lookups
from jaxorch.kernels.access import Accesses, Walk, pieces_at
from jaxorch.kernels.sides import Contracted, Written
from jaxorch.kernels.stores import OperandTile, is_covered, operand_tiles

__all__ = ["with_writes"]

_MOST_KEYS = 8  # written by a program, one after the other
_MOST_ROWS = 64  # of queries: one tile has them all


def with_writes(
    graph: Graph, members: frozenset[int], unrolled: frozenset[int], made: Contracted, scatters: Sequence[int]
) -> Contracted | str:
    """The kernel that first writes into the arrays of `scatters` and then reads them, or why it cannot."""
    if made.core.softmax is None:
        return "an array written in place is read by the kernel that writes it"
    if made.frames[0].sizes[1] > _MOST_ROWS:
        return "keys written in place that several blocks of queries read"
    found: list[Written] = []
    loaded = Accesses()
    for number in scatters:
        written = _written(graph, members, made, number)
        if isinstance(written, str):
            return written
        found.append(written)
        sizes = _sizes(made, written, graph)
        walk = Walk(graph, members, loaded, unrolled)
        walk.value(written.value, written.at, (), sizes)
        walk.lookups(tuple(ix.lookups_in(written.key)), sizes)
    if loaded.reductions or loaded.contractions or loaded.outside:
        return "keys written in place that are reduced from others"
    arrays = {Value(number) for number in scatters}
    inputs = tuple(sorted(({*made.inputs} | {load.value for load in loaded.loads}) - arrays))
    return replace(made, core=replace(made.core, written=tuple(found)), inputs=inputs)


def _sizes(made: Contracted, written: Written, graph: Graph) -> tuple[int, ...]:
    """The index space of the updates: along the keys it has those that are written."""
    tile = next(iter(operand_tiles(graph, made)))
    key = len(made.frames[0].domain)
    return (*tile.sizes[:key], written.count, *tile.sizes[key + 1 :])


def _written(graph: Graph, members: frozenset[int], made: Contracted, number: int) -> Written | str:
    node, key = graph.nodes[number], len(made.frames[0].domain)
    assert isinstance(node, Scatter)
    reader = _reader(graph, members, made, number)
    if reader is None or key not in reader[0].axes:
        return "an array written in place that is read elsewhere than as one operand, whole"
    tile, read = reader
    backwards = inverse(replace(node.place, guard=()), node.updates.domain, node.array.shape)
    if node.combine != "set" or backwards is None:
        return "a write beside a contraction whose place is not known, or that is combined with what is there"
    guard = simplify_guard(ix.substitute_guard(backwards[0], read), tile.sizes)
    if guard is None or len(guard) != 1 or coefficient(guard[0].expr, key, tile.sizes) != 1:
        return "an array written in place elsewhere than at some of the keys"
    (bound,), sizes = guard, tile.sizes
    count = bound.high - bound.low
    start = simplify(ix.add(ix.sub(Dim(key), bound.expr), Const(bound.low)), sizes)
    low, high = ix.range_of(start, sizes)
    if count > _MOST_KEYS or not ix.dims_of(start) <= {*made.frames[0].grid}:
        return "many keys written in place, or at a place of each query's own"
    if low < 0 or high + count > sizes[key]:
        return "an array written in place where it is not read"
    sizes = (*sizes[:key], count, *sizes[key + 1 :])
    at = tuple(_from(start, ix.substitute(e, read), key, sizes) for e in backwards[1])
    varied = frozenset[int]().union(*(ix.dims_of(e) for e in at))
    points = {axis for axis in made.frames[0].grid if sizes[axis] > 1}
    if (
        any(ix.coords_lookups(at))
        or not points <= varied
        or not is_covered(at, node.updates.domain, replace(tile, sizes=sizes))
    ):
        return "an array written in place of which several points of the grid read the same"
    return Written(Value(number), tile.contract, tile.operand, start, count, at)


def _from(start: Expr, expr: Expr, key: int, sizes: tuple[int, ...]) -> Expr:
    """The expression with its keys counted from `start`."""
    coords: list[Expr] = [Dim(a) for a in range(len(sizes))]
    coords[key] = ix.add(start, Dim(key))
    return simplify(ix.substitute(expr, coords), sizes)


def _reader(
    graph: Graph, members: frozenset[int], made: Contracted, number: int
) -> tuple[OperandTile, tuple[Expr, ...]] | None:
    """The operand that reads a node's array and nothing else, and where, if nothing else in the kernel does."""
    for tile in operand_tiles(graph, made):
        view, at = tile.view, tile.coords
        while len(view.pieces) == 1:
            ((_, value, at),) = pieces_at(view, at, tile.sizes)
            if _readers(graph, members, value) != 1:
                break
            if value == Value(number):
                return tile, at
            source = graph.nodes[value.node]
            if value.node not in members or not isinstance(source, Map) or source.op != "copy":
                break
            (view,) = source.operands
    return None


def _readers(graph: Graph, members: frozenset[int], value: Value) -> int:
    """How many operands in the kernel read a value; of one written in place, what reads it as it is then."""
    pieces = [p for k in sorted(members - {value.node}) for p in pieces_of(graph.nodes[k])]
    return sum((p.value == value) + sum(k.value == value for k in lookups(p)) for p in pieces)
