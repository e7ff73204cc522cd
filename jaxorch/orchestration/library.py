"""What XLA's own matrix products cost beyond reading and writing their operands once.

Input: a Contract.  Output: µs for the arithmetic, and for the copies of operands that cuBLAS cannot read
where they are.  A library call takes each operand as one batch of matrices with one stride a dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.ir.view import View
from jaxorch.orchestration.devices import Device

__all__ = ["product_time"]

_COPY_EFFICIENCY = 0.6  # of the copy rate, as XLA's other movement
_NAMES = {"DEFAULT": 1.0, "HIGH": 3.0}


def product_time(graph: Graph, node: Contract, device: Device, moved: float) -> float:
    """What to add to the time of moving `moved` bytes, µs."""
    dtype = graph.array(node.operands[0].pieces[0].value).dtype
    precision = str(dict(node.params)["precision"])
    rate = device.matmul_flops(dtype.name)
    if dtype.name == "float32":
        rate = rate / _NAMES[precision] if precision in _NAMES else device.vector_flops
    arithmetic = node.flops / rate * 1e6
    hidden = min(moved / device.memory_bandwidth * 1e6, arithmetic)  # memory and the matrix unit work at once
    copies = 0.0
    for k, view in enumerate(node.operands):
        if not _is_readable(graph, node, view, node.operands[1 - k]):
            size = math.prod(view.domain[a] for a in _axes(view)) * dtype.itemsize
            copies += 2 * size / device.memory_bandwidth / _COPY_EFFICIENCY * 1e6 + device.xla_launch_s * 1e6
    return arithmetic - hidden + copies


def _axes(view: View) -> list[int]:
    """The axes that the view varies along."""
    found = frozenset[int]()
    for piece in view.pieces:
        found |= ix.guard_dims(piece.guard).union(*(ix.dims_of(e) for e in piece.index))
    return sorted(found)


def _is_readable(graph: Graph, node: Contract, view: View, other: View) -> bool:
    """Whether a library reads the operand where it is: strided groups of axes, one of them contiguous."""
    if len(view.pieces) != 1 or view.pieces[0].guard:
        return False
    (piece,) = view.pieces
    flat = simplify(ix.linearize(piece.index, graph.array(piece.value).shape), view.domain)
    if any(ix.lookups_in(flat)):
        return False
    own, others = _axes(view), _axes(other)
    strides = {a: coefficient(flat, a, view.domain) for a in own}
    batch = [a for a in own if a in others and a not in node.axes]
    free = [a for a in own if a not in others]
    contracted = [a for a in own if a in node.axes]
    if any(s is None for s in strides.values()):
        return False
    groups = [[(strides[a] or 0, view.domain[a]) for a in axes] for axes in (batch, free, contracted)]
    return all(map(_is_one, groups)) and any(1 in (s for s, _ in group) for group in groups[1:])


def _is_one(group: Sequence[tuple[int, int]]) -> bool:
    """Whether axes of (stride, size) together have one stride."""
    wide = [(s, n) for s, n in group if n > 1]
    return all(a == b * n for (a, _), (b, n) in pairwise(wide))
