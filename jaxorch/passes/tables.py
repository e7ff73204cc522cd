"""Integer tables known at compile time, as index expressions.

Input: a graph.  Output: for integer values that depend on the position alone, but through arithmetic that
is not integer arithmetic (nearest-neighbour resizing takes a floor of floats), the expression
(a*i + b)//c that gives the same integers.  Invariant: the expression equals the table at every point.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.graph import Const, Graph, Map
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.scalars import apply, constant
from jaxorch.ir.view import Value, evaluate_view

__all__ = ["fit", "tabulated"]

LARGEST_TABLE = 1 << 16  # elements
LARGEST_DIVISOR = 64

type Table = np.ndarray[Any, Any]


def tabulated(graph: Graph, wanted: Iterable[Value]) -> dict[int, Expr]:
    """The `wanted` integer values whose tables are (a*i + b)//c along one axis, by node."""
    found: dict[int, Expr] = {}
    tables: dict[int, Table | None] = {}
    for value in dict.fromkeys(wanted):
        table = _table(graph, value.node, tables)
        expr = None if table is None else _along_one_axis(table)
        if expr is not None:
            found[value.node] = expr
    return found


def _table(graph: Graph, number: int, tables: dict[int, Table | None]) -> Table | None:
    if number not in tables:
        tables[number] = _compute(graph, number, tables)
    return tables[number]


def _compute(graph: Graph, number: int, tables: dict[int, Table | None]) -> Table | None:
    node = graph.nodes[number]
    if isinstance(node, Const):
        return constant(node.value, node.array.dtype)
    if not isinstance(node, Map) or node.array.size > LARGEST_TABLE or 0 in node.array.shape:
        return None
    if node.op == "iota":
        axis = dict(node.params)["dimension"]
        assert isinstance(axis, int)
        return np.indices(node.array.shape)[axis].astype(compute_dtype(node.array.dtype))
    sources = {v: _table(graph, v.node, tables) for view in node.operands for v in view.values}
    known = {v: table for v, table in sources.items() if table is not None}
    if len(known) != len(sources):
        return None
    args = [evaluate_view(view, known.__getitem__) for view in node.operands]
    if node.op == "copy":
        return args[0]
    dtypes = [graph.array(view.pieces[0].value).dtype for view in node.operands]
    return apply(node.op, dict(node.params), args, dtypes, node.array.dtype)


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
