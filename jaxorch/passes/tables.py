"""Integer tables known at compile time, as index expressions.

Input: a graph.  Output: for integer values that depend on the position alone, but through arithmetic that
is not integer arithmetic (nearest-neighbour resizing takes a floor of floats), the expression
(a*i + b)//c that gives the same integers.  Invariant: the expression equals the table at every point.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.constants import Table, table_of
from jaxorch.ir.graph import Graph
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.view import Value

__all__ = ["fit", "tabulated"]

LARGEST_DIVISOR = 64


def tabulated(graph: Graph, wanted: Iterable[Value]) -> dict[Value, Expr]:
    """The `wanted` integer values whose tables are (a*i + b)//c along one axis."""
    found: dict[Value, Expr] = {}
    tables: dict[int, Table | None] = {}
    for value in dict.fromkeys(wanted):
        table = table_of(graph.nodes, value.node, tables)
        expr = None if table is None else _along_one_axis(table)
        if expr is not None:
            found[value] = expr
    return found


def _along_one_axis(table: Table) -> Expr | None:
    axes = [a for a in range(table.ndim) if (table != table.take([0], axis=a)).any()]
    if len(axes) > 1:
        return None
    axis = axes[0] if axes else 0
    if table.ndim == 0:
        return ix.Const(int(table))
    return fit(np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)[:, 0].astype(np.int64), axis)


def fit(values: Table, axis: int) -> Expr | None:
    """(a*i + b)//c with the smallest c that equals `values` at i = 0, 1, ..., over Dim(axis); None if there is none."""
    i = np.arange(len(values), dtype=np.int64)
    rise = int(values[-1] - values[0]) / max(len(values) - 1, 1)
    for c in range(1, LARGEST_DIVISOR + 1):
        slope = round(rise * c)
        for a in (slope, slope - 1, slope + 1):
            # values[i]*c <= a*i + b < (values[i]+1)*c for every i
            low = int((values * c - a * i).max())
            high = int(((values + 1) * c - a * i).min()) - 1
            if low <= high:
                return ix.floordiv(ix.add(ix.mul(Dim(axis), a), ix.Const(low)), c)
    return None
