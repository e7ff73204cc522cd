"""Kernels: a set of nodes, what it stores, and the schedule under which it is legal.

Input: a graph, a set of Map, Reduce, Contract and Scatter nodes and the values to store.  Output: a `Kernel`, or the
reason why no schedule can run the set as one kernel.  Invariant: each reduction of a kernel of rows depends on the
tile's row only, every output is stored exactly once, and nothing a kernel writes in place is read by it, but for keys
and values that attention has written itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Node, Reduce, Scatter, pieces_of
from jaxorch.ir.index import Const, Dim, Expr
from jaxorch.ir.simplify import coords_of
from jaxorch.ir.view import Piece, Value, lookups
from jaxorch.kernels.access import Accesses, Reduction, collect, stored_array
from jaxorch.kernels.contract import contracted
from jaxorch.kernels.frame import Frame, flat_frames, refine
from jaxorch.kernels.order import walked_pointwise, walked_rows
from jaxorch.kernels.sides import Core
from jaxorch.kernels.stencil import stencil_frames
from jaxorch.kernels.unroll import inner, repeats_rows, taps_of, windows
from jaxorch.passes.derive import LONGEST_TILE_ROW, MOST_TAPS

__all__ = ["SHORT_ROW", "Kernel", "Output", "aliases", "build"]


@dataclass(frozen=True, slots=True)
class Output:
    """A stored value; `per_row` if it has one element a row of the tile rather than one a point."""

    value: Value
    per_row: bool


_READ = "an array written in place is read by the kernel that writes it"

_MOST_FRAMES = 4  # of kernels with windows: each is timed in a few configurations

SHORT_ROW = 512
"""Rows of no more elements than this are reduced again by every program that wants their result."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One generated kernel.

    schedule: "pointwise", "rows" (a tile holds whole rows), "rows-looped" (a loop runs along the row) or "rows-blocked"
    (a row's columns are spread over programs, each of which reduces anew the short rows that it needs); "gemm" and
    "online" are around the contractions of `core`.
    frames: the frames it can run in, best guess first.  inputs: the values it loads, in argument order.
    unrolled: its Reduces and Contracts that are computed point by point (`kernels.unroll`), as Maps are.
    """

    nodes: tuple[int, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Output, ...]
    schedule: str
    frames: tuple[Frame, ...]
    unrolled: tuple[int, ...] = ()
    core: Core | None = None

    def column_blocks(self, frame: int, block: int) -> int:
        """Programs that share the columns of a tile's rows, `block` columns each."""
        spread = self.schedule in ("pointwise", "rows-blocked", "gemm")
        return -(-self.frames[frame].sizes[2] // block) if spread else 1


def aliases(graph: Graph, kernel: Kernel) -> dict[int, int]:
    """The inputs whose memory an output takes: input number -> output number."""
    bases = {k: n.base for k, o in enumerate(kernel.outputs) if isinstance(n := graph.nodes[o.value.node], Scatter)}
    return {kernel.inputs.index(base): k for k, base in bases.items()}


def build(graph: Graph, nodes: Collection[int], outputs: Sequence[Value]) -> Kernel | str:
    """The kernel that computes `outputs` from `nodes`, or why there is none."""
    members = frozenset(nodes)
    if any(stored_array(graph, v).size == 0 for v in outputs):
        return "a zero-size output"
    hazard = _hazard(graph, members, outputs)
    if hazard is not None:
        return hazard
    unrolled, early = windows(graph, members), _written_first(graph, members)
    if any(isinstance(graph.nodes[n], Contract) for n in members - unrolled):
        return _contraction(graph, members, tuple(outputs), unrolled, early)
    if early:
        return _READ
    found = _build(graph, _Members(members, unrolled), tuple(outputs))
    if isinstance(found, str) and (more := inner(graph, members)) != unrolled:
        again = _build(graph, _Members(members, more), tuple(outputs))
        return found if isinstance(again, str) else again
    return found


def _contraction(
    graph: Graph, members: frozenset[int], outputs: tuple[Value, ...], unrolled: frozenset[int], early: tuple[int, ...]
) -> Kernel | str:
    if taps_of(graph, members, unrolled) > MOST_TAPS:
        return "windows of windows beside a contraction"
    scatters = {k: n for k in sorted(members) if isinstance(n := graph.nodes[k], Scatter)}
    late = [n for k, n in scatters.items() if k not in early]
    if any(n.combine != "set" for n in late):
        return "a write beside a contraction that is combined with what is there"
    found = contracted(graph, members, outputs, unrolled, early)
    if isinstance(found, str):
        return found
    if found.core.softmax is not None and any(n.place.guard or any(lookups(n.place)) for n in late):
        return "a write beside two contractions whose place is not known"
    per_row = {p.value for p in found.core.placed if p.per_row}
    stored = tuple(Output(v, per_row=v in per_row) for v in outputs)
    schedule = "gemm" if found.core.softmax is None else "online"
    inputs = tuple(sorted({*found.inputs, *(n.base for n in scatters.values())}))
    return Kernel(tuple(sorted(members)), inputs, stored, schedule, found.frames, tuple(sorted(unrolled)), found.core)


@dataclass(frozen=True, slots=True)
class _Members:
    """The nodes of a kernel, and those of them that are unrolled."""

    nodes: frozenset[int]
    unrolled: frozenset[int]

    def reduces(self, graph: Graph) -> list[Reduce]:
        """The reductions that are rows of a tile."""
        found = (graph.nodes[n] for n in sorted(self.nodes - self.unrolled))
        return [n for n in found if isinstance(n, Reduce)]

    def kernel(
        self, inputs: tuple[Value, ...], outputs: tuple[Output, ...], schedule: str, frames: tuple[Frame, ...]
    ) -> Kernel:
        return Kernel(tuple(sorted(self.nodes)), inputs, outputs, schedule, frames, tuple(sorted(self.unrolled)))


def _build(graph: Graph, members: _Members, outputs: tuple[Value, ...]) -> Kernel | str:
    taps = taps_of(graph, members.nodes, members.unrolled)
    if taps > MOST_TAPS:
        return f"windows of windows: {taps} reads a point, {MOST_TAPS} at most"
    if repeats_rows(graph, members.nodes, members.unrolled):
        return "a window over values of reduced rows"
    return _rows(graph, members, outputs) if members.reduces(graph) else _pointwise(graph, members, outputs)


def _hazard(graph: Graph, members: frozenset[int], outputs: Sequence[Value]) -> str | None:
    """Why arrays that are written in place keep the nodes apart: what reads one runs before or after, never beside."""
    scatters = [(k, n) for k in sorted(members) if isinstance(n := graph.nodes[k], Scatter)]
    if not scatters:
        return None
    if any(Value(k) not in outputs for k, _ in scatters):
        return _READ
    bases = [n.base for _, n in scatters]
    if any(b.node in members for b in bases) or len(set(bases)) < len(bases):
        return "an array is written in place twice"
    return _READ if _read(graph, members) & set(bases) else None


def _written_first(graph: Graph, members: frozenset[int]) -> tuple[int, ...]:
    """The Scatters whose arrays others read as they are then."""
    scatters = [k for k in sorted(members) if isinstance(graph.nodes[k], Scatter)]
    read = _read(graph, members) if scatters else set[Value]()
    return tuple(k for k in scatters if Value(k) in read)


def _read(graph: Graph, members: frozenset[int]) -> set[Value]:
    return {v for k in members for p in pieces_of(graph.nodes[k]) for v in _values(graph.nodes[k], p)}


def _values(node: Node, piece: Piece) -> Iterator[Value]:
    """What a piece of the node reads; a Scatter's place reads its lookups, and its base is written."""
    if not (isinstance(node, Scatter) and piece is node.place):
        yield piece.value
    yield from (lookup.value for lookup in lookups(piece))


def _walk(graph: Graph, members: _Members, values: Sequence[Value], domain: tuple[int, ...]) -> Accesses:
    accesses = Accesses()
    flat = ix.linearize([Dim(a) for a in range(len(domain))], domain)
    for value in values:
        coords = coords_of(flat, stored_array(graph, value).shape, domain)
        collect(graph, members.nodes, value, coords, domain, accesses, members.unrolled)
    return accesses


def _refined(
    graph: Graph, members: _Members, values: Sequence[Value], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], Accesses]:
    """The outputs' domain with its axes split where an index splits them, and the accesses over it."""
    accesses = _walk(graph, members, values, shape)
    domain, _ = refine(shape, accesses)
    return (domain, accesses) if domain == shape else (domain, _walk(graph, members, values, domain))


def _pointwise(graph: Graph, members: _Members, outputs: tuple[Value, ...]) -> Kernel | str:
    if len({stored_array(graph, v).size for v in outputs}) != 1:
        return "outputs of different sizes"
    domain, accesses = _refined(graph, members, outputs, stored_array(graph, outputs[0]).shape)
    frames = flat_frames(domain, accesses.offsets(graph), accesses)
    if any(isinstance(graph.nodes[v.node], Scatter) for v in outputs):
        frames = tuple(f for f in frames if f.unroll == 1)  # a place need not keep neighbours side by side
    axes = tuple(range(len(domain)))
    frames = walked_pointwise(graph, outputs, accesses, frames)
    if members.unrolled:
        plain = Frame(domain, (), axes[:-1], axes[-1:])
        frames = tuple(dict.fromkeys((*stencil_frames(graph, accesses, plain), *frames)))[:_MOST_FRAMES]
    stored = tuple(Output(v, per_row=False) for v in outputs)
    return members.kernel(_inputs(graph, outputs, accesses), stored, "pointwise", frames)


def _inputs(graph: Graph, outputs: Sequence[Value], accesses: Accesses) -> tuple[Value, ...]:
    """The values loaded, and those written in place."""
    bases = {n.base for v in outputs if isinstance(n := graph.nodes[v.node], Scatter)}
    return tuple(sorted({load.value for load in accesses.loads} | bases))


def _rows(graph: Graph, members: _Members, outputs: tuple[Value, ...]) -> Kernel | str:
    # The anchor is the largest output that is no reduction's: its points are the tile's.  With Reduce outputs only,
    # they are the rows.
    sizes = {v: stored_array(graph, v).size for v in outputs}
    anchor = max(outputs, key=lambda v: (sizes[v], not isinstance(graph.nodes[v.node], Reduce), -v.node))
    full = tuple(v for v in outputs if sizes[v] == sizes[anchor])
    rest = tuple(v for v in outputs if sizes[v] != sizes[anchor])
    # A kernel that stores per-row values has one kind of rows; most sets tried fail here, before any walk.
    rows = {n.arrays[0].size for n in members.reduces(graph)}
    for value in rest:
        if rows != {sizes[value]}:
            return f"an output of {sizes[value]} elements beside {', '.join(map(str, sorted(rows)))} rows"
    domain, accesses = _refined(graph, members, full, stored_array(graph, anchor).shape)
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
    if not accesses.reductions:
        return "outputs that need no reduction"
    longest = max(_reduce(graph, r.node).count for r in accesses.reductions)
    persistent = longest <= LONGEST_TILE_ROW and frame.sizes[2] <= LONGEST_TILE_ROW
    marked = tuple(Output(v, per_row=v in row_values) for v in outputs)
    spread = longest <= SHORT_ROW and 8 * longest <= frame.sizes[2] and not any(o.per_row for o in marked)
    schedule = "rows" if persistent else "rows-blocked" if spread else "rows-looped"
    frames = walked_rows(graph, outputs, accesses, frame)
    if members.unrolled and not rest and columns and persistent:
        frames = tuple(dict.fromkeys((*stencil_frames(graph, accesses, frame), *frames)))
    return members.kernel(_inputs(graph, outputs, accesses), marked, schedule, frames)


def _reduce(graph: Graph, node: int) -> Reduce:
    found = graph.nodes[node]
    assert isinstance(found, Reduce)
    return found


def _row_axes(accesses: Accesses, rank: int) -> tuple[int, ...] | None:
    dims = frozenset[int]().union(*(ix.dims_of(e) for r in accesses.reductions for e in r.coords))
    return tuple(sorted(dims)) if all(d < rank for d in dims) else None


def _check_per_row(
    graph: Graph, members: _Members, values: Sequence[Value], frame: Frame, accesses: Accesses
) -> str | None:
    """Values with one element a row must have as many elements as there are rows, and reduce the same rows."""
    rows = math.prod(frame.domain[a] for a in frame.rows)
    flat: Expr = Const(0)
    for axis in frame.rows:
        flat = ix.add(ix.mul(flat, frame.domain[axis]), Dim(axis))
    met = {_rows_of(graph, r) for r in accesses.reductions}
    for value in values:
        array = stored_array(graph, value)
        if array.size != rows:
            return f"an output of {array.size} elements beside {rows} rows"
        own = Accesses()
        coords = coords_of(flat, array.shape, frame.domain)
        collect(graph, members.nodes, value, coords, frame.domain, own, members.unrolled)
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
        if rest and math.prod(domain[:count]) == stored_array(graph, rest[0]).size:
            return tuple(range(count))
    return None
