"""What XLA's convolutions cost: cuDNN's arithmetic, and the arrays that it wants as they are traced.

Input: a Contract that was a convolution.  Output: µs beside moving its operands and result once.  The rates were
measured on an H200 with XLA's own choice of cuDNN's kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Contract, Graph
from jaxorch.ir.index import FloorDiv, Mod
from jaxorch.ir.simplify import coefficient
from jaxorch.kernels.frame import split_axis
from jaxorch.orchestration.devices import Device
from jaxorch.passes.derive.arrange import varied_axes

__all__ = ["Shape", "convolution_time", "shape_of"]

_COPY_EFFICIENCY = 0.6  # of the copy rate, as XLA's other movement
_DENSE = 0.75  # of the matrix rate: 28 µs for 14.8 GFLOP of 128 features; with 64 features and more on both sides
_FULL = 64  # features of a group on either side below which the rate falls in proportion: 130 µs for 3.8 GFLOP from 3
_DEPTHWISE = 0.2  # of the vector rate: some 65 µs for 839 MFLOP


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how fast a convolution is.

    inside, outside: features of a group that a result sums over, and that the group makes.  elements: of the left
    operand as an array, about.
    """

    inside: int
    outside: int
    elements: int


def convolution_time(graph: Graph, node: Contract, device: Device, moved: float) -> float:
    """What to add to the time of moving `moved` bytes, µs."""
    dtype = graph.array(node.operands[0].pieces[0].value).dtype
    shape = shape_of(graph, node)
    if shape.inside == shape.outside == 1:
        rate = device.vector_flops * _DEPTHWISE
    else:
        narrow = min(shape.inside, _FULL) / _FULL * min(shape.outside, 16) / 16
        rate = device.matmul_flops(dtype.name) * _DENSE * narrow
    if dtype.name == "float32" and dict(node.params)["precision"] != "DEFAULT":
        rate = min(rate, device.vector_flops)
    arithmetic = node.flops / rate * 1e6
    hidden = min(moved / device.memory_bandwidth * 1e6, arithmetic)  # memory and arithmetic work at once
    if _slides(graph, node):
        return arithmetic - hidden
    made = 2 * shape.elements * dtype.itemsize / device.memory_bandwidth / _COPY_EFFICIENCY
    return arithmetic - hidden + (made + device.xla_launch_s) * 1e6


def shape_of(graph: Graph, node: Contract) -> Shape:
    """The sizes of a convolution, from its views."""
    left, right = node.operands
    own, others, sizes = set(varied_axes(left)), set(varied_axes(right)), left.domain
    indices = [e for p in left.pieces for e in p.index]
    window = _window(node, others)
    inside = math.prod(sizes[a] for a in set(node.axes) - window)
    kept = others - set(node.axes)
    groups = [split_axis(indices, a, sizes[a]) for a in sorted(kept & own)]
    outside = math.prod(factors[-1] for factors in groups if len(factors) > 1)
    outside *= math.prod(sizes[a] for a in kept - own)
    return Shape(inside, outside, math.prod(sizes[a] for a in own - window))


def _window(node: Contract, others: set[int]) -> set[int]:
    """The contracted axes along which the left operand slides with axes that the right one does not have."""
    found = set[int]()
    for piece in node.operands[0].pieces:
        for dims in map(ix.dims_of, (*piece.index, *(b.expr for b in piece.guard))):
            found |= dims & set(node.axes) if dims - others else set[int]()
    return found


def _slides(graph: Graph, node: Contract) -> bool:
    """Whether the left operand is a window sliding over one array, with zeros around: what a library reads in place."""
    view, others = node.operands[0], set(varied_axes(node.operands[1]))
    pieces = [p for p in view.pieces if not isinstance(graph.nodes[p.value.node], Const)]
    if len(pieces) != 1:
        return False
    dilated = {e.divisor for b in pieces[0].guard for e in [b.expr] if isinstance(e, Mod)}
    for e in pieces[0].index:
        moving = ix.dims_of(e) - others
        straight = all(coefficient(e, a, view.domain) is not None for a in moving)
        if not straight and not (isinstance(e, FloorDiv) and e.divisor in dilated):
            return False
    return True
