"""Building a graph anew, node by node: what derivations that replace values by several nodes share.

Input: nodes of a graph, in order, and new ones between them.  Output: the new nodes, and where old values are found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Array, Const, Map, Node, Origin, outputs_of
from jaxorch.ir.index import Expr, Lookup
from jaxorch.ir.view import Value, View, identity

__all__ = ["NOWHERE", "Builder"]

NOWHERE = Origin()


@dataclass(slots=True)
class Builder:
    """The new nodes, and where the old values are found among them."""

    nodes: list[Node] = field(default_factory=list[Node])
    moved: dict[int, int] = field(default_factory=dict[int, int])
    replaced: dict[Value, Value] = field(default_factory=dict[Value, Value])

    def image(self, value: Value) -> Value:
        return self.replaced[value] if value in self.replaced else Value(self.moved[value.node], value.output)

    def at(self, index: Iterable[Expr]) -> tuple[Expr, ...]:
        """Coordinates that look up the old values' images."""

        def look(lookup: Lookup) -> Lookup:
            return replace(lookup, value=self.image(lookup.value))

        return tuple(ix.map_lookups(e, look) for e in index)

    def add(self, node: Node) -> Value:
        self.nodes.append(node)
        return Value(len(self.nodes) - 1)

    def scalar(self, value: float, dtype: np.dtype[Any]) -> Value:
        return self.add(Const(value, Array((), dtype)))

    def map(
        self, op: str, shape: tuple[int, ...], dtype: np.dtype[Any], *operands: View, origin: Origin = NOWHERE
    ) -> Value:
        return self.add(Map(op, operands, Array(shape, dtype), (), origin))

    def cast(self, value: Value, shape: tuple[int, ...], dtype: np.dtype[Any], origin: Origin = NOWHERE) -> Value:
        """`value` in another dtype; itself if it has that one."""
        if outputs_of(self.nodes[value.node])[value.output].dtype == dtype:
            return value
        params = (("new_dtype", dtype.name),)
        view = identity(value, shape)
        return self.add(Map("convert_element_type", (view,), Array(shape, dtype), params, origin))
