"""Which configurations are hardly ever the fastest, and long in the compiler: to be tried where no other is left.

Input: a kernel and one of its configurations.  Output: whether it is one of them.  Invariant: what is said here rests
on configurations that a device has timed, or that do not fit a thread's registers.

Of YOLOv4's kernels these, and what `different` leaves out, took 0.7 of the time of all processors; an H200 runs the
kernels in 812 µs without them and in 811 with them.
"""

from __future__ import annotations

import math

from jaxorch.ir.graph import Contract, Graph, Map
from jaxorch.ir.view import View
from jaxorch.kernels.configs import Config, computes_many
from jaxorch.kernels.kernel import Kernel

__all__ = ["doubtful"]

# Sums that a thread has of a tile, and nodes of a kernel around a product, from which registers spill: an activation of
# the operand and one of the result are as many. Of 117 such configurations for 260 kernels of four networks none was
# the fastest; nor of 35 of which a thread computes more than 16 elements.
_SUMS, _NODES = 64, 20
_PIECE = 16  # bytes that are copied to shared memory at once


def doubtful(graph: Graph, kernel: Kernel, config: Config) -> bool:
    """Whether a configuration of a product is one of those that spill, or loads what had better be copied.

    What a convolution of single elements multiplies is such, where it lies in whole pieces: loads pass by the
    first-level cache, in which nothing is shared then, and all their steps are written out. Of 86 kernels they were the
    fastest for 7, by 3 % where both were timed; of 7 whose pieces are cut, for all. Features that are shuffled out of
    several arrays are single elements of each: of one such product a copying configuration took 80 µs, and 8 loading.
    """
    product = graph.nodes[kernel.core.last] if kernel.core else None
    if kernel.schedule != "gemm" or not isinstance(product, Contract):
        return False
    if config.turns > 1:  # of many columns a program sums few at once
        return False
    if kernel.unrolled:
        return computes_many(kernel, config)
    sums = config.block_rows * config.block_columns * config.heads
    if config.splits == 1 and len(kernel.nodes) > _NODES and sums >= _SUMS * 32 * config.num_warps:
        return True
    alone = product.convolves and math.prod(product.domain[a] for a in product.axes[:-1]) == 1
    if config.num_stages > 1 or not alone or not _in_pieces(graph, kernel, product):
        return False
    return all(_has_one_source(graph, kernel, view) for view in product.operands)


def _in_pieces(graph: Graph, kernel: Kernel, product: Contract) -> bool:
    """Whether the rows of both operands are whole pieces."""
    assert kernel.core is not None
    frame, itemsize = kernel.frames[0], graph.array(product.operands[0].pieces[0].value).dtype.itemsize
    rows = (kernel.core.key if along else n for along, n in zip(frame.keys_along, frame.sizes[1:3], strict=True))
    return all(n * itemsize % _PIECE == 0 for n in rows)


def _has_one_source(graph: Graph, kernel: Kernel, view: View) -> bool:
    """Whether neither a view nor what the kernel computes for it chooses among several sources."""
    inside = [graph.nodes[value.node] for value in view.values if value.node in kernel.nodes]
    computed = [v for node in inside if isinstance(node, Map) for v in node.operands]
    return len(view.pieces) == 1 and all(_has_one_source(graph, kernel, v) for v in computed)
