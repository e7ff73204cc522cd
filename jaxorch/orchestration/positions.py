"""How large the integers are that a program looks places up by: what random ones for timing must be like.

Input: a graph and values of it.  Output: for each value the largest place that is looked up by it, or 1.
A cache of which all but the first rows are masked, or a gather of one row again and again, would time as
nothing that is ever run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Map, Opaque, pieces_of, reads
from jaxorch.ir.index import Segment
from jaxorch.ir.value import Value
from jaxorch.ir.view import lookups

__all__ = ["largest_places"]

_ANY = np.iinfo(np.int32).max  # as a Lookup's clamp: whether the place is inside is what it is looked up for


def largest_places(graph: Graph, values: Sequence[Value]) -> tuple[int, ...]:
    """For each of `values` the largest place that is looked up by it, or by integers computed from it; else 1.

    Of lengths of segments, the largest that they may be to share out all places among them.
    """
    found: dict[Value, int] = {}
    for number in reversed(range(len(graph.nodes))):
        node = graph.nodes[number]
        for lookup in (k for piece in pieces_of(node) for k in lookups(piece)):
            if isinstance(lookup, Segment) and isinstance(node, Contract):
                found[lookup.value] = max(found.get(lookup.value, 1), _longest(graph, lookup, node.domain))
            elif lookup.high < _ANY:
                found[lookup.value] = max(found.get(lookup.value, 1), lookup.high)
        place = found.get(Value(number))
        if isinstance(node, Opaque):  # a loop may look up anything anywhere
            place = max((n for v in reads(node) for n in graph.array(v).shape), default=1)
        if place is None or not isinstance(node, Map | Opaque):
            continue
        for value in reads(node):
            if graph.array(value).dtype.kind in "iu":
                found[value] = max(found.get(value, 1), place)
    return tuple(found.get(value, 1) for value in values)


def _longest(graph: Graph, segment: Segment, sizes: tuple[int, ...]) -> int:
    """Twice the mean length of segments that all places lie in: lengths from 0 on that are drawn so fill them."""
    _, last = ix.range_of(segment.index[0], sizes)
    return max(2 * (last + 1) // graph.array(segment.value).size, 1)
