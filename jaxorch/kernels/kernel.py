"""Kernels: a set of nodes, what it stores, and the schedule under which it is legal.

Input: a graph, a set of Map and Reduce nodes and the values to store.  Output: a `Kernel`, or the
reason why no schedule can run the set as one kernel.  Invariant: each reduction of a `Rows` kernel
depends on the tile's row only, and every output is stored exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Map, Reduce
from jaxorch.ir.index import Const, Dim, Expr
from jaxorch.ir.simplify import coords_of
from jaxorch.ir.view import Value
from jaxorch.kernels.access import Accesses, Reduction, collect
from jaxorch.kernels.contract import Core, contracted
from jaxorch.kernels.frame import Frame, flat_frames, refine
from jaxorch.passes.derive import LONGEST_TILE_ROW

__all__ = ["Kernel", "Output", "build"]


@dataclass(frozen=True, slots=True)
class Output:
    """A stored value; `per_row` if it has one element a row of the tile rather than one a point."""

    value: Value
    per_row: bool


@dataclass(frozen=True, slots=True)
class Kernel:
    """One generated kernel.

    schedule: "pointwise", "rows" (a tile holds whole rows), "rows-looped" (a loop runs along the row); "gemm" and
    "online" are around the contractions of `core`.
    frames: the frames it can run in, best guess first.  inputs: the values it loads, in argument order.
    """

    nodes: tuple[int, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Output, ...]
    schedule: str
    frames: tuple[Frame, ...]
    core: Core | None = None


def build(graph: Graph, nodes: Collection[int], outputs: Sequence[Value]) -> Kernel | str:
    """The kernel that computes `outputs` from `nodes`, or why there is none."""
    members = frozenset(nodes)
    if any(graph.array(v).size == 0 for v in outputs):
        return "a zero-size output"
    if any(isinstance(graph.nodes[n], Contract) for n in members):
        found = contracted(graph, members, tuple(outputs))
        if isinstance(found, str):
            return found
        stored = tuple(Output(v, per_row=False) for v in outputs)
        schedule = "gemm" if found.core.softmax is None else "online"
        return Kernel(tuple(sorted(members)), found.inputs, stored, schedule, (found.frame,), found.core)
    if any(isinstance(graph.nodes[n], Reduce) for n in members):
        return _rows(graph, members, tuple(outputs))
    return _pointwise(graph, members, tuple(outputs))


def _walk(graph: Graph, members: frozenset[int], values: Sequence[Value], domain: tuple[int, ...]) -> Accesses:
    accesses = Accesses()
    flat = ix.linearize([Dim(a) for a in range(len(domain))], domain)
    for value in values:
        collect(graph, members, value, coords_of(flat, graph.array(value).shape, domain), domain, accesses)
    return accesses


def _refined(
    graph: Graph, members: frozenset[int], values: Sequence[Value], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], Accesses]:
    """The outputs' domain with its axes split where an index splits them, and the accesses over it."""
    accesses = _walk(graph, members, values, shape)
    domain, _ = refine(shape, accesses)
    return (domain, accesses) if domain == shape else (domain, _walk(graph, members, values, domain))


def _pointwise(graph: Graph, members: frozenset[int], outputs: tuple[Value, ...]) -> Kernel | str:
    if len({graph.array(v).size for v in outputs}) != 1:
        return "outputs of different sizes"
    domain, accesses = _refined(graph, members, outputs, graph.array(outputs[0]).shape)
    frames = flat_frames(domain, accesses.offsets(graph), accesses)
    stored = tuple(Output(v, per_row=False) for v in outputs)
    return Kernel(tuple(sorted(members)), _inputs(accesses), stored, "pointwise", frames)


def _inputs(accesses: Accesses) -> tuple[Value, ...]:
    return tuple(sorted({load.value for load in accesses.loads}))


