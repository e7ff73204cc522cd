"""Images that are repeated: of which array a traced variable repeats the elements, however the movement is written.

Input: a trace.  Output: the array's variable, and how often each element stands along each axis.  Invariant: that was
read from the index maps of the lifted graph, at every place along every axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import Trace
from jaxorch.ir import index as ix
from jaxorch.ir.constants import Table, table_of
from jaxorch.ir.graph import Map, outputs_of
from jaxorch.ir.index import Expr, Lookup, Segment
from jaxorch.ir.view import Value, View, compose, identity

__all__ = ["Repeated", "Sources"]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A variable whose elements stand `factors` times side by side along each axis."""

    variable: int
    factors: tuple[int, ...]


class Sources:
    """The movement in a trace."""

    def __init__(self, trace: Trace) -> None:
        self.graph = lift(trace)
        nodes = self.graph.nodes
        self.copies = {Value(k): n.operands[0] for k, n in enumerate(nodes) if isinstance(n, Map) and n.op == "copy"}
        made = (Value(k, output) for k, node in enumerate(nodes) for output in range(len(outputs_of(node))))
        self.values = {variable: value for value in made for variable in self.graph.variables(value)}
        self.tables: dict[int, Table | None] = {}

    def repeated(self, variable: int) -> Repeated:
        """The smallest array of which the variable is a repetition; the variable itself if there is no other."""
        value = self.values[variable]
        shape = self.graph.array(value).shape
        found, view = Repeated(variable, (1,) * len(shape)), identity(value, shape)
        while len(view.pieces) == 1 and view.pieces[0].value in self.copies:
            view = compose(view, self.copies.get)
            factors = self.factors(view)
            if factors is not None and max(factors) > 1:
                found = Repeated(self.graph.variables(view.pieces[0].value)[0], factors)
        return found

    def factors(self, view: View) -> tuple[int, ...] | None:
        """How often each element of the one array that a view reads is repeated along each axis, if that is all."""
        (piece, *rest) = view.pieces
        sizes = self.graph.array(piece.value).shape
        if rest or piece.guard or len(sizes) != len(view.domain):
            return None
        factors = tuple(n // size for n, size in zip(view.domain, sizes, strict=True))
        for axis, (factor, n) in enumerate(zip(factors, view.domain, strict=True)):
            places = self.places(piece.index[axis], axis, view.domain)
            if factor * sizes[axis] != n or places is None or (places != np.arange(n) // factor).any():
                return None
        return factors

    def places(self, expr: Expr, axis: int, sizes: tuple[int, ...]) -> Any:
        """An index at each place along an axis, if it depends on nothing else."""
        if not ix.dims_of(expr) <= {axis} or any(self.table(lookup) is None for lookup in ix.lookups_in(expr)):
            return None
        coords = [np.arange(n) if a == axis else np.zeros(1, int) for a, n in enumerate(sizes)]
        return np.broadcast_to(ix.evaluate(expr, coords, self.look), sizes[axis])

    def table(self, lookup: Lookup) -> Table | None:
        return None if isinstance(lookup, Segment) else table_of(self.graph.nodes, lookup.value.node, self.tables)

    def look(self, lookup: Lookup, index: tuple[Any, ...]) -> Any:
        table = self.table(lookup)
        assert table is not None
        return lookup.clamped(table[tuple(index)].astype(np.int64))
