"""Pieces: the nodes that are always computed together, and how pieces hang together.

Input: a graph.  Output: `Pieces`.  Invariant: every Map, Reduce and Scatter is in a piece, and a value that two
pieces share is an output of one of them, an operand of the program, or cheap enough to be computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxorch.ir.graph import (
    Const,
    Contract,
    Graph,
    Input,
    Map,
    Node,
    Opaque,
    Reduce,
    Scatter,
    is_empty,
    outputs_of,
    reads,
)
from jaxorch.ir.view import Value
from jaxorch.kernels.unroll import is_stencil
from jaxorch.passes.derive.match import is_window

__all__ = ["Piece", "Pieces", "internal"]

# Redone by every reader rather than stored: casts, sums and comparisons cost less than reading their result would.
_CHEAP = frozenset(
    "copy iota convert_element_type neg add sub mul abs not and or eq ne lt le gt ge".split()  # noqa: SIM905
)
_MOST_SHARED = 16  # a value with more readers than this brings no two of them together


@dataclass(frozen=True, slots=True)
class Piece:
    """A sink, and the maps that only it needs or that are cheaper to redo than to read.

    inputs and outputs: the values it reads that another node makes, and those of its own that are read outside.
    """

    nodes: tuple[int, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


class Pieces:
    """The pieces of a graph, and what can be asked about sets of them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reads = [reads(n) for n in graph.nodes]
        self.readers: dict[Value, list[int]] = {}
        for number, values in enumerate(self.reads):
            for value in values:
                self.readers.setdefault(value, []).append(number)
        self.users = graph.users()
        self.returned = set(graph.outputs)
        self.bases = {n.base.node for n in graph.nodes if isinstance(n, Scatter)}  # to exist before they are written to
        self.redone = self._redone()
        self.all = self._pieces()
        self.neighbours, self.after = self._relations()
        maker = {v: k for k, p in enumerate(self.all) for v in p.outputs}
        self.followers: list[set[int]] = [set() for _ in self.all]  # by piece: those that read its outputs
        for k, p in enumerate(self.all):
            for v in p.inputs:
                if v in maker:
                    self.followers[maker[v]].add(k)
        self.products = frozenset(k for k, p in enumerate(self.all) if _is_product(graph.nodes[p.nodes[-1]]))

    # What the pieces are

    def _pieces(self) -> list[Piece]:
        nodes, returned = self.graph.nodes, {v.node for v in self.graph.outputs}
        owner: dict[int, int] = {}  # the sink whose piece a map belongs to, if it has one user only
        for number in reversed(range(len(nodes))):
            if not _computes(nodes[number]) or number in self.redone:
                continue
            users = self.users[number]
            alone = isinstance(nodes[number], Map) and len(users) == 1 and number not in returned | self.bases
            alone = alone and not self._materialized(number)
            # what a product reads stays apart: another kernel may write it, and XLA does
            joins = alone and isinstance(nodes[users[0]], Map | Reduce | Scatter) and users[0] not in self.redone
            # before a window it would be computed for every element of every window: a choice, not a rule
            joins = joins and not is_window(nodes[users[0]])
            owner[number] = owner.get(users[0], users[0]) if joins else number
        members: dict[int, list[int]] = {}
        for number, sink in owner.items():
            members.setdefault(sink, []).append(number)
        return [self._piece(sorted(members[sink])) for sink in sorted(members)]

    def _redone(self) -> frozenset[int]:
        """Maps with several users that each computes anew: cheap ones that read no more than they would write."""
        graph, returned = self.graph, {v.node for v in self.graph.outputs}
        found: set[int] = set()
        for number, node in enumerate(graph.nodes):
            if not isinstance(node, Map) or node.op not in _CHEAP or number in returned | self.bases:
                continue
            if len(self.users[number]) < 2 or self._materialized(number):
                continue
            if all(isinstance(graph.nodes[u], Map | Reduce) for u in self.users[number]):
                sources = self._sources(number, found)
                if sum(graph.array(v).nbytes for v in sources) <= node.array.nbytes:
                    found.add(number)
        return frozenset(found)

    def _materialized(self, number: int) -> bool:
        """Whether a node is a copy that a pass has made, for its array to be there."""
        node = self.graph.nodes[number]
        traced = node.origin.equations and self.graph.variables(Value(number))
        return isinstance(node, Map) and node.op == "copy" and not traced

    def _sources(self, number: int, redone: set[int]) -> set[Value]:
        """The values a map reads, those of redone maps replaced by theirs."""
        found: set[Value] = set()
        for value in self.reads[number]:
            if value.node in redone:
                found |= self._sources(value.node, redone)
            elif not isinstance(self.graph.nodes[value.node], Const):
                found.add(value)
        return found

    def _piece(self, nodes: Sequence[int]) -> Piece:
        every, pending = set(nodes), list(nodes)
        while pending:
            for value in self.reads[pending.pop()]:
                if value.node in self.redone and value.node not in every:
                    every.add(value.node)
                    pending.append(value.node)
        inside = tuple(sorted(every))
        own = [Value(k, o) for k in nodes for o in range(len(outputs_of(self.graph.nodes[k])))]
        inputs = sorted({v for k in inside for v in self.reads[k] if v.node not in every})
        return Piece(inside, internal(self.graph, inputs), self.wanted(own, every))

    def wanted(self, values: Iterable[Value], inside: set[int]) -> tuple[Value, ...]:
        """Those of `values` that the program returns or a node outside `inside` reads."""
        return tuple(v for v in values if v in self.returned or any(r not in inside for r in self.readers.get(v, ())))

    # How they hang together

    def joined(self, chosen: Iterable[int]) -> tuple[tuple[int, ...], tuple[Value, ...], tuple[Value, ...]]:
        """Nodes, internal inputs and outputs of several pieces as one; what only the set needs is no output."""
        pieces = [self.all[k] for k in chosen]
        nodes = tuple(sorted({n for p in pieces for n in p.nodes}))
        own = sorted({v for p in pieces for v in p.outputs})
        inputs = tuple(sorted({v for p in pieces for v in p.inputs} - set(own)))
        return nodes, inputs, self.wanted(own, set(nodes))

    def saved(self, chosen: Iterable[int]) -> int:
        """Bytes that one kernel for these pieces does not move: values made inside, inputs read once for several."""
        pieces = [self.all[k] for k in chosen]
        made = {v for p in pieces for v in p.outputs}
        counted: set[Value] = set()
        saved = 0
        for p in pieces:
            for v in {v for n in p.nodes for v in self.reads[n]}:
                if v in counted or (v in made and v not in p.outputs):
                    saved += self.graph.array(v).nbytes
                counted.add(v)
        return saved

    def is_convex(self, chosen: frozenset[int]) -> bool:
        """Whether neither a piece outside nor an opaque node lies on a path between two inside."""
        below = set[int]().union(*(self.after[k] for k in chosen)) - chosen
        return not any(self.after[k] & chosen for k in below)

    def may_join(self, chosen: frozenset[int]) -> bool:
        """Whether some schedule may run so many products; two belong together only if one feeds the other."""
        products = sorted(k for k in chosen if k in self.products)
        return len(products) < 2 or (len(products) == 2 and products[1] in self.after[products[0]])

    def chains(self) -> list[frozenset[int]]:
        """From a product to one that needs it, with no other product between: all pieces on the way."""
        found: list[frozenset[int]] = []
        for first in sorted(self.products):
            between, ends = self._until_products(first)
            for last in ends:
                chain = frozenset(k for k in between if last in self.after[k]) | {first, last}
                if self.is_convex(chain):
                    found.append(chain)
        return found

    def _until_products(self, first: int) -> tuple[list[int], list[int]]:
        """What follows a product up to the next ones, and these; no more than a kernel may hold."""
        between, ends, pending = dict[int, None](), dict[int, None](), [first]
        while pending and len(between) <= 2 * _MOST_SHARED:
            for k in sorted(self.followers[pending.pop(0)]):
                if k in self.products:
                    ends[k] = None
                elif k not in between:
                    between[k] = None
                    pending.append(k)
        return list(between), list(ends)

    def _relations(self) -> tuple[list[set[int]], list[set[int]]]:
        """(pieces that share a value, pieces that come after through any path)."""
        maker = {v: k for k, p in enumerate(self.all) for v in p.outputs}
        sharing: dict[Value, set[int]] = {}
        for k, p in enumerate(self.all):
            for v in {v for n in p.nodes for v in self.reads[n]}:
                if self.graph.array(v).shape:
                    sharing.setdefault(v, {maker[v]} if v in maker else set()).add(k)
        neighbours: list[set[int]] = [set() for _ in self.all]
        for together in sharing.values():
            for k in together if len(together) <= _MOST_SHARED else ():
                neighbours[k] |= together - {k}
        return neighbours, self._after()

    def _after(self) -> list[set[int]]:
        """By piece, and after the pieces by opaque node: a path may lead through what XLA runs."""
        owner = {v.node: k for k, p in enumerate(self.all) for v in p.outputs}
        opaque = [number for number, node in enumerate(self.graph.nodes) if isinstance(node, Opaque)]
        owner |= {number: len(self.all) + k for k, number in enumerate(opaque)}
        reached: list[set[int]] = [set() for _ in self.graph.nodes]  # by node: the pieces its outputs lead to
        for number in reversed(range(len(self.graph.nodes))):
            for user in self.users[number]:
                reached[number] |= reached[user] | ({owner[user]} if user in owner else set())
        after = [set[int]().union(*(reached[v.node] for v in p.outputs)) - {k} for k, p in enumerate(self.all)]
        return after + [reached[number] for number in opaque]


def internal(graph: Graph, values: Iterable[Value]) -> tuple[Value, ...]:
    """The values that some candidate must produce: no inputs of the program, no constants, no empty memory."""
    return tuple(v for v in values if not isinstance(n := graph.nodes[v.node], Input | Const) and not is_empty(n))


def _is_product(node: Node) -> bool:
    return isinstance(node, Contract) and not is_stencil(node)


def _computes(node: Node) -> bool:
    return isinstance(node, Map | Reduce | Contract | Scatter) and not is_empty(node)
