"""One spelling for equal things: constants folded, operations that change nothing become copies.

Input and output: a graph.  Each rule carries its identity as its comment; all are exact, signed zeros,
infinities and NaN included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxorch.ir.graph import Array, Const, Graph, Map, Node, constant_of, outputs_of
from jaxorch.ir.scalars import apply, constant
from jaxorch.ir.view import Piece, Value, View
from jaxorch.options import Options
from jaxorch.passes.rewrite import drop_unused, rename

__all__ = ["canonicalize"]


def canonicalize(graph: Graph, options: Options) -> Graph:
    """Folds scalar constants and removes operations that change nothing."""
    del options
    nodes: list[Node] = []
    new: dict[int, int] = {}
    changed = False
    for number, old in enumerate(graph.nodes):
        node = rename(old, lambda v: Value(new[v.node], v.output))
        if isinstance(node, Map) and node.op not in ("copy", "iota"):
            folded = _fold(nodes, node)
            if folded is not None:
                nodes.append(folded)
                node = _copy(node, View(node.array.shape, (Piece((), Value(len(nodes) - 1), ()),)))
                changed = True
            else:
                simpler = _simpler(nodes, node)
                changed |= simpler is not node
                node = simpler
        new[number] = len(nodes)
        nodes.append(node)
    if not changed:
        return graph
    return drop_unused(Graph(tuple(nodes), tuple(Value(new[v.node], v.output) for v in graph.outputs)))


def _fold(nodes: Sequence[Node], node: Map) -> Const | None:
    # op(c1, c2, ...) = c
    operands = [constant_of(nodes, v) for v in node.operands]
    constants = [c for c in operands if c is not None]
    if len(constants) != len(operands):
        return None
    dtypes = [c.array.dtype for c in constants]
    args = [constant(c.value, c.array.dtype) for c in constants]
    result = apply(node.op, dict(node.params), args, dtypes, node.array.dtype)
    return Const(result.astype(node.array.dtype).item(), Array((), node.array.dtype))


def _copy(node: Map, view: View) -> Map:
    return replace(node, op="copy", operands=(view,), params=())


def _simpler(nodes: Sequence[Node], node: Map) -> Map:
    values = [c.value if c is not None else None for c in (constant_of(nodes, v) for v in node.operands)]
    match node.op, values:
        case "select_n", [bool(case) | int(case), *cases]:  # select_n(k, x0, ..., xn) = x(clamp(0, k, n))
            return _copy(node, node.operands[1 + min(max(int(case), 0), len(cases) - 1)])
        case "max", [float(c), None] if c == -np.inf:  # max(-inf, x) = x
            return _copy(node, node.operands[1])
        case "max", [None, float(c)] if c == -np.inf:  # max(x, -inf) = x
            return _copy(node, node.operands[0])
        case "min", [float(c), None] if c == np.inf:  # min(inf, x) = x
            return _copy(node, node.operands[1])
        case "min", [None, float(c)] if c == np.inf:  # min(x, inf) = x
            return _copy(node, node.operands[0])
        case "mul" | "div", [None, c] if c == 1:  # x*1 = x/1 = x
            return _copy(node, node.operands[0])
        case "mul", [c, None] if c == 1:  # 1*x = x
            return _copy(node, node.operands[1])
        case "convert_element_type", _ if _keeps_dtype(nodes, node):  # x.astype(x.dtype) = x
            return _copy(node, node.operands[0])
        case "add_any", _:  # add_any is add, with another name where cotangents meet
            return replace(node, op="add")
        case _:
            return node


def _keeps_dtype(nodes: Sequence[Node], node: Map) -> bool:
    (view,) = node.operands
    return all(outputs_of(nodes[v.node])[v.output].dtype == node.array.dtype for v in view.values)
