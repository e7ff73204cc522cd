"""Values known at compile time, computed by NumPy: what depends on constants and positions alone.

Input: nodes in topological order.  Output: a node's array, in its compute dtype, or None where it depends on an
operand of the program or is large.  Invariant: the array is what lax gives, rounded as kernels round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.graph import Const, Map, Node, outputs_of
from jaxorch.ir.scalars import apply, constant
from jaxorch.ir.view import evaluate_view

__all__ = ["LARGEST_TABLE", "Table", "table_of"]

LARGEST_TABLE = 1 << 16  # elements

type Table = np.ndarray[Any, Any]


def table_of(nodes: Sequence[Node], number: int, tables: dict[int, Table | None]) -> Table | None:
    """The array of node `number`; `tables` remembers those found so far."""
    if number not in tables:
        tables[number] = _compute(nodes, number, tables)
    return tables[number]


def _compute(nodes: Sequence[Node], number: int, tables: dict[int, Table | None]) -> Table | None:
    node = nodes[number]
    if isinstance(node, Const):
        return constant(node.value, node.array.dtype)
    if not isinstance(node, Map) or node.array.size > LARGEST_TABLE or 0 in node.array.shape:
        return None
    if node.op == "iota":
        axis = dict(node.params)["dimension"]
        assert isinstance(axis, int)
        return np.indices(node.array.shape)[axis].astype(compute_dtype(node.array.dtype))
    sources = {v: table_of(nodes, v.node, tables) for view in node.operands for v in view.values}
    known = {v: table for v, table in sources.items() if table is not None}
    if len(known) != len(sources):
        return None
    args = [evaluate_view(view, known.__getitem__) for view in node.operands]
    if node.op == "copy":
        return args[0]
    dtypes = [outputs_of(nodes[v.node])[v.output].dtype for v in (view.pieces[0].value for view in node.operands)]
    return apply(node.op, dict(node.params), args, dtypes, node.array.dtype)
