"""One-pass moments: a mean and the variance around it share one pass over a long row.

    sum(x), sum((x - sum(x)/n)^2)  =  moments(x)

The right side is computed by Welford's update and Chan's combination (B. P. Welford 1962; Chan, Golub,
LeVeque 1979), which loses no digits where E[x^2] - E[x]^2 does.  Rows that fit a tile keep the two-pass
form: there the second pass costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Graph, Map, Reduce
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.simplify import simplify
from jaxorch.ir.view import Value, View
from jaxorch.options import Options
from jaxorch.passes.derive import LONGEST_TILE_ROW
from jaxorch.passes.rewrite import drop_unused, replace_values

__all__ = ["one_pass_moments", "source_at"]

type Point = tuple[Value, tuple[Expr, ...]]


def one_pass_moments(graph: Graph, options: Options) -> Graph:
    """Applies the rule wherever it matches a row longer than a tile."""
    del options
    nodes = list(graph.nodes)
    replaced: dict[Value, Value] = {}
    for number, node in enumerate(graph.nodes):
        if not (isinstance(node, Reduce) and node.op == "sum" and node.count > LONGEST_TILE_ROW):
            continue
        first = _mean_reduction(graph, node)
        if first is None or not isinstance(nodes[first], Reduce):
            continue
        total = nodes[first]
        assert isinstance(total, Reduce)
        if total.op == "sum":
            nodes[first] = replace(
                total,
                op="moments",
                arrays=(total.arrays[0], node.arrays[0]),
                origin=total.origin.with_output(node.origin),
            )
            replaced[Value(number)] = Value(first, 1)
    if not replaced:
        return graph
    return drop_unused(replace_values(Graph(tuple(nodes), graph.outputs), replaced))


def source_at(graph: Graph, view: View, coords: tuple[Expr, ...], sizes: tuple[int, ...]) -> Point | None:
    """The one value that `view` reads at `coords`, and where; None if it has several sources."""
    if len(view.pieces) != 1 or view.pieces[0].guard:
        return None
    piece = view.pieces[0]
    return piece.value, tuple(simplify(ix.substitute(e, coords), sizes) for e in piece.index)


def _map_at(graph: Graph, point: Point | None, *ops: str) -> tuple[Map, tuple[Expr, ...]] | None:
    if point is None:
        return None
    node = graph.nodes[point[0].node]
    return (node, point[1]) if isinstance(node, Map) and node.op in ops else None


def _mean_reduction(graph: Graph, square_sum: Reduce) -> int | None:
    """The number of the sum whose mean is subtracted under the square, if the rule matches."""
    sizes = square_sum.domain
    here = tuple(Dim(a) for a in range(len(sizes)))
    square = _map_at(graph, source_at(graph, square_sum.operands[0], here, sizes), "square", "integer_pow", "mul")
    if square is None or not _is_square(square[0]):
        return None
    deviation = _map_at(graph, source_at(graph, square[0].operands[0], square[1], sizes), "sub")
    if deviation is None:
        return None
    x, mean = (source_at(graph, v, deviation[1], sizes) for v in deviation[0].operands)
    if x is None:
        return None
    return _mean_of(graph, mean, x, square_sum)


def _is_square(node: Map) -> bool:
    match node.op:
        case "square":
            return True
        case "integer_pow":
            return dict(node.params)["y"] == 2
        case _:
            return node.operands[0] == node.operands[1]


def _mean_of(graph: Graph, mean: Point | None, x: Point, like: Reduce) -> int | None:
    """The sum node if `mean` is sum(x)/n over the axes that `like` reduces."""
    scaled = _map_at(graph, mean, "div", "mul")
    if scaled is None:
        return None
    sizes = like.domain
    node, coords = scaled
    total, by = (source_at(graph, v, coords, sizes) for v in node.operands)
    if total is None or by is None:
        return None
    factor = graph.nodes[by[0].node]
    if not isinstance(factor, Const):
        return None
    wanted = float(like.count) if node.op == "div" else 1.0 / like.count
    if not math.isclose(float(factor.value), wanted, rel_tol=1e-6):
        return None
    reduce = graph.nodes[total[0].node]
    kept = tuple(simplify(Dim(a), sizes) for a in range(len(sizes)) if a not in like.axes)
    if not isinstance(reduce, Reduce) or (reduce.domain, reduce.axes, total[1]) != (sizes, like.axes, kept):
        return None
    here = tuple(Dim(a) for a in range(len(sizes)))
    return total[0].node if source_at(graph, reduce.operands[0], here, sizes) == x else None
