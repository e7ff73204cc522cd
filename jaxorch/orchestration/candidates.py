"""Candidate kernels: which sets of nodes may run together, as a generated kernel or by XLA.

Input: a graph.  Output: `Piece`s (node sets that are always computed together) and, for each convex set
of pieces visited, a candidate if some schedule is legal, beside XLA's own candidates.  Invariant: XLA's
candidates alone cover every node, so a plan always exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxorch.ir.graph import Const, Graph, Input, Map, Node, Opaque, Reduce, outputs_of, reads
from jaxorch.ir.view import Value
from jaxorch.kernels.kernel import Kernel, build

__all__ = ["Enumeration", "Fused", "Left", "Piece", "enumerate_candidates"]

BEAM = 24  # sets kept at each size while growing from one piece
LARGEST = 24  # pieces in one set
BUDGET = 1500  # sets tried as kernels in one graph

_CHEAP = frozenset(
    {
        "copy",
        "iota",
        "convert_element_type",
        "neg",
        "add",
        "sub",
        "mul",
        "abs",
        "not",
        "and",
        "or",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    }
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Nodes that always run together: a sink, and the maps that only it needs or that are cheaper redone than read."""

    nodes: tuple[int, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Fused:
    """A generated kernel as a candidate."""

    kernel: Kernel
    inputs: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """Nodes that XLA runs."""

    nodes: tuple[int, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Enumeration:
    """All candidates: generated kernels, XLA's own, and the sets that no schedule runs, with the reason."""

    fused: tuple[Fused, ...]
    left: tuple[Left, ...]
    rejected: Mapping[tuple[int, ...], str]


def enumerate_candidates(graph: Graph) -> Enumeration:
    """All candidates of a graph, in a fixed order."""
    pieces = _pieces(graph)
    fused: list[Fused] = []
    rejected: dict[tuple[int, ...], str] = {}
    for chosen in _convex_sets(graph, pieces):
        nodes, inputs, outputs = _joined(graph, [pieces[k] for k in chosen])
        kernel = build(graph, nodes, outputs)
        if isinstance(kernel, str):
            rejected[nodes] = kernel
        else:
            fused.append(Fused(kernel, inputs))
    left = _left(graph, pieces)
    for number, node in enumerate(graph.nodes):
        if isinstance(node, Opaque):
            outputs = tuple(Value(number, k) for k in range(len(outputs_of(node))))
            left.append(Left((number,), _internal(graph, reads(node)), outputs))
    return Enumeration(tuple(fused), tuple(left), rejected)


def _left(graph: Graph, pieces: Sequence[Piece]) -> list[Left]:
    """XLA's candidates: a piece, and the pieces before it whose values no traced variable holds: XLA redoes those."""
    maker = {v: p for p in pieces for v in p.outputs}
    found: list[Left] = []
    for piece in pieces:
        if not all(graph.variables(v) for v in piece.outputs):
            continue
        together = [piece]
        for member in together:
            hidden = [maker[v] for v in member.inputs if v in maker and not graph.variables(v)]
            together += [p for p in dict.fromkeys(hidden) if p not in together]
        nodes = tuple(sorted({n for p in together for n in p.nodes}))
        made = {v for p in together for v in p.outputs}
        inputs = tuple(sorted({v for p in together for v in p.inputs} - made))
        found.append(Left(nodes, inputs, piece.outputs))
    return found


def _internal(graph: Graph, values: Sequence[Value]) -> tuple[Value, ...]:
    """The values that some candidate must produce: no inputs of the program, no constants."""
    return tuple(v for v in values if not isinstance(graph.nodes[v.node], Input | Const))


def _computes(node: Node) -> bool:
    return isinstance(node, Map | Reduce)


# Pieces


def _pieces(graph: Graph) -> list[Piece]:
    users = graph.users()
    returned = {v.node for v in graph.outputs}
    redone = _redone(graph, users, returned)
    owner: dict[int, int] = {}  # the sink whose piece a map belongs to, if it has one user only
    for number in reversed(range(len(graph.nodes))):
        node = graph.nodes[number]
        if not _computes(node) or number in redone:
            continue
        (user, *more) = users[number] or (number,)
        alone = isinstance(node, Map) and not more and number not in returned and user != number
        owner[number] = (
            owner.get(user, user) if alone and _computes(graph.nodes[user]) and user not in redone else number
        )
    members: dict[int, list[int]] = {}
    for number, sink in owner.items():
        members.setdefault(sink, []).append(number)
    return [_piece(graph, members[sink], redone) for sink in sorted(members)]


def _redone(graph: Graph, users: Sequence[Sequence[int]], returned: set[int]) -> frozenset[int]:
    """Maps with several users that are computed anew by each: cheap ones that read no more than they would write."""
    found: set[int] = set()
    for number, node in enumerate(graph.nodes):
        if not isinstance(node, Map) or number in returned:
            continue
        if any(not _computes(graph.nodes[u]) for u in users[number]):
            continue
        sources = _sources(graph, number, found)
        cheap = node.op in _CHEAP and sum(graph.array(v).nbytes for v in sources) <= node.array.nbytes
        if cheap and len(users[number]) > 1:
            found.add(number)
    return frozenset(found)


def _sources(graph: Graph, number: int, redone: set[int]) -> set[Value]:
    """The values a map reads, those of redone maps replaced by theirs."""
    found: set[Value] = set()
    for value in reads(graph.nodes[number]):
        if value.node in redone:
            found |= _sources(graph, value.node, redone)
        elif not isinstance(graph.nodes[value.node], Const):
            found.add(value)
    return found


def _piece(graph: Graph, nodes: Sequence[int], redone: frozenset[int]) -> Piece:
    every = set(nodes)
    pending = list(nodes)
    while pending:
        for value in reads(graph.nodes[pending.pop()]):
            if value.node in redone and value.node not in every:
                every.add(value.node)
                pending.append(value.node)
    wanted = {v for k, n in enumerate(graph.nodes) if k not in every for v in reads(n)} | set(graph.outputs)
    outputs = tuple(
        Value(k, o) for k in sorted(nodes) for o in range(len(outputs_of(graph.nodes[k]))) if Value(k, o) in wanted
    )
    inputs = tuple(sorted({v for k in every for v in reads(graph.nodes[k]) if v.node not in every}))
    return Piece(tuple(sorted(every)), _internal(graph, inputs), outputs)


# Sets of pieces


def _joined(graph: Graph, pieces: Sequence[Piece]) -> tuple[tuple[int, ...], tuple[Value, ...], tuple[Value, ...]]:
    """Nodes, internal inputs and outputs of several pieces as one kernel; what only the set needs is not stored."""
    nodes = tuple(sorted({n for p in pieces for n in p.nodes}))
    inside = set(nodes)
    own = {v for p in pieces for v in p.outputs}
    outside = {v for k, n in enumerate(graph.nodes) if k not in inside for v in reads(n)} | set(graph.outputs)
    inputs = tuple(sorted({v for p in pieces for v in p.inputs if v not in own}))
    return nodes, inputs, tuple(sorted(own & outside))


def _convex_sets(graph: Graph, pieces: Sequence[Piece]) -> Iterator[tuple[int, ...]]:
    """Convex sets of pieces, grown from each piece through the values they share, largest savings first."""
    neighbours, after = _relations(graph, pieces)
    seen: set[frozenset[int]] = set()
    budget = BUDGET
    for start in range(len(pieces)):
        frontier = [frozenset((start,))]
        for _ in range(LARGEST):
            fresh = [s for s in frontier if s not in seen]
            for chosen in fresh:
                seen.add(chosen)
                if budget == 0 and len(chosen) > 1:
                    continue
                budget = max(budget - 1, 0)
                yield tuple(sorted(chosen))
            grown = {
                chosen | {k} for chosen in fresh for j in chosen for k in neighbours[j] if k not in chosen and k > start
            }
            convex = [s for s in grown if s not in seen and _is_convex(s, after)]
            ranked = sorted(convex, key=lambda s: (-_saved(graph, [pieces[k] for k in s]), tuple(sorted(s))))
            frontier = ranked[:BEAM]
            if not frontier or budget == 0:
                break


def _relations(graph: Graph, pieces: Sequence[Piece]) -> tuple[list[set[int]], list[set[int]]]:
    """(pieces that share a value, pieces that come after through any path)."""
    maker = {v: k for k, p in enumerate(pieces) for v in p.outputs}
    readers: dict[Value, list[int]] = {}
    for k, p in enumerate(pieces):
        for v in {v for n in p.nodes for v in reads(graph.nodes[n])}:
            if graph.array(v).shape:
                readers.setdefault(v, []).append(k)
    neighbours: list[set[int]] = [set() for _ in pieces]
    for v, ks in readers.items():
        together = {*ks, *([maker[v]] if v in maker else [])}
        for k in together if len(together) <= 16 else ():
            neighbours[k] |= together - {k}
    owner = {n: k for k, p in enumerate(pieces) for n in p.nodes if any(v.node == n for v in p.outputs)}
    reached: dict[int, set[int]] = {}  # by node: the pieces that its outputs reach
    users = graph.users()
    for number in reversed(range(len(graph.nodes))):
        found: set[int] = set()
        for user in users[number]:
            found |= reached[user]
            if user in owner:
                found.add(owner[user])
        reached[number] = found
    after = [set[int]().union(*(reached[v.node] for v in p.outputs)) - {k} for k, p in enumerate(pieces)]
    return neighbours, after


def _is_convex(chosen: frozenset[int], after: Sequence[set[int]]) -> bool:
    """No piece outside lies on a path between two inside."""
    below = set[int]().union(*(after[k] for k in chosen)) - chosen
    return not any(after[k] & chosen for k in below)


def _saved(graph: Graph, pieces: Sequence[Piece]) -> int:
    """Bytes that one kernel for these pieces does not move: values made inside, and inputs read once for several."""
    made = {v for p in pieces for v in p.outputs}
    saved = 0
    counted: set[Value] = set()
    for p in pieces:
        for v in {v for n in p.nodes for v in reads(graph.nodes[n])}:
            if (v in made and v not in p.outputs) or v in counted:
                saved += graph.array(v).nbytes
            counted.add(v)
    return saved
