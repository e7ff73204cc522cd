"""One-pass softmax statistics: the maximum of a long row and its sum of exponentials share one pass.

    max(x), sum(exp(x - max(x)))  =  sumexp(x)

The right side rescales its running sum whenever the running maximum grows (Milakov and Gimelshein 2018,
"Online normalizer calculation for softmax").  Rows that fit a tile keep the two-pass form.
"""

from __future__ import annotations

from jaxorch.ir.graph import Graph, Reduce
from jaxorch.ir.index import Dim
from jaxorch.options import Options
from jaxorch.passes.derive.match import join_reductions, map_at, same_rows, source_at

__all__ = ["one_pass_sumexp"]


def one_pass_sumexp(graph: Graph, options: Options) -> Graph:
    """Applies the rule wherever it matches a row longer than a tile."""
    del options
    return join_reductions(graph, "max", "sumexp", _max_reduction)


def _max_reduction(graph: Graph, total: Reduce) -> int | None:
    """The number of the maximum that is subtracted under the exponential, if the rule matches."""
    sizes = total.domain
    here = tuple(Dim(a) for a in range(len(sizes)))
    exponential = map_at(graph, source_at(total.operands[0], here, sizes), "exp")
    if exponential is None:
        return None
    shifted = map_at(graph, source_at(exponential[0].operands[0], exponential[1], sizes), "sub")
    if shifted is None:
        return None
    x, peak = (source_at(v, shifted[1], sizes) for v in shifted[0].operands)
    if x is None or peak is None:
        return None
    return peak[0].node if same_rows(graph, peak, x, total) else None
