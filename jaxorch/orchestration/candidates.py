"""Candidate kernels: which sets of nodes may run together, as a generated kernel or by XLA.

Input: a graph.  Output: for each convex set of pieces visited, a kernel if some schedule is legal, beside
XLA's own candidates.  Invariant: XLA's candidates alone cover every node of the graph as the passes leave it, so a plan
always exists; equal sets are built once, so that a deep model costs what its distinct layers cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from jaxorch.ir.graph import Contract, Graph, Input, Map, Opaque, Scatter, has_own_memory, outputs_of, reads
from jaxorch.ir.region import unfilled
from jaxorch.ir.view import Value
from jaxorch.kernels.kernel import Kernel, build
from jaxorch.kernels.structure import Structure, Structures, carry_over
from jaxorch.orchestration.growth import try_convex_sets
from jaxorch.orchestration.pieces import Pieces, internal

__all__ = ["Built", "Enumeration", "Fused", "Left", "enumerate_candidates", "left_candidates", "sharing"]


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel, or why there is none, and the graph and the set it was built for; its equals are carried over."""

    graph: Graph
    structure: Structure
    kernel: Kernel | str


@dataclass(frozen=True, slots=True)
class Fused:
    """A generated kernel as a candidate; kernels of one `structure` are the same but for what they read."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    own: Structure
    first: Built

    @property
    def nodes(self) -> tuple[int, ...]:
        return self.own.nodes

    @property
    def structure(self) -> str:
        return self.own.digest

    @property
    def kernel(self) -> Kernel:
        """The kernel here; made anew each time, since of thousands of candidates a few are looked at."""
        assert isinstance(self.first.kernel, Kernel)
        return carry_over(self.first.kernel, self.first.structure, self.own)


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


def enumerate_candidates(graph: Graph, built: dict[str, Built] | None = None) -> Enumeration:
    """All candidates of a graph, in a fixed order.

    `built`: by structure, what was built for the program's other graphs; what is built here is added.
    """
    built = {} if built is None else built
    pieces, structures = Pieces(graph), Structures(graph)
    fused: list[Fused] = []
    rejected: dict[tuple[int, ...], str] = {}

    def is_legal(chosen: frozenset[int]) -> bool:
        ways, reasons = pieces.ways(chosen), list[str]()
        for nodes, inputs, outputs in ways:
            structure = structures.of(nodes, outputs)
            first = built.get(structure.digest)
            if first is None:
                first = built[structure.digest] = Built(graph, structure, build(graph, nodes, outputs))
            if isinstance(first.kernel, str):
                reasons.append(first.kernel)
            else:
                fused.append(Fused(inputs, outputs, structure, first))
        if len(reasons) < len(ways):
            return True
        rejected[ways[0][0]] = reasons[0]
        return False

    kinds = [structures.of(p.nodes, p.outputs).digest for p in pieces.all]
    try_convex_sets(pieces, kinds, is_legal)
    return Enumeration(tuple(fused), tuple(left_candidates(pieces)), rejected)


def sharing(graph: Graph, fused: Fused, pairs: Iterable[tuple[int, int]]) -> tuple[tuple[Value, Value], ...]:
    """Of the inputs that outputs may overwrite, by number, those whose memory may be counted on, with the results.

    Operands of the program are not, nor is what may come to lie in their memory; no value is in two pairs.
    """
    sizes = {node.array.nbytes for node in graph.nodes if isinstance(node, Input)}
    found: dict[Value, Value] = {}
    kernel = fused.kernel
    for k, o in pairs:
        value, result = kernel.inputs[k], kernel.outputs[o].value
        ends = result in graph.outputs and graph.array(result).nbytes in sizes
        whole = value in fused.inputs and value not in graph.outputs and has_own_memory(graph, value)
        if whole and not ends and value not in found and result not in found.values():
            found[value] = result
    return tuple(found.items())


def left_candidates(pieces: Pieces) -> Iterator[Left]:
    """XLA's candidates: a piece, and the pieces before it whose values no traced variable holds: XLA redoes those.

    An array that a pass had filled by several writes is none of XLA's: there is no equation for a part of them, and for
    all of them there is the graph without that pass.
    """
    graph = pieces.graph
    parts = {n for n in unfilled(graph.nodes) if isinstance(graph.nodes[n], Scatter) and not graph.variables(Value(n))}
    maker = {v: k for k, p in enumerate(pieces.all) for v in p.outputs}
    for number, piece in enumerate(pieces.all):
        if not all(graph.variables(v) for v in piece.outputs):
            continue
        together = [number]
        for member in together:
            hidden = [maker[v] for v in pieces.all[member].inputs if v in maker and not graph.variables(v)]
            together += [k for k in dict.fromkeys(hidden) if k not in together]
        nodes, inputs, _ = pieces.joined(together)
        if not parts.isdisjoint(nodes):
            continue
        yield Left(nodes, inputs, piece.outputs)
        product = _accumulated(pieces, number)
        if product is not None:
            nodes, inputs, _ = pieces.joined([*together, product])
            yield Left(nodes, inputs, piece.outputs)
    for number, node in enumerate(graph.nodes):
        if isinstance(node, Opaque):
            outputs = tuple(Value(number, k) for k in range(len(outputs_of(node))))
            yield Left((number,), internal(graph, reads(node)), outputs)


_EPILOGUE = frozenset(("add", "max", "convert_element_type", "copy"))  # of what a library does after a product


def _accumulated(pieces: Pieces, number: int) -> int | None:
    """The product to which XLA's library call adds a bias or a residual, if that is all that a piece does.

    To a convolution it adds both, and takes the maximum with zero.
    """
    graph, piece = pieces.graph, pieces.all[number]
    ops = [n.op for n in map(graph.nodes.__getitem__, piece.nodes) if isinstance(n, Map)]
    adds, maxima = ops.count("add"), ops.count("max")
    if len(ops) < len(piece.nodes) or adds > 2 or maxima > 1 or not {*ops} <= _EPILOGUE or not adds + maxima:
        return None
    for k in sorted(pieces.products):
        (value,) = pieces.all[k].outputs or (None,)
        product = graph.nodes[pieces.all[k].nodes[-1]]
        if maxima and not (isinstance(product, Contract) and product.convolves):
            continue
        if value is None or value not in piece.inputs:
            continue
        if pieces.readers[value] and {*pieces.readers[value]} <= {*piece.nodes}:
            return k if value not in pieces.returned else None
    return None
