"""What XLA's convolutions cost: cuDNN's arithmetic, and the arrays that it wants as they are traced.

Input: a Contract that was a convolution.  Output: µs beside moving its operands and result once.  The rates were
measured on an H200 with XLA's own choice of cuDNN's kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Contract, Graph
from jaxorch.ir.index import Dim
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.kernels.frame import split_axis
from jaxorch.orchestration.devices import Device
from jaxorch.passes.derive.arrange import varied_axes

__all__ = ["Shape", "convolution_time", "shape_of", "slides"]

_COPY_EFFICIENCY = 0.6  # of the copy rate, as XLA's other movement
_DENSE = 0.82  # of the matrix rate: 28 µs, filling included, for 14.8 GFLOP; with 64 features and more on both sides
_FULL = 64  # features of a group on either side below which the rate falls in proportion: 130 µs for 3.8 GFLOP from 3
_TRANSPOSED = 0.05  # of the matrix rate, and every operand rearranged: 235 µs for four of 0.1 to 1.1 GFLOP in float32
_REARRANGED = 5  # launches beside it then: four such convolutions of one image of 4 x 4 to 32 x 32 took 72 µs
_DEPTHWISE = 0.2  # of the vector rate: some 65 µs for 839 MFLOP


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how fast a convolution is.

    inside, outside: features of a group that a result sums over, and that the group makes.  elements: of the left
    operand as an array, about.  transposed: whether the left operand is dilated, so that weights differ by place.
    """

    inside: int
    outside: int
    elements: int
    transposed: bool


def convolution_time(graph: Graph, node: Contract, device: Device, moved: float) -> float:
    """What to add to the time of moving `moved` bytes, µs."""
    dtype = graph.array(node.operands[0].pieces[0].value).dtype
    shape = shape_of(node)
    arithmetic = node.flops / _rate(node, shape, dtype.name, device) * 1e6
    time = arithmetic - min(moved / device.memory_bandwidth * 1e6, arithmetic)  # memory and arithmetic work at once
    copied = moved if shape.transposed else 0.0
    if not _features_last(graph, node):  # on one side of it: on the other XLA's next convolution may have the order
        copied = max(copied, moved / 2)
    if not _in_place(graph, node):
        copied = max(copied, shape.elements * dtype.itemsize)
    weights = _weights_copied(graph, node)
    launches = _REARRANGED if shape.transposed else bool(copied) + bool(weights)
    copies = 2 * (copied + weights) / device.memory_bandwidth / _COPY_EFFICIENCY
    return time + (copies + launches * device.xla_launch_s) * 1e6


def _rate(node: Contract, shape: Shape, dtype: str, device: Device) -> float:
    if shape.inside == shape.outside == 1:
        return device.vector_flops * _DEPTHWISE
    narrow = min(shape.inside, _FULL) / _FULL * min(shape.outside, 16) / 16
    rate = device.matmul_flops(dtype) * (_TRANSPOSED if shape.transposed else _DENSE * narrow)
    exact = dtype == "float32" and dict(node.params)["precision"] != "DEFAULT"
    return min(rate, device.vector_flops) if exact else rate


def slides(node: Contract) -> bool:
    """Whether it is a convolution by more than single elements."""
    return node.convolves and bool(_window(node)[0])


def shape_of(node: Contract) -> Shape:
    """The sizes of a convolution, from its views."""
    left, right = node.operands
    own, others, sizes = set(varied_axes(left)), set(varied_axes(right)), left.domain
    window, places = _window(node)
    inside = math.prod(sizes[a] for a in set(node.axes) - window)
    features = others - set(node.axes) - places
    groups = [split_axis((e for p in left.pieces for e in p.index), a, sizes[a]) for a in sorted(features & own)]
    outside = math.prod(factors[-1] for factors in groups if len(factors) > 1)
    outside *= math.prod(sizes[a] for a in features - own)
    return Shape(inside, outside, math.prod(sizes[a] for a in own - window), bool(places & others))


def _window(node: Contract) -> tuple[set[int], set[int]]:
    """The contracted axes of the window, and the others along which the left operand slides with them."""
    left, right = node.operands
    features = {e.axis for p in right.pieces for e in p.index if isinstance(e, Dim)}
    window, places = set[int](), set[int]()
    for piece in left.pieces:
        for dims in map(ix.dims_of, (*piece.index, *(b.expr for b in piece.guard))):
            moving = dims - features - set(node.axes)
            if moving and dims & set(node.axes):
                window |= dims & set(node.axes)
                places |= moving
    return window, places


def _features_last(graph: Graph, node: Contract) -> bool:
    """Whether the features of the left operand lie side by side, as cuDNN's kernels for the matrix unit have them."""
    view, (window, _) = node.operands[0], _window(node)
    features = [a for a in node.axes if a not in window and view.domain[a] > 1]
    arrays = [(p, graph.array(p.value).shape) for p in view.pieces if p.index]
    flat = [simplify(ix.linearize(p.index, shape), view.domain) for p, shape in arrays]
    return all(coefficient(e, a, view.domain) in (1, None) for e in flat for a in features[-1:])


def _in_place(graph: Graph, node: Contract) -> bool:
    """Whether the left operand is a window sliding over one array, with zeros around: what a library reads in place."""
    view, others = node.operands[0], set(varied_axes(node.operands[1])) - set(node.axes)  # groups, and phases
    pieces = [p for p in view.pieces if not isinstance(graph.nodes[p.value.node], Const)]
    if len(pieces) != 1:
        return False
    flat = simplify(ix.linearize(pieces[0].index, graph.array(pieces[0].value).shape), view.domain)
    return all(coefficient(flat, a, view.domain) is not None for a in set(varied_axes(view)) - others)


def _weights_copied(graph: Graph, node: Contract) -> int:
    """Bytes of the weights if cuDNN does not read them in place, the features that are summed side by side."""
    piece, window = node.operands[1].pieces[0], _window(node)[0]
    array = graph.array(piece.value)
    features = [a for a in node.axes if a not in window and node.domain[a] > 1]
    flat = simplify(ix.linearize(piece.index, array.shape), node.domain)
    return 0 if all(coefficient(flat, a, node.domain) == 1 for a in features[-1:]) else array.nbytes