def _rows(graph: Graph, members: frozenset[int], outputs: tuple[Value, ...]) -> Kernel | str:
    # The anchor is the largest Map output: its points are the tile's.  With Reduce outputs only, they are the rows.
    anchor = max(outputs, key=lambda v: (graph.array(v).size, isinstance(graph.nodes[v.node], Map), -v.node))
    size = graph.array(anchor).size
    full = tuple(v for v in outputs if graph.array(v).size == size)
    rest = tuple(v for v in outputs if graph.array(v).size != size)
    # A kernel that stores per-row values has one kind of rows; most sets tried fail here, before any walk.
    rows = {n.arrays[0].size for n in map(graph.nodes.__getitem__, members) if isinstance(n, Reduce)}
    for value in rest:
        if rows != {graph.array(value).size}:
            return f"an output of {graph.array(value).size} elements beside {', '.join(map(str, sorted(rows)))} rows"
    domain, accesses = _refined(graph, members, full, graph.array(anchor).shape)
    if accesses.outside:
        return "a reduction at rows that its operand does not have"
    row_axes = _row_axes(accesses, len(domain)) if accesses.reductions else _leading(domain, graph, rest)
    if row_axes is None:
        return "no split of the output's axes into rows and columns"
    columns = tuple(a for a in range(len(domain)) if a not in row_axes)
    frame = Frame(domain, (), row_axes, columns)
    if rest and not columns:
        return "outputs of different sizes, none of which has columns"
    row_values = rest if columns else full
    illegal = _check_per_row(graph, members, row_values, frame, accesses)
    if illegal is not None:
        return illegal
    stored = tuple(Output(v, per_row=v in row_values) for v in outputs)
    if not accesses.reductions:
        return "outputs that need no reduction"
    longest = max(_reduce(graph, r.node).count for r in accesses.reductions)
    persistent = longest <= LONGEST_TILE_ROW and frame.sizes[2] <= LONGEST_TILE_ROW
    schedule = "rows" if persistent else "rows-looped"
    return Kernel(tuple(sorted(members)), _inputs(accesses), stored, schedule, (frame,))


def _reduce(graph: Graph, node: int) -> Reduce:
    found = graph.nodes[node]
    assert isinstance(found, Reduce)
    return found


def _row_axes(accesses: Accesses, rank: int) -> tuple[int, ...] | None:
    dims = frozenset[int]().union(*(ix.dims_of(e) for r in accesses.reductions for e in r.coords))
    return tuple(sorted(dims)) if all(d < rank for d in dims) else None


def _check_per_row(
    graph: Graph, members: frozenset[int], values: Sequence[Value], frame: Frame, accesses: Accesses
) -> str | None:
    """Values with one element a row must have as many elements as there are rows, and reduce the same rows."""
    rows = math.prod(frame.domain[a] for a in frame.rows)
    flat: Expr = Const(0)
    for axis in frame.rows:
        flat = ix.add(ix.mul(flat, frame.domain[axis]), Dim(axis))
    met = {_rows_of(graph, r) for r in accesses.reductions}
    for value in values:
        array = graph.array(value)
        if array.size != rows:
            return f"an output of {array.size} elements beside {rows} rows"
        own = Accesses()
        collect(graph, members, value, coords_of(flat, array.shape, frame.domain), frame.domain, own)
        if own.outside:
            return "a reduction at rows that its operand does not have"
        if met and not {_rows_of(graph, r) for r in own.reductions} <= met:
            return "outputs over different rows"
        if any(not ix.dims_of(e) <= set(frame.rows) for r in own.reductions for e in r.coords):
            return "a reduction inside a reduction that depends on the inner one's axes"
        accesses.loads.update(own.loads)
        accesses.reductions.update(own.reductions)
    return None


def _rows_of(graph: Graph, reduction: Reduction) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Expr, ...]]:
    """What two reductions of the same rows agree in: the kept sizes, the axes reduced, and the place."""
    node = _reduce(graph, reduction.node)
    return tuple(n for a, n in enumerate(node.domain) if a not in node.axes), node.axes, reduction.coords


def _leading(domain: tuple[int, ...], graph: Graph, rest: Sequence[Value]) -> tuple[int, ...] | None:
    """Rows for outputs that need no reduction beside others that do: the leading axes that match the others' size."""
    for count in range(len(domain)):
        if rest and math.prod(domain[:count]) == graph.array(rest[0]).size:
            return tuple(range(count))
    return None
