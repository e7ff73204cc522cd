"""What XLA's convolutions cost: cuDNN's arithmetic, and the arrays that it wants as they are traced.

Input: a Contract that was a convolution.  Output: µs beside moving its operands and result once, and what transposes
around it take.  The rates were measured on an H200 with XLA's own choice of cuDNN's kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Contract, Graph
from jaxorch.ir.index import Dim
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.ir.view import Piece, View
from jaxorch.kernels.frame import split_axis
from jaxorch.orchestration.devices import Device
from jaxorch.passes.derive.arrange import varied_axes

__all__ = ["Shape", "convolution_time", "copies_time", "shape_of", "slides", "transposes_time"]

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
    """What to add to the time of moving `moved` bytes, µs, where image and result are in cuDNN's order."""
    dtype = graph.array(node.operands[0].pieces[0].value).dtype
    shape = shape_of(node)
    arithmetic = node.flops / _rate(node, shape, dtype.name, device) * 1e6
    time = arithmetic - min(moved / device.memory_bandwidth * 1e6, arithmetic)  # memory and arithmetic work at once
    image = 0 if _in_place(graph, node) else shape.elements * dtype.itemsize
    copied = (max(image, moved) if shape.transposed else image, _weights_copied(graph, node))
    return time + copies_time(copied, device, _REARRANGED if shape.transposed else 0)


def transposes_time(graph: Graph, node: Contract, device: Device) -> float:
    """What transposing image and result takes where they are in another order, µs: whoever makes or reads them."""
    return copies_time((_image_transposed(graph, node), _result_transposed(node)), device)


def copies_time(nbytes: Sequence[float], device: Device, launches: int = 0) -> float:
    """Of arrays of so many bytes, where there are any, in a launch each; `launches`: at least."""
    launched = max(launches, sum(map(bool, nbytes)))
    return (2 * sum(nbytes) / device.memory_bandwidth / _COPY_EFFICIENCY + launched * device.xla_launch_s) * 1e6


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
    features = _features(node)
    groups = [split_axis((e for p in left.pieces for e in p.index), a, sizes[a]) for a in sorted(features & own)]
    outside = math.prod(factors[-1] for factors in groups if len(factors) > 1)
    outside *= math.prod(sizes[a] for a in features - own)
    return Shape(inside, outside, math.prod(sizes[a] for a in own - window), bool(places & others))


def _features(node: Contract) -> set[int]:
    """The axes along which the features of the result lie."""
    return {*varied_axes(node.operands[1])} - {*node.axes} - _window(node)[1]


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


# What it reads and writes in place


def _image_transposed(graph: Graph, node: Contract) -> float:
    """Bytes of the left operand if it is in another order, and not written anew in any case."""
    if not _in_place(graph, node):
        return 0.0
    view = node.operands[0]
    (piece,) = _arrays(graph, view)
    steps = _steps(graph, piece, view.domain, _fastest(node, view))
    return 0.0 if all(step in (1, None) for step in steps) else graph.array(piece.value).nbytes


def _weights_copied(graph: Graph, node: Contract) -> float:
    view = node.operands[1]
    steps = _steps(graph, view.pieces[0], view.domain, _fastest(node, view))
    return 0.0 if all(step == 1 for step in steps) else graph.array(view.pieces[0].value).nbytes


def _result_transposed(node: Contract) -> float:
    """Bytes of the result if it is not in the order in which cuDNN writes it."""
    sizes, features = node.array.shape, _features(node)
    long = [a for a, n in enumerate(sizes) if n > 1]
    if not features.intersection(long) or not set(long) - features - {0}:
        return 0.0
    return 0.0 if (long[-1] in features) == _features_are_last(node) else node.array.nbytes


def _features_are_last(node: Contract) -> bool:
    """Whether XLA has cuDNN's images and weights with the features last: those of up to two axes beside these."""
    return len(node.array.shape) <= 4


def _fastest(node: Contract, view: View) -> list[int]:
    """The axis along which the elements of an operand lie side by side where cuDNN reads it in place, if it is long."""
    window, places = _window(node)
    inside = [a for a in node.axes if a not in window]
    if not _features_are_last(node):
        ordered = sorted(window or places)
    elif any(view.domain[a] > 1 for a in inside) or view is node.operands[1]:
        ordered = inside
    else:  # a convolution of each feature by itself
        ordered = sorted(_features(node) & {*varied_axes(view)})
    return [a for a in ordered if view.domain[a] > 1][-1:]


def _arrays(graph: Graph, view: View) -> list[Piece]:
    """The pieces of a view that read more than a constant."""
    return [p for p in view.pieces if not isinstance(graph.nodes[p.value.node], Const)]


def _steps(graph: Graph, piece: Piece, sizes: Sequence[int], axes: Sequence[int]) -> list[int | None]:
    """How far apart the elements lie that a piece reads along these axes; None where that is not known."""
    flat = simplify(ix.linearize(piece.index, graph.array(piece.value).shape), sizes)
    return [coefficient(flat, a, sizes) for a in axes]


def _in_place(graph: Graph, node: Contract) -> bool:
    """Whether the left operand is a window sliding over one whole array, with zeros around: what cuDNN reads as is."""
    view, others = node.operands[0], set(varied_axes(node.operands[1])) - set(node.axes)  # groups, and phases
    pieces = _arrays(graph, view)
    if len(pieces) != 1:
        return False
    (piece,), shape = pieces, graph.array(pieces[0].value).shape
    slides = frozenset[int]().union(*_window(node))
    whole = (
        ix.range_of(e, view.domain) == (0, n - 1)
        for e, n in zip(piece.index, shape, strict=True)
        if not ix.dims_of(e) & slides
    )
    return all(whole) and None not in _steps(graph, piece, view.domain, sorted({*varied_axes(view)} - others))
