"""The primitive graph: nodes in topological order whose operands are views.

Input: what the frontend builds.  Output: what passes rewrite and kernels are cut from.  Invariant
(checked by `ir.verify`): every operand reads earlier nodes only, and every view's domain is the
node's iteration domain.  Data movement is not a node: it lives in the operands' views.  A copy is a
`Map` with op "copy".

Node kinds still to come take their place in this union: Cumulative, Scatter, Loop.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, assert_never

import numpy as np

from jaxorch.ir.view import Value, View

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
    "operands_of",
    "outputs_of",
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
    """Where a node comes from: equations of the trace, and for each output the traced variables that hold it."""

    equations: tuple[int, ...] = ()
    variables: tuple[tuple[int, ...], ...] = ()

    def joined(self, other: Origin) -> Origin:
        """The origin of a node that stands for two nodes with the same outputs."""
        variables = tuple(a + b for a, b in zip_longest(self.variables, other.variables, fillvalue=()))
        return Origin(tuple(sorted({*self.equations, *other.equations})), variables)

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

    `op` is the lax primitive's name; "copy" is the identity, "iota" has no operand and yields the
    coordinate along params["dimension"].
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
class Contract:
    """A sum of products: of two operands over one iteration domain, over `axes`; the other axes remain, in order.

    The domain is (batch axes, free axes of the first operand, of the second, contracted axes) as lifted from a
    dot_general; an operand's view ignores the axes that it does not have.  params: "precision" ("DEFAULT", "HIGH" or
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


type Node = Input | Const | Map | Reduce | Contract | Opaque


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
        case Input() | Const() | Map() | Contract():
            return (node.array,)
        case Reduce() | Opaque():
            return node.arrays
        case _:
            assert_never(node)


def operands_of(node: Node) -> tuple[View, ...]:
    """The views the node reads, one an operand."""
    match node:
        case Input() | Const():
            return ()
        case Map() | Reduce() | Contract() | Opaque():
            return node.operands
        case _:
            assert_never(node)


def reads(node: Node) -> tuple[Value, ...]:
    """The values a node reads, without repeats."""
    return tuple(dict.fromkeys(value for view in operands_of(node) for value in view.values))


def with_operands(node: Node, operands: Iterable[View]) -> Node:
    """The node with other operands; one without operands is returned as it is."""
    match node:
        case Input() | Const():
            return node
        case Map() | Reduce() | Opaque():
            return replace(node, operands=tuple(operands))
        case Contract():
            left, right = operands
            return replace(node, operands=(left, right))
        case _:
            assert_never(node)
