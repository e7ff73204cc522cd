"""What convolutions read as arrays: as the program has them, where a library could not read them in place.

    conv(x[p(i)], w)  =  conv(y, w),  y = copy(x[p(i)])

A convolution's kernel reads its left operand through any view, a library's an array, with zeros around it. With
concatenations, upsamplings and reflected edges as arrays, a kernel may write them in one pass, and the library's
convolution, which is hard to beat on a plain one, reads them. Whether that pays is the estimate's and the clock's to
say: this is the start of another graph.
"""

from __future__ import annotations

from dataclasses import replace

from jaxorch.ir.graph import Contract, Graph, Map
from jaxorch.ir.view import is_reshape
from jaxorch.options import Options

__all__ = ["keep_images"]


def keep_images(graph: Graph, options: Options) -> Graph:
    """The lifted graph with every copy that a convolution reads kept as an array, but for reshapes."""
    del options
    read = {n.operands[0].pieces[0].value.node for n in graph.nodes if isinstance(n, Contract) and n.convolves}
    kept = {k: node for k in sorted(read) if isinstance(node := graph.nodes[k], Map) and _is_moved(graph, node)}
    if not kept:
        return graph
    nodes = (replace(n, params=(("kept", True),)) if k in kept else n for k, n in enumerate(graph.nodes))
    return Graph(tuple(nodes), graph.outputs)


def _is_moved(graph: Graph, node: Map) -> bool:
    if node.op != "copy":
        return False
    (view,) = node.operands
    return not is_reshape(view, graph.array(view.pieces[0].value).shape)
