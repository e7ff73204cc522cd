"""One-pass softmax statistics: the maximum of a long row and its sum of exponentials share one pass.

    max(x), sum(exp(x - max(x)))  =  sumexp(x)

The right side rescales its running sum whenever the running maximum grows (Milakov and Gimelshein 2018,
"Online normalizer calculation for softmax").  Rows that fit a tile keep the two-pass form.
"""

from __future__ import annotations

from dataclasses import replace

from jaxorch.ir.graph import Graph, Map, Reduce
from jaxorch.ir.index import Dim
from jaxorch.ir.simplify import simplify
from jaxorch.ir.view import Value
from jaxorch.options import Options
from jaxorch.passes.derive import LONGEST_TILE_ROW
from jaxorch.passes.derive.moments import source_at
from jaxorch.passes.rewrite import drop_unused, replace_values

__all__ = ["one_pass_sumexp"]


def one_pass_sumexp(graph: Graph, options: Options) -> Graph:
    """Applies the rule wherever it matches a row longer than a tile."""
    del options
    nodes = list(graph.nodes)
    replaced: dict[Value, Value] = {}
    for number, node in enumerate(graph.nodes):
        if not (isinstance(node, Reduce) and node.op == "sum" and node.count > LONGEST_TILE_ROW):
            continue
        first = _max_reduction(graph, node)
        peak = nodes[first] if first is not None else None
        if first is not None and isinstance(peak, Reduce) and peak.op == "max":
            nodes[first] = replace(
                peak, op="sumexp", arrays=(peak.arrays[0], node.arrays[0]), origin=peak.origin.with_output(node.origin)
            )
            replaced[Value(number)] = Value(first, 1)
    if not replaced:
        return graph
    return drop_unused(replace_values(Graph(tuple(nodes), graph.outputs), replaced))


def _max_reduction(graph: Graph, total: Reduce) -> int | None:
    """The number of the maximum that is subtracted under the exponential, if the rule matches."""
    sizes = total.domain
    here = tuple(Dim(a) for a in range(len(sizes)))
    exp = source_at(graph, total.operands[0], here, sizes)
    node = graph.nodes[exp[0].node] if exp is not None else None
    if exp is None or not (isinstance(node, Map) and node.op == "exp"):
        return None
    shifted = source_at(graph, node.operands[0], exp[1], sizes)
    node = graph.nodes[shifted[0].node] if shifted is not None else None
    if shifted is None or not (isinstance(node, Map) and node.op == "sub"):
        return None
    x, peak = (source_at(graph, v, shifted[1], sizes) for v in node.operands)
    if x is None or peak is None:
        return None
    reduce = graph.nodes[peak[0].node]
    kept = tuple(simplify(Dim(a), sizes) for a in range(len(sizes)) if a not in total.axes)
    if not isinstance(reduce, Reduce) or (reduce.domain, reduce.axes, peak[1]) != (sizes, total.axes, kept):
        return None
    return peak[0].node if source_at(graph, reduce.operands[0], here, sizes) == x else None
