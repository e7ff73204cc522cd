"""What convolutions read as arrays: as the program has them, where a library could not read them in place.

    conv(x[p(i)], w)  =  conv(y, w),  y = copy(x[p(i)])

A convolution's kernel reads its left operand through any view, a library's an array, with zeros around it. With
concatenations, upsamplings and reflected edges as arrays, a kernel may write them in one pass, and the library's
convolution, which is hard to beat on a plain one, reads them. Whether that pays is the estimate's and the clock's to
say: this is the start of another graph. Weights that are transposed to have the features they sum over last are
arrays in any case: they are few bytes, a library reads them in place, and a kernel side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from jaxorch.ir.graph import Contract, Graph, Map
from jaxorch.ir.index import Dim
from jaxorch.ir.view import is_reshape
from jaxorch.options import Options

__all__ = ["keep_images", "keep_weights"]


def keep_images(graph: Graph, options: Options) -> Graph:
    """The lifted graph with every copy that a convolution reads kept as an array, but for reshapes."""
    del options
    return _keeping(graph, (n.operands[0].pieces[0].value.node for n in _convolutions(graph)))


def keep_weights(graph: Graph, options: Options) -> Graph:
    """The lifted graph with weights kept as arrays that are transposed to have the features they sum over last."""
    del options
    summed_last = (n for n in _convolutions(graph) if _sums_along_last(n))
    return _keeping(graph, (n.operands[1].pieces[0].value.node for n in summed_last))


def _convolutions(graph: Graph) -> list[Contract]:
    return [n for n in graph.nodes if isinstance(n, Contract) and n.convolves]


def _sums_along_last(node: Contract) -> bool:
    """Whether the last axis of the weights, as an array, is that of the features that are summed."""
    return node.operands[1].pieces[0].index[-1:] == (Dim(len(node.domain) - 1),)


def _keeping(graph: Graph, read: Iterable[int]) -> Graph:
    made = {k: n for k in read if isinstance(n := graph.nodes[k], Map) and _is_moved(graph, n)}
    kept = {k: replace(n, params=(("kept", True),)) for k, n in made.items()}
    return Graph(tuple(kept.get(k, n) for k, n in enumerate(graph.nodes)), graph.outputs) if kept else graph


def _is_moved(graph: Graph, node: Map) -> bool:
    if node.op != "copy":
        return False
    (view,) = node.operands
    return not is_reshape(view, graph.array(view.pieces[0].value).shape)
