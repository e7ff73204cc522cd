"""One-pass moments: a mean and the variance around it share one pass over a long row.

    sum(x), sum((x - sum(x)/n)^2)  =  moments(x)

The right side is computed from sums of distances from one element of each column, which Chan's formula
combines (Chan, Golub, LeVeque 1979; `codegen.reductions`); it loses few digits where E[x^2] - E[x]^2 loses
all.  Rows that fit a tile keep the two-pass form: there the second pass costs nothing.
"""

from __future__ import annotations

import math

from jaxorch.ir.dtypes import is_float
from jaxorch.ir.graph import Const, Graph, Map, Reduce
from jaxorch.ir.index import Dim
from jaxorch.options import Options
from jaxorch.passes.derive.match import Point, join_reductions, map_at, same_rows, source_at

__all__ = ["one_pass_moments"]


def one_pass_moments(graph: Graph, options: Options) -> Graph:
    """Applies the rule wherever it matches a row longer than a tile."""
    del options
    return join_reductions(graph, "sum", "moments", _mean_reduction)


def _mean_reduction(graph: Graph, square_sum: Reduce) -> int | None:
    """The number of the sum whose mean is subtracted under the square, if the rule matches."""
    if not is_float(square_sum.arrays[0].dtype):
        return None  # an integer mean is rounded
    sizes = square_sum.domain
    here = tuple(Dim(a) for a in range(len(sizes)))
    square = map_at(graph, source_at(square_sum.operands[0], here, sizes), "square", "integer_pow", "mul")
    if square is None or not _is_square(square[0]):
        return None
    deviation = map_at(graph, source_at(square[0].operands[0], square[1], sizes), "sub")
    if deviation is None:
        return None
    x, mean = (source_at(v, deviation[1], sizes) for v in deviation[0].operands)
    return _mean_of(graph, mean, x, square_sum) if x is not None else None


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
    scaled = map_at(graph, mean, "div", "mul")
    if scaled is None:
        return None
    node, coords = scaled
    total, by = (source_at(v, coords, like.domain) for v in node.operands)
    if total is None or by is None:
        return None
    factor = graph.nodes[by[0].node]
    if not isinstance(factor, Const):
        return None
    wanted = float(like.count) if node.op == "div" else 1.0 / like.count
    if not math.isclose(float(factor.value), wanted, rel_tol=2e-7):
        return None
    return total[0].node if same_rows(graph, total, x, like) else None
