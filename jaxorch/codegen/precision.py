"""Which float32 values may be computed with fast forms, because only 16-bit results depend on them.

Input: a kernel.  Output: the numbers of its relaxed nodes.  Invariant: between a relaxed value and the
rounding to 16 bits stand only operations that keep its relative error (products, quotients, sums of
values of one sign), so an error of some 1e-6 disappears in the rounding.
"""

from __future__ import annotations

import numpy as np

from jaxorch.ir.dtypes import is_narrow_float
from jaxorch.ir.graph import Contract, Graph, Map, Node, Reduce, outputs_of, reads
from jaxorch.kernels.kernel import Kernel

__all__ = ["relaxed_nodes"]

# x -> op(x) changes a small relative error of x by a small factor, and none of them looks at equality or order
_KEEPS_RELATIVE_ERROR = frozenset({"copy", "mul", "div", "neg", "abs", "sqrt", "rsqrt", "square", "max", "min"})
_NEVER_NEGATIVE = frozenset({"exp", "exp2", "logistic", "abs", "square", "sqrt", "rsqrt"})


def relaxed_nodes(graph: Graph, kernel: Kernel) -> frozenset[int]:
    """Nodes of the kernel whose float32 results only 16-bit values depend on, through harmless operations."""
    stored = {o.value.node for o in kernel.outputs}
    users: dict[int, list[int]] = {n: [] for n in kernel.nodes}
    for user in kernel.nodes:
        for number in dict.fromkeys(v.node for v in reads(graph.nodes[user])):
            if number in users:
                users[number].append(user)
    relaxed: set[int] = set()
    for number in reversed(kernel.nodes):
        if number in stored or not users[number]:
            continue
        summed = any(isinstance(graph.nodes[u], Contract) and u in kernel.unrolled for u in users[number])
        # a stencil does not round its operands
        if not summed and all(_allows(graph, number, graph.nodes[u], u in relaxed) for u in users[number]):
            relaxed.add(number)
    return frozenset(n for n in relaxed if outputs_of(graph.nodes[n])[0].dtype == np.float32)


def _allows(graph: Graph, number: int, user: Node, user_relaxed: bool) -> bool:
    """Whether `user` may read a relaxed result of node `number`."""
    match user:
        case Map("convert_element_type"):
            return is_narrow_float(user.array.dtype) or user_relaxed
        case Map():
            return user_relaxed and user.op in _KEEPS_RELATIVE_ERROR
        case Contract():  # float32 operands are rounded to TensorFloat-32
            return dict(user.params)["precision"] == "DEFAULT"
        case Reduce("sum"):
            source = graph.nodes[number]
            return user_relaxed and isinstance(source, Map) and source.op in _NEVER_NEGATIVE
        case _:
            return False
