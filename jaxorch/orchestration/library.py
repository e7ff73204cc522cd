"""What XLA's own matrix products and convolutions cost beyond reading and writing their operands once.

Input: a Contract.  Output: µs for the arithmetic, for filling the kernel, and for the copies of operands that cuBLAS
cannot read where they are.  A library call takes each operand as one batch of matrices with one stride a dimension.
Rows in segments XLA copies once for each, zero where they are another's, and multiplies by all matrices.
"""

from __future__ import annotations

import math

from jaxorch.ir.graph import Contract, Graph
from jaxorch.orchestration.convolution import convolution_time, copies_time, transposes_time
from jaxorch.orchestration.devices import Device
from jaxorch.passes.derive.arrange import is_readable, varied_axes

__all__ = ["product_time"]

_PASSES = {"DEFAULT": 1.0, "HIGH": 3.0}  # of TF32 products, for one of float32

# What small ones take beside: µs, and µs by the square root of a thousand contracted elements, which are one after the
# other. Fitted to what XLA's versions of 76 products and 69 convolutions took in networks on an H200: the estimates
# without it are half of that, with it they are off by 23 and 25 % (geometric mean). Those of many µs hide most of it.
_FILLED, _IN_TURN = 1.7, 4.0
_CONVOLUTION_FILLED, _CONVOLUTION_IN_TURN = 2.9, 5.5
_HIDING_US = 8.0


def product_time(graph: Graph, node: Contract, device: Device, moved: float) -> float:
    """What to add to the time of moving `moved` bytes, µs."""
    memory, in_turn = moved / device.memory_bandwidth * 1e6, math.sqrt(node.count / 1000)
    if node.convolves:
        time = convolution_time(graph, node, device, moved)
        filling = _CONVOLUTION_FILLED + _CONVOLUTION_IN_TURN * in_turn
        time += filling * _HIDING_US / (_HIDING_US + memory + time)
        return time + transposes_time(graph, node, device)
    dtype = graph.array(node.operands[0].pieces[0].value).dtype
    segments = graph.array(node.segment.value).size if node.segment else 1
    precision = str(dict(node.params)["precision"])
    rate = device.matmul_flops(dtype.name)
    if dtype.name == "float32":
        rate = rate / _PASSES[precision] if precision in _PASSES else device.vector_flops
    arithmetic = segments * node.flops / rate * 1e6
    hidden = min(memory, arithmetic)  # memory and the matrix unit work at once
    filling = (_FILLED + _IN_TURN * in_turn) * _HIDING_US / (_HIDING_US + max(memory, arithmetic))
    left, right = node.operands
    copied = [v for v, other in ((left, right), (right, left)) if not is_readable(graph, node, v, other)]
    again = (left,) if node.segment else copied  # once for each segment
    elements = (math.prod(view.domain[a] for a in varied_axes(view)) for view in again)
    copies = [(1 + segments) / 2 * n * dtype.itemsize for n in elements]
    return arithmetic - hidden + filling + copies_time(copies, device)
