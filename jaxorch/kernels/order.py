"""The order in which a launch's programs walk their axes, and what it makes memory deliver again.

Input: a kernel's accesses over its domain, and a frame.  Output: the frame, before it one that walks better
if there is one, each with the bytes that are read again.  Invariant: orders differ in speed alone.

Programs start in the order of their number.  An operand that does not vary along an axis is read again at every
step along it: from the second-level cache if what is read and written between two uses fits there, else from
memory.  So such an axis is walked fastest, next to the one that does not leave the operand's place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.ir.value import Value
from jaxorch.kernels.access import Accesses, Load, stored_array
from jaxorch.kernels.frame import Frame
from jaxorch.passes.derive import SECTOR

__all__ = ["KEPT_BYTES", "walked_pointwise", "walked_rows"]

# What the second-level cache of every device table holds (the least has 20 MiB): a plan does not depend on the device.
KEPT_BYTES = 16 << 20
_RUN_BYTES = 128  # shorter runs want their neighbours in memory read at about the same time
_WORTH = 0.05  # the part of all bytes that another order must save
_PROGRAM_COLUMNS = 1024  # columns that fill a program


@dataclass(frozen=True, slots=True)
class _Traffic:
    """One array of a launch: the domain's axes it varies along, and its bytes."""

    axes: frozenset[int]
    nbytes: int


def walked_rows(graph: Graph, outputs: Sequence[Value], accesses: Accesses, frame: Frame) -> tuple[Frame, ...]:
    """`frame`, whose programs walk its rows in the order of its row axes, after a better order if there is one."""
    arrays = _traffic(graph, outputs, accesses, len(frame.domain))
    if not accesses.loads:
        return (frame,)
    largest = max(accesses.loads, key=lambda load: graph.array(load.value).nbytes)
    itemsize, strides = graph.array(largest.value).dtype.itemsize, _strides(graph, largest)
    run = _run(largest, strides, frame.rows) * itemsize
    if frame.rows and run < SECTOR and strides[frame.rows[-1]] == 1:
        frame = replace(frame, together=SECTOR // itemsize)
    if len(frame.rows) < 2 or sum(a.nbytes for a in arrays) <= KEPT_BYTES:
        return (frame,)
    given = _with_again(frame, arrays)
    if run < _RUN_BYTES:
        ordered = replace(given, rows=_by_stride(strides, frame.rows))
        return tuple(dict.fromkeys((_with_again(ordered, arrays), given)))
    # with the axes of reuse as a tile's rows, its operand is loaded once for all of them
    walks = [replace(frame, grid=slow, rows=fast) for slow, fast in _orders(frame.rows, arrays)]
    return _better(walks, given, arrays)


def walked_pointwise(
    graph: Graph, outputs: Sequence[Value], accesses: Accesses, frames: tuple[Frame, ...]
) -> tuple[Frame, ...]:
    """`frames` of a kernel without reductions, after one whose grid walks in a better order if there is one."""
    domain = frames[0].domain
    arrays = _traffic(graph, outputs, accesses, len(domain))
    if sum(a.nbytes for a in arrays) <= KEPT_BYTES:
        return frames
    given = [_with_again(frame, arrays) for frame in frames]
    first = max((a for a in range(len(domain)) if math.prod(domain[a:]) >= _PROGRAM_COLUMNS), default=0)
    unroll = max(frame.unroll for frame in frames)
    columns = tuple(range(first, len(domain)))
    walks = [Frame(domain, slow + fast, (), columns, unroll) for slow, fast in _orders(tuple(range(first)), arrays)]
    return (*_better(walks, given[0], arrays), *given[1:])


def _traffic(graph: Graph, outputs: Sequence[Value], accesses: Accesses, rank: int) -> list[_Traffic]:
    axes: dict[Value, frozenset[int]] = {}
    wanted: dict[Value, int] = {}
    for load in accesses.loads:
        dims = frozenset[int]().union(*(ix.dims_of(e) for e in load.index))
        axes[load.value] = axes.get(load.value, frozenset()) | {d for d in dims if d < rank}
        wanted[load.value] = wanted.get(load.value, 0) + math.prod(load.sizes[d] for d in dims)
    found = [_Traffic(axes[v], min(graph.array(v).size, n) * graph.array(v).dtype.itemsize) for v, n in wanted.items()]
    everywhere = frozenset(range(rank))
    return found + [_Traffic(everywhere, stored_array(graph, v).nbytes) for v in outputs]


def _orders(axes: tuple[int, ...], arrays: Sequence[_Traffic]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The axes that an array varies along, to be walked slowly, and those along which it is used again."""
    for varied in dict.fromkeys(a.axes for a in arrays):
        slow, fast = tuple(a for a in axes if a in varied), tuple(a for a in axes if a not in varied)
        if fast:
            yield slow, fast


def _better(walks: Sequence[Frame], given: Frame, arrays: Sequence[_Traffic]) -> tuple[Frame, ...]:
    counted = [_with_again(frame, arrays) for frame in walks]
    best = min(counted, key=lambda frame: frame.again, default=given)
    saved = given.again - best.again
    return (best, given) if saved > _WORTH * (sum(a.nbytes for a in arrays) + given.again) else (given,)


def _with_again(frame: Frame, arrays: Sequence[_Traffic]) -> Frame:
    order = (*frame.grid, *frame.rows, *frame.columns)
    return replace(frame, again=sum(_again(a, order, frame.domain, arrays) for a in arrays))


def _again(array: _Traffic, order: tuple[int, ...], domain: Sequence[int], arrays: Sequence[_Traffic]) -> int:
    """The bytes of an array that memory delivers more than once when the axes are walked in `order`, slowest first."""
    times = 1
    for place, axis in enumerate(order):
        if axis in array.axes:
            continue
        # between two uses of an element, the axes from the next one that it varies along are walked once
        inner = next((k for k in range(place + 1, len(order)) if order[k] in array.axes), len(order))
        between = sum(_touched(a, order[inner:], domain) for a in arrays)
        times *= domain[axis] if between > KEPT_BYTES else 1
    return array.nbytes * (times - 1)


def _touched(array: _Traffic, walked: Sequence[int], domain: Sequence[int]) -> float:
    """Bytes of an array that are touched while `walked` axes are walked once."""
    standing = math.prod(domain[a] for a in array.axes if a not in walked)
    return array.nbytes / standing


def _strides(graph: Graph, load: Load) -> list[int | None]:
    offset = simplify(ix.linearize(load.index, graph.array(load.value).shape), load.sizes)
    return [coefficient(offset, axis, load.sizes) for axis in range(len(load.sizes))]


def _run(load: Load, strides: Sequence[int | None], rows: Sequence[int]) -> int:
    """Elements of a load that lie side by side in one row."""
    steps = sorted((s, load.sizes[a]) for a, s in enumerate(strides) if s and a not in rows)
    run = 1
    for stride, size in steps:
        run *= size if stride == run else 1
    return run


def _by_stride(strides: Sequence[int | None], rows: tuple[int, ...]) -> tuple[int, ...]:
    """The row axes, the one along which a load's elements are nearest to one another last."""
    return tuple(sorted(rows, key=lambda a: (-abs(strides[a] or 0), a)))
