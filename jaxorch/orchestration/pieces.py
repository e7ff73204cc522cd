"""Pieces: the nodes that are always computed together, and how pieces hang together.

Input: a graph.  Output: `Pieces`.  Invariant: every Map, Reduce and Scatter is in a piece, and a value that two
pieces share is an output of one of them, an operand of the program, or cheap enough to be computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from jaxorch.orchestration.bits import united
from jaxorch.passes.derive.match import is_window

__all__ = ["Piece", "Pieces", "internal"]

# Redone by every reader rather than stored: casts, sums and comparisons cost less than reading their result would.
_CHEAP = frozenset(
    "copy iota convert_element_type neg add sub mul abs not and or eq ne lt le gt ge".split()  # noqa: SIM905
)
_LARGE = 4 << 20  # bytes of a value that takes much longer to store and to read than functions do, or a launch
_MOST_SHARED = 16  # a value with more readers than this brings no two of them together


@dataclass(frozen=True, slots=True)
class Piece:
    """A sink, and the maps that only it needs or that are cheaper to redo than to read.

    inputs and outputs: the values it reads that another node makes, and those of its own that are read outside.
    """

    nodes: tuple[int, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


type Joined = tuple[tuple[int, ...], tuple[Value, ...], tuple[Value, ...]]
"""Nodes, internal inputs and outputs of several pieces."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A piece with its values as their places among all, ascending; `reads`: those that its nodes read, whoever."""

    nodes: frozenset[int]
    inputs: frozenset[int]
    outputs: frozenset[int]
    reads: frozenset[int]


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
        self._sharing = self._shared()
        self.neighbours = self._neighbours()
        self._after, self._before = self._order()
        maker = {v: k for k, p in enumerate(self.all) for v in p.outputs}
        self.followers: list[set[int]] = [set() for _ in self.all]  # by piece: those that read its outputs
        for k, p in enumerate(self.all):
            for v in p.inputs:
                if v in maker:
                    self.followers[maker[v]].add(k)
        self._values = sorted({v for values in self.reads for v in values} | self.returned)
        numbers = {v: k for k, v in enumerate(self._values)}
        self._nbytes = [graph.array(v).nbytes for v in self._values]
        # by value: the nodes that read it, and -1, which no piece holds, where the program returns it
        self._read_by = [{*self.readers.get(v, ()), *([-1] if v in self.returned else [])} for v in self._values]
        self._tables = [self._table(p, numbers) for p in self.all]
        self.products = frozenset(k for k, p in enumerate(self.all) if _is_product(graph.nodes[p.nodes[-1]]))
        self._spare = self._spared()

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
        found: dict[Value, set[Value]] = {}
        for number, node in enumerate(graph.nodes):
            if not isinstance(node, Map) or node.op not in _CHEAP or number in returned | self.bases:
                continue
            if len(self.users[number]) < 2 or self._materialized(number):
                continue
            if all(isinstance(graph.nodes[u], Map | Reduce) for u in self.users[number]):
                read = self._sources(self.reads[number], found)
                if sum(graph.array(v).nbytes for v in read) <= node.array.nbytes:
                    found[Value(number)] = read
        return frozenset(value.node for value in found)

    def _spared(self) -> frozenset[int]:
        """The pieces that each of their readers may compute anew: maps that read no more than they write.

        What others of these make, they read none of: that is computed anew as well.
        """
        nodes, found = self.graph.nodes, set[int]()
        sources: dict[Value, set[Value]] = {}  # of the values of those found
        for number, piece in enumerate(self.all):
            if len(piece.outputs) != 1 or piece.outputs[0] in self.returned:
                continue
            (value,) = piece.outputs
            nbytes = self.graph.array(value).nbytes
            if not all(isinstance(n := nodes[k], Map) and (nbytes >= _LARGE or n.op in _CHEAP) for k in piece.nodes):
                continue
            if value.node in self.bases or self._materialized(value.node):
                continue
            read = self._sources((v for k in piece.nodes for v in self.reads[k] if v.node not in piece.nodes), sources)
            if sum(self.graph.array(v).nbytes for v in read) <= nbytes:
                found.add(number)
                sources[value] = read
        return frozenset(found)

    def _materialized(self, number: int) -> bool:
        """Whether a node is a copy that a pass has made, for its array to be there."""
        node = self.graph.nodes[number]
        traced = node.origin.equations and self.graph.variables(Value(number))
        return isinstance(node, Map) and node.op == "copy" and not traced

    def _sources(self, values: Iterable[Value], redone: Mapping[Value, set[Value]]) -> set[Value]:
        """The values that take memory to read, those that are computed anew replaced by what they are computed from."""
        read = (v for v in values if not isinstance(self.graph.nodes[v.node], Const))
        return set[Value]().union(*(redone.get(v, {v}) for v in read))

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
        return Piece(inside, internal(self.graph, inputs), self._wanted(own, every))

    def _table(self, piece: Piece, numbers: dict[Value, int]) -> _Table:
        read = (v for n in piece.nodes for v in self.reads[n])
        inputs, outputs, reads = (frozenset(numbers[v] for v in vs) for vs in (piece.inputs, piece.outputs, read))
        return _Table(frozenset(piece.nodes), inputs, outputs, reads)

    def _wanted(self, values: Iterable[Value], inside: set[int]) -> tuple[Value, ...]:
        """Those of `values` that the program returns or a node outside `inside` reads."""
        return tuple(v for v in values if v in self.returned or any(r not in inside for r in self.readers.get(v, ())))

    # How they hang together

    def ways(self, chosen: frozenset[int]) -> list[Joined]:
        """Several pieces as one, with all it stores; without one value that others may redo, and without all of them.

        Where pieces outside wait for such a value, and others of the set for those, only the last: then nobody outside
        waits for the set.
        """
        whole = self.joined(sorted(chosen))
        nodes, inputs, outputs = whole
        redone = {self.all[k].outputs[0] for k in self._redoing(chosen)}
        spare = [v for v in outputs if v in redone]
        least = nodes, inputs, tuple(v for v in outputs if v not in redone)
        if not self._is_convex(chosen, chosen):
            return [least]
        without = [(nodes, inputs, tuple(v for v in outputs if v != one)) for one in spare]
        return list(dict.fromkeys([whole, *without, least]))

    def joined(self, chosen: Iterable[int]) -> Joined:
        """Nodes, internal inputs and outputs of several pieces as one; what only the set needs is no output."""
        tables = [self._tables[k] for k in chosen]
        nodes = set[int]().union(*(t.nodes for t in tables))
        own = set[int]().union(*(t.outputs for t in tables))
        inputs = set[int]().union(*(t.inputs for t in tables)) - own
        outputs = [v for v in sorted(own) if not self._read_by[v] <= nodes]
        return tuple(sorted(nodes)), self._named(sorted(inputs)), self._named(outputs)

    def _named(self, numbers: Iterable[int]) -> tuple[Value, ...]:
        return tuple(self._values[v] for v in numbers)

    def saved(self, chosen: Iterable[int]) -> int:
        """Bytes not moved because the pieces run as one: reads of values made inside, and reads once for several."""
        tables = [self._tables[k] for k in chosen]
        made = set[int]().union(*(t.outputs for t in tables))
        counted: set[int] = set()
        saved = 0
        for t in tables:
            twice = (t.reads & counted) | ((t.reads & made) - t.outputs)
            saved += sum(self._nbytes[v] for v in twice)
            counted |= t.reads
        return saved

    def is_convex(self, chosen: frozenset[int]) -> bool:
        """Whether neither a piece outside nor an opaque node lies on a path between two inside.

        A path may begin at a piece that others can redo, if one inside reads it: it is not waited for then.
        """
        return self._is_convex(chosen, chosen - self._redoing(chosen) if self._spare & chosen else chosen)

    def _is_convex(self, chosen: frozenset[int], makers: frozenset[int]) -> bool:
        """Whether no path from one of `makers` to one of `chosen` leads outside."""
        inside = after = before = 0
        for k in chosen:
            inside |= 1 << k
            before |= self._before[k]
            if k in makers:
                after |= self._after[k]
        return not after & before & ~inside

    def _redoing(self, chosen: frozenset[int]) -> frozenset[int]:
        """The pieces of a set that it reads itself, and others may compute anew."""
        return frozenset(k for k in self._spare & chosen if not self.followers[k].isdisjoint(chosen))

    def follows(self, last: int, first: int) -> bool:
        """Whether piece `last` needs, through any path, what piece `first` makes."""
        return bool(self._after[first] >> last & 1)

    def may_join(self, chosen: frozenset[int]) -> bool:
        """Whether some schedule may run so many products; two belong together only if one feeds the other."""
        products = self.products & chosen
        return len(products) < 2 or (len(products) == 2 and self.follows(max(products), min(products)))

    def chains(self) -> list[frozenset[int]]:
        """From a product to one that needs it, with no other product between: all pieces on the way."""
        found: list[frozenset[int]] = []
        for first in sorted(self.products):
            between, ends = self._until_products(first)
            for last in ends:
                chain = frozenset(k for k in between if self.follows(last, k)) | {first, last}
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

    def wiring(self, number: int) -> list[tuple[tuple[int, ...], int, bool]]:
        """Of each value that a piece reads or stores, in order: what shares it, by how many nodes it is read, and
        whether the program returns it. A value that brings no two together is shared by nobody.
        """
        table, read_by = self._tables[number], self._read_by
        values = sorted(table.reads | table.outputs)
        return [(self._sharing.get(self._values[v], ()), len(read_by[v]), -1 in read_by[v]) for v in values]

    def _shared(self) -> dict[Value, tuple[int, ...]]:
        """By value, the pieces that it brings together: its maker and its readers, if these are few."""
        maker = {v: k for k, p in enumerate(self.all) for v in p.outputs}
        sharing: dict[Value, set[int]] = {}
        for k, p in enumerate(self.all):
            for v in {v for n in p.nodes for v in self.reads[n]}:
                if self.graph.array(v).shape:
                    sharing.setdefault(v, {maker[v]} if v in maker else set()).add(k)
        return {v: tuple(sorted(together)) for v, together in sharing.items() if len(together) <= _MOST_SHARED}

    def _neighbours(self) -> list[set[int]]:
        """By piece: those that share a value with it."""
        neighbours: list[set[int]] = [set() for _ in self.all]
        for together in self._sharing.values():
            for k in together:
                neighbours[k] |= {*together} - {k}
        return neighbours

    def _order(self) -> tuple[list[int], list[int]]:
        """By piece, what comes after it and what before it through any path, as bits of an int.

        The bits past those of the pieces are of opaque nodes: a path may lead through what XLA runs.
        """
        nodes = self.graph.nodes
        opaque = [number for number, node in enumerate(nodes) if isinstance(node, Opaque)]
        bits = {v.node: 1 << k for k, p in enumerate(self.all) for v in p.outputs}
        bits |= {number: 1 << k for k, number in enumerate(opaque, len(self.all))}
        to, fro = [0] * len(nodes), [0] * len(nodes)  # by node, what its outputs lead to and what leads to it
        for number in reversed(range(len(nodes))):
            for user in self.users[number]:
                to[number] |= to[user] | bits.get(user, 0)
        for number, values in enumerate(self.reads):
            for value in values:
                fro[number] |= fro[value.node] | bits.get(value.node, 0)
        return self._of_pieces(to), self._of_pieces(fro)

    def _of_pieces(self, bits: Sequence[int]) -> list[int]:
        """By piece, the bits of its outputs' nodes together, its own left out."""
        return [united(bits[v.node] for v in p.outputs) & ~(1 << k) for k, p in enumerate(self.all)]


def internal(graph: Graph, values: Iterable[Value]) -> tuple[Value, ...]:
    """The values that some candidate must produce: no inputs of the program, no constants, no empty memory."""
    return tuple(v for v in values if not isinstance(n := graph.nodes[v.node], Input | Const) and not is_empty(n))


def _is_product(node: Node) -> bool:
    return isinstance(node, Contract) and not is_stencil(node)


def _computes(node: Node) -> bool:
    return isinstance(node, Map | Reduce | Contract | Scatter) and not is_empty(node)
