"""The primitive graph: nodes in topological order whose operands are views.

Input: what the frontend builds.  Output: what passes rewrite and kernels are cut from.  Invariant
(checked by `ir.verify`): every operand reads earlier nodes only, and every view's domain is the
node's iteration domain.  Data movement is not a node: it lives in the operands' views.  A copy is a
`Map` with op "copy".
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, assert_never

import numpy as np

from jaxorch.ir.index import Segment
from jaxorch.ir.memo import remembered
from jaxorch.ir.view import Piece, Value, View, lookups

__all__ = [
    "Array",
    "Const",
    "Contract",
    "Graph",
    "Input",
    "Map",
    "Node",
    "Opaque",
    "Origin",
    "Params",
    "Reduce",
    "Scatter",
    "constant_of",
    "has_own_memory",
    "is_empty",
    "operands_of",
    "outputs_of",
    "pieces_of",
    "reads",
    "with_operands",
]

type Params = tuple[tuple[str, Hashable], ...]


@dataclass(frozen=True, slots=True)
class Array:
    """Shape and dtype of a value."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node comes from: equations of the trace, and for each output the traced variables that hold it.

    operands: of a product of matrices, for each operand the variable that its equation reads, and the domain's axis of
    each of that array's axes; None where no variable holds what is read.
    """

    equations: tuple[int, ...] = ()
    variables: tuple[tuple[int, ...], ...] = ()
    operands: tuple[tuple[int, tuple[int, ...]] | None, ...] = ()

    def joined(self, other: Origin) -> Origin:
        """The origin of a node that stands for two nodes with the same outputs."""
        variables = tuple(a + b for a, b in zip_longest(self.variables, other.variables, fillvalue=()))
        return Origin(tuple(sorted({*self.equations, *other.equations})), variables, self.operands)

    def with_output(self, other: Origin) -> Origin:
        """The origin of a node that has this one's outputs and then the other's."""
        return Origin(tuple(sorted({*self.equations, *other.equations})), self.variables + other.variables)


@dataclass(frozen=True, slots=True)
class Input:
    """An operand of the program, by position."""

    position: int
    array: Array
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class Const:
    """A scalar known at compile time."""

    value: bool | int | float
    array: Array
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class Map:
    """An elementwise primitive: out[i] = op(operand[i], ...) for every i of `array.shape`.

    `op` is the lax primitive's name; "copy" is the identity, which stays an array if params has "kept"; "iota" has no
    operand and yields the coordinate along params["dimension"].  "empty" has none either: memory that nobody has
    written to, which no kernel computes and nothing reads; Scatters fill it (`ir.region`).
    """

    op: str
    operands: tuple[View, ...]
    array: Array
    params: Params = ()
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class Reduce:
    """A reduction of the operands' common domain over `axes`; the other axes remain, in order.

    Ops: "sum", "prod", "max", "min", "and", "or", "argmax", "argmin" (one output) and
    "moments" (sum of x, and sum of squared deviations from its mean), "sumexp" (max of x, and sum of exp(x - max)).
    """

    op: str
    operands: tuple[View, ...]
    axes: tuple[int, ...]
    arrays: tuple[Array, ...]
    params: Params = ()
    origin: Origin = Origin()

    @property
    def domain(self) -> tuple[int, ...]:
        return self.operands[0].domain

    @property
    def count(self) -> int:
        """How many elements one output element reduces."""
        return math.prod(self.domain[a] for a in self.axes)


@dataclass(frozen=True, slots=True)
class Scatter:
    """An array with updates written into it: a copy of the base, then, for every i of the updates' domain where
    the place's guard holds, base[place.index(i)] = combine(base[place.index(i)], updates[i]).

    `place` is a piece over the updates' domain whose value is the base: an array that exists, never a view.  It covers
    what its guard says and no more.  Combines: "set", "add", "mul", "min", "max".  `unique`: no two points have one
    place, so the order of the writes does not matter; where that is not known, `passes.places` decides.
    """

    combine: str
    place: Piece
    updates: View
    unique: bool
    array: Array
    origin: Origin = Origin()

    @property
    def base(self) -> Value:
        return self.place.value


@dataclass(frozen=True, slots=True)
class Contract:
    """A sum of products: of two operands over one iteration domain, over `axes`; the other axes remain, in order.

    As lifted the domain is the result's and then the contracted axes: of a dot_general (batch axes, free axes of the
    first operand, of the second, contracted ones), of a convolution (its result's axes, the window's, the features of a
    group), of a ragged_dot (rows, columns, contracted ones; its right operand is looked up by the row's `Segment`). An
    operand's view ignores the axes that it does not have.  params: "precision" ("DEFAULT", "HIGH" or
    "HIGHEST", as `jax.lax.Precision`) and "accumulate", the dtype in which products are summed.
    """

    operands: tuple[View, View]
    axes: tuple[int, ...]
    array: Array
    params: Params = ()
    origin: Origin = Origin()

    @property
    def domain(self) -> tuple[int, ...]:
        return self.operands[0].domain

    @property
    def count(self) -> int:
        """How many products one output element sums."""
        return math.prod(self.domain[a] for a in self.axes)

    @property
    def convolves(self) -> bool:
        """Whether it was a convolution: the operands of a product lie along axes of the domain."""
        return not self.origin.operands

    @property
    def segment(self) -> Segment | None:
        """Which segment a row lies in, where each has a right operand of its own: as of a ragged_dot."""
        found = (k for piece in self.operands[1].pieces for k in lookups(piece))
        return next((k for k in found if isinstance(k, Segment)), None)

    @property
    def flops(self) -> int:
        """Multiplications and additions together."""
        return 2 * math.prod(self.domain)


@dataclass(frozen=True, slots=True)
class Opaque:
    """One equation that stays with XLA, and why."""

    primitive: str
    reason: str
    operands: tuple[View, ...]
    arrays: tuple[Array, ...]
    origin: Origin = Origin()


type Node = Input | Const | Map | Reduce | Contract | Scatter | Opaque


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order and the values the program returns."""

    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    def array(self, value: Value) -> Array:
        return outputs_of(self.nodes[value.node])[value.output]

    def variables(self, value: Value) -> tuple[int, ...]:
        """The traced variables that hold `value`."""
        held = self.nodes[value.node].origin.variables
        return held[value.output] if value.output < len(held) else ()

    def users(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes that read any of its outputs."""
        users: list[dict[int, None]] = [{} for _ in self.nodes]
        for k, node in enumerate(self.nodes):
            for value in reads(node):
                users[value.node][k] = None
        return tuple(tuple(u) for u in users)


def outputs_of(node: Node) -> tuple[Array, ...]:
    """Shape and dtype of each value the node produces."""
    match node:
        case Input() | Const() | Map() | Contract() | Scatter():
            return (node.array,)
        case Reduce() | Opaque():
            return node.arrays
        case _:
            assert_never(node)


def is_empty(node: Node) -> bool:
    """Whether the node is memory that nobody has written to yet: it may be the base of a Scatter, and nothing else."""
    return isinstance(node, Map) and node.op == "empty"


def has_own_memory(graph: Graph, value: Value) -> bool:
    """Whether a value that a kernel makes has memory of its own: written in place only if it began as empty."""
    node = graph.nodes[value.node]
    while isinstance(node, Scatter):
        node = graph.nodes[node.base.node]
        if is_empty(node):
            return True
    return not isinstance(graph.nodes[value.node], Scatter | Input | Const | Opaque)


def operands_of(node: Node) -> tuple[View, ...]:
    """The views the node reads, one an operand."""
    match node:
        case Input() | Const():
            return ()
        case Map() | Reduce() | Contract() | Opaque():
            return node.operands
        case Scatter():
            return (node.updates,)
        case _:
            assert_never(node)


def pieces_of(node: Node) -> tuple[Piece, ...]:
    """The pieces of all operands, and a Scatter's place."""
    pieces = tuple(piece for view in operands_of(node) for piece in view.pieces)
    return (*pieces, node.place) if isinstance(node, Scatter) else pieces


@remembered
def reads(node: Node) -> tuple[Value, ...]:
    """The values a node reads, without repeats: an operand's pieces before what their indices look up."""
    values = [value for view in operands_of(node) for value in view.values]
    if isinstance(node, Scatter):
        values += (node.base, *(lookup.value for lookup in lookups(node.place)))
    return tuple(dict.fromkeys(values))


def with_operands(node: Node, operands: Iterable[View]) -> Node:
    """The node with other operands; one without operands is returned as it is."""
    match node:
        case Input() | Const():
            return node
        case Map() | Reduce() | Opaque():
            return replace(node, operands=tuple(operands))
        case Scatter():
            (updates,) = operands
            return replace(node, updates=updates)
        case Contract():
            left, right = operands
            return replace(node, operands=(left, right))
        case _:
            assert_never(node)


def constant_of(nodes: Sequence[Node], view: View) -> Const | None:
    """The constant that every element of the view is, if it is one."""
    while len(view.pieces) == 1:
        match nodes[view.pieces[0].value.node]:
            case Const() as node:
                return node
            case Map("copy") as node:
                (view,) = node.operands
            case _:
                return None
    return None
